"""What watched addresses held when the ledger last agreed, and what an audit of their balances reads of watches and entries.

A balance is a fact of the chain: baselines belong to no tenant, and the entries of all tenants explain them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import BigInteger, ColumnElement, Text, and_, case, cast, func, literal, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from chains.model import Address, AssetId, BlockHash, ChainId, Holding
from ledger.chains import EVM_SCOPE
from ledger.model import Entry
from ledger.rows import entry_from
from ledger.schema import assets, chains, entries, watches
from ledger.schema_audit import balances
from ledger.schema_jobs import jobs


@dataclass(frozen=True, slots=True)
class WatchedAddress:
    """An address that somebody watches on a chain."""

    address: Address
    covered_from: int
    """First height from which a live watch covers it, by its backfill as far as that has come."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """What an address held of an asset after a block."""

    height: int
    block_hash: BlockHash
    holding: Holding


async def find_baselines(
    connection: AsyncConnection, chain_id: ChainId, addresses: Collection[Address]
) -> dict[tuple[Address, AssetId], Baseline]:
    """The newest holdings with which the ledger agreed. Whose word they are is not kept: `host` is empty."""
    statement = select(balances).where(balances.c.chain_id == chain_id, balances.c.address.in_(addresses))
    return {
        (row.address, row.asset_id): Baseline(
            row.height,
            row.block_hash,
            Holding(
                int(row.amount_atomic), row.is_proven, None if row.nonce is None else int(row.nonce), row.has_code, ""
            ),
        )
        for row in await connection.execute(statement)
    }


async def store_baselines(
    connection: AsyncConnection,
    chain_id: ChainId,
    baselines: Mapping[tuple[Address, AssetId], Baseline],
    now: datetime,
) -> None:
    """Keep baselines; one that is as high or higher stays."""
    if not baselines:
        return
    rows = [
        {
            "chain_id": chain_id,
            "address": address,
            "asset_id": asset_id,
            "height": one.height,
            "block_hash": one.block_hash,
            "amount_atomic": one.holding.amount_atomic,
            "nonce": one.holding.nonce,
            "has_code": one.holding.has_code,
            "is_proven": one.holding.is_proven,
            "audited_at": now,
        }
        for (address, asset_id), one in sorted(baselines.items())
    ]
    statement = insert(balances)
    keys = ("chain_id", "address", "asset_id")
    values = {name: statement.excluded[name] for name in rows[0] if name not in keys}
    await connection.execute(
        statement.on_conflict_do_update(
            index_elements=keys, set_=values, where=balances.c.height < statement.excluded.height
        ),
        rows,
    )


async def find_entries_between(
    connection: AsyncConnection, chain_id: ChainId, addresses: Collection[Address], from_height: int, to_height: int
) -> dict[Address, list[Entry]]:
    """Every tenant's entries of the addresses in canonical blocks above one height, up to another.

    One of the statements that cross tenants; whoever watches an address names its rows, which the index finds by tenant."""
    watched = (
        select(watches.c.tenant_id, watches.c.address)
        .where(watches.c.address.in_(addresses), watches.c.deleted_at.is_(None), _is_in_scope(chain_id))
        .distinct()
        .subquery("watched")
    )
    statement = (
        select(entries)
        .join(watched, and_(entries.c.tenant_id == watched.c.tenant_id, entries.c.address == watched.c.address))
        .where(
            entries.c.chain_id == chain_id, entries.c.block_height > from_height, entries.c.block_height <= to_height
        )
    )
    found: dict[Address, list[Entry]] = {address: [] for address in addresses}
    for row in await connection.execute(statement):
        found[row.address].append(entry_from(row))
    return found


async def find_addresses_with_activity(
    connection: AsyncConnection, chain_id: ChainId, from_height: int, to_height: int, limit: int
) -> list[WatchedAddress]:
    """Watched addresses with entries in canonical blocks of a range, both ends included, at most `limit`.

    One of the statements that cross tenants."""
    active = (
        select(entries.c.address)
        .where(entries.c.chain_id == chain_id, entries.c.block_height.between(from_height, to_height))
        .distinct()
        .limit(limit)
    )
    return await _watched(connection, chain_id, watches.c.address.in_(active), limit)


async def sample_watched_addresses(
    connection: AsyncConnection, chain_id: ChainId, pivot: Address, limit: int
) -> list[WatchedAddress]:
    """The next `limit` watched addresses from `pivot` on, round the circle: a sample, for addresses are hashes.

    One of the statements that cross tenants."""
    found = await _watched(connection, chain_id, watches.c.address >= pivot, limit)
    if len(found) < limit:
        found += await _watched(connection, chain_id, watches.c.address < pivot, limit - len(found))
    return found


async def find_listing_heights(connection: AsyncConnection, chain_id: ChainId) -> dict[AssetId, int]:
    """From which height each asset of a chain is read, where that is not its first."""
    statement = select(assets.c.asset_id, assets.c.listed_from_height).where(
        assets.c.chain_id == chain_id, assets.c.listed_from_height.is_not(None)
    )
    return {row.asset_id: row.listed_from_height for row in await connection.execute(statement)}


async def _watched(
    connection: AsyncConnection, chain_id: ChainId, condition: ColumnElement[bool], limit: int
) -> list[WatchedAddress]:
    named = cast(watches.c.covered_from[literal(chain_id, Text)].astext, BigInteger)
    # Null where a backfill has read nothing; LEAST passes nulls over.
    backfilled = case((jobs.c.covered_from.is_not(None), func.greatest(watches.c.start_height, jobs.c.covered_from)))
    lowest = func.min(func.least(func.coalesce(named, chains.c.first_height, 0), backfilled))
    is_its_job = and_(jobs.c.tenant_id == watches.c.tenant_id, jobs.c.id == watches.c.backfill_job_id)
    statement = (
        select(watches.c.address, lowest.label("covered_from"))
        .select_from(watches)
        .join(chains, chains.c.chain_id == chain_id)
        .outerjoin(jobs, is_its_job)
        .where(watches.c.deleted_at.is_(None), _is_in_scope(chain_id), condition)
        .group_by(watches.c.address)
        .order_by(watches.c.address)
        .limit(limit)
    )
    return [WatchedAddress(row.address, row.covered_from) for row in await connection.execute(statement)]


def _is_in_scope(chain_id: ChainId) -> ColumnElement[bool]:
    return watches.c.scope.in_((chain_id, EVM_SCOPE))
