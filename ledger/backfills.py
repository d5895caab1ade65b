"""Backfills as the ledger knows them: which watches belong to one, how far down it has come, and what that means for them.

A watch's row is written once. It names the job that covers its past, and only the job's row moves. So ten thousand watches
of one backfill cost its steps no more than one does, and what a watch covers is the truth at every moment.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import Text, and_, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from chains.model import AssetId, ChainId
from ledger.bulk import unnested
from ledger.ids import OPS_TENANT, JobId, TenantId
from ledger.schema_jobs import job_coverage, jobs
from ledger.states import JobKind, JobState


async def find_joinable_backfill(connection: AsyncConnection, tenant_id: TenantId, chain_id: ChainId) -> JobId | None:
    """A backfill of the tenant for watches that nobody has begun yet: what is asked for now can be read along with it."""
    statement = select(jobs.c.id).where(*_is_joinable(tenant_id, chain_id)).order_by(jobs.c.id).limit(1)
    found = (await connection.execute(statement)).scalar()
    return None if found is None else JobId(found)


async def join_backfill(
    connection: AsyncConnection, tenant_id: TenantId, chain_id: ChainId, job_id: JobId, request: Mapping[str, Any]
) -> bool:
    """Widen a backfill to `request` (`from`, and `to`, which is null while the chain has no block), unless somebody has
    begun it."""
    is_it = (*_is_joinable(tenant_id, chain_id), jobs.c.id == job_id)
    row = (await connection.execute(select(jobs.c.request).where(*is_it).with_for_update())).first()
    if row is None:
        return False
    known = row.request
    lowest = min(known["from"], request["from"])
    # Null stands for the block before the chain's first one, and so for less than any height of ours.
    highest = max((to for to in (known["to"], request["to"]) if to is not None), default=None)
    total = None if highest is None else highest - lowest + 1
    widened = {**known, "from": lowest, "to": highest, "watches": known["watches"] + request["watches"]}
    await connection.execute(update(jobs).where(*is_it).values(request=widened, total=total))
    return True


def _is_joinable(tenant_id: TenantId, chain_id: ChainId) -> tuple[Any, ...]:
    return (
        jobs.c.tenant_id == tenant_id,
        jobs.c.chain_id == chain_id,
        jobs.c.kind == JobKind.BACKFILL.value,
        jobs.c.state == JobState.QUEUED.value,
        jobs.c.request["asset_id"].astext.is_(None),
    )


async def find_covered_from(
    connection: AsyncConnection, job_ids: Collection[tuple[TenantId, JobId]]
) -> dict[JobId, int]:
    """How far down these backfills have come; one that has read nothing is absent."""
    if not job_ids:
        return {}
    tenants, ids = zip(*job_ids, strict=True)
    asked = unnested("asked", tenant_id=Text(), id=Text())
    statement = (
        select(jobs.c.id, jobs.c.covered_from)
        .join(asked, and_(jobs.c.tenant_id == asked.c.tenant_id, jobs.c.id == asked.c.id))
        .where(jobs.c.covered_from.is_not(None))
    )
    rows = await connection.execute(statement, {"all_tenant_id": list(tenants), "all_id": list(ids)})
    return {JobId(row.id): row.covered_from for row in rows}


def lowered(
    covered_from: int | None, start_height: int | None, frontier: int | None, first_height: int | None = None
) -> int | None:
    """From which height a watch is covered, by what its row says (None: from the chain's own first block, `first_height`
    where that is known) and how far down its backfill has come: whichever is lower."""
    covered = first_height if covered_from is None else covered_from
    reached = reached_by(start_height, frontier)
    return covered if covered is None or reached is None else min(covered, reached)


def reached_by(start_height: int | None, frontier: int | None) -> int | None:
    """The first height that a watch is covered from by its backfill alone; None where that has read nothing for it."""
    if frontier is None or start_height is None:
        return None
    return max(start_height, frontier)


async def find_asset_backfill(connection: AsyncConnection, chain_id: ChainId, asset_id: AssetId) -> JobId | None:
    """The backfill of a listed asset that has not done its work: it waits, is at work, has failed or was cancelled."""
    statement = select(jobs.c.id).where(
        jobs.c.tenant_id == OPS_TENANT,
        jobs.c.chain_id == chain_id,
        jobs.c.kind == JobKind.BACKFILL.value,
        jobs.c.request["asset_id"].astext == asset_id,
        jobs.c.state != JobState.DONE.value,
    )
    found = (await connection.execute(statement.limit(1))).scalar()
    return None if found is None else JobId(found)


async def find_lowest_covered(connection: AsyncConnection, chain_id: ChainId) -> int | None:
    """The first height of the chain that any backfill has read; None where there is none."""
    statement = select(func.min(job_coverage.c.from_height)).where(job_coverage.c.chain_id == chain_id)
    found: int | None = (await connection.execute(statement)).scalar_one()
    return found
