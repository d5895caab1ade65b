"""The audit log: who changed what, written in the transaction of the change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.ids import TenantId, new_id
from ledger.schema_access import audit_log

COMMAND_LINE = "command line"
"""Actor of what an operator did with the `chainbell` command; every other actor is a key's id."""


async def record_audit(
    connection: AsyncConnection,
    *,
    tenant_id: TenantId,
    actor: str,
    action: str,
    subject: str,
    now: datetime,
    detail: Mapping[str, Any] | None = None,
) -> None:
    """Append one line. `detail` never holds a secret: it is readable by everyone who may read the database."""
    row = {
        "tenant_id": tenant_id,
        "id": new_id("aud", now),
        "actor": actor,
        "action": action,
        "subject": subject,
        "detail": dict(detail or {}),
        "created_at": now,
    }
    await connection.execute(audit_log.insert().values(row))


@dataclass(frozen=True, slots=True)
class AuditLine:
    """One line of the log."""

    tenant_id: TenantId
    id: str
    actor: str
    action: str
    subject: str
    detail: Mapping[str, Any]
    created_at: datetime


async def list_audit(
    connection: AsyncConnection,
    *,
    tenant_id: TenantId | None = None,
    actor: str | None = None,
    subject: str | None = None,
    since: datetime | None = None,
    limit: int,
) -> list[AuditLine]:
    """The newest lines that fit, the oldest of them first. Without a tenant it is one of the statements that cross
    tenants. It reads the log through: people ask it, seldom."""
    statement = select(*[audit_log.c[name] for name in AuditLine.__slots__])
    for column, wanted in (
        (audit_log.c.tenant_id, tenant_id),
        (audit_log.c.actor, actor),
        (audit_log.c.subject, subject),
    ):
        if wanted is not None:
            statement = statement.where(column == wanted)
    if since is not None:
        statement = statement.where(audit_log.c.created_at >= since)
    newest = statement.order_by(audit_log.c.created_at.desc(), audit_log.c.id.desc()).limit(limit)
    rows = [AuditLine(**row._mapping) for row in await connection.execute(newest)]
    return rows[::-1]
