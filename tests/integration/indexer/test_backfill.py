"""Backfill: a watch's past is read to its beginning, whatever stops it, and is never claimed before it is read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from sqlalchemy import select

import ledger.coverage
from chains.model import AssetId
from indexer.balance_audit import audit_balances
from indexer.balances import Verdict
from indexer.follower import Extended
from ledger.balances import sample_watched_addresses
from ledger.chains import register_chain
from ledger.coverage import find_coverage, find_gaps_for_asset
from ledger.database import transaction
from ledger.errors import JobTaken
from ledger.ids import OPS_TENANT, TenantId, WatchId
from ledger.jobs import JobRow, cancel_job
from ledger.matching import match_watches
from ledger.rereading import find_job_coverage
from ledger.schema_jobs import jobs
from ledger.states import JobState
from ledger.watches import delete_watch, find_watch, watch_document
from tests.fakes.adapter import CHAIN_ID, COIN, LATE_TOKEN, TOKEN, Change, FakeChain, address, payment
from tests.integration.indexer.conftest import NOW, make_ledger
from tests.integration.indexer.past_world import PastWorld, world_of

ALICE, BOB, CAROL = address(1), address(2), address(3)


@pytest.fixture
async def world(database_url: str) -> AsyncIterator[PastWorld]:
    """A chain of 61 blocks that is followed from block 40 on, with deposits and withdrawals before and after that."""
    chain = FakeChain()
    chain.mine(count=5)
    chain.mine(payment("a", ALICE, 10), payment("b", BOB, 20, asset=TOKEN), count=10)
    chain.mine(payment("c", BOB, 1, sender=ALICE), payment("d", ALICE, 30, asset=LATE_TOKEN), count=20)
    chain.mine(payment("e", ALICE, 5, has_failed=True, sender=BOB), count=10)
    chain.mine(payment("f", ALICE, 2, asset=TOKEN), count=10)
    chain.finalized = 50
    made = await make_ledger(database_url, chain, start=40)
    await made.converge(2)
    chain.mine(payment("g", ALICE, 3), count=6)
    await made.converge(2)
    assert (await made.row()).tip_height == 60
    yield world_of(made)
    await made.engine.dispose()


async def covered_from(world: PastWorld, watch_id: str, tenant: str = "ten_a") -> object:
    """From which height a watch covers the chain, as its tenant is told."""
    async with transaction(world.ledger.engine) as connection:
        row = await find_watch(connection, TenantId(tenant), WatchId(watch_id))
    assert row is not None
    assert row.backfill_job_id is not None
    return watch_document(row, [await world.ledger.row()]).covered_from_height


async def amounts(world: PastWorld, tenant: str = "ten_a") -> list[str]:
    """What the tenant was told of, in the order of the chain."""
    told = [
        body["data"] for body in await world.ledger.bodies(tenant) if body["type"].endswith((".detected", ".failed"))
    ]
    told.sort(key=lambda data: (data["block"]["height"], data["object"]))
    return [f"{data['object']} {data['amount_atomic']}" for data in told]


async def test_the_past_is_told_whole_and_the_watch_is_activated(world: PastWorld) -> None:
    made = await world.watch(ALICE, start_height=3)
    await world.watch(BOB, start_height=12, tenant="ten_b")
    await world.work()
    assert await amounts(world) == ["deposit 10", "withdrawal 1", "deposit 2", "deposit 3"]
    assert await amounts(world, "ten_b") == ["deposit 1", "withdrawal 5"]  # 20 came before it begins
    bodies = await world.ledger.bodies()
    assert {body["data"]["origin"] for body in bodies if "origin" in body["data"]} == {"backfill"}
    states = [body["data"]["state"] for body in bodies if body["data"].get("amount_atomic") == "10"]
    assert states == ["detected", "confirmed", "finalized"]
    assert (bodies[-1]["type"], bodies[-1]["data"]["id"]) == ("watch.activated", made.row.id)
    assert bodies[-1]["data"]["covered_from_height"] == 3
    job = await world.find("ten_a", made.row.backfill_job_id or "")
    assert (job.state, job.done, job.total) == (JobState.DONE, 58, 58)
    before = await world.ledger.bodies()
    await world.replay(3, 60)
    assert await world.ledger.bodies() == before


async def test_coverage_tells_each_stage_truthfully(world: PastWorld) -> None:
    made = await world.watch(ALICE, start_height=3)
    job = await world.find("ten_a", made.row.backfill_job_id or "")
    assert await covered_from(world, made.row.id) == 61
    world.past._spans[False] = 8
    async with transaction(world.ledger.engine) as connection:
        await connection.execute(jobs.update().values(state="running", lease_token="me", leased_until=NOW))
        job = (await connection.execute(select(jobs))).one()  # type: ignore[assignment]
    job = await world.find("ten_a", job.id)
    seen: list[int] = []
    while job.state is JobState.RUNNING:
        job = await world.past.step(job)
        covered = await covered_from(world, made.row.id)
        assert isinstance(covered, int)
        seen.append(covered)
        async with transaction(world.ledger.engine) as connection:
            ranges = await find_job_coverage(connection, job.tenant_id, job.id)
        told = [(one.from_height, one.to_height) for one in ranges]
        assert told == ([] if seen[-1] == 61 else [(seen[-1], 60)])
        world.past._spans[False] = 8
    assert sorted(set(seen), reverse=True) == [61, 53, 45, 37, 29, 21, 13, 5, 3]


async def test_a_process_that_dies_is_followed_by_another_and_nothing_is_told_twice(world: PastWorld) -> None:
    made = await world.watch(ALICE, start_height=3)
    world.past._spans[False] = 8
    await world.execute("UPDATE jobs SET state = 'running', lease_token = 'dead', leased_until = now()")
    job = await world.find("ten_a", made.row.backfill_job_id or "")
    for _ in range(4):
        job = await world.past.step(job)
    successor = world_of(world.ledger)
    await world.execute("UPDATE jobs SET leased_until = now() - interval '1 second'")
    await successor.work()
    with pytest.raises(JobTaken):
        await world.past.step(job)  # the dead one was only frozen
    assert await amounts(world) == ["deposit 10", "withdrawal 1", "deposit 2", "deposit 3"]
    sequences = [(b["data"]["id"], b["sequence"]) for b in await world.ledger.bodies() if b["sequence"]]
    assert len(sequences) == len(set(sequences))


async def test_a_reorg_in_the_middle_is_read_again_where_it_was_not_yet_covered(world: PastWorld) -> None:
    """Blocks 48 to 60 are replaced when 56 to 60 have been read: the follower tells of what is covered, the backfill of the
    rest."""
    made = await world.watch(ALICE, start_height=3)
    world.past._spans[False] = 4
    await world.execute("UPDATE jobs SET state = 'running', lease_token = 'me', leased_until = now()")
    job = await world.find("ten_a", made.row.backfill_job_id or "")
    world.ledger.chain.finalized = 45
    for _ in range(3):
        job = await world.past.step(job)
        world.past._spans[False] = 4
    assert job.covered_from == 53
    await world.execute("UPDATE chains SET finalized_height = 45, finalized_hash = '\\x00'")
    world.ledger.chain.drop_to(49)
    world.ledger.chain.mine(payment("h", ALICE, 71), count=2, salt="b")
    world.ledger.chain.mine(payment("i", ALICE, 72), payment("f", ALICE, 2, asset=TOKEN), count=12, salt="b")
    await world.ledger.converge(3)
    job = await world.run(await world.find(job.tenant_id, job.id))
    entries = await world.execute("SELECT amount_atomic::text AS amount, state FROM entries ORDER BY block_height")
    live = {row.amount: row.state for row in entries}
    assert live["71"] != "reorged"
    assert live["72"] != "reorged"
    assert sorted(row.amount for row in entries if row.state not in ("reorged", "reversed")) == sorted(
        ["10", "1", "2", "71", "72"]
    )
    assert (await world.replay(3, 60)).result["missing"] == 0


async def test_a_cancelled_backfill_keeps_what_it_covered(world: PastWorld) -> None:
    made = await world.watch(ALICE, start_height=3)
    world.past._spans[False] = 8
    await world.execute("UPDATE jobs SET state = 'running', lease_token = 'me', leased_until = now()")
    job = await world.past.step(await world.past.step(await world.find("ten_a", made.row.backfill_job_id or "")))
    async with transaction(world.ledger.engine) as connection:
        cancelled = await cancel_job(connection, job.tenant_id, job.id, NOW)
    assert cancelled is not None
    with pytest.raises(JobTaken):
        await world.past.step(job)
    assert await covered_from(world, made.row.id) == 53
    assert "watch.activated" not in {body["type"] for body in await world.ledger.bodies()}


async def test_a_deleted_watch_gets_nothing_of_its_past(world: PastWorld) -> None:
    made = await world.watch(ALICE, start_height=3)
    async with transaction(world.ledger.engine) as connection:
        await delete_watch(connection, TenantId("ten_a"), made.row.id, NOW)
    await world.work()
    assert await world.ledger.bodies() == []
    assert (await world.find("ten_a", made.row.backfill_job_id or "")).state is JobState.DONE


async def test_a_backfill_reads_as_far_as_nodes_can_serve_it_then_waits_and_says_so(world: PastWorld) -> None:
    """One that asks for what nobody has holds up none that is read along with it."""
    made = await world.watch(ALICE, start_height=3)
    world.ledger.chain.pruned_below = 30
    await world.work()
    job = await world.find("ten_a", made.row.backfill_job_id or "")
    assert (job.state, job.done, job.covered_from, job.reason) == (JobState.RUNNING, 31, 30, "block 29")
    assert await covered_from(world, made.row.id) == 30
    world.ledger.chain.pruned_below = 0
    await world.work()
    job = await world.find("ten_a", made.row.backfill_job_id or "")
    assert (job.state, job.reason) == (JobState.DONE, None)
    assert "deposit 10" in await amounts(world)


async def test_a_job_that_waits_takes_no_turn_from_another(world: PastWorld) -> None:
    waiting = await world.watch(ALICE, start_height=3)
    await world.execute("UPDATE jobs SET created_at = created_at - interval '1 hour'")
    world.ledger.chain.pruned_below = 61
    await world.historian._turn(asyncio.Event())
    world.ledger.chain.pruned_below = 0
    await world.watch(BOB, start_height=50, tenant="ten_b")
    await world.execute("UPDATE jobs SET created_at = created_at - interval '1 hour'")
    for _ in range(3):
        await world.historian._turn(asyncio.Event())
    (other,) = await world.execute("SELECT state FROM jobs WHERE tenant_id = 'ten_b'")
    assert other.state == "done"
    first = await world.find("ten_a", waiting.row.backfill_job_id or "")
    assert (first.state, first.done) == (JobState.RUNNING, 0)  # its next turn has not come


async def test_a_watch_from_before_the_first_block_covers_that_while_a_later_ones_past_is_read(
    database_url: str,
) -> None:
    chain = FakeChain()
    chain.mine(count=31)
    made = await make_ledger(database_url, chain, start=15)
    world = world_of(made)
    first = await world.watch(ALICE, start_height=0)
    await made.converge(3)
    await world.watch(BOB, start_height=0)
    world.past._spans[False] = 4
    await world.execute("UPDATE jobs SET state = 'running', lease_token = 'me', leased_until = now()")
    await world.past.step(await world.past.step(await world.find("ten_a", first.row.backfill_job_id or "")))
    async with transaction(made.engine) as connection:
        (seen,) = (await match_watches(connection, CHAIN_ID, [ALICE]))[ALICE]
        row = await find_watch(connection, TenantId("ten_a"), first.row.id)
    assert seen.covers(15)
    assert row is not None
    assert watch_document(row, [await made.row()]).covered_from_height == 15
    await made.engine.dispose()


async def test_a_watch_that_is_made_before_the_chain_begins_gets_its_past(database_url: str) -> None:
    chain = FakeChain()
    chain.mine(payment("a", ALICE, 10), count=20)
    made = await make_ledger(database_url, chain, start=15)
    world = world_of(made)
    watch = await world.watch(ALICE, start_height=0)
    await world.work()
    assert (await world.find("ten_a", watch.row.backfill_job_id or "")).state is JobState.RUNNING
    await made.converge(3)
    await world.work()
    assert (await made.bodies())[0]["data"]["amount_atomic"] == "10"
    assert (await made.bodies())[-1]["data"]["covered_from_height"] == 0
    await made.engine.dispose()


async def test_a_listed_asset_opens_a_gap_and_a_backfill_closes_it(database_url: str) -> None:
    chain = FakeChain(unlisted={LATE_TOKEN.id})
    chain.mine(count=3)
    made = await make_ledger(database_url, chain)
    await made.converge()
    await made.watch(ALICE, covered_from=2)
    await made.watch(BOB, "ten_b", covered_from=9)
    chain.mine(payment("a", ALICE, 10, asset=LATE_TOKEN), payment("b", ALICE, 20), count=4)
    chain.mine(payment("c", BOB, 30, asset=LATE_TOKEN), count=4)
    await made.converge(2)
    world = world_of(made)
    await world.work()
    assert await world.execute("SELECT id FROM jobs") == []

    async def _gaps(asset_id: AssetId) -> list[tuple[int, int]]:
        async with transaction(made.engine) as connection:
            found = await find_gaps_for_asset(connection, CHAIN_ID, 0, (await made.row()).tip_height or 0, asset_id)
        return [(gap.from_height, gap.to_height) for gap in found]

    chain.unlisted.clear()
    chain.listed = (COIN, TOKEN, LATE_TOKEN)
    async with transaction(made.engine) as connection:
        await register_chain(connection, replace(made.configuration, assets=chain.listed), NOW)
    made.restart()
    chain.mine(payment("d", ALICE, 40, asset=LATE_TOKEN))
    await made.converge(2)
    assert await _gaps(LATE_TOKEN.id) == [(0, 10)]
    chain.fetched.clear()
    world = world_of(made)
    await world.work()  # makes the job, which settles for a moment
    await world.work()
    assert await _gaps(LATE_TOKEN.id) == []
    assert set(chain.fetched) == {3, 7, 10}  # the highest was probed; the others may have moved it
    assert sorted(await amounts(world)) == ["deposit 10", "deposit 20", "deposit 40"]
    assert await amounts(world, "ten_b") == []  # it came to BOB before the watch covers him
    (job,) = await world.execute("SELECT tenant_id, state, kind FROM jobs")
    assert (job.tenant_id, job.state, job.kind) == (OPS_TENANT, "done", "backfill")
    await world_of(made).work()
    assert len(await world.execute("SELECT id FROM jobs")) == 1
    assert isinstance(await made.converge(), Extended) is False
    await made.engine.dispose()


async def test_who_traces_is_known_to_the_process_that_goes_on_with_a_backfill(world: PastWorld) -> None:
    made = await world.watch(ALICE, start_height=3)
    world.past._spans[False] = 8
    await world.execute("UPDATE jobs SET state = 'running', lease_token = 'ours', leased_until = now()")
    job = await world.find("ten_a", made.row.backfill_job_id or "")
    job = await world.past.step(await world.past.step(job))
    world.node.tracers = {"127.0.0.1": "trace_block"}  # found while the next blocks are read
    job = await world.past.step(job)
    world.node.tracers = {}  # as of a process that has just begun
    await world_of(world.ledger).past.step(job)
    assert world.node.tracers == {"127.0.0.1": "trace_block"}


async def test_coverage_is_told_from_far_below_the_first_block(
    world: PastWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger.coverage, "ROWS_AT_ONCE", 8)
    async with transaction(world.ledger.engine) as connection:
        ranges = await find_coverage(connection, CHAIN_ID, 0, 60)
    assert [(one.from_height, one.to_height) for one in ranges] == [(40, 60)]


async def test_watches_from_before_the_chains_first_block_and_after_it_get_all_that_each_lacks(
    database_url: str,
) -> None:
    """The first one lacks what is before block 15, the second all up to the tip: one job must not stop at the former."""
    chain = FakeChain()
    chain.mine(payment("a", ALICE, 10), payment("b", BOB, 11), count=16)
    chain.mine(payment("c", BOB, 12), count=4)
    made = await make_ledger(database_url, chain, start=15)
    world = world_of(made)
    first = await world.watch(ALICE, start_height=0)
    await made.converge(3)
    second = await world.watch(BOB, start_height=0)
    assert second.row.backfill_job_id == first.row.backfill_job_id
    await world.work()
    assert sorted(await amounts(world)) == ["deposit 10", "deposit 11", "deposit 12"]
    assert (await world.replay(0, 19)).result["missing"] == 0
    await made.engine.dispose()


async def test_an_asset_is_searched_for_where_a_backfill_has_read_otherwise_than_the_follower(world: PastWorld) -> None:
    """The backfill's blocks have a reading that none of the chain's own ranges has."""
    await world.watch(ALICE, start_height=3)
    world.node.tracers = {"node-a": "debug_traceBlockByHash"}
    await world_of(world.ledger).work()
    world.node.listed = (COIN, TOKEN, LATE_TOKEN)
    async with transaction(world.ledger.engine) as connection:
        await register_chain(connection, replace(world.ledger.configuration, assets=world.node.listed), NOW)
    later = world_of(world.ledger)
    for _ in range(3):
        later.past._spans[True] = 8
        await later.work()
    assert "deposit 30" in await amounts(world)
    states = await world.execute("SELECT state, reason FROM jobs")
    assert {(row.state, row.reason) for row in states} == {("done", None)}


async def test_what_is_hidden_in_a_backfilled_past_is_found_by_the_balance(world: PastWorld) -> None:
    world.node.tracers = {"node-a": "debug_traceBlockByHash"}
    await world.watch(ALICE, start_height=3)
    await world_of(world.ledger).work()
    world.node.changes.append(Change(12, ALICE, COIN.id, 500))
    async with transaction(world.ledger.engine) as connection:
        sample = await sample_watched_addresses(connection, CHAIN_ID, bytes(20), 10)
    assert [(one.address, one.covered_from) for one in sample] == [(ALICE, 3)]
    audit = await audit_balances(world.ledger.engine, world.node, CHAIN_ID, world.node.blocks[60].ref, sample)
    assert [(one.kind, one.found - one.expected, one.located_height) for one in audit.differences] == [
        (Verdict.MISSING, 500, 12)
    ]


async def test_a_fault_of_ours_in_a_job_stops_nobody_and_is_its_reason(
    world: PastWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await world.watch(ALICE, start_height=3)

    another = replace(await world.find("ten_a", made.row.backfill_job_id or ""), lease_token="another's")

    async def _break(_job: JobRow) -> JobRow:
        raise KeyError("a fault")

    monkeypatch.setattr(world.past, "step", _break)
    await world.execute("UPDATE jobs SET created_at = created_at - interval '1 minute'")
    await world.historian._turn(asyncio.Event())
    await world.historian._confess(another, KeyError("again"))  # it is not ours any more: no matter
    job = await world.find("ten_a", made.row.backfill_job_id or "")
    assert (job.state, job.lease_token, job.reason) == (JobState.RUNNING, None, "a fault of ours: KeyError('a fault')")
    monkeypatch.undo()
    await world.work()
    assert (await world.find("ten_a", job.id)).state is JobState.DONE
