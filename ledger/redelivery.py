"""One event once more to one endpoint: whether it is wanted, and the delivery that is made for it.

What is settled stays as it is: sending its event again is another delivery, with the event's id and bytes and attempts of
its own. The endpoint's row is locked meanwhile, against everybody else who sends again: two who ask for the same at one
moment must not both find that it is owed to nobody. Fan-out is not kept waiting by that lock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, bindparam, func, literal, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.agreement import keep_claims_away
from ledger.breaker import end_rest, is_open
from ledger.bulk import copy_rows
from ledger.by_hand import BY_HAND
from ledger.endpoints import EndpointRow, find_endpoint
from ledger.events import LATE_PRIORITY, LIVE_PRIORITY, admits
from ledger.hints import mark_news
from ledger.holding import Only
from ledger.ids import DeliveryId, EndpointId, TenantId, is_test, new_id
from ledger.schema import deliveries, endpoints, events
from ledger.states import DeliveryState, EndpointState

OPEN_STATES = (DeliveryState.PENDING.value, DeliveryState.HELD.value)
"""States of a delivery that is still owed."""

_FAILED = (DeliveryState.EXHAUSTED.value, DeliveryState.REFUSED.value, DeliveryState.FAULTED.value)


async def lock_endpoint(connection: AsyncConnection, tenant_id: TenantId, endpoint_id: str) -> EndpointRow | None:
    """The endpoint, which is neither paused nor resumed until the commit (what is stored as pending would escape a pause
    that went over its deliveries meanwhile), and to which nobody else sends again. None where there is none."""
    place = (endpoints.c.tenant_id == tenant_id, endpoints.c.id == endpoint_id)
    await connection.execute(select(endpoints.c.id).where(*place).with_for_update(key_share=True))
    return await find_endpoint(connection, tenant_id, EndpointId(endpoint_id))


async def redeliver(
    connection: AsyncConnection, tenant_id: TenantId, delivery_id: DeliveryId, now: datetime
) -> DeliveryId | None:
    """Owe a delivery's event to its endpoint again, at once; returns the new delivery's id. Where the event is still owed to
    the endpoint, that delivery is sent as it is, and its id returned. None where there is no such delivery, its endpoint was
    deleted, or its event is kept no longer."""
    statement = select(deliveries).where(deliveries.c.tenant_id == tenant_id, deliveries.c.id == delivery_id)
    row = (await connection.execute(statement)).first()
    endpoint = None if row is None else await lock_endpoint(connection, tenant_id, row.endpoint_id)
    if row is None or endpoint is None:
        return None
    mark_news(connection)
    made = await _find_owed(connection, tenant_id, endpoint, row.event_id)
    if made is not None:
        await _hurry(connection, tenant_id, made, now)
    elif not await _kept(connection, [row._mapping]):
        return None
    else:
        copy = {**_copy_of(row._mapping, endpoint, now), "feed_position": BY_HAND, "priority": LIVE_PRIORITY}
        await copy_rows(connection, deliveries, [copy])
        made = DeliveryId(copy["id"])
    await let_go_first(connection, tenant_id, endpoint.id, made)
    return made


async def let_go_first(
    connection: AsyncConnection, tenant_id: TenantId, endpoint_id: EndpointId, delivery_id: DeliveryId
) -> None:
    """End an endpoint's rest, and let a delivery that a person asked for be its probe: that is the one that has been due for
    longest, and so it counts as due from before all others."""
    is_open_now = select(literal(1)).where(
        endpoints.c.tenant_id == tenant_id, endpoints.c.id == endpoint_id, is_open(endpoints)
    )
    owed = deliveries.alias("owed")
    first = select(func.min(owed.c.due_at)).where(
        owed.c.tenant_id == tenant_id,
        owed.c.endpoint_id == endpoint_id,
        owed.c.priority == LIVE_PRIORITY,
        owed.c.state == bindparam(None, DeliveryState.PENDING.value, literal_execute=True),
    )
    is_idle = deliveries.c.leased_until.is_(None) | (deliveries.c.leased_until <= func.now())
    place = (deliveries.c.tenant_id == tenant_id, deliveries.c.id == delivery_id)
    await end_rest(connection, tenant_id, endpoint_id)
    await connection.execute(
        update(deliveries)
        .where(*place, deliveries.c.state == DeliveryState.PENDING.value, is_idle, is_open_now.exists())
        .values(due_at=func.least(deliveries.c.due_at, first.scalar_subquery() - timedelta(microseconds=1)))
    )


async def _find_owed(
    connection: AsyncConnection, tenant_id: TenantId, endpoint: EndpointRow, event_id: str
) -> DeliveryId | None:
    statement = (
        select(deliveries.c.id)
        .where(
            deliveries.c.tenant_id == tenant_id,
            deliveries.c.event_id == event_id,
            deliveries.c.endpoint_id == endpoint.id,
            deliveries.c.state.in_(OPEN_STATES),
        )
        .limit(1)
    )
    found = (await connection.execute(statement.with_for_update())).scalar()
    return None if found is None else DeliveryId(found)


async def _hurry(connection: AsyncConnection, tenant_id: TenantId, delivery_id: DeliveryId, now: datetime) -> None:
    """Make it due now, unless it is under way. It leaves its lane: what was moved to its next attempt, to go after it, is
    due as well."""
    is_idle = deliveries.c.leased_until.is_(None) | (deliveries.c.leased_until <= func.now())
    place = (deliveries.c.tenant_id == tenant_id, deliveries.c.id == delivery_id)
    row = (await connection.execute(select(deliveries).where(*place, is_idle))).first()
    if row is None:
        return
    await connection.execute(
        update(deliveries).where(*place).values(due_at=now, priority=LIVE_PRIORITY, feed_position=BY_HAND)
    )
    if row.feed_position == BY_HAND:
        return
    await connection.execute(
        update(deliveries)
        .where(
            deliveries.c.tenant_id == tenant_id,
            deliveries.c.endpoint_id == row.endpoint_id,
            deliveries.c.subject == row.subject,
            deliveries.c.state == bindparam(None, DeliveryState.PENDING.value, literal_execute=True),
            deliveries.c.feed_position > row.feed_position,
            deliveries.c.attempts == 0,
            deliveries.c.due_at > now,
        )
        .values(due_at=now)
    )


def _copy_of(row: Mapping[Any, Any], endpoint: EndpointRow, now: datetime) -> dict[str, Any]:
    state = DeliveryState.PENDING if endpoint.state is EndpointState.ACTIVE else DeliveryState.HELD
    same = ("tenant_id", "event_id", "event_type", "event_created_at", "feed_position", "subject")
    own = {"id": new_id("del", now), "priority": LATE_PRIORITY, "state": state.value, "due_at": now, "created_at": now}
    return {**{name: row[name] for name in same}, "endpoint_id": endpoint.id, **own}


async def send_again(
    connection: AsyncConnection, endpoint: EndpointRow, rows: Sequence[Mapping[Any, Any]], now: datetime
) -> int:
    """Another delivery for each of these, in its place in its lane, unless its event is owed, was accepted by a later one,
    or is kept no longer. The endpoint is locked. Raises `ClaimUnfinished`."""
    if not rows:
        return 0
    states = await _states_of(connection, rows[0]["tenant_id"], endpoint, [row["event_id"] for row in rows])
    settled = {DeliveryState.DELIVERED.value, *OPEN_STATES}
    kept = await _kept(connection, rows)
    once = {row["event_id"]: row for row in rows if row["event_id"] in kept and not states[row["event_id"]] & settled}
    await _put_in_lanes(connection, endpoint, list(once.values()), now)
    return len(once)


async def deliver_again(
    connection: AsyncConnection,
    endpoint: EndpointRow,
    told: Sequence[Row[Any]],
    only: Only,
    now: datetime,
) -> int:
    """Owe the endpoint those of these events that are wanted, after what is new and in their places in their lanes; returns
    how many. The endpoint is locked. Raises `ClaimUnfinished`."""
    if not told:
        return 0
    states = await _states_of(connection, told[0].tenant_id, endpoint, [event.id for event in told])
    wanted = [event for event in told if _is_wanted(only, event, endpoint, states.get(event.id, set()))]
    await _put_in_lanes(connection, endpoint, [_row_of(event) for event in wanted], now)
    mark_news(connection)
    return len(wanted)


async def _kept(connection: AsyncConnection, rows: Sequence[Mapping[Any, Any]]) -> set[str]:
    """Those of these deliveries' events that are still there: a delivery may outlive what it told, which goes by its own
    day."""
    times = [row["event_created_at"] for row in rows]
    statement = select(events.c.id).where(
        events.c.tenant_id == rows[0]["tenant_id"],
        events.c.created_at.between(min(times), max(times)),
        events.c.id.in_([row["event_id"] for row in rows]),
    )
    return set((await connection.execute(statement)).scalars())


async def _put_in_lanes(
    connection: AsyncConnection, endpoint: EndpointRow, rows: Sequence[Mapping[Any, Any]], now: datetime
) -> None:
    """Another delivery for each, in its place: perhaps before one that a claim is just taking, which is to end first."""
    if rows:
        await keep_claims_away(connection, endpoint.id)
        await copy_rows(connection, deliveries, [_copy_of(row, endpoint, now) for row in rows])


async def _states_of(
    connection: AsyncConnection, tenant_id: str, endpoint: EndpointRow, event_ids: Sequence[str]
) -> Mapping[str, set[str]]:
    """By event, the states of its deliveries to the endpoint."""
    statement = select(deliveries.c.event_id, deliveries.c.state).where(
        deliveries.c.tenant_id == tenant_id,
        deliveries.c.event_id.in_(event_ids),
        deliveries.c.endpoint_id == endpoint.id,
    )
    states: dict[str, set[str]] = {}
    for row in await connection.execute(statement):
        states.setdefault(row.event_id, set()).add(row.state)
    return states


def _is_wanted(only: Only, event: Row[Any], endpoint: EndpointRow, states: set[str]) -> bool:
    if states & set(OPEN_STATES):
        return False  # it is owed anyhow
    is_missing = not states and admits(endpoint.event_types, event.type)
    if is_test(event.subject) or event.type == "test.ping":
        is_missing = False  # it was for another endpoint alone
    is_failed = bool(states & set(_FAILED)) and DeliveryState.DELIVERED.value not in states
    return {Only.MISSING: is_missing, Only.FAILED: is_failed, Only.ALL: is_missing or bool(states)}[only]


def _row_of(event: Row[Any]) -> dict[str, Any]:
    return {
        "tenant_id": event.tenant_id,
        "event_id": event.id,
        "event_type": event.type,
        "event_created_at": event.created_at,
        "feed_position": event.feed_position,
        "subject": event.subject,
    }
