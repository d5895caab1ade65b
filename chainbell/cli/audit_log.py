"""`chainbell audit-log`: who changed what."""

from __future__ import annotations

from typing import Annotated

import typer
from sqlalchemy.ext.asyncio import AsyncConnection

from chainbell.cli.access import in_transaction
from chainbell.cli.context import context_of, moment_given
from ledger.audit import AuditLine, list_audit
from ledger.documents import time_of
from ledger.tenants import find_tenant

_COLUMNS = ("created_at", "tenant", "actor", "action", "subject", "detail")


def audit_log(
    context: typer.Context,
    tenant: Annotated[str | None, typer.Option(help="Name or id of a tenant; all by default.")] = None,
    actor: Annotated[str | None, typer.Option(help="Id of a key, or: command line.")] = None,
    subject: Annotated[str | None, typer.Option(help="Id of what was changed: a key, an endpoint, a watch.")] = None,
    since: Annotated[str | None, typer.Option(help="First moment, such as 2026-11-01T00:00:00Z.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000_000, help="So many lines, the newest ones.")] = 100,
) -> None:
    """Show who changed what, the newest last."""
    first = None if since is None else moment_given("--since", since)

    async def _work(connection: AsyncConnection) -> list[AuditLine]:
        tenant_id = (await find_tenant(connection, tenant)).id if tenant else None
        return await list_audit(connection, tenant_id=tenant_id, actor=actor, subject=subject, since=first, limit=limit)

    ours = context_of(context)
    ours.print_rows([_shown(line) for line in in_transaction(ours, _work)], _COLUMNS)


def _shown(line: AuditLine) -> dict[str, object]:
    return {
        "id": line.id,
        "created_at": time_of(line.created_at),
        "tenant": line.tenant_id,
        "actor": line.actor,
        "action": line.action,
        "subject": line.subject,
        "detail": dict(line.detail),
    }
