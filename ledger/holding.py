"""Holding: an endpoint is paused and resumed, by its owner or by us, and nothing that it is owed is lost by it.

The tenant's row is locked first. Fan-out holds that lock from before it reads endpoints until it commits, so every delivery
that was stored as pending is visible to the pause, and every later one is stored as held. What is pending at the pause is
held by a job in bounded batches (`ledger/recovery.py`), and so is what a resumption does with what was held. A resumption
ends the pause's job. Where not all is to be sent, it first holds itself what that job had not come to: left pending, it
would be sent like all that is new.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import bindparam, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.breaker import CLOSED
from ledger.endpoints import EndpointRow, change_endpoint, endpoint_document, find_endpoint
from ledger.errors import HoldUnfinished
from ledger.events import NewEvent, record_events
from ledger.ids import OPS_TENANT, EndpointId, TenantId
from ledger.jobs import JobRow, create_job
from ledger.schema import deliveries, tenants
from ledger.schema_jobs import jobs
from ledger.states import ENDED_STATES, DeliveryState, EndpointState, JobKind, JobState
from ledger.tenancy import speaking_for

HELD_AT_ONCE_MAX = 5_000
"""Deliveries that a resumption holds itself: some hundred milliseconds of the tenant's lock. The pause's job needs less than
a second for so many."""


class Held(StrEnum):
    """What becomes of what was held, when an endpoint is resumed."""

    ALL = "all"
    """All of it is sent, and what is exhausted too."""
    LATEST = "latest"
    """The newest of each subject is sent; the others become superseded."""
    DISCARD = "discard"
    """Nothing is sent; all of it becomes discarded."""


class Only(StrEnum):
    """Which events a recovery delivers once more."""

    FAILED = "failed"
    """Exhausted, refused or faulted, and not accepted since."""
    MISSING = "missing"
    """The endpoint's filter admits it, and it never had a delivery of it."""
    ALL = "all"
    """Both, and what was accepted."""


class Task(StrEnum):
    """What a job about an endpoint's deliveries does: `request.task` of a job of the kind `recover`."""

    HOLD = "hold"
    RELEASE = "release"
    DISCARD = "discard"
    """What a deleted endpoint was owed is given up (`ledger/deleting.py`)."""
    RECOVER = "recover"


async def pause_endpoint(
    connection: AsyncConnection,
    tenant_id: TenantId,
    endpoint_id: EndpointId,
    now: datetime,
    *,
    reason: str,
    state: EndpointState = EndpointState.PAUSED,
) -> tuple[EndpointRow, bool] | None:
    """Pause an endpoint, or disable it; returns its row and whether it changed: one that is not active stays as it is. None
    where there is no such endpoint."""
    await lock_tenants(connection, tenant_id)
    found = await find_endpoint(connection, tenant_id, endpoint_id)
    if found is None or found.state is not EndpointState.ACTIVE:
        return None if found is None else (found, False)
    row = await _turn(connection, tenant_id, endpoint_id, {"state": state.value, "state_reason": reason}, now)
    await start_task(connection, tenant_id, endpoint_id, Task.HOLD, {}, now)
    return row, True


async def resume_endpoint(
    connection: AsyncConnection, tenant_id: TenantId, endpoint_id: EndpointId, held: Held, now: datetime
) -> tuple[EndpointRow, JobRow | None] | None:
    """Resume an endpoint; returns its row and the job that sends, supersedes or discards what was held: no job where it was
    active. None where there is no such endpoint. Raises `HoldUnfinished`."""
    await lock_tenants(connection, tenant_id)
    found = await find_endpoint(connection, tenant_id, endpoint_id)
    if found is None or found.state is EndpointState.ACTIVE:
        return None if found is None else (found, None)
    changes = {"state": EndpointState.ACTIVE.value, "state_reason": None, **CLOSED}
    row = await _turn(connection, tenant_id, endpoint_id, changes, now)
    if held is not Held.ALL:
        await _hold_the_rest(connection, tenant_id, endpoint_id)
    job = await start_task(connection, tenant_id, endpoint_id, Task.RELEASE, {"held": held.value}, now)
    return row, job


async def _hold_the_rest(connection: AsyncConnection, tenant_id: TenantId, endpoint_id: EndpointId) -> None:
    """Hold what is pending and not under way. Waits for nobody: what a claim has locked is about to be under way."""
    idle = (
        select(deliveries.c.id)
        .where(
            deliveries.c.tenant_id == tenant_id,
            deliveries.c.endpoint_id == endpoint_id,
            deliveries.c.state == bindparam(None, DeliveryState.PENDING.value, literal_execute=True),
            or_(deliveries.c.leased_until.is_(None), deliveries.c.leased_until <= func.now()),
        )
        .limit(HELD_AT_ONCE_MAX)
        .with_for_update(skip_locked=True)
    )
    held = await connection.execute(
        update(deliveries)
        .where(deliveries.c.tenant_id == tenant_id, deliveries.c.id.in_(idle))
        .values(state=DeliveryState.HELD.value, lease_token=None, leased_until=None)
    )
    if held.rowcount == HELD_AT_ONCE_MAX:
        raise HoldUnfinished(
            f"endpoint {endpoint_id} was paused a moment ago, and much that it is owed is not held yet"
        )


async def start_task(
    connection: AsyncConnection,
    tenant_id: TenantId,
    endpoint_id: EndpointId | None,
    task: Task,
    request: Mapping[str, Any],
    now: datetime,
) -> JobRow:
    """Make the job; without an endpoint a recovery goes over all of the tenant's. A pause, a resumption and a deletion end
    what the one before them had not finished: two would work against each other, and the later one goes over everything."""
    if task is not Task.RECOVER:
        await connection.execute(
            update(jobs)
            .where(
                jobs.c.tenant_id == tenant_id,
                jobs.c.kind == JobKind.RECOVER.value,
                jobs.c.state.not_in([state.value for state in ENDED_STATES]),
                jobs.c.request["endpoint_id"].astext == endpoint_id,
                jobs.c.request["task"].astext != Task.RECOVER.value,
            )
            .values(state=JobState.CANCELLED.value, ended_at=now, lease_token=None, leased_until=None)
        )
    return await create_job(
        connection,
        tenant_id=tenant_id,
        kind=JobKind.RECOVER,
        chain_id=None,
        request={"task": task.value, "endpoint_id": endpoint_id, **request},
        total=None,
        now=now,
    )


async def lock_tenants(connection: AsyncConnection, tenant_id: TenantId) -> None:
    """Take the locks of whoever pauses or resumes an endpoint of a tenant, and tells the operator: before the endpoint's."""
    ordered = sorted({tenant_id, OPS_TENANT})
    await connection.execute(
        select(tenants.c.id).where(tenants.c.id.in_(ordered)).order_by(tenants.c.id).with_for_update(key_share=True)
    )


async def _turn(
    connection: AsyncConnection,
    tenant_id: TenantId,
    endpoint_id: EndpointId,
    changes: Mapping[str, Any],
    now: datetime,
) -> EndpointRow:
    """Change the state, and tell the operator."""
    row = await change_endpoint(connection, tenant_id, endpoint_id, changes, now)
    if row is None:
        raise LookupError(f"endpoint {endpoint_id} was deleted under its tenant's lock")
    name = "resumed" if row.state is EndpointState.ACTIVE else "paused"
    told = NewEvent(OPS_TENANT, f"endpoint.{name}", endpoint_id, livemode=True, data=endpoint_document(row, now))
    async with speaking_for(connection, OPS_TENANT):
        await record_events(connection, [told], now)
    return row
