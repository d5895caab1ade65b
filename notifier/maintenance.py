"""Housekeeping at fixed times, by APScheduler: partitions ahead of need, retention behind it, old answers forgotten.

Nothing here is on a deposit's way, and nothing here may stop a process: a job that fails says so, is counted, and comes
again. What a merchant is owed is never a timer in memory; those are rows with `due_at`. Any number of processes may keep
house at once: each job takes its lock or skips what another has locked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import structlog
from apscheduler.schedulers.asyncio import AsyncIOScheduler

from ledger.audit import record_audit
from ledger.database import Connection, Engine, database_now, transaction
from ledger.deleting import start_discarding
from ledger.endpoint_secrets import delete_expired_secrets
from ledger.failing import (
    Key,
    find_dead_endpoints,
    find_failing_endpoints,
    find_gone_endpoints,
    is_to_be_stopped,
    warn_of,
)
from ledger.holding import lock_tenants, pause_endpoint
from ledger.idempotency import delete_old_idempotency_keys
from ledger.partitions import RETENTION_DAYS, drop_partitions, ensure_partitions
from ledger.states import EndpointState
from ledger.tally import WINDOWS_KEPT, delete_old_windows
from ledger.upkeep import delete_settled_deliveries
from notifier.metrics import HOUSEKEEPING
from notifier.upkeep import free_leases, watch_database

log = structlog.get_logger()

DELETE_MAX = 5_000
"""Rows that one transaction deletes."""

HOUSEKEEPER = "notifier"
"""Actor in the audit log of what housekeeping changes."""

GONE = "it answered 410 Gone twice"
DEAD = "it only failed for five days"

Job = Callable[[Engine], Awaitable[None]]


async def make_partitions(engine: Engine) -> None:
    """Partitions of events and attempts for the coming week."""
    async with transaction(engine) as connection:
        made = await ensure_partitions(connection, await database_now(connection))
    if made:
        log.info("partitions made", partitions=made)


async def retire(engine: Engine) -> None:
    """Drop whole days of events and attempts after retention, and the settled deliveries that belonged to them."""
    async with transaction(engine) as connection:
        now = await database_now(connection)
    before = now - timedelta(days=RETENTION_DAYS)
    deleted = DELETE_MAX
    while deleted == DELETE_MAX:
        async with transaction(engine) as connection:
            deleted = await delete_settled_deliveries(connection, before, DELETE_MAX)
    async with transaction(engine) as connection:
        dropped = await drop_partitions(connection, now)
    if dropped:
        log.info("partitions dropped", partitions=dropped)


async def forget_answers(engine: Engine) -> None:
    """Stored answers to idempotent requests are kept for a day."""
    async with transaction(engine) as connection:
        await delete_old_idempotency_keys(connection, await database_now(connection))


async def forget_windows(engine: Engine) -> None:
    """How deliveries went is told of one day."""
    async with transaction(engine) as connection:
        await delete_old_windows(connection, await database_now(connection) - WINDOWS_KEPT)


async def judge_endpoints(engine: Engine) -> None:
    """Pause endpoints that said twice that they are gone, disable those that only fail for days, and warn before."""
    async with transaction(engine) as connection:
        now = await database_now(connection)
        gone = [(key, EndpointState.PAUSED, GONE) for key in await find_gone_endpoints(connection)]
        dead = [(key, EndpointState.DISABLED, DEAD) for key in await find_dead_endpoints(connection, now)]
    for key, state, reason in gone + dead:
        async with transaction(engine) as connection:
            await stop_endpoint(connection, key, state, reason)
    async with transaction(engine) as connection:
        now = await database_now(connection)
        await warn_of(connection, await find_failing_endpoints(connection, now), now)


async def stop_endpoint(connection: Connection, key: Key, state: EndpointState, reason: str) -> None:
    """Stop an endpoint, unless it has accepted something or was changed since it was found."""
    tenant_id, endpoint_id = key
    now = await database_now(connection)
    await lock_tenants(connection, tenant_id)
    if not await is_to_be_stopped(connection, key, state, now):
        return
    found = await pause_endpoint(connection, tenant_id, endpoint_id, now, reason=reason, state=state)
    if found is None or not found[1]:
        return
    action = "endpoint.paused" if state is EndpointState.PAUSED else "endpoint.disabled"
    await record_audit(
        connection,
        tenant_id=tenant_id,
        actor=HOUSEKEEPER,
        action=action,
        subject=endpoint_id,
        now=now,
        detail={"reason": reason},
    )
    log.warning("endpoint stopped", endpoint=endpoint_id, state=state.value, reason=reason)


async def discard_leftovers(engine: Engine) -> None:
    """What a deleted endpoint is still owed, and no job goes over, is given up too."""
    async with transaction(engine) as connection:
        found = await start_discarding(connection, await database_now(connection))
    if found:
        log.warning("deleted endpoints were owed something", endpoints=list(found))


async def forget_secrets(engine: Engine) -> None:
    """Replaced secrets whose grace is over sign nothing any more."""
    async with transaction(engine) as connection:
        await delete_expired_secrets(connection, await database_now(connection))


@contextmanager
def partition_upkeep(engine: Engine) -> Iterator[None]:
    """Keep partitions ahead while the block runs: every role that writes events or attempts does this for itself."""
    with _running(engine, ((make_partitions, timedelta(hours=1)),)):
        yield


@contextmanager
def housekeeping(engine: Engine) -> Iterator[None]:
    """All of it, while the block runs."""
    jobs = (
        (make_partitions, timedelta(hours=1)),
        (retire, timedelta(hours=6)),
        (forget_answers, timedelta(hours=1)),
        (forget_secrets, timedelta(hours=1)),
        (forget_windows, timedelta(hours=1)),
        (judge_endpoints, timedelta(minutes=5)),
        (discard_leftovers, timedelta(hours=1)),
        (free_leases, timedelta(minutes=5)),
        (watch_database, timedelta(minutes=1)),
    )
    with _running(engine, jobs):
        yield


@contextmanager
def _running(engine: Engine, jobs: tuple[tuple[Job, timedelta], ...]) -> Iterator[None]:
    scheduler = AsyncIOScheduler(timezone=UTC)
    for job, interval in jobs:
        for outcome in ("done", "failed"):
            HOUSEKEEPING.labels(job.__name__, outcome)  # present at 0, as what others alert on is
        scheduler.add_job(
            _guarded,
            "interval",
            args=(job, engine),
            id=job.__name__,
            seconds=interval.total_seconds(),
            jitter=min(60, interval.total_seconds() / 4),
            next_run_time=datetime.now(UTC),
            coalesce=True,
            max_instances=1,
            misfire_grace_time=None,
        )
    scheduler.start()
    try:
        yield
    finally:
        scheduler.shutdown(wait=False)


async def _guarded(job: Job, engine: Engine) -> None:
    """Run a job; its failing, of whatever kind, is said and counted, and the next time is the remedy."""
    try:
        await job(engine)
    except asyncio.CancelledError:
        return  # the process ends, and its successor does the job: raised, it would be logged as a fault of the job
    except Exception as error:  # noqa: BLE001 (nothing else is there to hear it, and it must stop nobody)
        HOUSEKEEPING.labels(job.__name__, "failed").inc()
        log.error("housekeeping failed", job=job.__name__, error=repr(error).splitlines()[0])
    else:
        HOUSEKEEPING.labels(job.__name__, "done").inc()
