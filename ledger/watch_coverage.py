"""Coverage as it is asked for: of a chain, and of an address through the watches on it.

A watch covers nothing below its covered-from height, whatever was read there: what came before was read for others. Where
its backfill has read a block, that tells of it, and elsewhere what the follower read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import msgspec
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from chains.model import Address, hex_of
from ledger.backfills import find_covered_from, lowered
from ledger.coverage import CoverageRange, Gap, find_coverage, gaps_of, list_listed_assets, list_readings
from ledger.documents import (
    CoverageDocument,
    CoverageRangeDocument,
    coverage_document,
    gaps_by_need,
    range_document,
)
from ledger.errors import NoSuchHeights
from ledger.ids import JobId, TenantId, WatchId
from ledger.jobs import find_job
from ledger.model import ChainRow
from ledger.rereading import find_job_coverage
from ledger.schema import watches
from ledger.states import ENDED_STATES
from ledger.watches import scopes_for


@dataclass(frozen=True, slots=True)
class CoveringWatch:
    """A live watch on the asked address, as it covers one chain."""

    tenant_id: TenantId
    id: WatchId
    start_height: int | None
    covered_from_height: int | None
    """First height that it covers, by its backfill as far as that has come; None: the chain has no first block yet."""
    backfill_job_id: JobId | None = None


class WatchGapDocument(msgspec.Struct, frozen=True):
    """Heights, both ends included, that a watch does not cover; where `missing` names a value path or an asset, not for
    that. `job_id` is the backfill that waits or is at work to close the gap."""

    from_height: int
    to_height: int
    missing: str | None
    job_id: str | None


class WatchCoverageDocument(msgspec.Struct, frozen=True):
    """What one watch covers of its address. Nothing below `covered_from_height` is covered for it: there is a gap up to that
    height. `ranges` are cut to the heights that it covers and that were asked for."""

    id: str
    tenant: str
    start_height: int | None
    covered_from_height: int | None
    backfill_job_id: str | None
    ranges: list[CoverageRangeDocument]
    gaps: list[WatchGapDocument]


class AddressCoverageDocument(msgspec.Struct, frozen=True, tag_field="object", tag="address_coverage"):
    """What of an address is covered from one height to another, by each live watch on it. Where the heights were not given
    they reach from the lowest one that was asked for when the watches were made, or is covered, to our tip; `to_height` is
    the lower one while the next block is the first covered one. Where all watches begin later than that, they are the
    heights to come that no watch covers."""

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
    if from_height is None and to_height is None and first > last + 1:
        first, last = last + 1, first - 1
    ranges = await find_coverage(connection, chain.chain_id, first, last)
    readings = await list_readings(connection, chain.chain_id)
    needs = (*chain.value_paths, *await list_listed_assets(connection, chain.chain_id))
    told = []
    for watch in found:
        by_job, job_id = await _backfill_of(connection, watch)
        begin = last + 1 if watch.covered_from_height is None else watch.covered_from_height
        covered = cut_to(laid_over(by_job, ranges), max(begin, first), last)
        gaps = _gap_documents(watch, gaps_by_need(covered, readings, needs, first, last), job_id)
        told.append(_watch_document(watch, [range_document(one, readings) for one in covered], gaps))
    return AddressCoverageDocument(chain.slug, chain.chain_id, hex_of(address), first, last, told)


async def _backfill_of(connection: AsyncConnection, watch: CoveringWatch) -> tuple[list[CoverageRange], JobId | None]:
    """What a watch's backfill has read, and its id while it waits or is at work."""
    if watch.backfill_job_id is None:
        return [], None
    job = await find_job(connection, watch.tenant_id, watch.backfill_job_id)
    is_open = job is not None and job.state not in ENDED_STATES
    ranges = await find_job_coverage(connection, watch.tenant_id, watch.backfill_job_id)
    return ranges, watch.backfill_job_id if is_open else None


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
    watch: CoveringWatch, ranges: list[CoverageRangeDocument], gaps: list[WatchGapDocument]
) -> WatchCoverageDocument:
    return WatchCoverageDocument(
        watch.id,
        watch.tenant_id,
        watch.start_height,
        watch.covered_from_height,
        watch.backfill_job_id,
        ranges,
        gaps,
    )


def _gap_documents(
    watch: CoveringWatch, gaps: Sequence[tuple[Gap, str | None]], job_id: JobId | None
) -> list[WatchGapDocument]:
    """The gaps, cut where the backfill ends: it reads from the watch's start height to where the watch is covered."""
    begin, end = watch.start_height, watch.covered_from_height
    if job_id is None or begin is None or end is None:
        return [WatchGapDocument(gap.from_height, gap.to_height, missing, None) for gap, missing in gaps]
    found = []
    for gap, missing in gaps:
        cuts = sorted({gap.from_height, *(h for h in (begin, end) if gap.from_height < h <= gap.to_height)})
        for first, following in pairwise((*cuts, gap.to_height + 1)):
            of_job = job_id if begin <= first < end else None
            found.append(WatchGapDocument(first, following - 1, missing, of_job))
    return found


def laid_over(upper: Sequence[CoverageRange], lower: Sequence[CoverageRange]) -> list[CoverageRange]:
    """`upper`, and of `lower` what is at no height of it. For telling, as `cut_to`."""
    below = [
        piece
        for one in lower
        for gap in gaps_of(upper, one.from_height, one.to_height)
        for piece in cut_to([one], gap.from_height, gap.to_height)
    ]
    return sorted([*upper, *below], key=lambda one: one.from_height)


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
    scopes = scopes_for(chain.chain_id)
    statement = select(
        watches.c.tenant_id, watches.c.id, watches.c.start_height, watches.c.covered_from, watches.c.backfill_job_id
    ).where(watches.c.address == address, watches.c.scope.in_(scopes), watches.c.deleted_at.is_(None))
    if tenant_id is not None:
        statement = statement.where(watches.c.tenant_id == tenant_id)
    rows = list(await connection.execute(statement.order_by(watches.c.id)))
    jobs = {(TenantId(row.tenant_id), JobId(row.backfill_job_id)) for row in rows if row.backfill_job_id is not None}
    frontiers = await find_covered_from(connection, jobs)
    return [_covering(row, chain, frontiers.get(row.backfill_job_id)) for row in rows]


def _covering(row: Any, chain: ChainRow, frontier: int | None) -> CoveringWatch:  # noqa: ANN401 (a row)
    named = row.covered_from.get(chain.chain_id)
    return CoveringWatch(
        TenantId(row.tenant_id),
        WatchId(row.id),
        row.start_height,
        lowered(named, row.start_height, frontier, chain.first_height),
        row.backfill_job_id,
    )
