"""Events: stored once with their exact bytes, placed in each tenant's feed, and owed to its endpoints.

Why the feed can be read with a cursor and never skip: a position is taken from the tenant's row inside the transaction
that writes the event (`UPDATE ... RETURNING`), and that row stays locked until the commit. So a position becomes visible
only after every lower one. An id from a sequence has no such order: a slow transaction commits a low id after a fast one
committed a higher, and a reader that keeps its place has skipped it. Tenants are locked in sorted order, after the
chain's row and before anything else, so that two followers cannot wait for each other.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Integer, Text, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.bulk import copy_rows, unnested
from ledger.documents import event_body
from ledger.hints import mark_news
from ledger.ids import DeliveryId, EndpointId, EventId, TenantId, new_id
from ledger.schema import deliveries, endpoints, events, tenants
from ledger.states import DeliveryState, EndpointState

LIVE_PRIORITY = 0
LATE_PRIORITY = 1
"""Priority of what was found in catch-up or backfill: it never delays live news."""

EVENTS_AT_ONCE = 200
"""A catch-up tells thousands of events in one commit: after so many the loop serves others, such as another chain's head."""


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event about to be stored: what happened to what, and the document of the subject as it stands now."""

    tenant_id: TenantId
    type: str
    subject: str
    livemode: bool
    data: object
    sequence: int | None = None
    previous_state: str | None = None
    priority: int = LIVE_PRIORITY
    endpoint_id: EndpointId | None = None
    """Only this endpoint is told; None for all whose filter admits the type."""


@dataclass(frozen=True, slots=True)
class _Told:
    endpoint_id: EndpointId
    event_types: tuple[str, ...] | None
    is_active: bool


def admits(event_types: Sequence[str] | None, event_type: str) -> bool:
    """True when an endpoint's filter admits a type: None admits all, `deposit.*` a family."""
    if event_types is None:
        return True
    family = event_type.split(".")[0] + ".*"
    return any(pattern in (event_type, family, "*") for pattern in event_types)


async def record_events(connection: AsyncConnection, new_events: Sequence[NewEvent], now: datetime) -> list[EventId]:
    """Store events in their order, give each its place in its tenant's feed, and fan out one delivery to each endpoint
    that wants it. Returns their ids."""
    if not new_events:
        return []
    positions = await _take_positions(connection, Counter(event.tenant_id for event in new_events))
    told = await _find_endpoints(connection, sorted(positions))
    event_rows: list[dict[str, Any]] = []
    delivery_rows: list[dict[str, Any]] = []
    for number, event in enumerate(new_events, 1):
        if number % EVENTS_AT_ONCE == 0:
            await asyncio.sleep(0)
        row = _event_row(event, next(positions[event.tenant_id]), now)
        event_rows.append(row)
        delivery_rows.extend(_delivery_rows(event, row, told[event.tenant_id], now))
    await copy_rows(connection, events, event_rows)
    await copy_rows(connection, deliveries, delivery_rows)
    mark_news(connection)
    return [row["id"] for row in event_rows]


async def record_event(
    connection: AsyncConnection,
    *,
    tenant_id: TenantId,
    event_type: str,
    subject: str,
    data: object,
    livemode: bool,
    now: datetime,
    sequence: int | None = None,
    previous_state: str | None = None,
    priority: int = LIVE_PRIORITY,
    endpoint_id: EndpointId | None = None,
) -> EventId:
    """Store one event; see `record_events`."""
    event = NewEvent(tenant_id, event_type, subject, livemode, data, sequence, previous_state, priority, endpoint_id)
    return (await record_events(connection, [event], now))[0]


async def _take_positions(connection: AsyncConnection, counts: Counter[TenantId]) -> dict[TenantId, Any]:
    ordered = sorted(counts)
    # FOR NO KEY UPDATE: entries written just before hold a share of the tenants' keys, another chain's follower too.
    await connection.execute(
        select(tenants.c.id).where(tenants.c.id.in_(ordered)).order_by(tenants.c.id).with_for_update(key_share=True)
    )
    asked = unnested("asked", id=Text(), count=Integer())
    statement = (
        update(tenants)
        .values(feed_position=tenants.c.feed_position + asked.c.count)
        .where(tenants.c.id == asked.c.id)
        .returning(tenants.c.id, tenants.c.feed_position)
    )
    rows = await connection.execute(statement, {"all_id": ordered, "all_count": [counts[tenant] for tenant in ordered]})
    return {row.id: iter(range(row.feed_position - counts[row.id] + 1, row.feed_position + 1)) for row in rows}


async def _find_endpoints(connection: AsyncConnection, tenant_ids: Sequence[str]) -> dict[str, list[_Told]]:
    rows = await connection.execute(
        select(endpoints.c.tenant_id, endpoints.c.id, endpoints.c.event_types, endpoints.c.state).where(
            endpoints.c.tenant_id.in_(tenant_ids), endpoints.c.deleted_at.is_(None)
        )
    )
    found: dict[str, list[_Told]] = defaultdict(list)
    for row in rows:
        types = tuple(row.event_types) if row.event_types is not None else None
        found[row.tenant_id].append(_Told(row.id, types, row.state == EndpointState.ACTIVE.value))
    return found


def _event_row(event: NewEvent, position: int, now: datetime) -> dict[str, Any]:
    event_id = EventId(new_id("evt", now))
    body = event_body(
        event_id=event_id,
        event_type=event.type,
        now=now,
        livemode=event.livemode,
        sequence=event.sequence,
        previous_state=event.previous_state,
        data=event.data,
    )
    return {
        "tenant_id": event.tenant_id,
        "id": event_id,
        "feed_position": position,
        "type": event.type,
        "subject": event.subject,
        "sequence": event.sequence,
        "body": body,
        "created_at": now,
    }


def _delivery_rows(event: NewEvent, row: dict[str, Any], told: list[_Told], now: datetime) -> list[dict[str, Any]]:
    return [
        {
            "tenant_id": event.tenant_id,
            "id": DeliveryId(new_id("del", now)),
            "event_id": row["id"],
            "event_type": event.type,
            "event_created_at": now,
            "feed_position": row["feed_position"],
            "endpoint_id": endpoint.endpoint_id,
            "subject": event.subject,
            "priority": event.priority,
            "state": (DeliveryState.PENDING if endpoint.is_active else DeliveryState.HELD).value,
            "due_at": now,
            "created_at": now,
        }
        for endpoint in told
        if _is_told(event, endpoint)
    ]


def _is_told(event: NewEvent, endpoint: _Told) -> bool:
    if event.endpoint_id is not None:
        return endpoint.endpoint_id == event.endpoint_id
    return admits(endpoint.event_types, event.type)
