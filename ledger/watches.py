"""Watches: a tenant's interest in addresses, inserted so that what they cover is known exactly.

An insert holds the rows of the chains in its scope `FOR SHARE` until it commits: no block of them is committed
meanwhile, so a watch inserted at tip T is covered from T + 1, no sooner and no later. Ten thousand rows take Postgres a
fifth of a second, with their four indexes: so many are inserted before the lock is taken, and again under it only if a
block came in between.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import (
    JSON,
    BigInteger,
    Integer,
    Row,
    Select,
    Text,
    bindparam,
    cast,
    column,
    func,
    literal,
    literal_column,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.ext.asyncio import AsyncConnection

from chains.model import Address, hex_of
from ledger.chains import EVM_SCOPE, list_chains, share_chains
from ledger.database import lock_number
from ledger.errors import LedgerError
from ledger.ids import TenantId, WatchId, new_ids
from ledger.model import ChainRow
from ledger.schema import watches

UNDER_LOCK_MAX = 1_000
"""So many rows are inserted under the chains' lock: they take 20 ms. More are tried without it first."""


class BackfillNotAvailable(LedgerError):
    """Refuse the input: a watch asks for blocks before the first that can be covered. Nothing was written."""

    def __init__(self, index: int, covered_from: int | None) -> None:
        first = "its first block is not known yet" if covered_from is None else f"it is covered from {covered_from}"
        super().__init__(
            f"{first}, and blocks before that cannot be read again for a new watch; leave start_height out"
        )
        self.index = index


@dataclass(frozen=True, slots=True)
class NewWatch:
    """What a tenant asks for. `scope` is a chain id or `evm`."""

    scope: str
    address: Address
    reference: str | None
    metadata: Mapping[str, Any]
    start_height: int | None


@dataclass(frozen=True, slots=True)
class WatchRow:
    """A watch as its row stands."""

    id: WatchId
    scope: str
    address: Address
    reference: str | None
    metadata: Mapping[str, Any]
    start_height: int | None
    covered_from: Mapping[str, int]
    created_at: datetime
    deleted_at: datetime | None


@dataclass(frozen=True, slots=True)
class InsertedWatch:
    """The row that answers one asked watch, and whether it was made now."""

    row: WatchRow
    is_new: bool


class WatchDocument(msgspec.Struct, frozen=True, tag_field="object", tag="watch"):
    """A watch. `covered_from_height` is the first block whose transfers it turns into entries: a height, or for chain
    `evm` a height by chain; null until the chain has its first block. `status` is `active`, `exists` (in the answer to
    a POST: it was there before and was left as it is) or `deleted`."""

    id: str
    chain: str
    address: str
    reference: str | None
    metadata: dict[str, Any]
    start_height: int | None
    covered_from_height: int | dict[str, int | None] | None
    status: str


def watch_document(row: WatchRow, chains: Sequence[ChainRow], *, is_known: bool = False) -> WatchDocument:
    """A watch as JSON; `is_known` says that a POST found it there."""
    covered: dict[str, int | None] = {
        str(chain.slug): _covered_from(row, chain) for chain in chains if is_in_scope(chain, row.scope)
    }
    slug = next((str(chain.slug) for chain in chains if chain.chain_id == row.scope), row.scope)
    status = "deleted" if row.deleted_at is not None else "exists" if is_known else "active"
    return WatchDocument(
        id=row.id,
        chain=slug,
        address=hex_of(row.address),
        reference=row.reference,
        metadata=dict(row.metadata),
        start_height=row.start_height,
        covered_from_height=covered if row.scope == EVM_SCOPE else covered.get(slug),
        status=status,
    )


def is_in_scope(chain: ChainRow, scope: str) -> bool:
    """True when a watch of that scope is for this chain."""
    return chain.chain_id == scope or (scope == EVM_SCOPE and chain.chain_id.startswith("eip155:"))


def _covered_from(row: WatchRow, chain: ChainRow) -> int | None:
    covered = row.covered_from.get(chain.chain_id)
    return covered if covered is not None else chain.first_height


_asked = (
    func.json_to_recordset(cast(bindparam("asked", type_=Text), JSON))
    .table_valued(
        column("id", Text),
        column("scope", Text),
        column("address", Text),
        column("reference", Text),
        column("metadata", JSONB),
        column("start_height", BigInteger),
        column("course", Integer),
        name="asked",
    )
    .render_derived(with_types=True)
)
"""What one call asks for. JSON, because that is how ten thousand rows are written, sent and read with the least work: arrays
take the driver ten times as long, and COPY needs a table to go to."""

_address = func.decode(_asked.c.address, "hex")

_insert = (
    insert(watches)
    .from_select(
        ["tenant_id", "id", "scope", "address", "reference", "metadata", "start_height", "covered_from", "created_at"],
        select(
            bindparam("tenant_id", type_=Text),
            _asked.c.id,
            _asked.c.scope,
            _address,
            _asked.c.reference,
            _asked.c.metadata,
            _asked.c.start_height,
            cast(bindparam("courses", type_=Text), JSONB)[_asked.c.course],
            bindparam("now", type_=watches.c.created_at.type),
        )
        # All in one order: two calls with the same addresses must not wait for each other.
        .order_by(_asked.c.scope, _asked.c.address, _asked.c.id),
    )
    .on_conflict_do_nothing(
        index_elements=[watches.c.tenant_id, watches.c.scope, watches.c.address],
        index_where=watches.c.deleted_at.is_(None),
    )
    .execution_options(preserve_rowcount=True)
)

_columns = [column for column in watches.c if column.name != "tenant_id"]

# One look into the index for each row, as in ledger/matching.py.
_there = (
    select(*_columns)
    .where(
        watches.c.tenant_id == bindparam("tenant_id"),
        watches.c.scope == _asked.c.scope,
        watches.c.address == _address,
        watches.c.deleted_at.is_(None),
    )
    .offset(literal_column("0"))
    .lateral("there")
)
_find_live = select(*_there.c).select_from(_asked.join(_there, true()))


@dataclass(frozen=True, slots=True)
class _Load:
    """One call: its rows, each with the id that it gets if it is new. `courses` are the distinct pairs of scope and start
    height among them, and `course_of` says for each row which: rows of one course are covered alike."""

    tenant_id: TenantId
    asked: Sequence[NewWatch]
    ids: Sequence[WatchId]
    now: datetime
    courses: Sequence[tuple[str, int | None]]
    course_of: Sequence[int]
    as_json: str

    @property
    def scopes(self) -> set[str]:
        """Every scope that is asked for."""
        return {scope for scope, _ in self.courses}


def _make_load(tenant_id: TenantId, asked: Sequence[NewWatch], now: datetime) -> _Load:
    ids = [WatchId(made) for made in new_ids("wat", now, len(asked))]
    places: dict[tuple[str, int | None], int] = {}
    course_of = [places.setdefault((watch.scope, watch.start_height), len(places)) for watch in asked]
    rows = [
        {
            "id": watch_id,
            "scope": watch.scope,
            "address": watch.address.hex(),
            "reference": watch.reference,
            "metadata": watch.metadata,
            "start_height": watch.start_height,
            "course": course,
        }
        for watch_id, watch, course in zip(ids, asked, course_of, strict=True)
    ]
    return _Load(tenant_id, asked, ids, now, list(places), course_of, msgspec.json.encode(rows).decode())


async def insert_watches(
    connection: AsyncConnection, tenant_id: TenantId, asked: Sequence[NewWatch], now: datetime
) -> tuple[list[InsertedWatch], list[ChainRow]]:
    """Make the watches that are not there yet. Answers each in its order with its row, and the chains as they stand until
    the transaction ends. Raises `BackfillNotAvailable`.

    What the tenant has already (same scope and address, twice in one call too) is answered as it is."""
    # A delete waits: else a watch could vanish between the insert that it stopped and the read that answers it.
    await connection.execute(select(func.pg_advisory_xact_lock_shared(_watch_lock(tenant_id))))
    load = _make_load(tenant_id, asked, now)
    chains, count = await _insert_covered(connection, load)
    starts = _starts(load, chains)
    known = await _find_known(connection, load) if count != len(asked) else None
    inserted = []
    for watch_id, watch, course in zip(load.ids, asked, load.course_of, strict=True):
        there = known[watch.scope, watch.address] if known is not None else None
        if there is None or there.id == watch_id:
            inserted.append(InsertedWatch(_new_row(watch_id, watch, starts[course], now), is_new=True))
        else:
            inserted.append(InsertedWatch(there, is_new=False))
    _refuse_backfill(inserted, chains)
    return inserted, chains


async def _insert_covered(connection: AsyncConnection, load: _Load) -> tuple[list[ChainRow], int]:
    """Insert what is new, covered from the block after the tip, and hold the chains; returns them and how many were new."""
    before = await _chains_of(connection, load.scopes)
    chain_ids = [chain.chain_id for chain in before]
    if len(load.ids) > UNDER_LOCK_MAX:
        chains, count = await _insert_before_lock(connection, load, before)
        if count is not None:
            return chains, count
    chains = await share_chains(connection, chain_ids)
    return chains, await _insert_at(connection, load, chains)


async def _insert_before_lock(
    connection: AsyncConnection, load: _Load, before: Sequence[ChainRow]
) -> tuple[list[ChainRow], int | None]:
    """Insert by the tips as they are, and only then take the lock. If no tip has moved meanwhile that was right, and a
    follower is held up for the end of the transaction only; otherwise all of it is undone, the lock too."""
    async with connection.begin_nested() as attempt:
        count = await _insert_at(connection, load, before)
        chains = await share_chains(connection, [chain.chain_id for chain in before])
        if _starts(load, chains) == _starts(load, before):
            return chains, count
        await attempt.rollback()
    return chains, None


async def _insert_at(connection: AsyncConnection, load: _Load, chains: Sequence[ChainRow]) -> int:
    parameters = {
        "tenant_id": load.tenant_id,
        "asked": load.as_json,
        "courses": msgspec.json.encode(_starts(load, chains)).decode(),
        "now": load.now,
    }
    return (await connection.execute(_insert, parameters)).rowcount


async def _chains_of(connection: AsyncConnection, scopes: Collection[str]) -> list[ChainRow]:
    chains = await list_chains(connection)
    return [chain for chain in chains if any(is_in_scope(chain, scope) for scope in scopes)]


def _starts(load: _Load, chains: Sequence[ChainRow]) -> list[dict[str, int]]:
    """For each course the first height that it covers, by chain; a chain without a tip covers from its own first block."""
    return [
        {
            chain.chain_id: max(chain.tip_height + 1, start_height or 0)
            for chain in chains
            if chain.tip_height is not None and is_in_scope(chain, scope)
        }
        for scope, start_height in load.courses
    ]


def _new_row(watch_id: WatchId, watch: NewWatch, covered_from: Mapping[str, int], now: datetime) -> WatchRow:
    return WatchRow(
        watch_id,
        watch.scope,
        watch.address,
        watch.reference,
        watch.metadata,
        watch.start_height,
        covered_from,
        created_at=now,
        deleted_at=None,
    )


def _refuse_backfill(inserted: Sequence[InsertedWatch], chains: Sequence[ChainRow]) -> None:
    tips = {str(chain.chain_id): chain.tip_height for chain in chains}
    for index, one in enumerate(inserted):
        if not one.is_new or one.row.start_height is None:
            continue
        tip = tips.get(one.row.scope)
        if tip is None or one.row.start_height <= tip:
            raise BackfillNotAvailable(index, tip + 1 if tip is not None else None)


async def _find_known(connection: AsyncConnection, load: _Load) -> dict[tuple[str, Address], WatchRow]:
    """The live watches on what is asked for, those that were just made too."""
    parameters = {"tenant_id": load.tenant_id, "asked": load.as_json}
    rows = [_watch_of(row) for row in await connection.execute(_find_live, parameters)]
    return {(row.scope, row.address): row for row in rows}


def _watch_lock(tenant_id: TenantId) -> int:
    return lock_number("watches", tenant_id)


def _watch_of(row: Row[Any]) -> WatchRow:
    return WatchRow(**row._mapping)


async def list_watches(
    connection: AsyncConnection,
    tenant_id: TenantId,
    *,
    scope: str | None = None,
    address: Address | None = None,
    reference: str | None = None,
    after: WatchId | None = None,
    limit: int,
) -> list[WatchRow]:
    """Live watches, the newest first, from the one after `after` on."""
    statement: Select[Any] = select(*_columns).where(watches.c.tenant_id == tenant_id, watches.c.deleted_at.is_(None))
    if scope is not None:
        statement = statement.where(watches.c.scope == scope)
    if address is not None:
        statement = statement.where(watches.c.address == address)
    if reference is not None:
        statement = statement.where(watches.c.reference == reference)
    if after is not None:
        statement = statement.where(watches.c.id < after)
    rows = await connection.execute(statement.order_by(watches.c.id.desc()).limit(limit))
    return [_watch_of(row) for row in rows]


async def find_watch(connection: AsyncConnection, tenant_id: TenantId, watch_id: WatchId) -> WatchRow | None:
    """A watch of the tenant, live or deleted."""
    statement = select(*_columns).where(watches.c.tenant_id == tenant_id, watches.c.id == watch_id)
    row = (await connection.execute(statement)).first()
    return _watch_of(row) if row is not None else None


async def delete_watch(connection: AsyncConnection, tenant_id: TenantId, watch_id: WatchId, now: datetime) -> bool:
    """Stop new entries from the next committed block on; history stays. Returns whether the watch is the tenant's;
    deleting it again is no error and keeps the first time."""
    await connection.execute(select(func.pg_advisory_xact_lock(_watch_lock(tenant_id))))
    statement = (
        update(watches)
        .where(watches.c.tenant_id == tenant_id, watches.c.id == watch_id)
        .values(deleted_at=func.coalesce(watches.c.deleted_at, literal(now, type_=watches.c.deleted_at.type)))
        .returning(watches.c.id)
    )
    return (await connection.execute(statement)).first() is not None
