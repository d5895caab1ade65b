"""Jobs about deliveries: what a pause and a resumption go over (`ledger/releasing.py`), what a deleted endpoint was owed
(`ledger/deleting.py`), and telling again what was told.

What is told again is one event, an entry's story, or what happened in a range of time; to one endpoint, or to each that the
tenant has. A job goes over it in batches; each is one transaction with the job's progress, so that a batch happens once
however often a process dies. Nothing that a worker has leased is touched.

A recovery buries nothing that is new. What it makes has the priority of what was found late; one over a range of time waits
while its endpoint is owed a lot; and between two batches, of whatever job, a process makes a pause (`notifier/recovery.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, and_, func, literal, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.deleting import discard_next
from ledger.endpoints import EndpointRow
from ledger.errors import ClaimUnfinished
from ledger.holding import Only, Task
from ledger.ids import EndpointId, TenantId
from ledger.jobs import JobRow, end_job, progress_job, release_job, take_next
from ledger.redelivery import OPEN_STATES, deliver_again, lock_endpoint
from ledger.releasing import turn_over
from ledger.schema import deliveries, endpoints, events, tenants
from ledger.schema_jobs import jobs
from ledger.states import JobKind, JobState

BATCH = 500
"""Events that one transaction looks at: some ten milliseconds of locks."""

BACKLOG_MAX = 2_000
"""A recovery of a range of time waits while its endpoint is owed so many: what it adds must not bury what is new."""

BACKLOG_PAUSE = timedelta(seconds=1)

CLAIM_PAUSE = timedelta(seconds=1)
"""Before a job comes again that met a worker which stands still in the middle of a claim."""

ENDPOINT_DELETED = "its endpoint was deleted"


async def claim_recovery(connection: AsyncConnection, now: datetime) -> JobRow | None:
    """Take the job about deliveries that has waited longest for its turn. One of the statements that cross tenants."""
    is_about_deliveries = and_(jobs.c.chain_id.is_(None), jobs.c.kind == JobKind.RECOVER.value)
    return await take_next(connection, is_about_deliveries, now)


async def step_recovery(connection: AsyncConnection, job: JobRow, now: datetime) -> JobRow:
    """Do a job's next batch, and give it back or end it. Raises `JobTaken` where it is not the caller's any more."""
    try:
        async with connection.begin_nested():
            return await _step(connection, job, now)
    except ClaimUnfinished as error:
        return await release_job(connection, job, now, str(error), CLAIM_PAUSE)


async def _step(connection: AsyncConnection, job: JobRow, now: datetime) -> JobRow:
    if job.request["task"] == Task.RECOVER.value:
        return await _recover(connection, job, now)
    if job.request["task"] == Task.DISCARD.value:
        return await discard_next(connection, job, now)
    endpoint = await lock_endpoint(connection, job.tenant_id, job.request["endpoint_id"])
    if endpoint is None:
        return await end_job(connection, job, JobState.FAILED, now, ENDPOINT_DELETED)
    return await turn_over(connection, job, endpoint, now)


async def _recover(connection: AsyncConnection, job: JobRow, now: datetime) -> JobRow:
    """The next batch of what is to be told once more, for the endpoint whose turn it is."""
    endpoint = await _find_target(connection, job)
    if endpoint is None and job.request["endpoint_id"] is not None:
        return await end_job(connection, job, JobState.FAILED, now, ENDPOINT_DELETED)
    if endpoint is None:
        return await end_job(connection, job, JobState.DONE, now)
    if "since" in job.request and await _backlog(connection, job.tenant_id, endpoint.id) >= BACKLOG_MAX:
        reason = f"its endpoint is owed {BACKLOG_MAX} deliveries or more"
        return await release_job(connection, job, now, reason, BACKLOG_PAUSE)
    total = await _count(connection, job) if job.total is None else job.total
    is_begun = job.cursor.get("endpoint_id") == endpoint.id
    rows = (await connection.execute(_next_events(job, job.cursor["after"] if is_begun else None))).all()
    sent = await deliver_again(connection, endpoint, rows, Only(job.request["only"]), now)
    is_through = len(rows) < BATCH
    cursor = {"past": endpoint.id} if is_through else _cursor_within(job, endpoint, rows[-1])
    result = {"redelivered": job.result.get("redelivered", 0) + sent}
    done = job.done + len(rows)
    total = max(total, done)
    job = await progress_job(connection, job, now, done=done, total=total, result=result, cursor=cursor)
    if is_through and job.request["endpoint_id"] is not None:
        return await end_job(connection, job, JobState.DONE, now)
    return await release_job(connection, job, now)


def _cursor_within(job: JobRow, endpoint: EndpointRow, last: Row[Any]) -> dict[str, Any]:
    after = [last.created_at.isoformat(), last.feed_position]
    return {"past": job.cursor.get("past"), "endpoint_id": endpoint.id, "after": after}


async def _find_target(connection: AsyncConnection, job: JobRow) -> EndpointRow | None:
    """The endpoint that is named, or the next of those that there were when the job was made; locked."""
    if job.request["endpoint_id"] is not None:
        return await lock_endpoint(connection, job.tenant_id, job.request["endpoint_id"])
    past = job.cursor.get("past") or ""
    following = select(endpoints.c.id).where(*_is_target(job)).order_by(endpoints.c.id).limit(1)
    while (found := (await connection.execute(following.where(endpoints.c.id > past))).scalar()) is not None:
        endpoint = await lock_endpoint(connection, job.tenant_id, found)
        if endpoint is not None:
            return endpoint
        past = found  # deleted just now
    return None


def _is_target(job: JobRow) -> list[ColumnElement[bool]]:
    return [
        endpoints.c.tenant_id == job.tenant_id,
        endpoints.c.deleted_at.is_(None),
        endpoints.c.created_at <= job.created_at,
    ]


def _is_asked_for(job: JobRow) -> list[ColumnElement[bool]]:
    asked = job.request
    if "event_id" in asked:
        return [events.c.tenant_id == job.tenant_id, events.c.id == asked["event_id"]]
    if "entry_id" in asked:
        is_of_entry = events.c.subject == asked["entry_id"]
        return [events.c.tenant_id == job.tenant_id, is_of_entry, events.c.created_at <= job.created_at]
    return [
        events.c.tenant_id == job.tenant_id,
        events.c.created_at >= datetime.fromisoformat(asked["since"]),
        events.c.created_at <= (datetime.fromisoformat(asked["until"]) if asked["until"] else job.created_at),
    ]


def _next_events(job: JobRow, after: Sequence[Any] | None) -> Select[Any]:
    """In the order of time, which the primary key has: by feed position each batch would look at all before the range. An
    entry's events have the same order by both, for its chain's lock is held when either is taken."""
    columns = [events.c[name] for name in ("tenant_id", "id", "type", "created_at", "feed_position", "subject")]
    statement = select(*columns).where(*_is_asked_for(job))
    if after is not None:
        moment, position = datetime.fromisoformat(after[0]), after[1]
        place = tuple_(events.c.created_at, events.c.feed_position)
        statement = statement.where(events.c.created_at >= moment, place > tuple_(moment, position))
    return statement.order_by(events.c.created_at, events.c.feed_position).limit(BATCH)


async def _count(connection: AsyncConnection, job: JobRow) -> int:
    """How many events are to be looked at, once for each endpoint. Those of a range are told by the positions of its first
    and its last, for positions have no gaps: counting them would take seconds, with the endpoint locked."""
    if "since" in job.request:
        return await _count_range(connection, job)
    found = await connection.execute(select(func.count()).select_from(events).where(*_is_asked_for(job)))
    targets = 1
    if job.request["endpoint_id"] is None:
        counted = select(func.count()).select_from(endpoints).where(*_is_target(job))
        targets = (await connection.execute(counted)).scalar_one()
    return int(found.scalar_one() * targets)


async def _count_range(connection: AsyncConnection, job: JobRow) -> int:
    places = (events.c.created_at, events.c.feed_position)
    ends = select(events.c.feed_position).where(*_is_asked_for(job)).limit(1)
    first = (await connection.execute(ends.order_by(*places))).scalar()
    last = (await connection.execute(ends.order_by(*(place.desc() for place in places)))).scalar()
    return 0 if first is None or last is None else int(last - first + 1)


async def _backlog(connection: AsyncConnection, tenant_id: TenantId, endpoint_id: EndpointId) -> int:
    owed = select(literal(1)).where(
        deliveries.c.tenant_id == tenant_id,
        deliveries.c.endpoint_id == endpoint_id,
        deliveries.c.state.in_(OPEN_STATES),
    )
    statement = select(func.count()).select_from(owed.limit(BACKLOG_MAX).subquery())
    return int((await connection.execute(statement)).scalar_one())


async def find_event_owner(connection: AsyncConnection, event_id: str) -> TenantId | None:
    """Whose event it is, for the operator's command line. Crosses tenants."""
    return await _find_owner(connection, events.c.id == event_id)


async def find_story_owner(connection: AsyncConnection, entry_id: str) -> TenantId | None:
    """Whose entry it is that such events tell of, for the operator's command line. Crosses tenants."""
    return await _find_owner(connection, events.c.subject == entry_id)


async def _find_owner(connection: AsyncConnection, is_it: ColumnElement[bool]) -> TenantId | None:
    is_told = select(literal(1)).where(events.c.tenant_id == tenants.c.id, is_it).exists()
    return (await connection.execute(select(tenants.c.id).where(is_told).limit(1))).scalar()
