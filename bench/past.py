"""Reading a chain's past once more: `python -m bench.past TASK`.

What was followed is replayed, with everything there already, or is backfilled for watches that ask for it afterwards: from
the node to Postgres, by the code that works on jobs, without the pauses that it makes beside a head. It is compared with
the bare loop of `bench.following` over the same blocks.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime

import msgspec
import uvloop
from sqlalchemy.ext.asyncio import AsyncEngine

from bench.chain import START_HEIGHT, bench_profile, load_recipients, watched_while_following
from bench.following import FollowingTask, FollowingUsage, open_workers
from bench.installation import add_tenant, add_watches, ledger_at, make_follower, register
from bench.usage import cpu_s_of, measure_usage, most_bytes_of
from chainbell.logs import configure_logs
from chainbell.supervisor import calm_garbage_collector
from chains.adapter import ChainAdapter
from chains.model import Address
from indexer.commit import Followed
from indexer.follower import Extended
from indexer.past import Past
from indexer.prefetch import Bounds
from indexer.rereading import BESIDE_HEAD, Rereader
from ledger.database import database_now, transaction
from ledger.ids import OPS_TENANT, TenantId
from ledger.jobs import JobRow, claim_job, create_job
from ledger.states import ENDED_STATES, JobKind, JobState
from ledger.watches import NewWatch, insert_watches


class PastTask(FollowingTask):
    """`work` is `replay` or `backfill`."""

    work: str = "replay"


def past_of(engine: AsyncEngine, adapter: ChainAdapter, followed: Followed, bounds: Bounds = BESIDE_HEAD) -> Past:
    """What works on the bench chain's jobs."""
    slug = followed.policy.slug
    return Past(engine, Rereader(engine, adapter, followed.chain_id, slug, bounds), followed, slug)


async def make_replay(engine: AsyncEngine, followed: Followed, lowest: int, highest: int) -> JobRow:
    """A replay that is ours from the start."""
    async with transaction(engine) as connection:
        return await create_job(
            connection,
            tenant_id=OPS_TENANT,
            kind=JobKind.REPLAY,
            chain_id=followed.chain_id,
            request={"from": lowest, "to": highest, "address": None, "dry_run": False},
            total=highest - lowest + 1,
            now=await database_now(connection),
            is_taken=True,
        )


async def _make_backfill(
    engine: AsyncEngine, followed: Followed, tenant_id: TenantId, watched: list[Address]
) -> JobRow:
    """Watches that ask for all that there is; their backfill, taken."""
    scope = bench_profile("off").chain_id
    asked = [NewWatch(scope, address, None, {}, START_HEIGHT + 1) for address in watched]
    async with transaction(engine) as connection:
        await insert_watches(connection, tenant_id, asked, datetime.now(UTC))
    async with transaction(engine) as connection:
        now = await database_now(connection)
        job = await claim_job(connection, [followed.chain_id], now - now, now)
    if job is None:
        raise RuntimeError("there is no backfill")
    return job


async def run(task: PastTask) -> FollowingUsage:
    """Follow everything, then do the work and measure that."""
    watched = watched_while_following(load_recipients(task.chain_path), task.watches, task.seed)
    async with (
        ledger_at(task.database_url) as engine,
        open_workers(task.node_url, task.proof) as (adapter, workers),
    ):
        followed = await register(engine, task.proof)
        tenant_id, _ = await add_tenant(engine, "merchant", ["http://127.0.0.1:9/"])
        if task.work == "replay":
            await add_watches(engine, tenant_id, watched)
        follower = make_follower(engine, adapter, followed)
        outcome = await follower.converge()
        while isinstance(outcome, Extended) and outcome.is_behind:
            outcome = await follower.converge()
        if task.work == "replay":
            job = await make_replay(engine, followed, START_HEIGHT + 1, START_HEIGHT + task.blocks - 1)
        else:
            job = await _make_backfill(engine, followed, tenant_id, list(watched))
        past = past_of(engine, adapter, followed, Bounds())
        job = await past.step(job)  # the probe
        workers_began = cpu_s_of(workers.process_ids)
        with measure_usage(task.blocks - 1) as usage:
            while job.state not in ENDED_STATES:
                job = await past.step(job)
        if job.state is not JobState.DONE or job.done != task.blocks - 1:
            raise RuntimeError(f"the job ended with {job}")
        return FollowingUsage(
            usage.count,
            usage.elapsed_s,
            usage.cpu_s,
            cpu_s_of(workers.process_ids) - workers_began,
            most_bytes_of(),
            max(most_bytes_of(pid) for pid in workers.process_ids),
        )


def main() -> None:
    """Do the task in the first argument and print what it took."""
    task = msgspec.json.decode(sys.argv[1], type=PastTask)
    configure_logs()
    calm_garbage_collector()
    sys.stdout.buffer.write(msgspec.json.encode(uvloop.run(run(task))))


if __name__ == "__main__":
    main()
