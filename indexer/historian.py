"""Working on a chain's jobs beside its follower, without being in its way.

Who works on a job holds its lease; any number of processes may try. What keeps the head from waiting: a job's nodes are
asked by an adapter of its own at a part of their pace, with a quarter of what a catch-up has under way; each step is
followed by a pause as long as itself; and while the chain catches up or is halted, nothing is done at all. A job that
nodes cannot serve gives its turn to the next one and says what it waits for: a backfill waits for as long as it takes,
since nothing is lost by that. A replay is refused instead, for somebody waits for its answer.
"""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta

import structlog

from chains.adapter import ChainAdapter
from chains.errors import BlockNotFound, ChainError, ChainHolds
from chains.model import AssetId, ChainId, Slug
from indexer.errors import BranchChanged
from indexer.past import Past
from ledger.backfills import find_asset_backfill, find_lowest_covered
from ledger.chains import find_chain
from ledger.coverage import find_gaps_for_asset
from ledger.database import UNAVAILABLE, Connection, Engine, database_now, transaction
from ledger.errors import JobTaken
from ledger.ids import OPS_TENANT
from ledger.jobs import JobRow, claim_job, create_job, end_job, release_job
from ledger.model import ChainRow
from ledger.states import ENDED_STATES, ChainState, JobKind, JobState

log = structlog.get_logger()

SETTLED_FOR = timedelta(seconds=3)
"""A job is begun so long after it was made: who loads a million addresses asks for their past in a hundred calls."""

SLICE_S = 10.0
"""How long one job is worked on before another has its turn."""

IDLE_INTERVAL_S = 1.0
WAITING_INTERVAL_S = 10.0
"""After the database was away."""
WAITING_FOR = timedelta(minutes=1)
"""A job that nodes could not serve has no turn before that: it must not take the others' time."""

REST = 1.0
"""A step is followed by a pause of so many times what it took."""


class Historian:
    """Works on the jobs of one chain."""

    def __init__(self, engine: Engine, past: Past, adapter: ChainAdapter, chain_id: ChainId, slug: Slug) -> None:
        self._engine = engine
        self._past = past
        self._adapter = adapter
        self._chain_id = chain_id
        self._slug = slug
        self._has_looked = False
        """Whether assets were looked for that blocks of ours were not read for: they change with the settings only."""

    async def keep(self, stop: asyncio.Event) -> None:
        """Take one job after the other until `stop` is set. A lost database is waited for; what is unforeseen is raised."""
        while not stop.is_set():
            try:
                pause_s = await self._turn(stop)
            except (*UNAVAILABLE, OSError) as error:
                log.warning("database unavailable", chain=self._slug, error=str(error).splitlines()[0])
                pause_s = WAITING_INTERVAL_S
            await _pause(stop, pause_s)

    async def _turn(self, stop: asyncio.Event) -> float:
        """Work on the job whose turn it is; how long to wait afterwards."""
        async with transaction(self._engine) as connection:
            chain = await find_chain(connection, self._chain_id)
            if chain.state in (ChainState.CATCHING_UP, ChainState.HALTED):
                return IDLE_INTERVAL_S
            begun = [] if self._has_looked else await begin_asset_backfills(connection, self._adapter, chain)
            job = await claim_job(connection, [self._chain_id], SETTLED_FOR, await database_now(connection))
        self._has_looked = True  # it is committed
        for asset_id in begun:
            log.info("backfill of an asset begun", chain=self._slug, asset=asset_id)
        if job is None:
            return IDLE_INTERVAL_S
        try:
            job = await self.work(job, SLICE_S, stop)
        except JobTaken as error:
            log.info("job given up", chain=self._slug, reason=str(error))
            return 0.0
        except UNAVAILABLE:
            raise
        except Exception as error:  # noqa: BLE001 (the head of the chain must not stand still for it)
            await self._confess(job, error)
        return 0.0

    async def _confess(self, job: JobRow, error: Exception) -> None:
        """A fault of ours is told where operators look for the job, and met again when it has its next turn."""
        log.error("job failed by a fault of ours", chain=self._slug, job=job.id, exc_info=error)
        try:
            async with transaction(self._engine) as connection:
                now = await database_now(connection)
                await release_job(connection, job, now, f"a fault of ours: {error!r}", WAITING_FOR)
        except JobTaken as taken:
            log.info("job given up", chain=self._slug, reason=str(taken))

    async def work(self, job: JobRow, slice_s: float, stop: asyncio.Event) -> JobRow:
        """Work on a job that is ours for a while, then give it back, unless it has ended. Raises `JobTaken`."""
        began = time.monotonic()
        log.info("job taken", chain=self._slug, job=job.id, kind=job.kind.value, done=job.done, total=job.total)
        try:
            while job.state not in ENDED_STATES and time.monotonic() - began < slice_s and not stop.is_set():
                step_began = time.monotonic()
                job = await self._past.step(job)
                await _pause(stop, REST * (time.monotonic() - step_began))
        except (ChainError, BranchChanged) as error:
            return await self._fail(job, error)
        if job.state in ENDED_STATES:
            log.info("job ended", chain=self._slug, job=job.id, state=job.state.value, done=job.done)
            return job
        async with transaction(self._engine) as connection:
            return await release_job(connection, job, await database_now(connection))

    async def _fail(self, job: JobRow, error: ChainError | BranchChanged) -> JobRow:
        is_refused = job.kind is JobKind.REPLAY and isinstance(error, BlockNotFound | ChainHolds | BranchChanged)
        log.warning("job cannot go on", chain=self._slug, job=job.id, reason=str(error), is_refused=is_refused)
        async with transaction(self._engine) as connection:
            now = await database_now(connection)
            if is_refused:
                return await end_job(connection, job, JobState.FAILED, now, refusal_of(error))
            return await release_job(connection, job, now, str(error), WAITING_FOR)


def refusal_of(error: Exception) -> str:
    """Why history cannot be replayed, and what to do."""
    return (
        f"{error}. What could not be read has changed nothing; configure a node that still has these blocks, their"
        " receipts and, where they are read, traces"
    )


async def begin_asset_backfills(connection: Connection, adapter: ChainAdapter, chain: ChainRow) -> list[AssetId]:
    """Make a backfill for each listed asset that blocks of ours were not read for, unless one was made and has not done its
    work: an operator may have cancelled it. Returns their assets."""
    if chain.first_height is None or chain.tip_height is None:
        return []
    begun = []
    for asset in adapter.assets:
        gaps = await find_gaps_for_asset(connection, chain.chain_id, chain.first_height, chain.tip_height, asset.id)
        if not gaps or await find_asset_backfill(connection, chain.chain_id, asset.id) is not None:
            continue
        deepest = await find_lowest_covered(connection, chain.chain_id)
        lowest = min(gaps[0].from_height, gaps[0].from_height if deepest is None else deepest)
        highest = gaps[-1].to_height
        await create_job(
            connection,
            tenant_id=OPS_TENANT,
            kind=JobKind.BACKFILL,
            chain_id=chain.chain_id,
            request={"from": lowest, "to": highest, "asset_id": asset.id},
            total=highest - lowest + 1,
            now=await database_now(connection),
        )
        begun.append(asset.id)
    return begun


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(stop.wait(), seconds)
    except TimeoutError:
        return
