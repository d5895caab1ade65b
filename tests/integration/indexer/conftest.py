"""A ledger with a tenant and a follower over a chain in memory."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncEngine

from chains.model import Asset, AssetId, Slug
from indexer.commit import Followed
from indexer.follower import Course, Follower, Outcome
from indexer.policy import CreditRule, Policy, rules_as_json
from ledger.chains import ChainConfiguration, find_chain, register_chain
from ledger.database import connect, transaction
from ledger.ids import TenantId
from ledger.model import ChainRow
from ledger.schema import endpoints, entries, events, tenants, watches
from ledger.states import Reason
from tests.fakes.adapter import CHAIN_ID, COIN, TOKEN, FakeChain

NOW = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cycle ends with its work and not with its time, which a slow machine uses up earlier."""
    monkeypatch.setattr("indexer.follower.CYCLE_LIMIT_S", 600.0)


@dataclass
class Ledger:
    """What a test needs to say: register, watch, follow, and read what was told."""

    engine: AsyncEngine
    chain: FakeChain
    follower: Follower
    configuration: ChainConfiguration

    async def converge(self, times: int = 1) -> Outcome:
        """Run cycles; the last outcome."""
        for _ in range(times):
            outcome = await self.follower.converge()
        return outcome

    def restart(self) -> None:
        """A new follower process: nothing in memory."""
        self.follower = Follower(self.engine, self.chain, self.follower.followed, self.follower.course)

    async def watch(
        self, address: bytes, tenant: str = "ten_a", *, scope: str = CHAIN_ID, covered_from: int | None = None
    ) -> str:
        """A live watch on an address."""
        watch_id = f"wat_{tenant}_{address.hex()[-6:]}_{scope[-5:]}_{covered_from}"
        covered = {} if covered_from is None else {CHAIN_ID: covered_from}
        async with transaction(self.engine) as connection:
            await connection.execute(
                insert(watches).values(
                    tenant_id=tenant,
                    id=watch_id,
                    scope=scope,
                    address=address,
                    reference="order-1",
                    covered_from=covered,
                    created_at=NOW,
                )
            )
        return watch_id

    async def story(self, tenant: str = "ten_a") -> list[tuple[str, int | None, str | None]]:
        """Every event of a tenant in feed order: type, sequence, previous state."""
        bodies = await self.bodies(tenant)
        return [(body["type"], body["sequence"], body["previous_state"]) for body in bodies]

    async def bodies(self, tenant: str = "ten_a") -> list[dict[str, Any]]:
        """The bodies of a tenant's events in feed order; positions must have no gap."""
        async with transaction(self.engine) as connection:
            rows = (
                await connection.execute(
                    select(events.c.body, events.c.feed_position)
                    .where(events.c.tenant_id == tenant)
                    .order_by(events.c.feed_position)
                )
            ).all()
        assert [row.feed_position for row in rows] == list(range(1, len(rows) + 1))
        return [json.loads(row.body) for row in rows]

    async def entries(self, tenant: str = "ten_a") -> dict[str, str]:
        """State of each entry by id."""
        async with transaction(self.engine) as connection:
            rows = await connection.execute(select(entries.c.id, entries.c.state).where(entries.c.tenant_id == tenant))
            return {row.id: row.state for row in rows}

    async def row(self) -> ChainRow:
        """The chain's row."""
        async with transaction(self.engine) as connection:
            return await find_chain(connection, CHAIN_ID)


async def make_ledger(
    url: str,
    chain: FakeChain,
    *,
    credit_at: str = "3",
    start: int | None = 0,
    quorum: int = 1,
    has_finality_tags: bool = True,
    finality_depth: int = 64,
    reasons: Mapping[AssetId, tuple[Reason, ...]] | None = None,
    assets: tuple[Asset, ...] = (COIN, TOKEN),
) -> Ledger:
    """A migrated ledger with two tenants, an endpoint of the first, and a follower that did nothing yet."""
    engine = connect(url, application="test", pool_size=5)
    rules = (CreditRule("default", credit_at),)
    async with transaction(engine) as connection:
        configuration = ChainConfiguration(
            CHAIN_ID,
            Slug("local"),
            "anvil",
            False,
            COIN.id,
            "roots",
            quorum,
            ("native",),
            assets,
            rules_as_json(rules),
        )
        version = await register_chain(connection, configuration, NOW)
        for tenant in ("ten_a", "ten_b"):
            await connection.execute(insert(tenants).values(id=tenant, name=tenant, created_at=NOW))
        await connection.execute(
            insert(endpoints).values(
                tenant_id=TenantId("ten_a"), id="ep_1", url="https://a.example/", created_at=NOW, updated_at=NOW
            )
        )
    policy = Policy(Slug("local"), version, rules)
    followed = Followed(CHAIN_ID, policy, timedelta(days=36500), finality_depth, reasons or {})
    follower = Follower(engine, chain, followed, Course(Slug("local"), start, has_finality_tags))
    return Ledger(engine, chain, follower, configuration)


@pytest.fixture
async def ledger(database_url: str) -> AsyncIterator[Ledger]:
    """A ledger over a fresh chain with one empty block, credited at three confirmations."""
    chain = FakeChain()
    chain.mine()
    made = await make_ledger(database_url, chain)
    yield made
    await made.engine.dispose()
