"""What a pause holds and a resumption lets go, in batches: the steps of the jobs that `ledger/holding.py` makes.

What a worker has leased settles as it is, and is looked at again after everything else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, bindparam, func, literal, or_, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.agreement import keep_claims_away
from ledger.by_hand import BY_HAND
from ledger.endpoints import EndpointRow
from ledger.hints import mark_news
from ledger.holding import Held, Task
from ledger.ids import EndpointId
from ledger.jobs import JobRow, end_job, progress_job, release_job
from ledger.redelivery import OPEN_STATES, send_again
from ledger.schema import deliveries, events
from ledger.states import DeliveryState, JobState

BATCH = 500
"""Deliveries that one transaction handles: some ten milliseconds of locks."""

COUNTED_MAX = 10_000
"""So many deliveries are counted before the work begins; of more, the total is known when it ends."""

IN_FLIGHT_PAUSE = timedelta(seconds=1)
"""Between two looks at what is in flight at a pause."""


async def turn_over(connection: AsyncConnection, job: JobRow, endpoint: EndpointRow, now: datetime) -> JobRow:
    """Hold what is pending, or let go what is held: the next batch. The endpoint is locked. Raises `ClaimUnfinished`."""
    if not job.done and job.total is None:
        job = await progress_job(connection, job, now, total=await _count(connection, job))
    if job.request["task"] == Task.HOLD.value:
        return await _hold(connection, job, now)
    rows = (await connection.execute(_next_held(job))).all()
    if rows:
        came_to = await _release(connection, Held(job.request["held"]), rows, now)
        job = await _progress(connection, job, now, len(rows), came_to)
        return await release_job(connection, job, now)
    if job.request["held"] == Held.ALL.value:
        return await _send_exhausted(connection, job, endpoint, now)
    return await _end(connection, job, now)


async def _count(connection: AsyncConnection, job: JobRow) -> int | None:
    """How many deliveries there are to look at; None for more than are counted."""
    states = [DeliveryState.PENDING] if job.request["task"] == Task.HOLD.value else [DeliveryState.HELD]
    if job.request.get("held") == Held.ALL.value:
        states.append(DeliveryState.EXHAUSTED)
    counted = 0
    for state in states:
        found = select(literal(1)).where(*_in_state(job, state)).limit(COUNTED_MAX + 1 - counted)
        counted += (await connection.execute(select(func.count()).select_from(found.subquery()))).scalar_one()
    return counted if counted <= COUNTED_MAX else None


async def _progress(
    connection: AsyncConnection,
    job: JobRow,
    now: datetime,
    looked_at: int,
    came_to: Mapping[str, int],
    **values: object,
) -> JobRow:
    """Add a batch to what the job has come to. There may be more than were counted: what was in flight has settled."""
    result = {**job.result, **{name: job.result.get(name, 0) + number for name, number in came_to.items()}}
    done = job.done + looked_at
    total = None if job.total is None else max(job.total, done)
    return await progress_job(connection, job, now, done=done, total=total, result=result, **values)


async def _end(connection: AsyncConnection, job: JobRow, now: datetime) -> JobRow:
    job = await progress_job(connection, job, now, total=job.done)
    return await end_job(connection, job, JobState.DONE, now)


def _in_state(job: JobRow, state: DeliveryState) -> list[ColumnElement[bool]]:
    """Deliveries of the job's endpoint. The state is written into the statement: an index has only some of them."""
    return [
        deliveries.c.tenant_id == job.tenant_id,
        deliveries.c.endpoint_id == job.request["endpoint_id"],
        deliveries.c.state == bindparam(None, state.value, literal_execute=True),
    ]


def _next_pending(job: JobRow) -> Select[Any]:
    is_idle = or_(deliveries.c.leased_until.is_(None), deliveries.c.leased_until <= func.now())
    pending = _in_state(job, DeliveryState.PENDING)
    return select(deliveries.c.tenant_id, deliveries.c.id).where(*pending, is_idle).limit(BATCH).with_for_update()


def _next_held(job: JobRow) -> Select[Any]:
    """The oldest first. Nothing is held that is newer than the resumption, whatever the clocks of two transactions say."""
    held = select(deliveries).where(*_in_state(job, DeliveryState.HELD))
    return held.order_by(deliveries.c.created_at, deliveries.c.id).limit(BATCH).with_for_update()


def _next_exhausted(job: JobRow, after: Sequence[str] | None) -> Select[Any]:
    """Those that there were when the endpoint was resumed: they stay what they are, and a place keeps them apart."""
    place = tuple_(deliveries.c.created_at, deliveries.c.id)
    statement = select(deliveries).where(
        *_in_state(job, DeliveryState.EXHAUSTED), deliveries.c.created_at <= job.created_at
    )
    if after is not None:
        statement = statement.where(place > tuple_(datetime.fromisoformat(after[0]), after[1]))
    return statement.order_by(deliveries.c.created_at, deliveries.c.id).limit(BATCH)


async def _hold(connection: AsyncConnection, job: JobRow, now: datetime) -> JobRow:
    """What is in flight is looked at again, until it has settled."""
    rows = (await connection.execute(_next_pending(job))).all()
    await _write(connection, rows, state=DeliveryState.HELD.value, lease_token=None, leased_until=None)
    job = await _progress(connection, job, now, len(rows), {"held": len(rows)})
    if rows:
        return await release_job(connection, job, now)
    in_flight = select(literal(1)).where(*_in_state(job, DeliveryState.PENDING)).limit(1)
    if (await connection.execute(in_flight)).first() is not None:
        return await release_job(connection, job, now, pause=IN_FLIGHT_PAUSE)
    return await _end(connection, job, now)


async def _release(
    connection: AsyncConnection, held: Held, rows: Sequence[Row[Any]], now: datetime
) -> Mapping[str, int]:
    """Returns how many were sent, superseded and discarded: those of these that may be."""
    mark_news(connection)
    if held is Held.DISCARD:
        await _write(connection, rows, state=DeliveryState.DISCARDED.value, settled_at=now)
        return {"discarded": len(rows)}
    # One that failed often enough to be overtaken is due again, and a claim may be taking the one behind it.
    await keep_claims_away(connection, EndpointId(rows[0].endpoint_id))
    older = await _find_superseded(connection, rows) if held is Held.LATEST else set()
    superseded = [row for row in rows if row.id in older]
    await _write(connection, superseded, state=DeliveryState.SUPERSEDED.value, settled_at=now)
    sent = [row for row in rows if row.id not in older]
    await _write(connection, sent, state=DeliveryState.PENDING.value, due_at=now)
    return {"sent": len(sent), "superseded": len(superseded)} if held is Held.LATEST else {"sent": len(sent)}


async def _send_exhausted(connection: AsyncConnection, job: JobRow, endpoint: EndpointRow, now: datetime) -> JobRow:
    rows = (await connection.execute(_next_exhausted(job, job.cursor.get("after")))).all()
    sent = await send_again(connection, endpoint, [row._mapping for row in rows], now)
    mark_news(connection)
    cursor = {"after": [rows[-1].created_at.isoformat(), rows[-1].id]} if rows else dict(job.cursor)
    job = await _progress(connection, job, now, len(rows), {"sent": sent}, cursor=cursor)
    if len(rows) == BATCH:
        return await release_job(connection, job, now)
    return await _end(connection, job, now)


async def _write(connection: AsyncConnection, rows: Sequence[Row[Any]], **values: Any) -> None:  # noqa: ANN401
    if rows:
        is_one = (deliveries.c.tenant_id == rows[0].tenant_id, deliveries.c.id.in_([row.id for row in rows]))
        await connection.execute(update(deliveries).where(*is_one).values(values))


async def _find_superseded(connection: AsyncConnection, rows: Sequence[Row[Any]]) -> set[str]:
    """Those of these that are not the newest of their subject among all that the endpoint was and is owed."""
    names = ("tenant_id", "id", "subject", "feed_position", "event_id", "event_created_at")
    statement = select(*[deliveries.c[name] for name in names]).where(
        deliveries.c.tenant_id == rows[0].tenant_id,
        deliveries.c.endpoint_id == rows[0].endpoint_id,
        deliveries.c.subject.in_({row.subject for row in rows}),
        deliveries.c.state.in_((*OPEN_STATES, DeliveryState.DELIVERED.value)),
    )
    told = (await connection.execute(statement)).all()
    own = await _positions_of(connection, [row for row in told if row.feed_position == BY_HAND])
    places = {row.id: (row.subject, own.get(row.event_id, row.feed_position)) for row in told}
    newest: dict[str, int] = {}
    for subject, position in places.values():
        newest[subject] = max(position, newest.get(subject, 0))
    return {row.id for row in rows if row.id in places and places[row.id][1] < newest[row.subject]}


async def _positions_of(connection: AsyncConnection, by_hand: Sequence[Row[Any]]) -> dict[str, int]:
    """The events' own places: what is redelivered by hand has none in its lane."""
    if not by_hand:
        return {}
    moments = [row.event_created_at for row in by_hand]
    statement = select(events.c.id, events.c.feed_position).where(
        events.c.tenant_id == by_hand[0].tenant_id,
        events.c.id.in_({row.event_id for row in by_hand}),
        events.c.created_at.between(min(moments), max(moments)),
    )
    return {row.id: row.feed_position for row in await connection.execute(statement)}
