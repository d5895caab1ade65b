"""What an event of each type tells: the examples of the API's description, and what the test button sends.

One set of samples serves both, so that a test event has the published shape of the real one. A sample is set in a
*scene*: when it happened and what it is about. The published examples have one scene for ever; each test event has one of
its own, so that no receiver takes two tests for one deposit.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from secrets import token_hex
from typing import Any

import msgspec

from ledger.breaker import Breaker
from ledger.documents import (
    AssetDocument,
    BlockDocument,
    ChainNoticeDocument,
    ChainReorgDocument,
    ConfirmationsDocument,
    DepositDocument,
    FailureDocument,
    FeeDocument,
    LocatorDocument,
    ProofDocument,
    TipDocument,
    TransactionDocument,
    WatchLabelDocument,
    WithdrawalDocument,
    time_of,
)
from ledger.endpoints import EndpointDocument, EndpointHealthDocument
from ledger.ids import EndpointId, new_id
from ledger.states import EndpointHealth
from ledger.watches import WatchDocument

FAILING_FOR = timedelta(days=2, hours=13)
"""Of an endpoint that is warned of: a little longer than half the time that disables it."""

MADE_BEFORE = timedelta(days=30)


class PingDocument(msgspec.Struct, frozen=True, tag_field="object", tag="test"):
    """The data of a `test.ping`: it tells of nothing but itself."""

    id: str
    endpoint_id: str
    message: str


@dataclass(frozen=True, slots=True)
class Scene:
    """What differs from one telling of a sample to the next."""

    now: datetime
    """When the event happens."""
    endpoint_id: str
    digits: str
    """40 hexadecimal digits that name the deposit or withdrawal."""
    transfer_digits: str
    transaction_hash: str
    watch: WatchLabelDocument
    livemode: bool

    @property
    def before(self) -> datetime:
        """When the block of the deposit came."""
        return self.now - timedelta(minutes=2, seconds=24)


PUBLISHED = Scene(
    now=datetime(2024, 1, 13, 1, 4, 27, tzinfo=UTC),
    endpoint_id="ep_018d0022aa007b2f8d3c4e5f60718293",
    digits="6f1c0d8b2a7e4f5390c1b2d3e4f5061728394a5b",
    transfer_digits="0a1b2c3d4e5f60718293a4b5c6d7e8f901234567",
    transaction_hash="0x" + "5e" * 32,
    watch=WatchLabelDocument("wat_018d0022d1f87e3a9c5b1d2e3f405162", "order-1", {"customer": "c-17"}),
    livemode=True,
)
"""The scene of the examples in `/openapi.json`."""


def scene_of_test(endpoint_id: EndpointId, now: datetime) -> Scene:
    """A scene of its own for one press of the test button. Its watch names no order that a receiver may have."""
    watch = WatchLabelDocument(new_id("wat", now), "chainbell-test", {})
    return Scene(now, endpoint_id, token_hex(20), token_hex(20), "0x" + token_hex(32), watch, livemode=False)


_ASSET = "eip155:1/erc20:0xa0b86991c6218b36c1d19d4a2e9eb0ce3606eb48"
_NATIVE_ASSET = "eip155:1/slip44:60"
_PING = "This is a test. Verify its signature as you would that of a deposit, and answer 2xx."
_STATE_OF = {"moved": "confirmed"}
_BEFORE = {
    "detected": None,
    "confirmed": "detected",
    "finalized": "confirmed",
    "moved": "confirmed",
    "reorged": "detected",
    "reversed": "confirmed",
    "failed": None,
    "dropped": "reorged",
    "replaced": "reorged",
}
_SEQUENCES = {"detected": 1, "failed": 1, "confirmed": 2, "reorged": 2}
_ENTRIES = ("deposit", "withdrawal")
_LOST = ("reorged", "reversed", "dropped", "replaced")


def sequence_of(event_type: str) -> int | None:
    """The sequence number of a sample; None where the event is not of an entry."""
    family, name = event_type.split(".")
    return _SEQUENCES.get(name, 3) if family in _ENTRIES else None


def previous_state_of(event_type: str) -> str | None:
    """The state that a sample's entry left; None where there is none."""
    family, name = event_type.split(".")
    return _BEFORE[name] if family in _ENTRIES else None


def sample_data(event_type: str, scene: Scene) -> object:
    """The `data` of an event of that type, as its receiver reads it."""
    family, name = event_type.split(".")
    return _entry(family, name, scene) if family in _ENTRIES else _other(event_type, scene)


def _entry(family: str, name: str, scene: Scene) -> DepositDocument | WithdrawalDocument:
    is_deposit = family == "deposit"
    state = _STATE_OF.get(name, name)
    is_credited = state in ("confirmed", "finalized")
    common: dict[str, Any] = {
        "id": f"{'dep' if is_deposit else 'wdr'}_{scene.digits}",
        "state": state,
        "sequence": _SEQUENCES.get(name, 3),
        "livemode": scene.livemode,
        "disposition": "credit",
        "reasons": [],
        "origin": "live",
        "chain": "ethereum",
        "chain_id": "eip155:1",
        "asset": AssetDocument(_ASSET, "USDC", 6, _ASSET.rpartition(":")[2], "fungible"),
        "amount_atomic": "1500000",
        "amount": "1.5",
        "sender": "0x28c6c06298d514db089934071355e5743bf21d60",
        "recipient": "0x9696f59e4d72e237be84ffd425dcad154bf96976",
        "transaction": TransactionDocument(scene.transaction_hash, 12),
        "transfer_id": f"tr_{scene.transfer_digits}",
        "locator": LocatorDocument("log", "3", 118),
        "block": None if state in _LOST else BlockDocument(19_000_001, "0x" + "a1" * 32, time_of(scene.before)),
        "confirmations": ConfirmationsDocument(
            _confirmations(state), 12, "12", "finalized" if state == "finalized" else "none", "ethereum/default@1"
        ),
        "proof": ProofDocument("roots", 2),
        "watch": scene.watch,
        "detected_at": time_of(scene.now if _SEQUENCES.get(name) == 1 else scene.before),
        "confirmed_at": time_of(scene.now) if is_credited else None,
        "finalized_at": time_of(scene.now) if state == "finalized" else None,
        "updated_at": time_of(scene.now),
        "replaced_by": "0x" + "7d" * 32 if state in ("dropped", "replaced") else None,
    }
    if is_deposit:
        return DepositDocument(**common)
    if state == "failed":  # it moved nothing: what it would have moved is native, and no log tells of it
        common |= {
            "asset": AssetDocument(_NATIVE_ASSET, "ETH", 18, None, "native"),
            "amount_atomic": "250000000000000000",
            "amount": "0.25",
            "locator": LocatorDocument("transaction", "", None),
        }
    failure = FailureDocument("reverted", "the transaction was included and failed: only its fee was spent")
    fee = FeeDocument(_NATIVE_ASSET, "1302000000000000")
    return WithdrawalDocument(**common, fee=fee, failure=failure if state == "failed" else None)


def _confirmations(state: str) -> int:
    return {"detected": 1, "failed": 1, "confirmed": 12, "finalized": 75}.get(state, 0)


def _other(event_type: str, scene: Scene) -> object:
    if event_type == "test.ping":
        return PingDocument(scene.endpoint_id, scene.endpoint_id, _PING)
    if event_type == "watch.activated":
        return WatchDocument(
            scene.watch.id,
            "ethereum",
            "0x9696f59e4d72e237be84ffd425dcad154bf96976",
            scene.watch.reference,
            scene.watch.metadata,
            18_000_000,
            18_000_000,
            "active",
            "job_018d2f8a4c1e7b3f9a6d5c4b3a291807",
        )
    if event_type.startswith("endpoint."):
        state = "paused" if event_type == "endpoint.paused" else "active"
        health = EndpointHealthDocument(
            status=EndpointHealth.FAILING,
            breaker=Breaker.CLOSED,
            rests_until=None,
            failures_consecutive=12,
            failing_since=time_of(scene.now - FAILING_FOR),
            last_attempt_at=time_of(scene.now),
            last_accepted_at=time_of(scene.now - FAILING_FOR),
            last_failed_at=time_of(scene.now),
            last_status_code=503,
            last_error=None,
            deliveries=None,
            last_hour=None,
            last_day=None,
        )
        return EndpointDocument(
            scene.endpoint_id,
            "https://merchant.example/webhooks",
            None,
            None,
            None,
            state,
            "paused by its owner" if state == "paused" else None,
            time_of(scene.now - MADE_BEFORE),
            time_of(scene.now - MADE_BEFORE),
            health,
        )
    return _chain(event_type, scene)


def _chain(event_type: str, scene: Scene) -> ChainNoticeDocument | ChainReorgDocument:
    if event_type == "chain.reorged":
        old, new = TipDocument(19_000_001, "0x" + "a1" * 32), TipDocument(19_000_002, "0x" + "b2" * 32)
        return ChainReorgDocument("ethereum", "eip155:1", 2, 18_999_999, old, new)
    reason = "a reorg went below the finalized block 18999940"
    facts: dict[str, Any] = {
        "chain.halted": {"reason": reason, "runbook": "docs/operations.md#a-chain-is-halted"},
        "chain.resumed": {"halted_for": reason, "accept_reorg_to": 18_999_930},
        "chain.delayed": {
            "reason": "ethereum: no new block for more than 120 s: the nodes' head stays at 19000001",
            "runbook": "docs/operations.md#a-chain-stands-still",
            "delayed_since": time_of(scene.now),
        },
        "chain.audit_failed": {
            "reason": "the ledger and the chain differ: 1 missing; the first between blocks 19000001 and 19000001: dep_018d",
            "runbook": "docs/operations.md#an-audit-found-something",
            "missed_deposits": 1,
        },
    }
    return ChainNoticeDocument("ethereum", "eip155:1", 19_000_001, 18_999_940, **facts.get(event_type, {}))
