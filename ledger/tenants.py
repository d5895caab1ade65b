"""Tenants: the payment companies that use an installation, and the operator's own (`ops`)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import or_, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.audit import COMMAND_LINE, record_audit
from ledger.errors import NameTaken, UnknownName
from ledger.ids import OPS_TENANT, TenantId, new_id
from ledger.schema import tenants

NAME = re.compile(r"(?!ten_)\S(?:[^\x00-\x1f\x7f]{0,98}\S)?")
"""What a tenant may be called. An id in its place would be taken for the tenant of that id."""


@dataclass(frozen=True, slots=True)
class TenantRow:
    """A tenant as its row stands."""

    id: TenantId
    name: str
    created_at: datetime


_columns = (tenants.c.id, tenants.c.name, tenants.c.created_at)


async def create_tenant(connection: AsyncConnection, name: str, now: datetime) -> TenantId:
    """Make a tenant; its name is unique. Raises `NameTaken`, and `UnknownName` for what is no name."""
    if not NAME.fullmatch(name):
        raise UnknownName(
            f"{name[:40]!r} is no name for a tenant: 1 to 100 visible characters, not beginning with ten_"
        )
    tenant_id = TenantId(new_id("ten", now))
    statement = insert(tenants).values(id=tenant_id, name=name, created_at=now)
    made = await connection.execute(
        statement.on_conflict_do_nothing(index_elements=[tenants.c.name]).returning(tenants.c.id)
    )
    if made.first() is None:
        raise NameTaken(f"there is a tenant named {name!r} already; choose another name")
    await record_audit(
        connection,
        tenant_id=OPS_TENANT,
        actor=COMMAND_LINE,
        action="tenant.created",
        subject=tenant_id,
        now=now,
        detail={"name": name},
    )
    return tenant_id


async def list_tenants(connection: AsyncConnection) -> list[TenantRow]:
    """Every tenant, the oldest first."""
    rows = await connection.execute(select(*_columns).order_by(tenants.c.created_at, tenants.c.id))
    return [TenantRow(TenantId(row.id), row.name, row.created_at) for row in rows]


async def find_tenant(connection: AsyncConnection, name_or_id: str) -> TenantRow:
    """The tenant of that id or name; raises `UnknownName`."""
    statement = select(*_columns).where(or_(tenants.c.id == name_or_id, tenants.c.name == name_or_id))
    # An id wins over a name that is spelled like one.
    row = (await connection.execute(statement.order_by((tenants.c.id == name_or_id).desc()).limit(1))).first()
    if row is None:
        raise UnknownName(f"there is no tenant {name_or_id!r}; make it with: chainbell tenants create {name_or_id}")
    return TenantRow(TenantId(row.id), row.name, row.created_at)
