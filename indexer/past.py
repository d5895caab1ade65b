"""One step of a job on the past: a backfill or a replay, from where it stands to where it stands next.

    begin      the nodes are probed: for a replay, before anything is promised, at both ends and in the middle
    read       the next run of blocks, downwards, proven and bound to our chain; no transaction is open
    commit     compared, applied, covered and counted in one transaction under the chain's lock
    finish     watches are told that they are covered; the job is done

A job's cursor says which block comes next and which hash it must have. It moves in the transaction of the step, so a step
that was killed is done again and changes nothing twice. A reorg above the cursor is no concern of it; one below takes the
hash away that the cursor relies on, which the next step finds out by itself: then it asks the ledger again.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from chains.errors import BlockNotFound, ChainHolds, NodeUnavailable
from chains.model import Address, Asset, AssetId, Block, Slug
from indexer.commit import Followed
from indexer.coverage import Readings
from indexer.errors import BranchChanged
from indexer.history import Comparison, Difference, Scope, Stretch, agreed_by_of, apply, compare, require_ours
from indexer.metrics import EVENTS
from indexer.rereading import Rereader
from indexer.step import SPAN_BLOCKS_MAX, STEP_BLOCKS_MAX, StepCost, next_span
from ledger.chains import find_chain, list_chains, lock_chain
from ledger.coverage import CoverageRange, Reading, ensure_reading, join_all, list_readings
from ledger.database import Connection, Engine, database_now, transaction
from ledger.documents import difference_document
from ledger.events import LATE_PRIORITY, NewEvent, record_events
from ledger.ids import WatchId
from ledger.jobs import JobRow, end_job, progress_job, require_held
from ledger.model import ChainRow
from ledger.rereading import (
    extend_job_coverage,
    find_met_readings,
    is_as_good,
    overlay_coverage,
    overlay_job_coverage,
)
from ledger.states import JobKind, JobState, Origin
from ledger.watches import list_backfilled, watch_document

ACTIVATED_AT_ONCE = 500
"""Watches that one transaction tells of: it holds their tenant's place in its feed."""

DIFFERENCES_MAX = 1_000
"""Differences that a job's result names; all are counted."""

_NO_RESULT = {"missing": 0, "extra": 0, "changed": 0, "events": 0, "differences": []}


class NotYet(NodeUnavailable):
    """The chain has no block of ours yet: there is no past of it to be read."""


@dataclass(frozen=True, slots=True)
class Errand:
    """What a job asks for."""

    kind: JobKind
    lowest: int
    highest: int | None
    """None: up to the block before the chain's first."""
    asset_id: AssetId | None
    address: Address | None
    is_dry_run: bool
    takes_back: bool
    """Whether entries that are not in their blocks lose them."""

    @property
    def is_for_watches(self) -> bool:
        """A backfill of the watches that asked for it."""
        return self.kind is JobKind.BACKFILL and self.asset_id is None


def errand_of(job: JobRow) -> Errand:
    """What is written in a job's request."""
    request = job.request
    address = request.get("address")
    return Errand(
        kind=job.kind,
        lowest=request["from"],
        highest=request["to"],
        asset_id=request.get("asset_id"),
        address=bytes.fromhex(address.removeprefix("0x")) if address else None,
        is_dry_run=bool(request.get("dry_run")),
        takes_back=request.get("takes_back", True),
    )


class Past:
    """Works on one chain's jobs."""

    def __init__(self, engine: Engine, rereader: Rereader, followed: Followed, slug: Slug) -> None:
        self._engine = engine
        self.rereader = rereader
        self.followed = followed
        self._slug = slug
        self._readings = Readings(engine, followed.chain_id, rereader.adapter)
        self._assets = {asset.id: asset for asset in rereader.adapter.assets}
        self._spans = {False: STEP_BLOCKS_MAX, True: SPAN_BLOCKS_MAX}
        """How many blocks a step passes: where all are read, and where most are not."""

    async def step(self, job: JobRow) -> JobRow:
        """Do one step; the job as it is then. Raises what the adapter raises, `NotYet`, and `JobTaken`."""
        errand = errand_of(job)
        await self.rereader.recall()  # at each step: what goes on with a job may not be what began it
        if "height" not in job.cursor:
            return await self._begin(job, errand)
        if job.cursor["height"] < errand.lowest:
            return await self._finish(job, errand)
        try:
            return await self._pass(job, errand)
        except BranchChanged:
            if "hash" not in job.cursor:
                raise
            async with transaction(self._engine) as connection:
                cursor = {"height": job.cursor["height"]}
                return await progress_job(connection, job, await database_now(connection), cursor=cursor)

    async def _begin(self, job: JobRow, errand: Errand) -> JobRow:
        async with transaction(self._engine) as connection:
            chain = await find_chain(connection, self.followed.chain_id)
        if chain.first_height is None or chain.tip_height is None:
            raise NotYet(f"{self._slug}: no block of it was committed yet")
        highest = chain.first_height - 1 if errand.highest is None else min(errand.highest, chain.tip_height)
        if errand.lowest <= highest:
            await self.rereader.probe(_probed(errand, highest))
            await self._remember(errand)
        async with transaction(self._engine) as connection:
            return await progress_job(
                connection,
                job,
                await database_now(connection),
                cursor={"height": highest},
                total=max(0, highest - errand.lowest + 1),
                result=_NO_RESULT,
                reason=None,
            )

    async def _pass(self, job: JobRow, errand: Errand) -> JobRow:
        """Read and commit the next run of blocks."""
        began = time.monotonic()
        asset = self._asset_of(errand)
        span_max = STEP_BLOCKS_MAX if asset is None else SPAN_BLOCKS_MAX
        highest = job.cursor["height"]
        lowest = max(errand.lowest, highest - self._spans[asset is not None] + 1)
        known = job.cursor.get("hash")
        top_hash = await self.rereader.hash_at(highest) if known is None else bytes.fromhex(known)
        try:
            if asset is None:
                stretch = await self.rereader.read(lowest, highest, top_hash)
            else:
                stretch = await self.rereader.read_for(asset, lowest, highest, top_hash)
        except (BlockNotFound, ChainHolds):
            if lowest == highest:
                raise
            # Nodes may have the upper ones of these: what there is to be read is read.
            self._spans[asset is not None] = (highest - lowest + 1) // 2
            return job
        await self._remember(errand)
        cost = _cost_of(stretch.blocks, time.monotonic() - began)
        self._spans[asset is not None] = next_span(self._spans[asset is not None], cost, span_max)
        return await self._commit(job, errand, stretch, await self._readings.of(stretch.blocks))

    async def _remember(self, errand: Errand) -> None:
        if not errand.is_dry_run:
            await self.rereader.remember()

    def _asset_of(self, errand: Errand) -> Asset | None:
        if errand.asset_id is None:
            return None
        if errand.asset_id not in self._assets:
            raise NotYet(f"{self._slug}: {errand.asset_id} is not listed any more")
        return self._assets[errand.asset_id]

    async def _commit(self, job: JobRow, errand: Errand, stretch: Stretch, readings: Sequence[int]) -> JobRow:
        counts: Mapping[str, int] = {}
        async with transaction(self._engine) as connection:
            chain, now = await lock_chain(connection, self.followed.chain_id)
            await require_held(connection, job)  # two that work on one job come here one after the other
            await require_ours(connection, chain, stretch)
            scope = _scope_of(job, errand, self._assets)
            comparison = await compare(connection, self.followed, chain, stretch, scope, now)
            if not errand.is_dry_run:
                counts = await apply(connection, chain, stretch, comparison, readings, now)
                await self._cover(connection, chain, job, errand, stretch, readings, now)
            job = await progress_job(
                connection, job, now, **_progress(job, errand, stretch, comparison, sum(counts.values()))
            )
        for event_type, count in counts.items():
            EVENTS.labels(event_type).inc(count)
        return job

    async def _cover(
        self,
        connection: Connection,
        chain: ChainRow,
        job: JobRow,
        errand: Errand,
        stretch: Stretch,
        readings: Sequence[int],
        now: datetime,
    ) -> None:
        """Write down what is covered now. A replay for one address covers nothing: the others were not looked at."""
        if errand.asset_id is not None:
            await _cover_asset(connection, chain, errand.asset_id, stretch, now)
        elif errand.address is None:
            agreed_by = await agreed_by_of(connection, chain, stretch.refs[-1].height)
            read = zip(stretch.blocks, readings, strict=True)
            found = [_covered(block, reading, agreed_by) for block, reading in read]
            if errand.is_for_watches:
                await extend_job_coverage(connection, job.tenant_id, job.id, chain.chain_id, join_all(found))
            else:
                await _cover_again(connection, chain, stretch, found)

    async def _finish(self, job: JobRow, errand: Errand) -> JobRow:
        """Tell the watches of a backfill, some at a time, then end the job."""
        async with transaction(self._engine) as connection:
            now = await database_now(connection)
            told = await self._tell_activated(connection, job, now) if errand.is_for_watches else []
            if told:
                cursor = {**job.cursor, "activated": told[-1]}
                return await progress_job(connection, job, now, cursor=cursor, covered_from=errand.lowest)
            return await end_job(connection, job, JobState.DONE, now)

    async def _tell_activated(self, connection: Connection, job: JobRow, now: datetime) -> list[WatchId]:
        await progress_job(connection, job, now, covered_from=errand_of(job).lowest)
        after = job.cursor.get("activated")
        rows = await list_backfilled(connection, job.tenant_id, job.id, after, ACTIVATED_AT_ONCE)
        chains = await list_chains(connection)
        livemode = next(chain.livemode for chain in chains if chain.chain_id == self.followed.chain_id)
        events = [
            NewEvent(
                tenant_id=job.tenant_id,
                type="watch.activated",
                subject=row.id,
                livemode=livemode,
                data=watch_document(row, chains),
                priority=LATE_PRIORITY,
            )
            for row in rows
        ]
        await record_events(connection, events, now)
        return [row.id for row in rows]


def _probed(errand: Errand, highest: int) -> list[int]:
    """Blocks that nodes must still have. A backfill reads downwards as far as they do, and waits there; of a replay somebody
    wants to know at once."""
    if errand.kind is JobKind.BACKFILL:
        return [highest]
    return sorted({errand.lowest, (errand.lowest + highest) // 2, highest})


def _scope_of(job: JobRow, errand: Errand, listed: Collection[AssetId]) -> Scope:
    if errand.kind is JobKind.REPLAY:
        return Scope(Origin.REPLAY, frozenset(listed), errand.address, takes_back=errand.takes_back)
    assets = frozenset(listed) if errand.asset_id is None else frozenset({errand.asset_id})
    return Scope(Origin.BACKFILL, assets, job_id=job.id if errand.is_for_watches else None, is_whole=False)


def _progress(
    job: JobRow, errand: Errand, stretch: Stretch, comparison: Comparison, event_count: int
) -> dict[str, Any]:
    """What the job's row says after a step."""
    first = stretch.refs[0]
    covered = {"covered_from": first.height} if errand.kind is JobKind.BACKFILL else {}
    return {
        "cursor": {"height": first.height - 1, "hash": first.parent_hash.hex()},
        "done": job.done + len(stretch.refs),
        "result": _added(job.result, comparison.differences, event_count, errand.kind),
        "reason": None,
        **covered,
    }


def _added(
    result: Mapping[str, Any], differences: Sequence[Difference], event_count: int, kind: JobKind
) -> dict[str, Any]:
    """The result with a step's part. What a backfill finds is its purpose, and named by events: it is only counted."""
    added = {**result, "events": result["events"] + event_count}
    for one in differences:
        added[one.kind.value] += 1
    room = max(0, DIFFERENCES_MAX - len(result["differences"])) if kind is JobKind.REPLAY else 0
    documents = [difference_document(one.kind.value, one.entry, is_mended=one.is_mended) for one in differences[:room]]
    return {**added, "differences": [*result["differences"], *documents]}


def _cost_of(blocks: Sequence[Block], seconds: float) -> StepCost:
    transfers = sum(len(block.transfers) for block in blocks)
    return StepCost(len(blocks), transfers, sum(block.answer_bytes for block in blocks), seconds)


# --- coverage ---------------------------------------------------------------------------------------------------------


def _covered(block: Block, reading: int, agreed_by: int) -> CoverageRange:
    """What is known of one block that was read."""
    trace_proof = block.trace_proof.value if block.trace_proof else None
    ref = block.ref
    places = (ref.height, ref.height, ref.parent_hash, ref.hash)
    return CoverageRange(*places, reading, block.proof.value, trace_proof, agreed_by, (block.node,))


async def _cover_again(
    connection: Connection, chain: ChainRow, stretch: Stretch, found: Sequence[CoverageRange]
) -> None:
    """Blocks that were read whole are known by the better of the two readings."""
    readings = await list_readings(connection, chain.chain_id)
    by_height = {one.from_height: one for one in found}

    def _better(old: CoverageRange) -> CoverageRange:
        new = by_height[old.from_height]
        agreed_by = max(old.agreed_by, new.agreed_by)
        return replace(new if is_as_good(new, old, readings) else old, agreed_by=agreed_by)

    await overlay_coverage(connection, chain.chain_id, stretch.refs, _better)
    await overlay_job_coverage(connection, chain.chain_id, stretch.refs, _better)


async def _cover_asset(
    connection: Connection, chain: ChainRow, asset_id: AssetId, stretch: Stretch, now: datetime
) -> None:
    """Blocks that were searched for one asset are known for that besides."""
    lowest, highest = stretch.refs[0].height, stretch.refs[-1].height
    known = await list_readings(connection, chain.chain_id)
    met = await find_met_readings(connection, chain.chain_id, lowest, highest)
    versions = {
        version: await ensure_reading(connection, chain.chain_id, _with_asset(known[version], asset_id), now)
        for version in sorted(met)
    }

    def _better(old: CoverageRange) -> CoverageRange:
        return old if old.reading is None else replace(old, reading=versions[old.reading])

    await overlay_coverage(connection, chain.chain_id, stretch.refs, _better)
    await overlay_job_coverage(connection, chain.chain_id, stretch.refs, _better)


def _with_asset(reading: Reading, asset_id: AssetId) -> Reading:
    return replace(reading, asset_ids=tuple(sorted({*reading.asset_ids, asset_id})))
