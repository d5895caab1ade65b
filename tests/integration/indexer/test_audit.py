"""The audit of blocks: what the ledger lost, invented or altered is found by other hosts' word, counted and told once."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from indexer.audit import SAMPLE_MAX, BlockAuditor, sampled
from indexer.auditing import Auditor
from ledger.chains import register_chain
from ledger.database import transaction
from ledger.findings import list_open_findings
from tests.fakes.adapter import CHAIN_ID, COIN, LATE_TOKEN, TOKEN, Change, FakeChain, address, payment
from tests.integration.indexer.conftest import NOW, make_ledger
from tests.integration.indexer.past_world import PastWorld, world_of

ALICE = address(1)


class Foretold(random.Random):
    """Chooses the last of each range, so that a test knows which blocks are looked at."""

    def sample(self, population: Any, k: int, *, counts: Any = None) -> list[Any]:  # noqa: ANN401
        """The last `k`."""
        return list(population)[-k:]


def auditor_of(world: PastWorld) -> Auditor:
    blocks = BlockAuditor(world.ledger.engine, world.past.rereader, world.ledger.follower.followed)
    slug = world.ledger.follower.course.slug
    return Auditor(world.ledger.engine, blocks, CHAIN_ID, slug, chance=Foretold())


@pytest.fixture
async def world(database_url: str) -> AsyncIterator[PastWorld]:
    """Forty blocks on two hosts, final up to 30, with deposits in a few."""
    chain = FakeChain()
    other = FakeChain(host="node-b", blocks=chain.blocks)
    chain.mine()
    made = await make_ledger(database_url, chain)
    await made.converge()
    await made.watch(ALICE, covered_from=0)
    chain.mine(payment("one", ALICE), payment("two", ALICE, 5, asset=TOKEN), count=8)
    chain.mine(payment("three", ALICE, 7), count=31)
    chain.finalized = 30
    await made.converge(4)
    chain.other_hosts["node-b"] = other
    yield world_of(made)
    await made.engine.dispose()


async def test_a_ledger_that_is_right_shows_nothing(world: PastWorld) -> None:
    report = await auditor_of(world).audit_all(0, 39, 1.0)
    assert (len(report.blocks.heights), report.blocks.by_same_host) == (40, 0)
    assert (report.findings, report.blocks.unread) == ([], [])
    assert await world.ledger.bodies("ten_ops") == []
    assert len(world.ledger.chain.other_hosts["node-b"].fetched) == 40


async def test_what_was_removed_is_found_counted_and_told_once(world: PastWorld) -> None:
    (lost,) = await world.execute("DELETE FROM entries WHERE amount_atomic = 5 RETURNING id")
    auditor = auditor_of(world)
    for _ in range(2):
        report = await auditor.audit(0, 39, 0)
        assert [(one.key, one.kind, one.from_height) for one in report.findings] == [(lost.id, "missing", 1)]
    assert report.new == []
    assert (await world.ledger.row()).missed_deposits == 1
    (told,) = await world.ledger.bodies("ten_ops")
    assert (told["type"], told["data"]["missed_deposits"]) == ("chain.audit_failed", 1)
    assert lost.id in told["data"]["reason"]
    assert lost.id not in await world.ledger.entries()  # an audit mends nothing
    await world.replay(1, 1)
    assert (await auditor.audit(0, 39, 0)).findings == []
    async with transaction(world.ledger.engine) as connection:
        assert await list_open_findings(connection, CHAIN_ID) == []
    await world.execute("DELETE FROM entries WHERE amount_atomic = 5")
    assert len((await auditor.audit(0, 39, 0)).new) == 1  # found again, it is news
    assert (await world.ledger.row()).missed_deposits == 2


async def test_by_the_clock_only_what_became_final_is_audited_and_what_differs_is_replayed(world: PastWorld) -> None:
    auditor = auditor_of(world)
    (lost,) = await world.execute("DELETE FROM entries WHERE amount_atomic = 5 RETURNING id")
    report = await auditor.audit_final()
    assert report is not None
    assert (report.from_height, report.to_height, len(report.new)) == (0, 30, 1)
    assert await auditor.audit_final() is None
    await world.work()
    assert lost.id in await world.ledger.entries()
    world.ledger.chain.mine(count=10)
    world.ledger.chain.finalized = 44
    await world.ledger.converge(3)
    again = await auditor.audit_final()
    assert again is not None
    assert (again.from_height, again.to_height, again.findings) == (31, 44, [])


async def test_value_that_every_tracer_hides_is_found_by_the_balance(world: PastWorld) -> None:
    chain = world.ledger.chain
    chain.tracers = {"node-a": "debug_traceBlockByHash"}
    auditor = auditor_of(world)
    assert (await auditor.audit(0, 39, 1.0)).findings == []
    chain.mine(count=10)
    await world.ledger.converge(3)
    chain.changes.append(Change(43, ALICE, COIN.id, 500))
    chain.other_hosts["node-b"].changes = chain.changes
    report = await auditor.audit(40, 49, 1.0)
    (found,) = report.findings
    assert (found.kind, found.is_missed_deposit, found.from_height) == ("balance", True, 43)
    assert (await world.ledger.row()).missed_deposits == 1
    assert (await world.ledger.bodies("ten_ops"))[-1]["type"] == "chain.audit_failed"
    chain.changes.clear()
    assert (await auditor.audit(40, 49, 1.0)).findings == []
    async with transaction(world.ledger.engine) as connection:
        assert await list_open_findings(connection, CHAIN_ID) == []


async def test_another_block_of_a_host_below_finality_is_a_finding_and_above_it_is_none(world: PastWorld) -> None:
    astray = FakeChain(host="node-b")
    astray.blocks = world.ledger.chain.blocks[:25]
    astray.mine(count=20, salt="astray")
    world.ledger.chain.other_hosts["node-b"] = astray
    report = await auditor_of(world).audit(0, 39, 1.0)
    assert [one.key for one in report.findings] == [f"block {height}" for height in range(25, 31)]
    assert [height for height, _ in report.blocks.unread] == list(range(31, 40))
    assert (await world.ledger.row()).missed_deposits == 0


async def test_where_no_other_host_answers_the_audit_says_what_it_could_not_read(world: PastWorld) -> None:
    world.ledger.chain.other_hosts["node-b"].is_down = True
    report = await auditor_of(world).audit(0, 39, 0)
    assert [height for height, _ in report.blocks.unread] == [1, 9]
    await auditor_of(world).audit_final()
    assert (await world.ledger.row()).audited_height == 0  # block 1 is asked for again
    world.ledger.chain.other_hosts["node-b"].is_down = False
    await auditor_of(world).audit_final()
    assert (await world.ledger.row()).audited_height == 30
    world.ledger.chain.other_hosts.clear()
    report = await auditor_of(world).audit(0, 39, 0)
    assert (report.blocks.heights, report.blocks.by_same_host) == ([1, 9], 2)


def test_samples_are_bounded_and_never_none_where_some_are_wanted() -> None:
    chance = random.Random(1)
    assert sampled(5, 4, 1.0, chance) == ()
    assert sampled(0, 9, 0.0, chance) == ()
    assert len(sampled(0, 9, 0.0001, chance)) == 1
    assert sorted(sampled(3, 9, 1.0, chance)) == list(range(3, 10))
    assert len(sampled(0, 10**9, 1.0, chance)) == SAMPLE_MAX


async def test_what_was_found_is_replayed_whoever_found_it_and_whatever_died_in_between(world: PastWorld) -> None:
    auditor = auditor_of(world)
    (lost,) = await world.execute("DELETE FROM entries WHERE amount_atomic = 5 RETURNING id")
    await auditor.audit(0, 39, 0)  # by hand, or by one that was killed before it made the job
    await auditor.audit_final()
    assert len(await world.execute("SELECT id FROM jobs")) == 1
    await auditor.audit_final()
    assert len(await world.execute("SELECT id FROM jobs")) == 1  # one is enough while it waits
    await world.execute("UPDATE jobs SET state = 'failed', reason = 'no node', ended_at = now()")
    await auditor.audit_final()
    assert len(await world.execute("SELECT id FROM jobs")) == 2  # what could not be done is tried again
    await world.work()
    assert lost.id in await world.ledger.entries()
    await world.execute("UPDATE jobs SET state = 'done', created_at = now()")  # as they were, before they were aged
    await auditor.audit_final()
    assert len(await world.execute("SELECT id FROM jobs")) == 2


async def test_nothing_is_taken_back_by_the_clock(world: PastWorld) -> None:
    await world.execute("UPDATE entries SET id = 'dep_extra', transfer_id = 'tr_extra' WHERE amount_atomic = 5")
    report = await auditor_of(world).audit_final()
    assert report is not None
    assert {one.kind for one in report.findings} == {"extra", "missing"}
    requests = await world.execute("SELECT request FROM jobs")
    assert len(requests) == 1  # for what is missing; that the same block is read takes nothing back
    assert requests[0].request["takes_back"] is False
    await world.work()
    assert (await world.ledger.entries())["dep_extra"] == "finalized"


async def test_an_asset_that_blocks_were_not_read_for_is_a_gap_and_no_missed_deposit(world: PastWorld) -> None:
    chain = world.ledger.chain
    chain.unlisted = {LATE_TOKEN.id}
    chain.mine(payment("late", ALICE, 9, asset=LATE_TOKEN), count=3)
    await world.ledger.converge(3)
    chain.unlisted = set()
    chain.listed = (COIN, TOKEN, LATE_TOKEN)
    async with transaction(world.ledger.engine) as connection:
        await register_chain(connection, replace(world.ledger.configuration, assets=chain.listed), NOW)
    report = await auditor_of(world_of(world.ledger)).audit(0, 42, 1.0)
    assert [one for one in report.findings if one.kind == "missing"] == []
    assert (await world.ledger.row()).missed_deposits == 0
