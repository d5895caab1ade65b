"""Watches: a tenant's interest in addresses, inserted so that what they cover is known exactly.

An insert holds the rows of the chains in its scope `FOR SHARE` until it commits: no block of them is committed
meanwhile, so a watch inserted at tip T is covered from T + 1, no sooner and no later. Ten thousand rows take Postgres a
fifth of a second, with their four indexes: so many are inserted before the lock is taken, and again under it only if a
block came in between.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import (
    JSON,
    BigInteger,
    Integer,
    Row,
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

from chains.model import Address, ChainId, hex_of
from ledger.backfills import find_covered_from, find_joinable_backfill, join_backfill, lowered
from ledger.chains import EVM_SCOPE, list_chains, share_chains
from ledger.database import lock_number
from ledger.ids import JobId, TenantId, WatchId, new_ids
from ledger.jobs import create_job, find_job, new_job_id
from ledger.model import ChainRow
from ledger.schema import watches
from ledger.states import JobKind
from ledger.words import WatchWord

UNDER_LOCK_MAX = 1_000
"""So many rows are inserted under the chains' lock: they take 20 ms. More are tried without it first."""


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
    backfill_job_id: JobId | None = None
    backfilled_from: int | None = None
    """How far down its backfill has come; None where there is none, or it has read nothing yet."""


@dataclass(frozen=True, slots=True)
class InsertedWatch:
    """The row that answers one asked watch, and whether it was made now."""

    row: WatchRow
    is_new: bool


class WatchDocument(msgspec.Struct, frozen=True, tag_field="object", tag="watch"):
    """A watch. `covered_from_height` is the first block whose transfers it turns into entries: a height, or for chain
    `evm` a height by chain; null until the chain has its first block. With a `start_height` in the past it goes down to
    that as the job `backfill_job_id` reads those blocks, and `watch.activated` tells when it has arrived. `status` is
    `active`, `exists` (in the answer to a POST: it was there before and was left as it is) or `deleted`."""

    id: str
    chain: str
    address: str
    reference: str | None
    metadata: dict[str, Any]
    start_height: int | None
    covered_from_height: int | dict[str, int | None] | None
    status: WatchWord
    backfill_job_id: str | None = None


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
        backfill_job_id=row.backfill_job_id,
    )


def scopes_for(scope: str) -> list[str]:
    """The scopes of the watches that are for a chain: its own and, where it is an EVM chain, the one for all of them."""
    return [scope, EVM_SCOPE] if scope.startswith("eip155:") else [scope]


def is_in_scope(chain: ChainRow, scope: str) -> bool:
    """True when a watch of that scope is for this chain."""
    return chain.chain_id == scope or (scope == EVM_SCOPE and chain.chain_id.startswith("eip155:"))


def _covered_from(row: WatchRow, chain: ChainRow) -> int | None:
    named = row.covered_from.get(chain.chain_id)
    return lowered(named, row.start_height, row.backfilled_from, chain.first_height)


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
        [
            "tenant_id",
            "id",
            "scope",
            "address",
            "reference",
            "metadata",
            "start_height",
            "covered_from",
            "backfill_job_id",
            "created_at",
        ],
        select(
            bindparam("tenant_id", type_=Text),
            _asked.c.id,
            _asked.c.scope,
            _address,
            _asked.c.reference,
            _asked.c.metadata,
            _asked.c.start_height,
            cast(bindparam("courses", type_=Text), JSONB)[_asked.c.course],
            cast(bindparam("jobs", type_=Text), JSONB)[_asked.c.course].astext,
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

WATCH_COLUMNS = [column for column in watches.c if column.name != "tenant_id"]
"""What a `WatchRow` is read from."""

# One look into the index for each row, as in ledger/matching.py.
_there = (
    select(*WATCH_COLUMNS)
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
    job_of: Mapping[str, JobId]
    """For each scope with a start height the backfill that would read its past."""

    @property
    def scopes(self) -> set[str]:
        """Every scope that is asked for."""
        return {scope for scope, _ in self.courses}


async def _make_load(
    connection: AsyncConnection, tenant_id: TenantId, asked: Sequence[NewWatch], now: datetime
) -> _Load:
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
    job_of = {
        scope: await find_joinable_backfill(connection, tenant_id, ChainId(scope)) or new_job_id(now)
        for scope in {scope for scope, start_height in places if start_height is not None}
    }
    return _Load(tenant_id, asked, ids, now, list(places), course_of, msgspec.json.encode(rows).decode(), job_of)


async def insert_watches(
    connection: AsyncConnection, tenant_id: TenantId, asked: Sequence[NewWatch], now: datetime
) -> tuple[list[InsertedWatch], list[ChainRow]]:
    """Make the watches that are not there yet. Answers each in its order with its row, and the chains as they stand until
    the transaction ends.

    What the tenant has already (same scope and address, twice in one call too) is answered as it is. A start height in the
    past begins a backfill, one for all watches of the call on that chain; it joins one that nobody has begun yet."""
    # A delete waits: else a watch could vanish between the insert that it stopped and the read that answers it.
    await connection.execute(select(func.pg_advisory_xact_lock_shared(_watch_lock(tenant_id))))
    load = await _make_load(connection, tenant_id, asked, now)
    chains, count = await _insert_covered(connection, load)
    starts, jobs = _starts(load, chains), _jobs(load, chains)
    known = await _find_known(connection, load) if count != len(asked) else None
    inserted = []
    for watch_id, watch, course in zip(load.ids, asked, load.course_of, strict=True):
        there = known[watch.scope, watch.address] if known is not None else None
        if there is None or there.id == watch_id:
            row = _new_row(watch_id, watch, starts[course], jobs[course], now)
            inserted.append(InsertedWatch(row, is_new=True))
        else:
            inserted.append(InsertedWatch(there, is_new=False))
    return await _with_backfills(connection, load, inserted, chains), chains


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
        "jobs": msgspec.json.encode(_jobs(load, chains)).decode(),
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


def _jobs(load: _Load, chains: Sequence[ChainRow]) -> list[JobId | None]:
    """For each course the backfill that it needs: where it starts before what is covered anyhow."""
    tips = {str(chain.chain_id): chain.tip_height for chain in chains}

    def _needs(scope: str, start_height: int | None) -> bool:
        tip_height = tips.get(scope)
        return start_height is not None and (tip_height is None or start_height <= tip_height)

    return [load.job_of[scope] if _needs(scope, start) else None for scope, start in load.courses]


def _new_row(
    watch_id: WatchId, watch: NewWatch, covered_from: Mapping[str, int], job_id: JobId | None, now: datetime
) -> WatchRow:
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
        backfill_job_id=job_id,
    )


async def _with_backfills(
    connection: AsyncConnection, load: _Load, inserted: Sequence[InsertedWatch], chains: Sequence[ChainRow]
) -> list[InsertedWatch]:
    """Begin, or join, the backfills that new watches need."""
    tips = {str(chain.chain_id): chain.tip_height for chain in chains}
    moved: dict[JobId, JobId] = {}
    for scope, job_id in load.job_of.items():
        rows = [one.row for one in inserted if one.is_new and one.row.backfill_job_id == job_id]
        if rows:
            lowest = min(row.start_height for row in rows if row.start_height is not None)
            request = {"from": lowest, "to": tips[scope], "watches": len(rows)}
            moved[job_id] = await _ensure_backfill(connection, load, ChainId(scope), job_id, request)
    return [_renamed(one, moved) for one in inserted]


async def _ensure_backfill(
    connection: AsyncConnection, load: _Load, chain_id: ChainId, job_id: JobId, request: Mapping[str, Any]
) -> JobId:
    """Join the job, make it, or, where somebody has begun it since it was found, make another."""
    if await join_backfill(connection, load.tenant_id, chain_id, job_id, request):
        return job_id
    is_begun = await find_job(connection, load.tenant_id, job_id) is not None
    made_id = new_job_id(load.now) if is_begun else job_id
    highest = request["to"]
    await create_job(
        connection,
        tenant_id=load.tenant_id,
        kind=JobKind.BACKFILL,
        chain_id=chain_id,
        request=request,
        total=None if highest is None else highest - request["from"] + 1,
        now=load.now,
        job_id=made_id,
    )
    if is_begun:
        is_moved = (watches.c.tenant_id == load.tenant_id, watches.c.backfill_job_id == job_id)
        ids = watches.c.id.in_(load.ids)
        await connection.execute(update(watches).where(*is_moved, ids).values(backfill_job_id=made_id))
    return made_id


def _renamed(one: InsertedWatch, moved: Mapping[JobId, JobId]) -> InsertedWatch:
    job_id = one.row.backfill_job_id
    if not one.is_new or job_id is None or moved[job_id] == job_id:
        return one
    return replace(one, row=replace(one.row, backfill_job_id=moved[job_id]))


async def _find_known(connection: AsyncConnection, load: _Load) -> dict[tuple[str, Address], WatchRow]:
    """The live watches on what is asked for, those that were just made too."""
    parameters = {"tenant_id": load.tenant_id, "asked": load.as_json}
    rows = await watches_of(connection, load.tenant_id, await connection.execute(_find_live, parameters))
    return {(row.scope, row.address): row for row in rows}


def _watch_lock(tenant_id: TenantId) -> int:
    return lock_number("watches", tenant_id)


async def watches_of(connection: AsyncConnection, tenant_id: TenantId, rows: Iterable[Row[Any]]) -> list[WatchRow]:
    """The watches, each with how far down its backfill has come."""
    found = [WatchRow(**{column.name: row._mapping[column.name] for column in WATCH_COLUMNS}) for row in rows]
    jobs = {(tenant_id, row.backfill_job_id) for row in found if row.backfill_job_id is not None}
    frontiers = await find_covered_from(connection, jobs)
    return [
        replace(row, backfilled_from=frontiers[row.backfill_job_id]) if row.backfill_job_id in frontiers else row
        for row in found
    ]


async def find_watch(connection: AsyncConnection, tenant_id: TenantId, watch_id: WatchId) -> WatchRow | None:
    """A watch of the tenant, live or deleted."""
    statement = select(*WATCH_COLUMNS).where(watches.c.tenant_id == tenant_id, watches.c.id == watch_id)
    found = await watches_of(connection, tenant_id, await connection.execute(statement))
    return found[0] if found else None


async def list_backfilled(
    connection: AsyncConnection, tenant_id: TenantId, job_id: JobId, after: WatchId | None, limit: int
) -> list[WatchRow]:
    """The live watches of a backfill in the order of their ids, from the one after `after` on."""
    is_its = (watches.c.tenant_id == tenant_id, watches.c.backfill_job_id == job_id, watches.c.deleted_at.is_(None))
    statement = select(*WATCH_COLUMNS).where(*is_its, watches.c.id > (after or "")).order_by(watches.c.id).limit(limit)
    return await watches_of(connection, tenant_id, await connection.execute(statement))


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
