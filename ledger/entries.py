"""Entries: reading them by what a commit needs, and writing them whole.

A commit reads what it touches under its chain's lock, decides in pure code (`indexer/story.py`), and writes the result:
new rows by COPY, changed ones by one compare-and-set UPDATE over their sequence.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any

from sqlalchemy import Select, Text, and_, bindparam, or_, select, union_all
from sqlalchemy.ext.asyncio import AsyncConnection

from chains.model import Address, ChainId, TransferId
from ledger.bulk import array_parameters, copy_rows, unnested, update_statement
from ledger.errors import StoryConflict
from ledger.ids import TenantId, WatchId
from ledger.model import ChainRow, Entry, WatchLabel
from ledger.rows import entry_from
from ledger.schema import entries, watches
from ledger.spent_nonces import AwaitedNonce
from ledger.states import LOST_STATES, SPENT_STATES, EntryState

KEYS = ("tenant_id", "id")

CHANGING = (
    "state",
    "sequence",
    "transaction_index",
    "fee_atomic",
    "locator_kind",
    "locator_path",
    "log_index",
    "block_height",
    "block_hash",
    "block_at",
    "proof",
    "agreed_by",
    "confirm_height",
    "confirmed_at",
    "finalized_at",
    "updated_at",
    "replaced_by",
)
"""Columns that an entry's story changes; every other one is fixed at detection."""

FIXED = ("amount_atomic", "asset_id", "sender", "recipient", "transaction_hash")
"""Columns that its transfer's identity commits to: a row that has others was altered behind our back."""

LOST_ADDRESSES_MAX = 10_000
"""Addresses with lost entries that a commit reads; beyond that it looks at every transfer instead."""

_update_entries = update_statement(entries, KEYS, CHANGING, counter="sequence")
_mend_entries = update_statement(entries, KEYS, FIXED, counter="sequence")

_transfer_ids = unnested("asked", id=Text())

_by_transfer = (
    select(entries)
    .join(_transfer_ids, entries.c.transfer_id == _transfer_ids.c.id)
    .where(entries.c.chain_id == bindparam("chain_id"))
)

_lost_states = tuple(state.value for state in LOST_STATES)
_spent_states = tuple(state.value for state in SPENT_STATES)


async def find_entries_of(
    connection: AsyncConnection, chain_id: ChainId, transfer_ids: Collection[TransferId]
) -> list[Entry]:
    """Every tenant's entries of the named transfers, whatever their state."""
    if not transfer_ids:
        return []
    parameters = {"all_id": list(transfer_ids), "chain_id": chain_id}
    return [entry_from(row) for row in await connection.execute(_by_transfer, parameters)]


@dataclass(frozen=True, slots=True)
class Lost:
    """What concerns entries that are in no canonical block."""

    addresses: set[Address] | None
    """Whose they are: a block may bring them back. None: too many to be named."""
    nonces: set[AwaitedNonce]
    """What their transactions would spend."""


async def find_lost(connection: AsyncConnection, chain_id: ChainId, *, is_below_finality: bool = False) -> Lost:
    """What concerns the entries that a block may bring back. `is_below_finality`: final blocks are about to be undone by
    an operator's leave, so that those which were given up count among them."""
    states = (*_lost_states, *_spent_states) if is_below_finality else _lost_states
    is_lost = and_(entries.c.chain_id == chain_id, entries.c.state.in_(states))
    addresses = select(entries.c.address).where(is_lost).distinct().limit(LOST_ADDRESSES_MAX + 1)
    found = set((await connection.execute(addresses)).scalars())
    if not found:
        return Lost(set(), set())
    nonces = select(entries.c.transaction_sender, entries.c.transaction_nonce).where(
        is_lost, entries.c.transaction_nonce.is_not(None)
    )
    awaited = {AwaitedNonce(sender, int(nonce)) for sender, nonce in await connection.execute(nonces.distinct())}
    return Lost(found if len(found) <= LOST_ADDRESSES_MAX else None, awaited)


async def find_entries_above(connection: AsyncConnection, chain_id: ChainId, height: int) -> list[Entry]:
    """Entries in canonical blocks above a height, oldest block first: what a reorg to that height touches."""
    statement = (
        select(entries)
        .where(entries.c.chain_id == chain_id, entries.c.block_height > height)
        .order_by(entries.c.block_height, entries.c.transaction_index, entries.c.id)
    )
    return [entry_from(row) for row in await connection.execute(statement)]


async def find_entries_in(connection: AsyncConnection, chain_id: ChainId, heights: Collection[int]) -> list[Entry]:
    """Entries that sit in our blocks at these heights, oldest block first.

    One of the statements that cross tenants."""
    statement = (
        select(entries)
        .where(entries.c.chain_id == chain_id, entries.c.block_height.in_(heights))
        .order_by(entries.c.block_height, entries.c.transaction_index, entries.c.id)
    )
    return [entry_from(row) for row in await connection.execute(statement)]


async def find_due_entries(connection: AsyncConnection, chain: ChainRow, limit: int) -> list[Entry]:
    """Entries whose credit point or finality the chain's heights have reached, oldest block first, at most `limit`.

    One of the statements that cross tenants."""
    if chain.tip_height is None:
        return []
    return [entry_from(row) for row in await connection.execute(_due_statement(chain, limit))]


def _due_statement(chain: ChainRow, limit: int) -> Select[Any]:
    """Each arm reads a partial index over unfinished entries only."""
    detected = and_(
        entries.c.chain_id == chain.chain_id,
        entries.c.state == EntryState.DETECTED.value,
        entries.c.block_height <= (chain.agreed_height if chain.agreed_height is not None else -1),
    )
    by_tag = or_(
        and_(entries.c.credit_at == "safe", entries.c.block_height <= _or_none(chain.safe_height)),
        and_(entries.c.credit_at == "finalized", entries.c.block_height <= _or_none(chain.finalized_height)),
    )
    finalized = and_(
        entries.c.chain_id == chain.chain_id,
        entries.c.state == EntryState.CONFIRMED.value,
        entries.c.block_height <= _or_none(chain.finalized_height),
    )
    arms = [
        select(entries.c.tenant_id, entries.c.id).where(detected, entries.c.confirm_height <= chain.tip_height),
        select(entries.c.tenant_id, entries.c.id).where(detected, entries.c.confirm_height.is_(None), by_tag),
        select(entries.c.tenant_id, entries.c.id).where(finalized),
    ]
    due = union_all(*arms).limit(limit).subquery("due")
    return (
        select(entries)
        .join(due, and_(entries.c.tenant_id == due.c.tenant_id, entries.c.id == due.c.id))
        .order_by(entries.c.block_height, entries.c.transaction_index, entries.c.id)
    )


def _or_none(height: int | None) -> int:
    """A height that no block has stands for a tag that we do not know."""
    return height if height is not None else -1


async def write_entries(
    connection: AsyncConnection, new: Sequence[Entry], changed: Sequence[tuple[Entry, Entry]]
) -> None:
    """Store new entries, and changed ones given as (before, after). Raises `StoryConflict` when an entry's sequence is
    not the one before: then nothing may be committed."""
    await copy_rows(connection, entries, [_columns(entry) for entry in new])
    if not changed:
        return
    rows = [_columns(after) for _, after in changed]
    parameters = array_parameters(rows, (*KEYS, *CHANGING))
    parameters["all_previous"] = [before.sequence for before, _ in changed]
    result = await connection.execute(_update_entries, parameters)
    if result.rowcount != len(changed):
        raise StoryConflict(
            f"{len(changed) - result.rowcount} of {len(changed)} entries changed under the chain's lock"
        )


async def mend_entries(connection: AsyncConnection, mended: Sequence[Entry]) -> None:
    """Give rows back what their transfers' identities commit to. The caller holds the chain's lock."""
    if mended:
        parameters = array_parameters([_columns(entry) for entry in mended], (*KEYS, *FIXED))
        await connection.execute(_mend_entries, {**parameters, "all_previous": [entry.sequence for entry in mended]})


_NAMES = tuple(field.name for field in fields(Entry))
_values_of = attrgetter(*_NAMES)


def _columns(entry: Entry) -> dict[str, Any]:
    # Not `dataclasses.asdict`, which copies every value deeply: it cost more than writing the row.
    return {**dict(zip(_NAMES, _values_of(entry), strict=True)), "reasons": list(entry.reasons)}


async def find_labels(
    connection: AsyncConnection, keys: Collection[tuple[TenantId, WatchId]]
) -> dict[tuple[TenantId, WatchId], WatchLabel]:
    """What the named watches are called by their tenants."""
    if not keys:
        return {}
    tenants, ids = zip(*keys, strict=True)
    asked = unnested("asked", tenant_id=Text(), id=Text())
    statement = select(watches.c.tenant_id, watches.c.id, watches.c.reference, watches.c.metadata).join(
        asked, and_(watches.c.tenant_id == asked.c.tenant_id, watches.c.id == asked.c.id)
    )
    rows = await connection.execute(statement, {"all_tenant_id": list(tenants), "all_id": list(ids)})
    return {(row.tenant_id, row.id): WatchLabel(row.id, row.reference, row.metadata) for row in rows}
