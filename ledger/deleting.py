"""Deleting an endpoint: it is gone at once, and what it was owed is given up in steps.

From the moment that it is marked nothing is made for it, shown of it or sent to it. What is still owed may be a million
deliveries, and to write them all would keep the tenant's and the endpoint's rows locked for many seconds: no block of the
tenant's chains could be committed, and nothing settled. So the first `BATCH` go with the mark, which is all for most, and a
job goes over the rest (`ledger/recovery.py`). Until it has, they are pending or held as before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, func, literal, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.holding import Task, start_task
from ledger.ids import EndpointId, TenantId
from ledger.jobs import JobRow, end_job, progress_job, release_job
from ledger.lanes import is_in
from ledger.schema import deliveries, endpoints, tenants
from ledger.schema_jobs import jobs
from ledger.states import DeliveryState, JobState

BATCH = 500
"""Deliveries that one transaction gives up: some ten milliseconds of locks."""

LEFT_MAX = 100
"""Deleted endpoints that one transaction looks up."""


@dataclass(frozen=True, slots=True)
class Deletion:
    """What a deletion did at once: how many deliveries it gave up, and the job that goes over more of them, if there are."""

    discarded: int
    job: JobRow | None


async def delete_endpoint(
    connection: AsyncConnection, tenant_id: TenantId, endpoint_id: EndpointId, now: datetime
) -> Deletion | None:
    """Delete an endpoint and give up what it is still owed; None when there is no such endpoint. Attempts and settled
    deliveries stay."""
    # As a pause does: a fan-out that has read this endpoint commits first, and what it stored is given up too.
    await connection.execute(select(tenants.c.id).where(tenants.c.id == tenant_id).with_for_update(key_share=True))
    found = await connection.execute(
        update(endpoints)
        .where(endpoints.c.tenant_id == tenant_id, endpoints.c.id == endpoint_id, endpoints.c.deleted_at.is_(None))
        .values(deleted_at=now, updated_at=now)
    )
    if found.rowcount == 0:
        return None
    discarded, is_all = await _discard(connection, tenant_id, endpoint_id, now)
    if is_all:
        return Deletion(discarded, None)
    return Deletion(discarded, await start_task(connection, tenant_id, endpoint_id, Task.DISCARD, {}, now))


async def discard_next(connection: AsyncConnection, job: JobRow, now: datetime) -> JobRow:
    """A job's next batch of what a deleted endpoint was owed."""
    endpoint_id = EndpointId(job.request["endpoint_id"])
    place = (endpoints.c.tenant_id == job.tenant_id, endpoints.c.id == endpoint_id)
    await connection.execute(select(endpoints.c.id).where(*place).with_for_update(key_share=True))
    discarded, is_all = await _discard(connection, job.tenant_id, endpoint_id, now)
    job = await progress_job(connection, job, now, done=job.done + discarded)
    if is_all:
        return await end_job(connection, job, JobState.DONE, now)
    return await release_job(connection, job, now)


async def start_discarding(connection: AsyncConnection, now: datetime) -> Sequence[EndpointId]:
    """Make the job anew for deleted endpoints that are owed something and have none: it was cancelled, say; returns which
    these are. Crosses tenants."""
    is_owed = select(literal(1)).where(*_is_owed(endpoints.c.tenant_id, endpoints.c.id)).correlate(endpoints).exists()
    has_job = (
        select(literal(1))
        .where(
            jobs.c.tenant_id == endpoints.c.tenant_id,
            jobs.c.request["endpoint_id"].astext == endpoints.c.id,
            jobs.c.request["task"].astext == Task.DISCARD.value,
            jobs.c.state.in_((JobState.QUEUED.value, JobState.RUNNING.value)),
        )
        .correlate(endpoints)
        .exists()
    )
    left = select(endpoints.c.tenant_id, endpoints.c.id).where(endpoints.c.deleted_at.is_not(None), is_owed, ~has_job)
    locked = left.limit(LEFT_MAX).with_for_update(key_share=True, skip_locked=True)
    rows = (await connection.execute(locked)).all()
    for row in rows:
        await start_task(connection, TenantId(row.tenant_id), EndpointId(row.id), Task.DISCARD, {}, now)
    return [EndpointId(row.id) for row in rows]


def _is_owed(tenant_id: ColumnElement[str], endpoint_id: ColumnElement[str]) -> list[ColumnElement[bool]]:
    is_open = is_in(deliveries, DeliveryState.PENDING, DeliveryState.HELD)
    return [deliveries.c.tenant_id == tenant_id, deliveries.c.endpoint_id == endpoint_id, is_open]


async def _discard(
    connection: AsyncConnection, tenant_id: TenantId, endpoint_id: EndpointId, now: datetime
) -> tuple[int, bool]:
    """Give up the next `BATCH`; returns how many these were, and whether that is all. The endpoint's row is locked."""
    owed = select(deliveries.c.id).where(*_is_owed(literal(tenant_id), literal(endpoint_id))).limit(BATCH)
    locked = (
        select(deliveries.c.id)
        .where(deliveries.c.tenant_id == tenant_id, deliveries.c.id.in_(owed))
        .order_by(deliveries.c.id)  # as who settles them does: two that lock rows in different orders wait for ever
        .with_for_update()
        .cte("locked")
    )
    written = (
        update(deliveries)
        .where(deliveries.c.tenant_id == tenant_id, deliveries.c.id == locked.c.id)
        .where(is_in(deliveries, DeliveryState.PENDING, DeliveryState.HELD))
        # Without its lease token an attempt under way cannot settle what its owner gave up.
        .values(state=DeliveryState.DISCARDED.value, settled_at=now, lease_token=None, leased_until=None)
        .returning(deliveries.c.id)
        .cte("written")
    )
    # One that was settled before its turn came was locked, and is not written: there may be more all the same.
    counts = [select(func.count()).select_from(part).scalar_subquery() for part in (written, locked)]
    discarded, looked_at = (await connection.execute(select(*counts))).one()
    return discarded, looked_at < BATCH
