"""Endpoints that only fail: who is warned of, who is disabled, and who said that it is gone."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, literal, select
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.endpoints import endpoint_document, find_endpoint
from ledger.events import NewEvent, record_events
from ledger.ids import OPS_TENANT, EndpointId, TenantId
from ledger.schema import endpoints, events
from ledger.states import EndpointState

DISABLED_AFTER = timedelta(days=5)
DISABLED_AFTER_FAILURES = 20
"""An endpoint is disabled when it failed for so long and so often, and accepted nothing in between."""

WARNED_AFTER = DISABLED_AFTER / 2
GONE_AFTER = 2
"""Answers of 410 since it last accepted that pause an endpoint: one may be a mistake of a deployment."""

AT_ONCE = 100
FAILING = "endpoint.failing"

Key = tuple[TenantId, EndpointId]


def _failing(failures: int, *wanted: ColumnElement[bool]) -> Select[Any]:
    """Active endpoints that failed at least so often since they last accepted, and of which the rest holds: read from their
    own rows, however many deliveries they have."""
    statement = select(endpoints.c.tenant_id, endpoints.c.id).where(
        endpoints.c.deleted_at.is_(None),
        endpoints.c.state == EndpointState.ACTIVE.value,
        endpoints.c.failures_consecutive >= failures,
        *wanted,
    )
    return statement.order_by(endpoints.c.tenant_id, endpoints.c.id).limit(AT_ONCE)


def _gone() -> Select[Any]:
    return _failing(GONE_AFTER, endpoints.c.gone_answers >= GONE_AFTER)


def _dead(now: datetime) -> Select[Any]:
    return _failing(DISABLED_AFTER_FAILURES, endpoints.c.failing_since <= now - DISABLED_AFTER)


def _unwarned(now: datetime) -> Select[Any]:
    warned = select(literal(1)).where(
        events.c.tenant_id == OPS_TENANT,
        events.c.subject == endpoints.c.id,
        events.c.type == FAILING,
        events.c.created_at >= endpoints.c.failing_since,
    )
    is_unwarned = ~warned.correlate(endpoints).exists()
    return _failing(DISABLED_AFTER_FAILURES // 2, endpoints.c.failing_since <= now - WARNED_AFTER, is_unwarned)


async def _find(connection: AsyncConnection, statement: Select[Any]) -> list[Key]:
    return [(TenantId(row.tenant_id), EndpointId(row.id)) for row in await connection.execute(statement)]


async def find_gone_endpoints(connection: AsyncConnection) -> Sequence[Key]:
    """Active endpoints that answered 410 twice since they last accepted. Crosses tenants."""
    return await _find(connection, _gone())


async def find_dead_endpoints(connection: AsyncConnection, now: datetime) -> Sequence[Key]:
    """Active endpoints that are to be disabled: five days of only failures, and at least twenty. Crosses tenants."""
    return await _find(connection, _dead(now))


async def find_failing_endpoints(connection: AsyncConnection, now: datetime) -> Sequence[Key]:
    """Active endpoints that have failed for half the time that disables them, and nobody was warned of. Crosses tenants."""
    return await _find(connection, _unwarned(now))


async def is_to_be_stopped(connection: AsyncConnection, key: Key, state: EndpointState, now: datetime) -> bool:
    """Whether what was found of an endpoint still holds: that it is gone, and to be paused, or dead, and to be disabled. Its
    row is locked first, so that it stays so until the commit. The tenant is locked already."""
    is_it = (endpoints.c.tenant_id == key[0], endpoints.c.id == key[1])
    await connection.execute(select(endpoints.c.id).where(*is_it).with_for_update(key_share=True))
    wanted = _gone() if state is EndpointState.PAUSED else _dead(now)
    return (await connection.execute(wanted.where(*is_it))).first() is not None


async def warn_of(connection: AsyncConnection, keys: Sequence[Key], now: datetime) -> None:
    """Tell the operator which endpoints will be disabled if they go on failing."""
    told = []
    for tenant_id, endpoint_id in keys:
        row = await find_endpoint(connection, tenant_id, endpoint_id)
        if row is not None:
            document = endpoint_document(row, now)
            told.append(NewEvent(OPS_TENANT, FAILING, endpoint_id, livemode=True, data=document))
    await record_events(connection, told, now)
