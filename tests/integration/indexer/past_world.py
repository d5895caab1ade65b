"""A chain with a past, and what works on it: jobs are run to their end as the follow role and the commands do."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text

from indexer.historian import Historian
from indexer.past import Past
from indexer.rereading import Rereader
from ledger.database import database_now, transaction
from ledger.ids import OPS_TENANT, TenantId
from ledger.jobs import JobRow, create_job, find_job
from ledger.states import ENDED_STATES, JobKind
from ledger.watches import InsertedWatch, NewWatch, insert_watches
from tests.fakes.adapter import CHAIN_ID, FakeChain
from tests.integration.indexer.conftest import Ledger


@dataclass
class PastWorld:
    """A ledger with a historian over the same chain."""

    ledger: Ledger
    node: FakeChain
    past: Past
    historian: Historian

    async def replay(self, lowest: int, highest: int, **request: Any) -> JobRow:  # noqa: ANN401
        """Make a replay and run it to its end."""
        asked = {"from": lowest, "to": highest, "address": None, "dry_run": False, **request}
        return await self.run(await self.job(JobKind.REPLAY, asked))

    async def job(
        self, kind: JobKind, request: Mapping[str, Any], tenant_id: TenantId = OPS_TENANT, *, is_taken: bool = True
    ) -> JobRow:
        """A job, ours from the start."""
        async with transaction(self.ledger.engine) as connection:
            return await create_job(
                connection,
                tenant_id=tenant_id,
                kind=kind,
                chain_id=CHAIN_ID,
                request=request,
                total=None,
                now=await database_now(connection),
                is_taken=is_taken,
            )

    async def run(self, job: JobRow) -> JobRow:
        """Step until it has ended."""
        while job.state not in ENDED_STATES:
            job = await self.past.step(job)
        return job

    async def work(self) -> None:
        """Take and run whatever waits, as the follow role does, until nothing does."""
        stop = asyncio.Event()
        async with transaction(self.ledger.engine) as connection:
            earlier = "created_at = created_at - interval '1 hour', turn_at = turn_at - interval '1 hour'"
            await connection.execute(text(f"UPDATE jobs SET {earlier}"))
        for _ in range(20):
            await self.historian._turn(stop)

    async def watch(
        self, address: bytes, *, start_height: int | None, tenant: str = "ten_a", scope: str = CHAIN_ID
    ) -> InsertedWatch:
        """A watch as the API makes it."""
        async with transaction(self.ledger.engine) as connection:
            asked = [NewWatch(scope, address, "order-1", {}, start_height)]
            now = await database_now(connection)
            inserted, _ = await insert_watches(connection, TenantId(tenant), asked, now)
        return inserted[0]

    async def find(self, tenant_id: str, job_id: str) -> JobRow:
        """A job as it stands."""
        async with transaction(self.ledger.engine) as connection:
            found = await find_job(connection, TenantId(tenant_id), job_id)  # type: ignore[arg-type]
        assert found is not None
        return found

    async def execute(self, statement: str, **parameters: object) -> Any:  # noqa: ANN401
        """Tamper with the ledger, or look into it."""
        async with transaction(self.ledger.engine) as connection:
            result = await connection.execute(text(statement), parameters)
            return result.all() if result.returns_rows else result.rowcount


def world_of(made: Ledger, node: FakeChain | None = None) -> PastWorld:
    """Over a ledger's own chain, or over another node's view of it."""
    seen = node or made.chain
    slug = made.follower.course.slug
    rereader = Rereader(made.engine, seen, CHAIN_ID, slug)
    past = Past(made.engine, rereader, made.follower.followed, slug)
    return PastWorld(made, seen, past, Historian(made.engine, past, seen, CHAIN_ID, slug))
