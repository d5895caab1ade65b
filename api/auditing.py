"""The audit line of a change that came by REST: the key is the actor, the transaction is the change's own."""

from __future__ import annotations

from typing import Any

from api.routes import Call
from ledger.audit import record_audit


async def audit(call: Call[Any, Any], action: str, subject: str, **detail: object) -> None:
    """Record what a request changed; `detail` holds no secret."""
    await record_audit(
        call.connection,
        tenant_id=call.tenant_id,
        actor=call.key.id,
        action=action,
        subject=subject,
        now=call.now,
        detail=detail,
    )
