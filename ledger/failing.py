"""Endpoints that only fail: who is warned of, who is disabled, and who said that it is gone."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, and_, func, literal, select
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.endpoints import endpoint_document, find_endpoint
from ledger.events import NewEvent, record_events
from ledger.ids import OPS_TENANT, EndpointId, TenantId
from ledger.schema import attempts, deliveries, endpoints, events
from ledger.states import EndpointState

DISABLED_AFTER = timedelta(days=5)
DISABLED_AFTER_FAILURES = 20
"""An endpoint is disabled when it failed for so long and so often, and accepted nothing in between."""

WARNED_AFTER = DISABLED_AFTER / 2
GONE_STATUS_CODE = 410
GONE_AFTER = 2
"""Answers of 410 since it last accepted that pause an endpoint: one may be a mistake of a deployment."""

AT_ONCE = 100
FAILING = "endpoint.failing"

# A change by its owner and a resumption start it anew.
_since = func.greatest(func.coalesce(endpoints.c.last_accepted_at, endpoints.c.created_at), endpoints.c.updated_at)

Key = tuple[TenantId, EndpointId]


def _attempts_of(*wanted: ColumnElement[bool]) -> ColumnElement[int]:
    """How many attempts since the endpoint last accepted are so."""
    is_of = and_(attempts.c.tenant_id == deliveries.c.tenant_id, attempts.c.delivery_id == deliveries.c.id)
    return (
        select(func.count())
        .select_from(deliveries.join(attempts, is_of))
        .where(
            deliveries.c.tenant_id == endpoints.c.tenant_id,
            deliveries.c.endpoint_id == endpoints.c.id,
            deliveries.c.attempts > 0,
            attempts.c.started_at >= _since,
            *wanted,
        )
        .correlate(endpoints)
        .scalar_subquery()
    )


async def _find(connection: AsyncConnection, failures: int, *wanted: ColumnElement[bool]) -> list[Key]:
    statement = select(endpoints.c.tenant_id, endpoints.c.id).where(
        endpoints.c.deleted_at.is_(None),
        endpoints.c.state == EndpointState.ACTIVE.value,
        endpoints.c.failures_consecutive >= failures,
        *wanted,
    )
    rows = await connection.execute(statement.order_by(endpoints.c.tenant_id, endpoints.c.id).limit(AT_ONCE))
    return [(TenantId(row.tenant_id), EndpointId(row.id)) for row in rows]


async def find_gone_endpoints(connection: AsyncConnection) -> Sequence[Key]:
    """Active endpoints that answered 410 twice since they last accepted. Crosses tenants."""
    is_gone = _attempts_of(attempts.c.status_code == GONE_STATUS_CODE) >= GONE_AFTER
    return await _find(connection, GONE_AFTER, is_gone)


async def find_dead_endpoints(connection: AsyncConnection, now: datetime) -> Sequence[Key]:
    """Active endpoints that are to be disabled: five days of only failures, and at least twenty. Crosses tenants."""
    began = now - DISABLED_AFTER
    return await _find(
        connection, DISABLED_AFTER_FAILURES, _since <= began, _attempts_of(attempts.c.started_at <= began) > 0
    )


async def find_failing_endpoints(connection: AsyncConnection, now: datetime) -> Sequence[Key]:
    """Active endpoints that have failed for half the time that disables them, and nobody was warned of. Crosses tenants."""
    began = now - WARNED_AFTER
    warned = select(literal(1)).where(
        events.c.tenant_id == OPS_TENANT,
        events.c.subject == endpoints.c.id,
        events.c.type == FAILING,
        events.c.created_at >= _since,
    )
    return await _find(
        connection,
        DISABLED_AFTER_FAILURES // 2,
        _since <= began,
        _attempts_of(attempts.c.started_at <= began) > 0,
        ~warned.correlate(endpoints).exists(),
    )


async def warn_of(connection: AsyncConnection, keys: Sequence[Key], now: datetime) -> None:
    """Tell the operator which endpoints will be disabled if they go on failing."""
    told = []
    for tenant_id, endpoint_id in keys:
        row = await find_endpoint(connection, tenant_id, endpoint_id)
        if row is not None:
            document = endpoint_document(row)
            told.append(NewEvent(OPS_TENANT, FAILING, endpoint_id, livemode=True, data=document))
    await record_events(connection, told, now)
