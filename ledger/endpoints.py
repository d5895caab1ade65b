"""Endpoints: where a tenant wants to be told, of what, and the sealed secrets that sign it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import Row, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.breaker import CLOSED, Breaker, breaker_at
from ledger.documents import time_of
from ledger.endpoint_health import COUNT_MAX, Glance, OwedDocument, TrafficDocument
from ledger.endpoint_pace import set_pace
from ledger.endpoint_secrets import add_secret
from ledger.ids import EndpointId, TenantId, new_id
from ledger.owed import FAILING_AFTER_FAILURES
from ledger.schema import endpoints
from ledger.secrets import SecretBox
from ledger.states import EndpointHealth, EndpointState
from ledger.walks import NEWEST_FIRST, split, walk
from ledger.words import EndpointWord, ErrorWord, Time


@dataclass(frozen=True, slots=True)
class EndpointRow:
    """An endpoint as its row stands."""

    id: EndpointId
    url: str
    event_types: tuple[str, ...] | None
    description: str | None
    state: EndpointState
    state_reason: str | None
    created_at: datetime
    updated_at: datetime
    last_attempt_at: datetime | None
    last_accepted_at: datetime | None
    last_failed_at: datetime | None
    last_status_code: int | None
    last_error: str | None
    failures_consecutive: int
    failing_since: datetime | None
    rests_until: datetime | None
    max_per_s: int | None


class EndpointHealthDocument(msgspec.Struct, frozen=True):
    """How deliveries to an endpoint went lately. `status` is `failing` (the last three attempts failed, or more),
    `accepting`, or `unproven` (nothing was accepted yet). `breaker` is `closed`; `open` until `rests_until`, for it failed
    ten times in a row, and what it is owed is held; or `half_open`, and tried by one delivery at a time. `last_status_code`
    and `last_error` are those of the last attempt. `deliveries`, `last_hour` and `last_day` are null in lists and events."""

    status: EndpointHealth
    breaker: Breaker
    rests_until: Time | None
    failures_consecutive: int
    failing_since: Time | None
    last_attempt_at: Time | None
    last_accepted_at: Time | None
    last_failed_at: Time | None
    last_status_code: int | None
    last_error: ErrorWord | None
    deliveries: OwedDocument | None
    last_hour: TrafficDocument | None
    last_day: TrafficDocument | None


class EndpointDocument(msgspec.Struct, frozen=True, tag_field="object", tag="endpoint"):
    """An endpoint. `event_types` null means all; `max_per_s` is how many deliveries a second it is sent at most, null for
    any number; `state` is `active`, `paused` or `disabled`."""

    id: str
    url: str
    event_types: list[str] | None
    description: str | None
    max_per_s: int | None
    state: EndpointWord
    state_reason: str | None
    created_at: Time
    updated_at: Time
    health: EndpointHealthDocument


def endpoint_document(row: EndpointRow, now: datetime, glance: Glance | None = None) -> EndpointDocument:
    """An endpoint as JSON, as it is now, without its secret; with what was read of its deliveries, where that was."""
    return EndpointDocument(
        id=row.id,
        url=row.url,
        event_types=list(row.event_types) if row.event_types is not None else None,
        description=row.description,
        max_per_s=row.max_per_s,
        state=row.state.value,
        state_reason=row.state_reason,
        created_at=time_of(row.created_at),
        updated_at=time_of(row.updated_at),
        health=_health_document(row, now, glance),
    )


def _health_document(row: EndpointRow, now: datetime, glance: Glance | None) -> EndpointHealthDocument:
    return EndpointHealthDocument(
        status=_status_of(row),
        breaker=breaker_at(now, row.rests_until),
        rests_until=_time_or_null(row.rests_until),
        failures_consecutive=row.failures_consecutive,
        failing_since=_time_or_null(row.failing_since),
        last_attempt_at=_time_or_null(row.last_attempt_at),
        last_accepted_at=_time_or_null(row.last_accepted_at),
        last_failed_at=_time_or_null(row.last_failed_at),
        last_status_code=row.last_status_code,
        last_error=row.last_error,
        deliveries=_owed(row, glance.owed) if glance else None,
        last_hour=glance.last_hour if glance else None,
        last_day=glance.last_day if glance else None,
    )


def _status_of(row: EndpointRow) -> EndpointHealth:
    if row.failures_consecutive >= FAILING_AFTER_FAILURES:
        return EndpointHealth.FAILING
    return EndpointHealth.UNPROVEN if row.last_accepted_at is None else EndpointHealth.ACCEPTING


def _owed(row: EndpointRow, owed: OwedDocument) -> OwedDocument:
    """What is pending is held while the breaker is not closed, as lists of deliveries have it."""
    if row.rests_until is None:
        return owed
    return msgspec.structs.replace(owed, pending=0, held=min(owed.pending + owed.held, COUNT_MAX))


def _time_or_null(moment: datetime | None) -> str | None:
    return time_of(moment) if moment else None


_columns = [column for column in endpoints.c if column.name in EndpointRow.__dataclass_fields__]


def _endpoint_of(row: Row[Any]) -> EndpointRow:
    values = {column.name: row._mapping[column.name] for column in _columns}
    values["event_types"] = tuple(values["event_types"]) if values["event_types"] is not None else None
    values["state"] = EndpointState(values["state"])
    return EndpointRow(**values)


async def create_endpoint(
    connection: AsyncConnection,
    box: SecretBox,
    *,
    tenant_id: TenantId,
    url: str,
    event_types: Sequence[str] | None,
    description: str | None,
    now: datetime,
    max_per_s: int | None = None,
) -> tuple[EndpointRow, str]:
    """Make an endpoint and its first secret; returns its row and the secret, which is shown once. The URL has passed
    `parse_endpoint_url`."""
    endpoint_id = EndpointId(new_id("ep", now))
    values = {
        "tenant_id": tenant_id,
        "id": endpoint_id,
        "url": url,
        "event_types": list(event_types) if event_types is not None else None,
        "description": description,
        "max_per_s": max_per_s,
        "created_at": now,
        "updated_at": now,
    }
    row = (await connection.execute(endpoints.insert().values(values).returning(*_columns))).one()
    if max_per_s is not None:
        await set_pace(connection, tenant_id, endpoint_id, now)
    made = await add_secret(connection, box, tenant_id, endpoint_id, now)
    return _endpoint_of(row), made.secret


async def find_endpoint(
    connection: AsyncConnection, tenant_id: TenantId, endpoint_id: EndpointId
) -> EndpointRow | None:
    """An endpoint of the tenant that was not deleted."""
    statement = select(*_columns).where(
        endpoints.c.tenant_id == tenant_id, endpoints.c.id == endpoint_id, endpoints.c.deleted_at.is_(None)
    )
    row = (await connection.execute(statement)).first()
    return _endpoint_of(row) if row is not None else None


async def find_endpoint_owner(connection: AsyncConnection, endpoint_id: EndpointId) -> TenantId | None:
    """Whose endpoint it is, for the operator's command line. Crosses tenants."""
    statement = select(endpoints.c.tenant_id).where(endpoints.c.id == endpoint_id, endpoints.c.deleted_at.is_(None))
    return (await connection.execute(statement)).scalar_one_or_none()


async def list_endpoints(
    connection: AsyncConnection, tenant_id: TenantId, *, after: EndpointId | None = None, limit: int
) -> tuple[list[EndpointRow], EndpointId | None]:
    """A page of at most `limit` endpoints that were not deleted, the newest first, from behind `after` on, and what the next
    page begins behind. It looks at a bounded number of rows: deleted ones stay (`ledger/walks.py`)."""
    statement = select(*_columns, endpoints.c.deleted_at).where(endpoints.c.tenant_id == tenant_id)
    if after is not None:
        statement = statement.where(endpoints.c.id < after)
    found = await connection.execute(
        walk(statement, NEWEST_FIRST, limit, lambda columns: [columns.deleted_at.is_(None)])
    )
    rows, last = split(found.all(), limit)
    return [_endpoint_of(row) for row in rows], None if last is None else EndpointId(last.id)


async def change_endpoint(
    connection: AsyncConnection,
    tenant_id: TenantId,
    endpoint_id: EndpointId,
    changes: Mapping[str, Any],
    now: datetime,
) -> EndpointRow | None:
    """Set `url`, `event_types`, `description`, `max_per_s` or the state; events that were stored before keep the deliveries
    they have. How long it has failed is counted anew, unless the change is that it is stopped; and at a new URL it is asked
    at once."""
    if EndpointState(changes.get("state", EndpointState.ACTIVE)) is EndpointState.ACTIVE:
        changes = {**changes, "failing_since": None, "gone_answers": 0}
    if "url" in changes:
        changes = {**CLOSED, **changes}
    statement = (
        update(endpoints)
        .where(endpoints.c.tenant_id == tenant_id, endpoints.c.id == endpoint_id, endpoints.c.deleted_at.is_(None))
        .values(**changes, updated_at=now)
        .returning(*_columns)
    )
    row = (await connection.execute(statement)).first()
    if row is not None and row.max_per_s is not None:
        await set_pace(connection, tenant_id, endpoint_id, now)
    return _endpoint_of(row) if row is not None else None
