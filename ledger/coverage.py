"""Coverage: which heights we have read, for what and how well, in ranges; and block rows turned into such ranges.

A block's row is needed for as long as a reorg can reach it. After that most rows say what their neighbours say, so a run of
them becomes one range: from, to, the parent hash of its first block and the hash of its last. Parent hashes fix every
block in between, so a range can be checked against a node at any time. At any moment each committed height is told of
exactly once: by the canonical range that holds it, or else by the canonical block row. Canonical ranges follow each other
from the chain's first block on. Rows at heights below their end are kept for what they are (an entry's block, one block in
`ANCHOR_INTERVAL`, an orphaned one), and say nothing of coverage.

What a range says holds for each of its blocks. `agreed_by` is a lower bound: a host that names a block has through the
parent hashes named every block below it too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise
from typing import Any

from sqlalchemy import Row, and_, delete, exists, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from chains.model import AssetId, BlockHash, ChainId
from ledger.schema import assets, blocks, coverage, entries, readings, spent_nonces
from ledger.states import BlockState

ANCHOR_INTERVAL = 1024
"""One block row in so many is kept for ever: a reorg that an operator accepts below all finality needs a block whose hash is
known to grow out of."""

ROWS_AT_ONCE = 4096
"""Block rows that are read at one time."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What blocks are read for."""

    value_paths: tuple[str, ...]
    asset_ids: tuple[AssetId, ...]
    """The listed assets, sorted."""
    decoder: int


@dataclass(frozen=True, slots=True)
class CoverageRange:
    """A run of committed blocks, both ends included, and what is true of each of them."""

    from_height: int
    to_height: int
    parent_hash: BlockHash
    """Of the first block."""
    hash: BlockHash
    """Of the last block."""
    reading: int | None
    """Version of the `Reading`; None: from before readings were recorded."""
    proof: str
    trace_proof: str | None
    """None: there was nothing to trace, or (by the reading) no traces were read."""
    agreed_by: int
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Gap:
    """Heights that are not covered, both ends included."""

    from_height: int
    to_height: int


# --- pure -------------------------------------------------------------------------------------------------------------


def join_all(ranges: Iterable[CoverageRange]) -> list[CoverageRange]:
    """As few ranges as say the same; they come in the order of their heights.

    One that does not continue the one before it, or says something else of its blocks, stays apart. Who agrees on later
    blocks agrees on the earlier ones; the other way round nothing follows. Nothing to trace goes with any trace."""
    runs: list[list[CoverageRange]] = []
    trace_proof = None
    for one in ranges:
        if runs and _goes_on(runs[-1][-1], one) and (trace_proof is None or one.trace_proof in (None, trace_proof)):
            runs[-1].append(one)
        else:
            runs.append([one])
            trace_proof = None
        trace_proof = one.trace_proof or trace_proof
    return [_joined(run) for run in runs]


def _goes_on(earlier: CoverageRange, later: CoverageRange) -> bool:
    return (
        later.parent_hash == earlier.hash
        and later.from_height == earlier.to_height + 1
        and later.reading == earlier.reading
        and later.proof == earlier.proof
        and later.agreed_by >= earlier.agreed_by
    )


def _joined(run: Sequence[CoverageRange]) -> CoverageRange:
    if len(run) == 1:
        return run[0]
    last = run[-1]
    return replace(
        run[0],
        to_height=last.to_height,
        hash=last.hash,
        trace_proof=next((one.trace_proof for one in run if one.trace_proof is not None), None),
        agreed_by=last.agreed_by,
        nodes=tuple(sorted({node for one in run for node in one.nodes})),
    )


def with_agreement(ranges: Sequence[CoverageRange], agreed_by: int) -> list[CoverageRange]:
    """The ranges, each raised to what hosts say of any later one. `agreed_by` hosts name a block above them all."""
    raised = []
    for one in reversed(ranges):
        agreed_by = max(agreed_by, one.agreed_by)
        raised.append(one if one.agreed_by == agreed_by else replace(one, agreed_by=agreed_by))
    return raised[::-1]


def is_unbroken(ranges: Sequence[CoverageRange]) -> bool:
    """True where each range continues the one before it, by height and by hash."""
    return all(
        later.from_height == earlier.to_height + 1 and later.parent_hash == earlier.hash
        for earlier, later in pairwise(ranges)
    )


def gaps_of(ranges: Iterable[CoverageRange], from_height: int, to_height: int) -> list[Gap]:
    """The heights from `from_height` to `to_height` that are in none of the ranges, which come in order."""
    gaps = []
    height = from_height
    for one in ranges:
        if one.to_height < height:
            continue
        if one.from_height > to_height:
            break
        if one.from_height > height:
            gaps.append(Gap(height, one.from_height - 1))
        height = one.to_height + 1
    if height <= to_height:
        gaps.append(Gap(height, to_height))
    return gaps


def _above(last: CoverageRange, rows: Sequence[CoverageRange]) -> list[CoverageRange]:
    """What is above a range, of others on the same chain that may overlap it."""
    return [
        one if one.from_height > last.to_height else replace(one, from_height=last.to_height + 1, parent_hash=last.hash)
        for one in rows
        if one.to_height > last.to_height
    ]


def lacking(ranges: Iterable[CoverageRange], fitting: Collection[int], from_height: int, to_height: int) -> list[Gap]:
    """Where, from `from_height` to `to_height`, a range was read with none of the readings in `fitting`."""
    gaps: list[Gap] = []
    for one in ranges:
        first, last = max(one.from_height, from_height), min(one.to_height, to_height)
        if one.reading in fitting or first > last:
            continue
        if gaps and gaps[-1].to_height + 1 == first:
            gaps[-1] = Gap(gaps[-1].from_height, last)
        else:
            gaps.append(Gap(first, last))
    return gaps


# --- readings ---------------------------------------------------------------------------------------------------------


async def ensure_reading(connection: AsyncConnection, chain_id: ChainId, reading: Reading, now: datetime) -> int:
    """The version of a reading, made where there is none like it. The caller holds the chain's lock."""
    known = await list_readings(connection, chain_id)
    for version, one in known.items():
        if one == reading:
            return version
    version = max(known, default=0) + 1
    await connection.execute(
        insert(readings).values(
            chain_id=chain_id,
            version=version,
            value_paths=list(reading.value_paths),
            asset_ids=list(reading.asset_ids),
            decoder=reading.decoder,
            created_at=now,
        )
    )
    return version


async def list_readings(connection: AsyncConnection, chain_id: ChainId) -> dict[int, Reading]:
    """Every reading of a chain, by version."""
    statement = select(readings).where(readings.c.chain_id == chain_id).order_by(readings.c.version)
    return {
        row.version: Reading(tuple(row.value_paths), tuple(row.asset_ids), row.decoder)
        for row in await connection.execute(statement)
    }


async def list_listed_assets(connection: AsyncConnection, chain_id: ChainId) -> list[AssetId]:
    """Every asset that a block of the chain should have been read for, sorted."""
    statement = select(assets.c.asset_id).where(assets.c.chain_id == chain_id).order_by(assets.c.asset_id)
    return list((await connection.execute(statement)).scalars())


# --- what is covered --------------------------------------------------------------------------------------------------


async def find_coverage(
    connection: AsyncConnection, chain_id: ChainId, from_height: int, to_height: int
) -> list[CoverageRange]:
    """What is committed from one height to another, both included, in the order of heights. A range that reaches beyond
    them is given whole: its hashes are those of its own ends."""
    # Rows before ranges: what is compressed in between is found in both, never in neither.
    rows = await _find_above_ranges(connection, chain_id, from_height, to_height)
    statement = (
        select(coverage)
        .where(
            coverage.c.chain_id == chain_id,
            coverage.c.state == BlockState.CANONICAL.value,
            coverage.c.to_height >= from_height,
            coverage.c.from_height <= to_height,
        )
        .order_by(coverage.c.to_height)
    )
    ranges = [range_from(row) for row in await connection.execute(statement)]
    return join_all([*ranges, *(_above(ranges[-1], rows) if ranges else rows)])


async def _find_above_ranges(
    connection: AsyncConnection, chain_id: ChainId, from_height: int, to_height: int
) -> list[CoverageRange]:
    last = await find_last_range(connection, chain_id)
    lowest = from_height if last is None else max(from_height, last.to_height + 1)
    # There may be none for a long way: who asks for an address asks from before the chain's first block.
    first = select(func.min(blocks.c.height)).where(*_between(chain_id, lowest, to_height))
    height: int | None = (await connection.execute(first)).scalar_one()
    if height is None:
        return []
    rows: list[CoverageRange] = []
    while height <= to_height:
        found = await find_uncompressed(connection, chain_id, height, min(to_height, height + ROWS_AT_ONCE - 1))
        if not found:
            break
        rows += join_all(with_agreement(found, 0))
        height += ROWS_AT_ONCE
    return with_agreement(rows, 0)


async def find_gaps(
    connection: AsyncConnection,
    chain_id: ChainId,
    from_height: int,
    to_height: int,
    *,
    value_path: str | None = None,
    asset_id: AssetId | None = None,
) -> list[Gap]:
    """The heights, both ends included, that were not read; with `value_path` or `asset_id`, not read for that. What was
    read before readings were recorded is a gap for either."""
    ranges = await find_coverage(connection, chain_id, from_height, to_height)
    if value_path is not None or asset_id is not None:
        known = await list_readings(connection, chain_id)
        fitting = {
            version
            for version, reading in known.items()
            if value_path in (None, *reading.value_paths) and asset_id in (None, *reading.asset_ids)
        }
        ranges = [one for one in ranges if one.reading in fitting]
    return gaps_of(ranges, from_height, to_height)


async def find_gaps_for_asset(
    connection: AsyncConnection, chain_id: ChainId, from_height: int, to_height: int, asset_id: AssetId
) -> list[Gap]:
    """The heights, both ends included, that were read for other assets than this one. What was read before readings were
    recorded is none: nobody knows what for."""
    ranges = await find_coverage(connection, chain_id, from_height, to_height)
    known = await list_readings(connection, chain_id)
    recorded = [one for one in ranges if one.reading is not None]
    return lacking(
        recorded, [v for v, reading in known.items() if asset_id in reading.asset_ids], from_height, to_height
    )


async def find_last_range(connection: AsyncConnection, chain_id: ChainId) -> CoverageRange | None:
    """The highest canonical range: above its end, rows tell."""
    statement = (
        select(coverage)
        .where(coverage.c.chain_id == chain_id, coverage.c.state == BlockState.CANONICAL.value)
        .order_by(coverage.c.to_height.desc())
        .limit(1)
    )
    row = (await connection.execute(statement)).first()
    return None if row is None else range_from(row)


async def find_uncompressed(
    connection: AsyncConnection, chain_id: ChainId, from_height: int, to_height: int
) -> list[CoverageRange]:
    """The canonical block rows between two heights, both included, as ranges of one block each, in their order."""
    statement = select(blocks).where(*_between(chain_id, from_height, to_height)).order_by(blocks.c.height)
    return [
        CoverageRange(
            row.height,
            row.height,
            row.parent_hash,
            row.hash,
            row.reading,
            row.proof,
            row.trace_proof,
            row.agreed_by,
            (row.node,),
        )
        for row in await connection.execute(statement)
    ]


async def find_agreed_above(connection: AsyncConnection, chain_id: ChainId, height: int, within: int) -> int:
    """How many hosts are known to name one of the `within` blocks above a height."""
    statement = select(func.max(blocks.c.agreed_by)).where(*_between(chain_id, height + 1, height + within))
    return (await connection.execute(statement)).scalar_one() or 0


async def find_kept_at_or_below(connection: AsyncConnection, chain_id: ChainId, height: int) -> int | None:
    """The highest height up to this one at which our block's hash is known: there its row was kept."""
    statement = select(func.max(blocks.c.height)).where(
        blocks.c.chain_id == chain_id, blocks.c.state == BlockState.CANONICAL.value, blocks.c.height <= height
    )
    found: int | None = (await connection.execute(statement)).scalar_one()
    return found


def _between(chain_id: ChainId, from_height: int, to_height: int) -> tuple[Any, ...]:
    return (
        blocks.c.chain_id == chain_id,
        blocks.c.state == BlockState.CANONICAL.value,
        blocks.c.height.between(from_height, to_height),
    )


def range_from(row: Row[Any]) -> CoverageRange:
    """A row of `coverage` or of `job_coverage`."""
    return CoverageRange(
        row.from_height,
        row.to_height,
        row.parent_hash,
        row.hash,
        row.reading,
        row.proof,
        row.trace_proof,
        row.agreed_by,
        tuple(row.nodes),
    )


# --- rows into ranges, and back ---------------------------------------------------------------------------------------


async def extend_coverage(connection: AsyncConnection, chain_id: ChainId, ranges: Sequence[CoverageRange]) -> None:
    """Put ranges on top of the highest one, whose last block the first of them continues; what says the same becomes one
    range. The caller holds the chain's lock."""
    last = await find_last_range(connection, chain_id)
    found = join_all([*([] if last is None else [last]), *ranges])
    if last is not None:
        first = found[0]
        await connection.execute(
            update(coverage)
            .where(
                coverage.c.chain_id == chain_id,
                coverage.c.state == BlockState.CANONICAL.value,
                coverage.c.to_height == last.to_height,
            )
            .values(values_of(chain_id, first))
        )
        del found[0]
    if found:
        await connection.execute(insert(coverage), [_canonical(chain_id, one) for one in found])


async def delete_compressed(connection: AsyncConnection, chain_id: ChainId, from_height: int, to_height: int) -> int:
    """Delete the canonical rows between two heights, both included, that a range tells of and nobody needs: those with
    no entry, past or present, that show no lost entry's nonce to be spent, and are not one in `ANCHOR_INTERVAL`. Returns how
    many.

    One of the statements that cross tenants."""
    has_entry = exists().where(
        entries.c.chain_id == blocks.c.chain_id,
        entries.c.block_height == blocks.c.height,
        entries.c.block_hash == blocks.c.hash,
    )
    shows_spent = select(spent_nonces.c.block_hash).where(
        spent_nonces.c.chain_id == chain_id, spent_nonces.c.block_height.between(from_height, to_height)
    )
    result = await connection.execute(
        delete(blocks).where(
            *_between(chain_id, from_height, to_height),
            blocks.c.entry_count == 0,
            blocks.c.height % ANCHOR_INTERVAL != 0,
            ~has_entry,
            blocks.c.hash.not_in(shows_spent),
        )
    )
    return result.rowcount


async def orphan_coverage(
    connection: AsyncConnection, chain_id: ChainId, above_height: int, above_hash: BlockHash, now: datetime
) -> int:
    """Take every range above a height out of our chain; returns how many. `above_hash` is our block there: a range that
    holds it is cut behind it. Nothing is deleted. The caller holds the chain's lock."""
    is_hit = and_(
        coverage.c.chain_id == chain_id,
        coverage.c.state == BlockState.CANONICAL.value,
        coverage.c.to_height > above_height,
    )
    cut = (await connection.execute(select(coverage).where(is_hit, coverage.c.from_height <= above_height))).first()
    if cut is not None:
        kept = replace(range_from(cut), to_height=above_height, hash=above_hash)
        await connection.execute(insert(coverage).values(_canonical(chain_id, kept)))
        is_cut = (coverage.c.chain_id == chain_id, coverage.c.id == cut.id)
        await connection.execute(
            update(coverage).where(*is_cut).values(from_height=above_height + 1, parent_hash=above_hash)
        )
    result = await connection.execute(
        update(coverage).where(is_hit).values(state=BlockState.ORPHANED.value, orphaned_at=now)
    )
    return result.rowcount


def _canonical(chain_id: ChainId, one: CoverageRange) -> dict[str, Any]:
    return {**values_of(chain_id, one), "state": BlockState.CANONICAL.value}


def values_of(chain_id: ChainId, one: CoverageRange) -> dict[str, Any]:
    """What such a row says of a range."""
    return {
        "chain_id": chain_id,
        "from_height": one.from_height,
        "to_height": one.to_height,
        "parent_hash": one.parent_hash,
        "hash": one.hash,
        "reading": one.reading,
        "proof": one.proof,
        "trace_proof": one.trace_proof,
        "agreed_by": one.agreed_by,
        "nodes": list(one.nodes),
    }
