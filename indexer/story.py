"""The story of an entry: every way in which it changes, as pure functions from an entry to the next.

Each function returns a `Change`: the entry before (None when it is new), the entry after with the next sequence number,
and the type of the one event that tells of it. `ENTRY_TRANSITIONS` (`ledger/states.py`) is the map; `_change` refuses a
step that is not on it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from chains.model import Address, Block, ChainId, Transfer
from indexer.policy import CreditPoint
from ledger.ids import Side, entry_id_of
from ledger.matching import MatchedWatch
from ledger.model import ChainRow, Entry
from ledger.states import (
    CREDITED_STATES,
    ENTRY_TRANSITIONS,
    Disposition,
    EntryState,
    Origin,
    Reason,
)
from ledger.told import Told


@dataclass(frozen=True, slots=True)
class Change:
    """One step of an entry's story: one event."""

    before: Entry | None
    after: Entry
    event_type: str


@dataclass(frozen=True, slots=True)
class Inclusion:
    """A transfer as included in one block of our chain."""

    transfer: Transfer
    block: Block
    agreed_by: int

    @property
    def block_at(self) -> datetime:
        """Time in the block's header."""
        return datetime.fromtimestamp(self.block.timestamp_s, UTC)


def detect(
    inclusion: Inclusion,
    side: Side,
    watch: MatchedWatch,
    *,
    chain_id: ChainId,
    credit_point: CreditPoint,
    origin: Origin,
    now: datetime,
    reasons: tuple[Reason, ...] = (),
) -> Change:
    """A new entry: `detected`, or `failed` for a withdrawal whose transaction failed. With `reasons` it is told like any
    other and counts for nothing: its amount is not what arrived."""
    transfer, block = inclusion.transfer, inclusion.block
    carrier = transfer.transaction
    state = EntryState.FAILED if transfer.has_failed else EntryState.DETECTED
    entry = Entry(
        tenant_id=watch.tenant_id,
        id=entry_id_of(watch.tenant_id, side, transfer.id),
        side=side,
        state=state,
        sequence=1,
        disposition=Disposition.IGNORE if reasons else Disposition.CREDIT,
        reasons=reasons,
        origin=origin,
        chain_id=chain_id,
        asset_id=transfer.asset_id,
        amount_atomic=transfer.amount_atomic,
        sender=transfer.sender,
        recipient=transfer.recipient,
        address=watch.address,
        transfer_id=transfer.id,
        transaction_hash=carrier.hash if carrier else None,
        transaction_index=carrier.index if carrier else None,
        transaction_sender=carrier.sender if carrier else None,
        transaction_nonce=carrier.nonce if carrier else None,
        replaced_by=None,
        fee_atomic=_fee(transfer, side, watch.address),
        locator_kind=transfer.locator.kind,
        locator_path=transfer.locator.path,
        log_index=transfer.locator.log_index,
        block_height=block.ref.height,
        block_hash=block.ref.hash,
        block_at=inclusion.block_at,
        proof=(transfer.proof or block.proof).value,
        agreed_by=inclusion.agreed_by,
        policy=credit_point.policy,
        credit_at=credit_point.credit_at,
        confirm_height=credit_point.confirm_height(block.ref.height),
        watch_id=watch.label.id,
        detected_at=now,
        confirmed_at=None,
        finalized_at=None,
        updated_at=now,
    )
    return Change(None, entry, f"{side}.{state}")


_NOWHERE: dict[str, Any] = {"block_height": None, "block_hash": None, "block_at": None, "confirm_height": None}


def move(entry: Entry, inclusion: Inclusion, now: datetime) -> Change:
    """A reorg put the transfer into another block: the state stays, the block changes, nothing is retracted."""
    after = replace(entry, **_place(entry, inclusion), sequence=entry.sequence + 1, updated_at=now)
    return Change(entry, after, f"{entry.side}.moved")


def lose(entry: Entry, now: datetime) -> Change:
    """The entry lost its block and the new branch does not have it: `reversed` after credit, `reorged` before."""
    state = EntryState.REVERSED if entry.state in CREDITED_STATES else EntryState.REORGED
    return _change(entry, state, now, _NOWHERE | {"confirmed_at": None, "finalized_at": None})


def include_again(entry: Entry, inclusion: Inclusion, now: datetime) -> Change:
    """A block includes the transfer of a lost entry, or a failed one now succeeded (or the other way round)."""
    state = EntryState.FAILED if inclusion.transfer.has_failed else EntryState.DETECTED
    return _change(entry, state, now, _place(entry, inclusion))


def advance(entry: Entry, chain: ChainRow, now: datetime) -> list[Change]:
    """Every step that the chain's heights allow: `confirmed`, then `finalized`."""
    changes = []
    if is_credit_due(entry, chain):
        changes.append(_change(entry, EntryState.CONFIRMED, now, {"confirmed_at": now}))
        entry = changes[-1].after
    if is_finality_due(entry, chain):
        changes.append(_change(entry, EntryState.FINALIZED, now, {"finalized_at": now}))
    return changes


def is_credit_due(entry: Entry, chain: ChainRow) -> bool:
    """True when a detected entry has reached its policy's credit point and enough hosts name its block."""
    if entry.state is not EntryState.DETECTED or entry.block_height is None or chain.tip_height is None:
        return False
    if chain.agreed_height is None or entry.block_height > chain.agreed_height:
        return False
    if entry.confirm_height is not None:
        return entry.confirm_height <= chain.tip_height
    tag_height = chain.safe_height if entry.credit_at == "safe" else chain.finalized_height
    return tag_height is not None and entry.block_height <= tag_height


def is_finality_due(entry: Entry, chain: ChainRow) -> bool:
    """True when the chain's finality covers a confirmed entry's block."""
    return (
        entry.state is EntryState.CONFIRMED
        and entry.block_height is not None
        and chain.finalized_height is not None
        and entry.block_height <= chain.finalized_height
    )


def _fee(transfer: Transfer, side: Side, address: Address) -> int | None:
    """A withdrawal carries its transaction's fee only where the watched address paid it."""
    carrier = transfer.transaction
    if side is Side.DEPOSIT or carrier is None or carrier.sender != address:
        return None
    return carrier.fee_atomic


def _place(entry: Entry, inclusion: Inclusion) -> dict[str, Any]:
    """Columns that a block gives to an entry."""
    transfer, ref = inclusion.transfer, inclusion.block.ref
    point = CreditPoint(entry.policy, entry.credit_at)
    return {
        "transaction_index": transfer.transaction.index if transfer.transaction else None,
        "fee_atomic": _fee(transfer, entry.side, entry.address),
        "locator_kind": transfer.locator.kind,
        "locator_path": transfer.locator.path,
        "log_index": transfer.locator.log_index,
        "block_height": ref.height,
        "block_hash": ref.hash,
        "block_at": inclusion.block_at,
        "proof": (transfer.proof or inclusion.block.proof).value,
        "agreed_by": inclusion.agreed_by,
        "confirm_height": point.confirm_height(ref.height),
        "replaced_by": None,
    }


def _change(entry: Entry, state: EntryState, now: datetime, columns: dict[str, Any]) -> Change:
    if state not in ENTRY_TRANSITIONS[entry.state]:
        raise ValueError(f"{entry.id}: no step leads from {entry.state} to {state}")
    after = replace(entry, **columns, state=state, sequence=entry.sequence + 1, updated_at=now)
    return Change(entry, after, f"{entry.side}.{state}")


def restore(
    told: Told, inclusion: Inclusion, side: Side, watch: MatchedWatch, *, chain_id: ChainId, now: datetime
) -> Entry:
    """An entry whose row is gone, as its tenant was last told of it: its story goes on from there."""
    credit_point = CreditPoint(told.policy, told.credit_at)
    new = detect(
        inclusion,
        side,
        watch,
        chain_id=chain_id,
        credit_point=credit_point,
        origin=told.origin,
        now=now,
        reasons=tuple(Reason(reason) for reason in told.reasons),
    ).after
    height = told.block_height
    return replace(
        new,
        block_height=height,
        block_hash=told.block_hash,
        block_at=told.block_at,
        confirm_height=None if height is None else credit_point.confirm_height(height),
        state=told.state,
        sequence=told.sequence,
        disposition=told.disposition,
        watch_id=told.watch_id,
        detected_at=told.detected_at,
        confirmed_at=told.confirmed_at,
        finalized_at=told.finalized_at,
        updated_at=told.updated_at,
    )
