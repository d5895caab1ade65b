"""Secrets that are valid and do not open, and with which webhooks are therefore not signed: told of, never passed over.

After a rotation an earlier secret is valid until its grace is over. Where it does not open, its endpoint's webhooks are
signed with the others. A receiver that still verifies by it alone refuses them, and somebody has to know why.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from ledger.audit import record_audit
from ledger.database import UNAVAILABLE, Engine, database_now, transaction
from ledger.endpoint_secrets import LeftOut
from notifier.metrics import SECRETS_LEFT_OUT

log = structlog.get_logger()

TOLD_AGAIN_AFTER_S = 60.0
"""How often the log says so of one secret."""

ACTOR = "notifier"
"""Who has written it into the audit log."""

REMEMBERED_MAX = 10_000


class LeftOutSecrets:
    """What one process has said of them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._told_at: dict[str, float] = {}

    async def tell_of(self, left_out: Sequence[LeftOut], now: float) -> None:
        """Count them; say so once a minute; and write each into the audit log once. `now` is of the monotonic clock."""
        SECRETS_LEFT_OUT.inc(len(left_out))
        due = [
            one for one in left_out if now - self._told_at.get(one.secret_id, -TOLD_AGAIN_AFTER_S) >= TOLD_AGAIN_AFTER_S
        ]
        for one in due:
            log.error("not signed with a secret that is still valid", **one._asdict())
        new = [one for one in due if one.secret_id not in self._told_at]
        if new and not await self._record(new):
            return
        self._told_at |= {one.secret_id: now for one in due}
        while len(self._told_at) > REMEMBERED_MAX:
            del self._told_at[next(iter(self._told_at))]

    async def _record(self, new: Sequence[LeftOut]) -> bool:
        try:
            async with transaction(self._engine) as connection:
                now = await database_now(connection)
                for tenant_id, endpoint_id, secret_id, reason in new:
                    await record_audit(
                        connection,
                        tenant_id=tenant_id,
                        actor=ACTOR,
                        action="endpoint.secret_left_out",
                        subject=endpoint_id,
                        now=now,
                        detail={"secret": secret_id, "reason": reason},
                    )
        except (*UNAVAILABLE, OSError) as error:
            log.warning("database unavailable", error=str(error).splitlines()[0])
            return False
        return True
