"""Watches: a tenant's interest in addresses, inserted so that what they cover is known exactly.

An insert holds the rows of the chains in its scope `FOR SHARE` until it commits: no block of them is committed
meanwhile, so a watch inserted at tip T is covered from T + 1, no sooner and no later. Everything that can be done before
is done before, and the insert itself is one statement over arrays, so that ten thousand watches hold up a follower for a
fraction of a second.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import Row, Select, Text, and_, bindparam, cast, func, literal, select, update
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.ext.asyncio import AsyncConnection

from chains.model import Address, hex_of
from ledger.bulk import unnested
from ledger.chains import EVM_SCOPE, share_chains
from ledger.database import lock_number
from ledger.errors import LedgerError
from ledger.ids import TenantId, WatchId, new_id
from ledger.model import ChainRow
from ledger.schema import watches


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


_asked = unnested(
    "asked",
    id=watches.c.id.type,
    scope=watches.c.scope.type,
    address=watches.c.address.type,
    reference=watches.c.reference.type,
    metadata=Text(),
    start_height=watches.c.start_height.type,
    covered_from=Text(),
)

_insert = (
    insert(watches)
    .from_select(
        ["tenant_id", "id", "scope", "address", "reference", "metadata", "start_height", "covered_from", "created_at"],
        select(
            bindparam("tenant_id", type_=Text),
            _asked.c.id,
            _asked.c.scope,
            _asked.c.address,
            _asked.c.reference,
            cast(_asked.c.metadata, JSONB),
            _asked.c.start_height,
            cast(_asked.c.covered_from, JSONB),
            bindparam("now", type_=watches.c.created_at.type),
        ),
    )
    .on_conflict_do_nothing(
        index_elements=[watches.c.tenant_id, watches.c.scope, watches.c.address],
        index_where=watches.c.deleted_at.is_(None),
    )
    .returning(watches.c.id)
)

_columns = [column for column in watches.c if column.name != "tenant_id"]

_wanted = unnested("wanted", scope=watches.c.scope.type, address=watches.c.address.type)
_find_live = (
    select(*_columns)
    .join(_wanted, and_(watches.c.scope == _wanted.c.scope, watches.c.address == _wanted.c.address))
    .where(watches.c.tenant_id == bindparam("tenant_id"), watches.c.deleted_at.is_(None))
)


async def insert_watches(
    connection: AsyncConnection, tenant_id: TenantId, asked: Sequence[NewWatch], now: datetime
) -> list[InsertedWatch]:
    """Make the watches that are not there yet; answers each in its order with its row. Raises `BackfillNotAvailable`.

    What the tenant has already (same scope and address, twice in one call too) is answered as it is."""
    # A delete waits: else a watch could vanish between the insert that it stopped and the read that answers it.
    await connection.execute(select(func.pg_advisory_xact_lock_shared(_watch_lock(tenant_id))))
    ids = [WatchId(new_id("wat", now)) for _ in asked]
    parameters: dict[str, Any] = {
        "tenant_id": tenant_id,
        "now": now,
        "all_id": ids,
        "all_scope": [watch.scope for watch in asked],
        "all_address": [watch.address for watch in asked],
        "all_reference": [watch.reference for watch in asked],
        "all_metadata": [msgspec.json.encode(watch.metadata).decode() for watch in asked],
        "all_start_height": [watch.start_height for watch in asked],
    }
    covered = await _share_coverage(connection, {watch.scope for watch in asked})
    starts = [_coverage_of(watch, covered[watch.scope]) for watch in asked]
    parameters["all_covered_from"] = [msgspec.json.encode(start).decode() for start in starts]
    created = set((await connection.execute(_insert, parameters)).scalars())
    rows = {
        watch_id: WatchRow(
            watch_id,
            w.scope,
            w.address,
            w.reference,
            w.metadata,
            w.start_height,
            start,
            created_at=now,
            deleted_at=None,
        )
        for watch_id, w, start in zip(ids, asked, starts, strict=True)
        if watch_id in created
    }
    _refuse_backfill(asked, [watch_id in created for watch_id in ids], covered)
    known = await _find_known(connection, tenant_id, [w for w, i in zip(asked, ids, strict=True) if i not in created])
    return [
        InsertedWatch(rows[watch_id] if watch_id in rows else known[(watch.scope, watch.address)], watch_id in rows)
        for watch, watch_id in zip(asked, ids, strict=True)
    ]


async def _share_coverage(connection: AsyncConnection, scopes: Collection[str]) -> dict[str, dict[str, int]]:
    """Lock the chains of each scope, and say from which height each covers a new watch."""
    return {
        scope: {
            chain.chain_id: chain.tip_height + 1
            for chain in await share_chains(connection, scope)
            if chain.tip_height is not None
        }
        for scope in sorted(scopes)
    }


def _coverage_of(watch: NewWatch, covered: Mapping[str, int]) -> dict[str, int]:
    return {chain_id: max(height, watch.start_height or 0) for chain_id, height in covered.items()}


def _refuse_backfill(
    asked: Sequence[NewWatch], are_new: Sequence[bool], covered: Mapping[str, Mapping[str, int]]
) -> None:
    for index, (watch, is_new) in enumerate(zip(asked, are_new, strict=True)):
        first = covered[watch.scope].get(watch.scope)
        if is_new and watch.start_height is not None and (first is None or watch.start_height < first):
            raise BackfillNotAvailable(index, first)


async def _find_known(
    connection: AsyncConnection, tenant_id: TenantId, asked: Sequence[NewWatch]
) -> dict[tuple[str, Address], WatchRow]:
    if not asked:
        return {}
    keys = {(watch.scope, watch.address) for watch in asked}
    scopes, addresses = zip(*keys, strict=True)
    parameters = {"tenant_id": tenant_id, "all_scope": list(scopes), "all_address": list(addresses)}
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
