"""The second wall between tenants: Postgres shows the API's role the rows of one tenant, whatever a statement forgets.

The first wall is the tenant in every statement. The second is a policy on every table with a `tenant_id` (row-level
security), for the role `chainbell_api` alone: a row is there when its tenant is the one that the transaction speaks for.
That is a setting of the transaction, made by the same statement that finds the request's key (`ledger.keys.find_key`), so
it costs no round trip, holds behind a pooler that shares sessions, and is gone with the transaction. A transaction that
speaks for nobody sees nothing.

Followers and notifiers work for all tenants: they own the tables, and no policy holds for them. What of the API is told of
all tenants (`/metrics`) reads as they do.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.columns import metadata
from ledger.ids import TenantId

SETTING = "chainbell.tenant"
"""Name of the transaction's setting. A name with a dot needs no declaration."""

POLICY = "tenant"
"""Name of the policy, the same on every table."""


def tenant_tables() -> list[str]:
    """Tables whose rows are a tenant's, by name; `ledger.schema` has declared them all."""
    return sorted(table.name for table in metadata.tables.values() if "tenant_id" in table.c)


async def speak_for(connection: AsyncConnection, tenant_id: TenantId) -> None:
    """See and write this tenant's rows from here to the end of the transaction."""
    await connection.execute(select(func.set_config(SETTING, tenant_id, True)))


@asynccontextmanager
async def speaking_for(connection: AsyncConnection, tenant_id: TenantId) -> AsyncIterator[None]:
    """Speak for another tenant for as long as the block lasts: the operator is told of what a tenant did. Where the block
    raises, the transaction is lost anyway."""
    before = (await connection.execute(select(func.current_setting(SETTING, True)))).scalar_one()
    await speak_for(connection, tenant_id)
    yield
    await speak_for(connection, TenantId(before or ""))
