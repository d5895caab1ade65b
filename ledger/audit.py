"""The audit log: who changed what, written in the transaction of the change."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

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
