"""Coverage as it is asked for: of a chain, and of an address through the watches on it.

A watch covers nothing below its covered-from height, whatever was read there: what came before was read for others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import msgspec
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from chains.model import Address, hex_of
from ledger.chains import EVM_SCOPE
from ledger.coverage import CoverageRange, Reading, find_coverage, list_listed_assets, list_readings
from ledger.documents import (
    CoverageDocument,
    CoverageRangeDocument,
    coverage_document,
    gaps_by_need,
    range_document,
)
from ledger.errors import LedgerError
from ledger.ids import TenantId, WatchId
from ledger.model import ChainRow
from ledger.schema import watches
from ledger.watches import is_in_scope


class NoSuchHeights(LedgerError):
    """Refuse the input: the asked heights cannot be told of. `part` says which part of the question is at fault."""

    def __init__(self, part: Literal["chain", "from", "to"], message: str) -> None:
        super().__init__(message)
        self.part = part


@dataclass(frozen=True, slots=True)
class CoveringWatch:
    """A live watch on the asked address, as it covers one chain."""

    tenant_id: TenantId
    id: WatchId
    start_height: int | None
    covered_from_height: int | None
    """None: the chain has no first block yet."""


class WatchGapDocument(msgspec.Struct, frozen=True):
    """Heights, both ends included, that a watch does not cover; where `missing` names a value path or an asset, not for
    that."""

    from_height: int
    to_height: int
    missing: str | None


class WatchCoverageDocument(msgspec.Struct, frozen=True):
    """What one watch covers of its address. Nothing below `covered_from_height` is covered for it: there is a gap up to that
    height. `ranges` are cut to the heights that it covers and that were asked for."""

    id: str
    tenant: str
    start_height: int | None
    covered_from_height: int | None
    ranges: list[CoverageRangeDocument]
    gaps: list[WatchGapDocument]


class AddressCoverageDocument(msgspec.Struct, frozen=True, tag_field="object", tag="address_coverage"):
    """What of an address is covered from one height to another, by each live watch on it. Where the heights were not given
    they reach from the lowest one that was asked for when the watches were made, or is covered, to our tip; `to_height` is
    the lower one as long as the first covered block has not come."""

    chain: str
    chain_id: str
    address: str
    from_height: int
    to_height: int
    watches: list[WatchCoverageDocument]


async def describe_coverage(
    connection: AsyncConnection, chain: ChainRow, from_height: int | None, to_height: int | None
) -> CoverageDocument:
    """What of a chain is covered; by default all that was followed. Raises `NoSuchHeights`."""
    first, last = _heights(chain, from_height, to_height, chain.first_height)
    return coverage_document(
        chain,
        first,
        last,
        await find_coverage(connection, chain.chain_id, first, last),
        await list_readings(connection, chain.chain_id),
        await list_listed_assets(connection, chain.chain_id),
    )


async def describe_address_coverage(
    connection: AsyncConnection,
    chain: ChainRow,
    address: Address,
    tenant_id: TenantId | None,
    from_height: int | None,
    to_height: int | None,
) -> AddressCoverageDocument | None:
    """What of an address is covered, by each watch of a tenant, or of all. None: there is no watch. Raises
    `NoSuchHeights`."""
    found = await find_covering_watches(connection, chain, address, tenant_id)
    if not found:
        return None
    starts = [height for watch in found for height in (watch.start_height, watch.covered_from_height)]
    lowest = min((height for height in starts if height is not None), default=None)
    first, last = _heights(chain, from_height, to_height, lowest)
    ranges = await find_coverage(connection, chain.chain_id, first, last)
    readings = await list_readings(connection, chain.chain_id)
    needs = (*chain.value_paths, *await list_listed_assets(connection, chain.chain_id))
    return AddressCoverageDocument(
        chain.slug,
        chain.chain_id,
        hex_of(address),
        first,
        last,
        [_watch_document(watch, ranges, readings, needs, first, last) for watch in found],
    )


def _heights(chain: ChainRow, from_height: int | None, to_height: int | None, lowest: int | None) -> tuple[int, int]:
    first = lowest if from_height is None else from_height
    last = chain.tip_height if to_height is None else to_height
    if first is None or last is None:
        raise NoSuchHeights("chain", f"no block of {chain.slug} was committed yet; its follower has to start")
    if from_height is not None and first > last:
        raise NoSuchHeights("from", f"{first} is above {last}, the last height")
    if to_height is not None and first > last:
        raise NoSuchHeights("to", f"{last} is below {first}, the first that is covered; name the first height too")
    return first, last


def _watch_document(
    watch: CoveringWatch,
    ranges: Sequence[CoverageRange],
    readings: Mapping[int, Reading],
    needs: Sequence[str],
    from_height: int,
    to_height: int,
) -> WatchCoverageDocument:
    first = to_height + 1 if watch.covered_from_height is None else watch.covered_from_height
    covered = cut_to(ranges, max(first, from_height), to_height)
    gaps = gaps_by_need(covered, readings, needs, from_height, to_height)
    return WatchCoverageDocument(
        watch.id,
        watch.tenant_id,
        watch.start_height,
        watch.covered_from_height,
        [range_document(one, readings) for one in covered],
        [WatchGapDocument(gap.from_height, gap.to_height, missing) for gap, missing in gaps],
    )


def cut_to(ranges: Sequence[CoverageRange], from_height: int, to_height: int) -> list[CoverageRange]:
    """What of the ranges is between two heights, both included. Only heights are cut: the hashes stay those of the whole,
    so this is for telling, not for joining."""
    return [
        replace(one, from_height=first, to_height=last)
        for one in ranges
        if (first := max(one.from_height, from_height)) <= (last := min(one.to_height, to_height))
    ]


async def find_covering_watches(
    connection: AsyncConnection, chain: ChainRow, address: Address, tenant_id: TenantId | None
) -> list[CoveringWatch]:
    """The live watches on an address that are for this chain, the oldest first: of a tenant, or, for the operator, of all.

    Of all it is one of the statements that cross tenants."""
    scopes = [scope for scope in (chain.chain_id, EVM_SCOPE) if is_in_scope(chain, scope)]
    statement = select(
        watches.c.tenant_id, watches.c.id, watches.c.scope, watches.c.start_height, watches.c.covered_from
    ).where(watches.c.address == address, watches.c.scope.in_(scopes), watches.c.deleted_at.is_(None))
    if tenant_id is not None:
        statement = statement.where(watches.c.tenant_id == tenant_id)
    return [_covering(row, chain) for row in await connection.execute(statement.order_by(watches.c.id))]


def _covering(row: Any, chain: ChainRow) -> CoveringWatch:  # noqa: ANN401 (a row, whose columns no type names)
    covered = row.covered_from.get(chain.chain_id, chain.first_height)
    return CoveringWatch(TenantId(row.tenant_id), WatchId(row.id), row.start_height, covered)
