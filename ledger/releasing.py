"""What a pause holds and a resumption lets go, in batches: the steps of the jobs that `ledger/holding.py` makes.

What a worker has leased settles as it is, and is looked at again after everything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, and_, func, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.endpoints import EndpointRow
from ledger.hints import mark_news
from ledger.holding import Held, Task
from ledger.jobs import JobRow, end_job, progress_job, release_job
from ledger.redelivery import OPEN_STATES, send_again
from ledger.schema import deliveries, events
from ledger.states import DeliveryState, JobState

BATCH = 500
"""Deliveries that one transaction handles: some ten milliseconds of locks."""


async def turn_over(connection: AsyncConnection, job: JobRow, endpoint: EndpointRow, now: datetime) -> JobRow:
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
    return len(held) + await send_again(connection, endpoint, [row._mapping for row in exhausted], now)


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
            deliveries.c.state.in_((*OPEN_STATES, DeliveryState.DELIVERED.value)),
        )
    )
    places = {row.id: (row.subject, row.feed_position) for row in await connection.execute(statement)}
    newest: dict[str, int] = {}
    for subject, position in places.values():
        newest[subject] = max(position, newest.get(subject, 0))
    return {row.id for row in rows if row.id in places and places[row.id][1] < newest[row.subject]}
