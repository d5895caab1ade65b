"""Whether there is what a filter names: so that a misspelled id is not taken for one about which there is nothing."""

from __future__ import annotations

from sqlalchemy import ColumnElement, exists, select
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.ids import TenantId
from ledger.schema import endpoints, entries, events


async def is_endpoint(connection: AsyncConnection, tenant_id: TenantId, endpoint_id: str) -> bool:
    """True for an endpoint of the tenant, a deleted one too: its deliveries stay."""
    return await _is_there(connection, endpoints.c.tenant_id == tenant_id, endpoints.c.id == endpoint_id)


async def is_event(connection: AsyncConnection, tenant_id: TenantId, event_id: str) -> bool:
    """True for an event of the tenant, as long as it is kept."""
    return await _is_there(connection, events.c.tenant_id == tenant_id, events.c.id == event_id)


async def is_entry(connection: AsyncConnection, tenant_id: TenantId, entry_id: str) -> bool:
    """True for a deposit or withdrawal of the tenant."""
    return await _is_there(connection, entries.c.tenant_id == tenant_id, entries.c.id == entry_id)


async def _is_there(connection: AsyncConnection, *is_it: ColumnElement[bool]) -> bool:
    return bool((await connection.execute(select(exists().where(*is_it)))).scalar_one())
