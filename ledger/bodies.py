"""The bodies of events, for whoever sends them: found in the days that they were stored on, and in no other partition."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import msgspec
from sqlalchemy import Text, and_, bindparam, func, select

from ledger.bulk import recordset
from ledger.direct import Direct, Step
from ledger.schema import events

_told = recordset("told", tenant_id=Text(), id=Text(), created_at=events.c.created_at.type)
_bodies = (
    select(events.c.tenant_id, events.c.id, events.c.body)
    .join(
        _told,
        and_(
            events.c.tenant_id == _told.c.tenant_id,
            events.c.created_at == _told.c.created_at,
            events.c.id == _told.c.id,
        ),
    )
    .where(events.c.created_at.between(bindparam("first"), bindparam("last")))
)

# Planned each time, for the days that are asked for: a plan that is kept opens and locks every day's partition.
_BODIES = Direct(_bodies, is_prepared=False)
_PLAN_ANEW = Direct(select(func.set_config("plan_cache_mode", "force_custom_plan", True)))


def bodies_steps(told: Mapping[tuple[str, str], datetime]) -> tuple[Step, Step]:
    """Statements that read the bodies of events, by tenant and id, that were stored at these times."""
    asked = [{"tenant_id": key[0], "id": key[1], "created_at": created_at} for key, created_at in told.items()]
    rows = msgspec.json.encode(asked).decode()
    parameters = {"told_rows": rows, "first": min(told.values()), "last": max(told.values())}
    return (_PLAN_ANEW, {}), (_BODIES, parameters)
