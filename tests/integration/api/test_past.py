"""A chain's past over the API: a watch gets it, coverage tells each stage, and an operator brings back what was lost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from chains.model import Slug
from indexer.commit import Followed
from indexer.follower import Course, Follower
from indexer.policy import CreditRule, Policy, rules_as_json
from ledger.chains import ChainConfiguration, register_chain
from ledger.database import transaction
from ledger.ids import OPS_TENANT
from tests.fakes.adapter import CHAIN_ID, COIN, TOKEN, FakeChain, address, payment
from tests.integration.api.conftest import Service
from tests.integration.indexer.conftest import Ledger
from tests.integration.indexer.past_world import PastWorld, world_of

ALICE = address(1)
FIRST, TIP = 40, 60
RULES = (CreditRule("default", "2"),)


@dataclass
class Past:
    """The API over a chain that is followed from `FIRST` on, and what works on its past."""

    service: Service
    world: PastWorld

    async def watch(self, start_height: int) -> dict[str, Any]:
        """The tenant's watch on Alice."""
        row = {"chain": "local", "address": "0x" + ALICE.hex(), "start_height": start_height}
        answer = await self.service.ask("POST", "/v1/watches", {"watches": [row]})
        made: dict[str, Any] = answer.json["data"][0]
        return made

    async def coverage(self) -> dict[str, Any]:
        """What that watch covers."""
        asked = {"chain": "local", "address": "0x" + ALICE.hex()}
        answer = await self.service.ask("GET", "/v1/coverage", query=asked)
        watch: dict[str, Any] = answer.json["watches"][0]
        return watch

    async def replay(self, key: str, *, dry_run: bool) -> dict[str, Any]:
        """A replay of everything that was followed, asked for and worked on; the job as it then is."""
        asked = {"chain": "local", "from": FIRST, "to": TIP, "dry_run": dry_run}
        made = await self.service.ask("POST", "/v1/replays", asked, key=key)
        assert made.status == 202, made.content
        await self.world.work()
        job: dict[str, Any] = (await self.service.ask("GET", f"/v1/jobs/{made.json['id']}", key=key)).json
        return job


@pytest.fixture
async def past(service: Service) -> AsyncIterator[Past]:
    """Deposits before and after the first block that was followed."""
    chain = FakeChain()
    chain.mine(count=10)
    chain.mine(payment("early", ALICE, 7), count=20)
    chain.mine(payment("later", ALICE, 8, asset=TOKEN), count=15)
    chain.mine(payment("followed", ALICE, 9), count=TIP - len(chain.blocks) + 1)
    chain.finalized = 55
    configuration = ChainConfiguration(
        CHAIN_ID, Slug("local"), "anvil", False, COIN.id, "roots", 1, ("native",), (COIN, TOKEN), rules_as_json(RULES)
    )
    async with transaction(service.owner) as connection:
        version = await register_chain(connection, configuration, datetime.now(UTC))
    followed = Followed(CHAIN_ID, Policy(Slug("local"), version, RULES), timedelta(days=36_500), 64)
    follower = Follower(service.owner, chain, followed, Course(Slug("local"), FIRST, True))
    made = Ledger(service.owner, chain, follower, configuration)
    await made.converge(3)
    assert (await made.row()).tip_height == TIP
    yield Past(service, world_of(made))


async def test_a_watch_gets_its_past_and_coverage_says_when(past: Past) -> None:
    made = await past.watch(5)
    job_id = made["backfill_job_id"]
    before = await past.coverage()
    assert (before["covered_from_height"], before["ranges"]) == (TIP + 1, [])
    assert before["gaps"] == [{"from_height": 5, "to_height": TIP, "missing": None, "job_id": job_id}]
    await past.world.work()
    after = await past.coverage()
    assert (after["covered_from_height"], after["gaps"]) == (5, [])
    assert (after["ranges"][0]["from_height"], after["ranges"][-1]["to_height"]) == (5, TIP)
    job = (await past.service.ask("GET", f"/v1/jobs/{job_id}")).json
    assert (job["kind"], job["state"], job["done"], job["total"]) == ("backfill", "done", 56, 56)
    deposits = (await past.service.ask("GET", "/v1/deposits")).json["data"]
    assert sorted((row["amount_atomic"], row["origin"]) for row in deposits) == [
        ("7", "backfill"),
        ("8", "backfill"),
        ("9", "backfill"),
    ]


async def test_what_was_lost_is_shown_by_a_dry_run_and_brought_back_by_a_replay(past: Past) -> None:
    await past.watch(5)
    await past.world.work()
    before = (await past.service.ask("GET", "/v1/deposits")).json
    (lost,) = await past.world.execute("DELETE FROM entries WHERE amount_atomic = 9 RETURNING id")
    key = await past.service.make_key("replays:write", tenant_id=OPS_TENANT)
    shown = await past.replay(key, dry_run=True)
    assert (shown["state"], shown["done"], shown["result"]["missing"]) == ("done", TIP - FIRST + 1, 1)
    assert [one["id"] for one in shown["result"]["differences"]] == [lost.id]
    assert (await past.service.ask("GET", f"/v1/deposits/{lost.id}")).status == 404
    assert (await past.replay(key, dry_run=False))["result"]["missing"] == 1
    assert (await past.service.ask("GET", "/v1/deposits")).json == before
    assert (await past.replay(key, dry_run=False))["result"]["missing"] == 0


async def test_a_cancelled_backfill_goes_no_further(past: Past) -> None:
    made = await past.watch(5)
    assert (await past.service.ask("POST", f"/v1/jobs/{made['backfill_job_id']}/cancel")).status == 200
    await past.world.work()
    told = await past.coverage()
    assert (told["covered_from_height"], told["ranges"]) == (TIP + 1, [])
    assert [(gap["from_height"], gap["to_height"], gap["job_id"]) for gap in told["gaps"]] == [(5, TIP, None)]
    assert (await past.service.ask("GET", "/v1/deposits")).json["data"] == []
