"""Coverage of blocks that were read again: what is known of them better than before replaces what was known.

A block that was read again may be known for more (another asset, traces), or be proven further. It may also be known for
less: by a node without traces, years later. So each block keeps the better of the two, and nothing that was said of it is
taken back.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import BigInteger, SmallInteger, Text, bindparam, delete, insert, select, union, update
from sqlalchemy.ext.asyncio import AsyncConnection

from chains.model import BlockRef, ChainId, ProofLevel, TraceProof
from ledger.bulk import unnested
from ledger.coverage import CoverageRange, Reading, find_uncompressed, join_all, range_from, values_of
from ledger.ids import JobId, TenantId
from ledger.schema import blocks, coverage
from ledger.schema_jobs import job_coverage
from ledger.states import BlockState

Better = Callable[[CoverageRange], CoverageRange]
"""What is known of one block, by what was known of it: a range of that one block."""


# --- pure -------------------------------------------------------------------------------------------------------------


def is_as_good(new: CoverageRange, old: CoverageRange, readings: Mapping[int, Reading]) -> bool:
    """True where a block is known now for all that it was known for, and proven as far."""
    if new.reading is None or ProofLevel(new.proof).rank < ProofLevel(old.proof).rank:
        return False
    if _trace_rank(new) < _trace_rank(old):
        return False
    if old.reading is None:
        return True
    ours, theirs = readings[new.reading], readings[old.reading]
    is_wider = {*ours.value_paths} >= {*theirs.value_paths} and {*ours.asset_ids} >= {*theirs.asset_ids}
    return is_wider and ours.decoder >= theirs.decoder


def _trace_rank(one: CoverageRange) -> int:
    return -1 if one.trace_proof is None else list(TraceProof).index(TraceProof(one.trace_proof))


def overlaid(old: Sequence[CoverageRange], refs: Sequence[BlockRef], better: Better) -> list[CoverageRange]:
    """The ranges, with the blocks of `refs`, which follow each other, as `better` has them. What is not in them stays."""
    found: list[CoverageRange] = []
    for one in old:
        inside = [ref for ref in refs if one.from_height <= ref.height <= one.to_height]
        if not inside:
            found.append(one)
            continue
        first, last = inside[0], inside[-1]
        if one.from_height < first.height:
            found.append(replace(one, to_height=first.height - 1, hash=first.parent_hash))
        found += [better(_at(one, ref)) for ref in inside]
        if last.height < one.to_height:
            found.append(replace(one, from_height=last.height + 1, parent_hash=last.hash))
    return join_all(found)


def _at(one: CoverageRange, ref: BlockRef) -> CoverageRange:
    """What a range says of one of its blocks."""
    return replace(one, from_height=ref.height, to_height=ref.height, parent_hash=ref.parent_hash, hash=ref.hash)


# --- the chain's own coverage -----------------------------------------------------------------------------------------


async def overlay_coverage(
    connection: AsyncConnection, chain_id: ChainId, refs: Sequence[BlockRef], better: Better
) -> None:
    """Write what is known of these blocks of ours, which follow each other, by what was known. The caller holds the chain's
    lock."""
    lowest, highest = refs[0].height, refs[-1].height
    # With the neighbours: what says the same becomes one range with them.
    statement = select(coverage).where(
        coverage.c.chain_id == chain_id,
        coverage.c.state == BlockState.CANONICAL.value,
        coverage.c.to_height >= lowest - 1,
        coverage.c.from_height <= highest + 1,
    )
    rows = list(await connection.execute(statement.order_by(coverage.c.to_height)))
    old = [range_from(row) for row in rows]
    new = overlaid(old, refs, better)
    if new != old:
        ids = [row.id for row in rows]
        await connection.execute(delete(coverage).where(coverage.c.chain_id == chain_id, coverage.c.id.in_(ids)))
        fixed = {"state": BlockState.CANONICAL.value}
        await connection.execute(insert(coverage), [{**values_of(chain_id, one), **fixed} for one in new])
    await _overlay_rows(connection, chain_id, await find_uncompressed(connection, chain_id, lowest, highest), better)


_known = unnested(
    "known",
    height=BigInteger(),
    reading=BigInteger(),
    proof=Text(),
    trace_proof=Text(),
    agreed_by=SmallInteger(),
    node=Text(),
)

_update_rows = (
    update(blocks)
    .where(
        blocks.c.chain_id == bindparam("of_chain"),
        blocks.c.height == _known.c.height,
        blocks.c.state == BlockState.CANONICAL.value,
    )
    .values(
        reading=_known.c.reading,
        proof=_known.c.proof,
        trace_proof=_known.c.trace_proof,
        agreed_by=_known.c.agreed_by,
        node=_known.c.node,
    )
)


async def _overlay_rows(
    connection: AsyncConnection, chain_id: ChainId, rows: Iterable[CoverageRange], better: Better
) -> None:
    changed = [new for old in rows if (new := better(old)) != old]
    if not changed:
        return
    parameters: dict[str, Any] = {
        "of_chain": chain_id,
        "all_height": [one.from_height for one in changed],
        "all_reading": [one.reading for one in changed],
        "all_proof": [one.proof for one in changed],
        "all_trace_proof": [one.trace_proof for one in changed],
        "all_agreed_by": [one.agreed_by for one in changed],
        "all_node": [one.nodes[0] for one in changed],
    }
    await connection.execute(_update_rows, parameters)


# --- what backfills cover ---------------------------------------------------------------------------------------------


async def extend_job_coverage(
    connection: AsyncConnection,
    tenant_id: TenantId,
    job_id: JobId,
    chain_id: ChainId,
    ranges: Sequence[CoverageRange],
) -> None:
    """Put what a backfill has read below what it had read: `ranges` end where its lowest one begins."""
    is_next = (
        job_coverage.c.tenant_id == tenant_id,
        job_coverage.c.job_id == job_id,
        job_coverage.c.from_height == ranges[-1].to_height + 1,
    )
    above = (await connection.execute(select(job_coverage).where(*is_next))).first()
    await connection.execute(delete(job_coverage).where(*is_next))
    found = join_all([*ranges, *([range_from(above)] if above is not None else [])])
    await _insert_job_coverage(connection, tenant_id, job_id, chain_id, found)


async def overlay_job_coverage(
    connection: AsyncConnection, chain_id: ChainId, refs: Sequence[BlockRef], better: Better
) -> None:
    """Write what is known of these blocks wherever a backfill has read them."""
    lowest, highest = refs[0].height, refs[-1].height
    is_hit = (
        job_coverage.c.chain_id == chain_id,
        job_coverage.c.from_height <= highest + 1,
        job_coverage.c.to_height >= lowest - 1,
    )
    rows = list(await connection.execute(select(job_coverage).where(*is_hit).order_by(job_coverage.c.from_height)))
    await connection.execute(delete(job_coverage).where(*is_hit))
    for tenant_id, job_id in dict.fromkeys((row.tenant_id, row.job_id) for row in rows):
        old = [range_from(row) for row in rows if (row.tenant_id, row.job_id) == (tenant_id, job_id)]
        await _insert_job_coverage(connection, tenant_id, job_id, chain_id, overlaid(old, refs, better))


async def find_met_readings(
    connection: AsyncConnection, chain_id: ChainId, from_height: int, to_height: int
) -> set[int]:
    """The versions of the readings with which any of these blocks was read, by the follower or by a backfill."""
    arms = [
        select(table.c.reading).where(
            table.c.chain_id == chain_id, table.c.from_height <= to_height, table.c.to_height >= from_height
        )
        for table in (coverage, job_coverage)
    ]
    rows = select(blocks.c.reading).where(
        blocks.c.chain_id == chain_id, blocks.c.height.between(from_height, to_height)
    )
    found = (await connection.execute(union(*arms, rows))).scalars()
    return {reading for reading in found if reading is not None}


async def find_job_coverage(connection: AsyncConnection, tenant_id: TenantId, job_id: JobId) -> list[CoverageRange]:
    """What a backfill has read, in the order of heights."""
    is_it = (job_coverage.c.tenant_id == tenant_id, job_coverage.c.job_id == job_id)
    statement = select(job_coverage).where(*is_it).order_by(job_coverage.c.from_height)
    return [range_from(row) for row in await connection.execute(statement)]


async def cut_job_coverage(
    connection: AsyncConnection, chain_id: ChainId, above_height: int, above_hash: bytes
) -> None:
    """A reorg took the blocks above a height away, and with them what backfills had read there: what takes their place is
    read by the follower, for those watches too. `above_hash` is our block at that height."""
    is_hit = (job_coverage.c.chain_id == chain_id, job_coverage.c.to_height > above_height)
    await connection.execute(delete(job_coverage).where(*is_hit, job_coverage.c.from_height > above_height))
    await connection.execute(update(job_coverage).where(*is_hit).values(to_height=above_height, hash=above_hash))


async def _insert_job_coverage(
    connection: AsyncConnection, tenant_id: TenantId, job_id: JobId, chain_id: ChainId, found: Iterable[CoverageRange]
) -> None:
    rows = [{**values_of(chain_id, one), "tenant_id": tenant_id, "job_id": job_id} for one in found]
    await connection.execute(insert(job_coverage), rows)


async def find_known_above(connection: AsyncConnection, chain_id: ChainId, height: int) -> BlockRef | None:
    """The lowest place at or above a height at which the hash of our block is known: by its row, by either end of a range,
    or by what a backfill has read. Its parent hash is empty."""
    places = [place async for place in _known_above(connection, chain_id, height)]
    return min(places, key=lambda ref: ref.height, default=None)


async def _known_above(connection: AsyncConnection, chain_id: ChainId, height: int) -> AsyncIterator[BlockRef]:
    is_ours = (blocks.c.chain_id == chain_id, blocks.c.state == BlockState.CANONICAL.value, blocks.c.height >= height)
    row = (await connection.execute(select(blocks).where(*is_ours).order_by(blocks.c.height).limit(1))).first()
    if row is not None:
        yield BlockRef(row.height, row.hash, b"")
        if row.height > height:
            yield BlockRef(row.height - 1, row.parent_hash, b"")
    for table, conditions in (
        (coverage, (coverage.c.chain_id == chain_id, coverage.c.state == BlockState.CANONICAL.value)),
        (job_coverage, (job_coverage.c.chain_id == chain_id,)),
    ):
        statement = select(table).where(*conditions, table.c.to_height >= height).order_by(table.c.to_height).limit(1)
        found = (await connection.execute(statement)).first()
        if found is not None:
            yield BlockRef(found.to_height, found.hash, b"")
            if found.from_height > height:
                yield BlockRef(found.from_height - 1, found.parent_hash, b"")
