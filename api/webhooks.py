"""Every type of event: the shape of its data and an example, for the `webhooks` part of the API's description."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec

from api.endpoints import PingDocument
from ledger.documents import (
    AssetDocument,
    BlockDocument,
    ChainNoticeDocument,
    ChainReorgDocument,
    ConfirmationsDocument,
    DepositDocument,
    EventDocument,
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
from ledger.watches import WatchDocument


def data_type_of(event_type: str) -> Any:  # noqa: ANN401 (a type, known only at run time)
    """The document that is the `data` of an event."""
    single = {"watch.activated": WatchDocument, "chain.reorged": ChainReorgDocument}
    families = {
        "deposit": DepositDocument,
        "withdrawal": WithdrawalDocument,
        "test": PingDocument,
        "chain": ChainNoticeDocument,
        "endpoint": EndpointDocument,
    }
    return single.get(event_type) or families[event_type.split(".")[0]]


_AT = datetime(2024, 1, 13, 1, 2, 3, tzinfo=UTC)
_LATER = datetime(2024, 1, 13, 1, 4, 27, tzinfo=UTC)
_ASSET = "eip155:1/erc20:0xa0b86991c6218b36c1d19d4a2e9eb0ce3606eb48"
_NATIVE_ASSET = "eip155:1/slip44:60"
_WATCH = WatchLabelDocument("wat_018d0022d1f87e3a9c5b1d2e3f405162", "order-1", {"customer": "c-17"})
_ENDPOINT = "ep_018d0022aa007b2f8d3c4e5f60718293"
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
_LOST = ("reorged", "reversed", "dropped", "replaced")


def example_of(event_type: str) -> Any:  # noqa: ANN401 (plain JSON)
    """An event of that type, as its receiver reads it."""
    family, name = event_type.split(".")
    is_entry = family in ("deposit", "withdrawal")
    document: EventDocument[object] = EventDocument(
        id="evt_018d0025040c7d1e8f2a3b4c5d6e7f80",
        type=event_type,
        timestamp=time_of(_LATER),
        livemode=family not in ("test",),
        sequence=_SEQUENCES.get(name, 3) if is_entry else None,
        previous_state=_BEFORE[name] if is_entry else None,
        data=_entry(family, name) if is_entry else _other(event_type),
    )
    return msgspec.to_builtins(document)


def _entry(family: str, name: str) -> DepositDocument | WithdrawalDocument:
    is_deposit = family == "deposit"
    state = _STATE_OF.get(name, name)
    is_credited = state in ("confirmed", "finalized")
    common: dict[str, Any] = {
        "id": f"{'dep' if is_deposit else 'wdr'}_6f1c0d8b2a7e4f5390c1b2d3e4f5061728394a5b",
        "state": state,
        "sequence": _SEQUENCES.get(name, 3),
        "livemode": True,
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
        "transaction": TransactionDocument("0x" + "5e" * 32, 12),
        "transfer_id": "tr_0a1b2c3d4e5f60718293a4b5c6d7e8f901234567",
        "locator": LocatorDocument("log", "3", 118),
        "block": None if state in _LOST else BlockDocument(19_000_001, "0x" + "a1" * 32, time_of(_AT)),
        "confirmations": ConfirmationsDocument(
            _confirmations(state), 12, "12", "finalized" if state == "finalized" else "none", "ethereum/default@1"
        ),
        "proof": ProofDocument("roots", 2),
        "watch": _WATCH,
        "detected_at": time_of(_AT),
        "confirmed_at": time_of(_LATER) if is_credited else None,
        "finalized_at": time_of(_LATER) if state == "finalized" else None,
        "updated_at": time_of(_LATER),
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


def _other(event_type: str) -> object:
    if event_type == "test.ping":
        return PingDocument(_ENDPOINT, _ENDPOINT, "This is a test.")
    if event_type == "watch.activated":
        return WatchDocument(
            _WATCH.id,
            "ethereum",
            "0x9696f59e4d72e237be84ffd425dcad154bf96976",
            _WATCH.reference,
            _WATCH.metadata,
            None,
            19_000_001,
            "active",
        )
    if event_type.startswith("endpoint."):
        state = "paused" if event_type == "endpoint.paused" else "active"
        health = EndpointHealthDocument(time_of(_LATER), time_of(_AT), 3)
        return EndpointDocument(
            _ENDPOINT,
            "https://merchant.example/webhooks",
            None,
            None,
            state,
            None,
            time_of(_AT),
            time_of(_LATER),
            health,
        )
    return _chain(event_type)


def _chain(event_type: str) -> ChainNoticeDocument | ChainReorgDocument:
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
            "delayed_since": time_of(_LATER),
        },
        "chain.audit_failed": {
            "reason": "the ledger and the chain differ: 1 missing; the first between blocks 19000001 and 19000001: dep_018d",
            "runbook": "docs/operations.md#an-audit-found-something",
            "missed_deposits": 1,
        },
    }
    return ChainNoticeDocument("ethereum", "eip155:1", 19_000_001, 18_999_940, **facts.get(event_type, {}))


def event_name_of(event_type: str) -> str:
    """Name of an event's schema, e.g. `DepositConfirmedEvent`."""
    return "".join(word.capitalize() for word in event_type.split(".")) + "Event"
