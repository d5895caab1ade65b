"""Delivering once more: one delivery by hand, an endpoint's by a job, and what a pause and a resumption do in batches.

What is settled stays as it is: sending its event again is another delivery, with the event's id and bytes and attempts of
its own. A job goes over an endpoint's deliveries, or over the tenant's events, in batches; each is one transaction with
the job's progress, so that a batch happens once however often a process dies. Nothing that a worker has leased is touched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Row, and_, func, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.bulk import copy_rows
from ledger.endpoints import EndpointRow, find_endpoint
from ledger.events import LATE_PRIORITY, LIVE_PRIORITY, admits
from ledger.hints import mark_news
from ledger.holding import Held, Task
from ledger.ids import DeliveryId, EndpointId, TenantId, new_id
from ledger.jobs import JobRow, end_job, progress_job, release_job, take_next
from ledger.schema import deliveries, endpoints, events
from ledger.schema_jobs import jobs
from ledger.states import DeliveryState, EndpointState, JobKind, JobState

BATCH = 500
"""Deliveries, or events, that one transaction handles: some ten milliseconds of locks."""

BACKLOG_MAX = 2_000
"""A recovery waits while its endpoint is owed so many: what it adds must not bury what is new."""

_FAILED = (DeliveryState.EXHAUSTED.value, DeliveryState.REFUSED.value)
_OPEN = (DeliveryState.PENDING.value, DeliveryState.HELD.value)


async def redeliver(
    connection: AsyncConnection, tenant_id: TenantId, delivery_id: DeliveryId, now: datetime
) -> DeliveryId | None:
    """Owe a delivery's event to its endpoint again, at once; returns the new delivery's id. One that is still owed is sent
    as it is, and its own id returned. None where there is no such delivery, or its endpoint was deleted."""
    statement = select(deliveries).where(deliveries.c.tenant_id == tenant_id, deliveries.c.id == delivery_id)
    found = (await connection.execute(statement)).first()
    endpoint = None if found is None else await _lock_endpoint(connection, tenant_id, found.endpoint_id)
    row = (await connection.execute(statement.with_for_update())).first()
    if row is None or endpoint is None:
        return None
    mark_news(connection)
    if row.state in _OPEN:
        is_idle = deliveries.c.leased_until.is_(None) | (deliveries.c.leased_until <= func.now())
        place = (deliveries.c.tenant_id == tenant_id, deliveries.c.id == delivery_id)
        await connection.execute(
            update(deliveries).where(*place, is_idle).values(due_at=now, priority=LIVE_PRIORITY, feed_position=0)
        )
        return delivery_id
    # Before everything in its lane: it waits for no other.
    copy = {**_copy_of(row._mapping, endpoint, now), "feed_position": 0, "priority": LIVE_PRIORITY}
    await copy_rows(connection, deliveries, [copy])
    return DeliveryId(copy["id"])


async def _lock_endpoint(connection: AsyncConnection, tenant_id: TenantId, endpoint_id: str) -> EndpointRow | None:
    """The endpoint, which is neither paused nor resumed until the commit: what is stored as pending would escape a pause
    that went over its deliveries meanwhile."""
    place = (endpoints.c.tenant_id == tenant_id, endpoints.c.id == endpoint_id)
    await connection.execute(select(endpoints.c.id).where(*place).with_for_update(read=True))
    return await find_endpoint(connection, tenant_id, EndpointId(endpoint_id))


def _copy_of(row: Mapping[Any, Any], endpoint: EndpointRow, now: datetime) -> dict[str, Any]:
    state = DeliveryState.PENDING if endpoint.state is EndpointState.ACTIVE else DeliveryState.HELD
    same = ("tenant_id", "event_id", "event_type", "event_created_at", "feed_position", "endpoint_id", "subject")
    own = {"id": new_id("del", now), "priority": LATE_PRIORITY, "state": state.value, "due_at": now, "created_at": now}
    return {**{name: row[name] for name in same}, **own}


async def claim_recovery(connection: AsyncConnection, now: datetime) -> JobRow | None:
    """Take the job about deliveries that has waited longest for its turn. One of the statements that cross tenants."""
    is_about_deliveries = and_(jobs.c.chain_id.is_(None), jobs.c.kind == JobKind.RECOVER.value)
    return await take_next(connection, is_about_deliveries, now)


async def step_recovery(connection: AsyncConnection, job: JobRow, now: datetime) -> JobRow:
    """Do a job's next batch, and give it back or end it. Raises `JobTaken` where it is not the caller's any more."""
    endpoint = await _lock_endpoint(connection, job.tenant_id, job.request["endpoint_id"])
    if endpoint is None:
        return await end_job(connection, job, JobState.FAILED, now, "its endpoint was deleted")
    if job.request["task"] == Task.RECOVER.value:
        return await _recover(connection, job, endpoint, now)
    return await _turn_over(connection, job, endpoint, now)


async def _turn_over(connection: AsyncConnection, job: JobRow, endpoint: EndpointRow, now: datetime) -> JobRow:
    """Hold what is pending, or release what is held: the next batch of the endpoint's deliveries, the oldest first."""
    is_hold = job.request["task"] == Task.HOLD.value
    wanted = [DeliveryState.PENDING.value] if is_hold else [DeliveryState.HELD.value]
    if job.request.get("held") == Held.ALL.value:
        wanted.append(DeliveryState.EXHAUSTED.value)
    rows = await _next_deliveries(connection, job, wanted)
    free = [row for row in rows if not row.is_leased]
    leased = [row for row in rows if row.is_leased]
    changed = await _hold(connection, free) if is_hold else await _release(connection, job, endpoint, free, now)
    first_leased = job.cursor.get("again") or (_before(leased[0]) if leased else None)
    cursor = {"after": _place(rows[-1]), "again": first_leased} if rows else {"after": first_leased, "again": None}
    job = await progress_job(connection, job, now, done=job.done + changed, cursor=cursor)
    if rows or first_leased is not None:  # what was in flight is looked at again, until it has settled
        return await release_job(connection, job, now)
    return await end_job(connection, job, JobState.DONE, now)


def _place(row: Row[Any]) -> list[Any]:
    return [row.created_at.isoformat(), row.id]


def _before(row: Row[Any]) -> list[Any]:
    return [(row.created_at - timedelta(microseconds=1)).isoformat(), row.id]


async def _next_deliveries(connection: AsyncConnection, job: JobRow, states: Sequence[str]) -> Sequence[Row[Any]]:
    is_leased = func.coalesce(deliveries.c.leased_until > func.now(), False).label("is_leased")
    position = tuple_(deliveries.c.created_at, deliveries.c.id)
    statement = select(deliveries, is_leased).where(
        deliveries.c.tenant_id == job.tenant_id,
        deliveries.c.endpoint_id == job.request["endpoint_id"],
        deliveries.c.state.in_(states),
    )
    if job.request["task"] == Task.RELEASE.value:
        statement = statement.where(deliveries.c.created_at <= job.created_at)
    after = job.cursor.get("after")
    if after:
        statement = statement.where(position > tuple_(datetime.fromisoformat(after[0]), after[1]))
    ordered = statement.order_by(deliveries.c.created_at, deliveries.c.id).limit(BATCH)
    return (await connection.execute(ordered.with_for_update(of=deliveries))).all()


async def _hold(connection: AsyncConnection, rows: Sequence[Row[Any]]) -> int:
    await _write(connection, rows, state=DeliveryState.HELD.value, lease_token=None, leased_until=None)
    return len(rows)


async def _release(
    connection: AsyncConnection, job: JobRow, endpoint: EndpointRow, rows: Sequence[Row[Any]], now: datetime
) -> int:
    held = [row for row in rows if row.state == DeliveryState.HELD.value]
    exhausted = [row for row in rows if row.state == DeliveryState.EXHAUSTED.value]
    mark_news(connection)
    if job.request["held"] == Held.DISCARD.value:
        await _write(connection, held, state=DeliveryState.DISCARDED.value, settled_at=now)
        return len(held)
    older = await _find_superseded(connection, held) if job.request["held"] == Held.LATEST.value else set()
    await _write(
        connection, [row for row in held if row.id in older], state=DeliveryState.SUPERSEDED.value, settled_at=now
    )
    sent = [row for row in held if row.id not in older]
    await _write(connection, sent, state=DeliveryState.PENDING.value, due_at=now)
    return len(held) + await _send_again(connection, endpoint, [row._mapping for row in exhausted], now)


async def _write(connection: AsyncConnection, rows: Sequence[Row[Any]], **values: Any) -> None:  # noqa: ANN401
    if rows:
        is_one = (deliveries.c.tenant_id == rows[0].tenant_id, deliveries.c.id.in_([row.id for row in rows]))
        await connection.execute(update(deliveries).where(*is_one).values(values))


async def _find_superseded(connection: AsyncConnection, rows: Sequence[Row[Any]]) -> set[str]:
    """Those of these that are not the newest of their subject among all that the endpoint was and is owed."""
    if not rows:
        return set()
    # By the event's own place: a redelivery by hand stands before everything in its lane.
    is_told = and_(
        events.c.tenant_id == deliveries.c.tenant_id,
        events.c.created_at == deliveries.c.event_created_at,
        events.c.id == deliveries.c.event_id,
    )
    statement = (
        select(deliveries.c.id, deliveries.c.subject, events.c.feed_position)
        .join(events, is_told)
        .where(
            deliveries.c.tenant_id == rows[0].tenant_id,
            deliveries.c.endpoint_id == rows[0].endpoint_id,
            deliveries.c.subject.in_({row.subject for row in rows}),
            deliveries.c.state.in_((*_OPEN, DeliveryState.DELIVERED.value)),
        )
    )
    places = {row.id: (row.subject, row.feed_position) for row in await connection.execute(statement)}
    newest: dict[str, int] = {}
    for subject, position in places.values():
        newest[subject] = max(position, newest.get(subject, 0))
    return {row.id for row in rows if row.id in places and places[row.id][1] < newest[row.subject]}


async def _send_again(
    connection: AsyncConnection, endpoint: EndpointRow, rows: Sequence[Mapping[Any, Any]], now: datetime
) -> int:
    """Another delivery for each, unless its event is owed or was accepted by a later one."""
    if not rows:
        return 0
    others = await _deliveries_of(connection, rows[0]["tenant_id"], endpoint, [row["event_id"] for row in rows])
    settled = {DeliveryState.DELIVERED.value, *_OPEN}
    done = {other.event_id for other in others if other.state in settled}
    once = {row["event_id"]: row for row in rows if row["event_id"] not in done}
    await copy_rows(connection, deliveries, [_copy_of(row, endpoint, now) for row in once.values()])
    return len(once)


async def _deliveries_of(
    connection: AsyncConnection, tenant_id: str, endpoint: EndpointRow, event_ids: Sequence[str]
) -> Sequence[Row[Any]]:
    statement = select(deliveries.c.event_id, deliveries.c.state).where(
        deliveries.c.tenant_id == tenant_id,
        deliveries.c.event_id.in_(event_ids),
        deliveries.c.endpoint_id == endpoint.id,
    )
    return (await connection.execute(statement)).all()  # type: ignore[return-value]


async def _recover(connection: AsyncConnection, job: JobRow, endpoint: EndpointRow, now: datetime) -> JobRow:
    """The next batch of the tenant's events: which of them the endpoint is to get once more."""
    if await _backlog(connection, job) >= BACKLOG_MAX:
        return await release_job(connection, job, now, f"its endpoint is owed {BACKLOG_MAX} deliveries or more")
    of_range = _is_in_range(job)
    total = job.total
    if total is None:
        total = (await connection.execute(select(func.count()).select_from(events).where(*of_range))).scalar_one()
    columns = [events.c[name] for name in ("tenant_id", "id", "type", "created_at", "feed_position", "subject")]
    statement = select(*columns).where(*of_range, events.c.feed_position > job.cursor.get("after", 0))
    rows = (await connection.execute(statement.order_by(events.c.feed_position).limit(BATCH))).all()
    sent = await _recover_events(connection, job.request["only"], endpoint, rows, now)
    result = {"redelivered": job.result.get("redelivered", 0) + sent}
    cursor = {"after": rows[-1].feed_position} if rows else dict(job.cursor)
    job = await progress_job(connection, job, now, done=job.done + len(rows), total=total, result=result, cursor=cursor)
    if len(rows) == BATCH:
        return await release_job(connection, job, now)
    return await end_job(connection, job, JobState.DONE, now)


def _is_in_range(job: JobRow) -> list[ColumnElement[bool]]:
    until = job.request["until"]
    return [
        events.c.tenant_id == job.tenant_id,
        events.c.created_at >= datetime.fromisoformat(job.request["since"]),
        events.c.created_at <= (datetime.fromisoformat(until) if until else job.created_at),
    ]


async def _backlog(connection: AsyncConnection, job: JobRow) -> int:
    owed = select(deliveries.c.id).where(
        deliveries.c.tenant_id == job.tenant_id,
        deliveries.c.endpoint_id == job.request["endpoint_id"],
        deliveries.c.state == DeliveryState.PENDING.value,
    )
    statement = select(func.count()).select_from(owed.limit(BACKLOG_MAX).subquery())
    return int((await connection.execute(statement)).scalar_one())


async def _recover_events(
    connection: AsyncConnection, only: str, endpoint: EndpointRow, rows: Sequence[Row[Any]], now: datetime
) -> int:
    if not rows:
        return 0
    states: dict[str, set[str]] = {}
    for other in await _deliveries_of(connection, rows[0].tenant_id, endpoint, [row.id for row in rows]):
        states.setdefault(other.event_id, set()).add(other.state)
    wanted = [row for row in rows if _is_wanted(only, row, endpoint, states.get(row.id, set()))]
    copies = [_copy_of(_delivery_row(row, endpoint), endpoint, now) for row in wanted]
    await copy_rows(connection, deliveries, copies)
    mark_news(connection)
    return len(copies)


def _is_wanted(only: str, event: Row[Any], endpoint: EndpointRow, states: set[str]) -> bool:
    if states & set(_OPEN):
        return False  # it is owed anyhow
    is_missing = not states and admits(endpoint.event_types, event.type)
    if event.type == "test.ping" and event.subject != endpoint.id:
        is_missing = False  # it was for another endpoint alone
    is_failed = bool(states & set(_FAILED)) and DeliveryState.DELIVERED.value not in states
    return {"missing": is_missing, "failed": is_failed, "all": is_missing or bool(states)}[only]


def _delivery_row(event: Row[Any], endpoint: EndpointRow) -> dict[str, Any]:
    return {
        "tenant_id": event.tenant_id,
        "event_id": event.id,
        "event_type": event.type,
        "event_created_at": event.created_at,
        "feed_position": event.feed_position,
        "endpoint_id": endpoint.id,
        "subject": event.subject,
    }
