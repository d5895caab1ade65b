"""Replay: what is lost is found and put back as it was, what is right stays as it is, and nothing is destroyed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from chains.errors import BlockNotFound
from chains.model import TraceProof
from ledger.chains import register_chain
from ledger.database import transaction
from ledger.ids import OPS_TENANT
from ledger.states import JobKind, JobState
from tests.fakes.adapter import COIN, LATE_TOKEN, TOKEN, FakeChain, address, payment
from tests.integration.indexer.conftest import NOW, Ledger, make_ledger
from tests.integration.indexer.past_world import PastWorld, world_of

ALICE, BOB = address(1), address(2)


@pytest.fixture
async def world(database_url: str) -> AsyncIterator[PastWorld]:
    """Forty blocks, final up to 30, with deposits and withdrawals of two tenants."""
    chain = FakeChain()
    chain.mine()
    made = await make_ledger(database_url, chain)
    await made.converge()
    await made.watch(ALICE, covered_from=0)
    await made.watch(BOB, "ten_b", covered_from=0)
    chain.mine(payment("one", ALICE), payment("two", ALICE, 5, asset=TOKEN), count=8)
    chain.mine(payment("three", BOB, sender=ALICE), count=20)
    chain.mine(payment("four", BOB), count=11)
    chain.finalized = 30
    await made.converge(4)
    yield world_of(made)
    await made.engine.dispose()


async def whole(ledger: Ledger) -> tuple[object, ...]:
    """Everything that a replay must not change when there is nothing to mend."""
    row = await ledger.row()
    bodies = {tenant: await ledger.bodies(tenant) for tenant in ("ten_a", "ten_b")}
    return bodies, await ledger.entries("ten_a"), await ledger.entries("ten_b"), row.tip_hash, row.finalized_height


async def test_replaying_everything_twice_changes_nothing(world: PastWorld) -> None:
    before = await whole(world.ledger)
    assert before[1]
    for _ in range(2):
        job = await world.replay(0, 39)
        assert (job.state, job.done, job.total) == (JobState.DONE, 40, 40)
        assert job.result == {"missing": 0, "extra": 0, "changed": 0, "events": 0, "differences": []}
    assert await whole(world.ledger) == before


async def test_a_deposit_that_was_removed_comes_back_with_its_id_and_is_not_told_again(world: PastWorld) -> None:
    before = await whole(world.ledger)
    (lost,) = await world.execute(
        "DELETE FROM entries WHERE transaction_hash = (SELECT transaction_hash FROM entries WHERE amount_atomic = 5)"
        " RETURNING id"
    )
    shown = await world.replay(0, 39, dry_run=True)
    assert [(one["kind"], one["id"]) for one in shown.result["differences"]] == [("missing", lost.id)]
    assert lost.id not in await world.ledger.entries()
    mended = await world.replay(0, 39)
    assert (mended.result["missing"], mended.result["events"]) == (1, 0)
    assert await whole(world.ledger) == before
    assert (await world.replay(0, 39)).result["missing"] == 0


async def test_an_entry_whose_events_are_gone_too_is_told_from_the_beginning(world: PastWorld) -> None:
    await world.execute("DELETE FROM events WHERE tenant_id = 'ten_b'")
    await world.execute("DELETE FROM deliveries WHERE tenant_id = 'ten_b'")
    await world.execute("UPDATE tenants SET feed_position = 0 WHERE id = 'ten_b'")
    lost = await world.execute("DELETE FROM entries WHERE tenant_id = 'ten_b' RETURNING id")
    job = await world.replay(0, 39)
    assert job.result["missing"] == 2
    assert {body["data"]["id"] for body in await world.ledger.bodies("ten_b")} == {row.id for row in lost}
    assert {body["data"]["origin"] for body in await world.ledger.bodies("ten_b")} == {"replay"}
    kinds = [(kind, sequence) for kind, sequence, _ in await world.ledger.story("ten_b")]
    assert kinds == [("deposit.detected", 1), ("deposit.confirmed", 2), ("deposit.finalized", 3)] * 2


async def test_an_invented_entry_is_taken_back_aloud(world: PastWorld) -> None:
    await world.execute(
        "UPDATE entries SET id = 'dep_invented', transfer_id = 'tr_invented', transaction_hash = '\\x01'"
        " WHERE amount_atomic = 5"
    )
    job = await world.replay(0, 39)
    kinds = sorted((one["kind"], one["mended"]) for one in job.result["differences"])
    assert kinds == [("extra", True), ("missing", True)]
    assert (await world.ledger.story())[-1][0] == "deposit.reversed"
    assert (await world.ledger.entries())["dep_invented"] == "reversed"


async def test_what_is_better_proven_than_what_was_read_is_left_and_shown(world: PastWorld) -> None:
    await world.execute(
        "UPDATE entries SET id = 'dep_traced', transfer_id = 'tr_traced', locator_kind = 'trace', proof = 'state'"
        " WHERE amount_atomic = 5"
    )
    job = await world.replay(0, 39)
    kinds = sorted((one["kind"], one["mended"]) for one in job.result["differences"])
    assert kinds == [("extra", False), ("missing", True)]
    assert (await world.ledger.entries())["dep_traced"] == "finalized"


async def test_an_altered_amount_is_put_right_and_told(world: PastWorld) -> None:
    await world.execute("UPDATE entries SET amount_atomic = 5000 WHERE amount_atomic = 5")
    job = await world.replay(0, 39)
    assert [one["kind"] for one in job.result["differences"]] == ["changed"]
    told = (await world.ledger.bodies())[-1]
    assert (told["type"], told["data"]["amount_atomic"]) == ("deposit.moved", "5")
    assert (await world.replay(0, 39)).result["changed"] == 0


async def test_an_entry_in_the_wrong_block_is_moved(world: PastWorld) -> None:
    await world.execute("UPDATE entries SET block_height = 3, block_hash = '\\xab' WHERE amount_atomic = 5")
    job = await world.replay(0, 39)
    assert [one["kind"] for one in job.result["differences"]] == ["changed"]
    assert (await world.ledger.bodies())[-1]["data"]["block"]["height"] == 1


async def test_only_the_asked_address_is_looked_at(world: PastWorld) -> None:
    await world.execute("DELETE FROM entries WHERE tenant_id = 'ten_b'")
    await world.execute("DELETE FROM entries WHERE amount_atomic = 5")
    job = await world.replay(0, 39, address="0x" + BOB.hex())
    assert {one["tenant"] for one in job.result["differences"]} == {"ten_b"}
    assert (await world.replay(0, 39)).result["missing"] == 1


async def test_a_node_that_lost_the_history_is_refused_and_nothing_is_destroyed(world: PastWorld) -> None:
    before = await whole(world.ledger)
    pruned = FakeChain(host="pruned", blocks=world.ledger.chain.blocks, pruned_below=15)
    elsewhere = world_of(world.ledger, pruned)
    with pytest.raises(BlockNotFound):
        await elsewhere.replay(0, 39)
    assert await whole(world.ledger) == before
    job = await elsewhere.job(JobKind.REPLAY, {"from": 0, "to": 39, "address": None, "dry_run": False}, is_taken=False)
    await elsewhere.work()
    ended = await world.find(OPS_TENANT, job.id)
    assert ended.state is JobState.FAILED
    assert ended.reason is not None
    assert "still has these blocks" in ended.reason
    assert await whole(world.ledger) == before


async def test_a_node_with_another_history_gives_nothing_that_is_taken(world: PastWorld) -> None:
    before = await whole(world.ledger)
    other = FakeChain(host="other")
    other.mine(count=40, salt="other")
    elsewhere = world_of(world.ledger, other)
    job = await elsewhere.job(JobKind.REPLAY, {"from": 0, "to": 30, "address": None, "dry_run": False}, is_taken=False)
    await elsewhere.work()
    ended = await world.find(OPS_TENANT, job.id)
    assert (ended.state, ended.done) == (JobState.FAILED, 0)
    assert ended.reason is not None
    assert "do not lead to ours" in ended.reason
    assert await whole(world.ledger) == before


async def test_a_reorg_in_between_costs_nothing(world: PastWorld) -> None:
    """The cursor's hash is of a branch that is gone by the next step."""
    job = await world.job(JobKind.REPLAY, {"from": 0, "to": 39, "address": None, "dry_run": False})
    world.past._spans[False] = 4
    job = await world.past.step(await world.past.step(job))
    assert job.cursor["height"] == 35
    world.ledger.chain.drop_to(32)
    world.ledger.chain.mine(payment("five", ALICE, 7), count=10, salt="b")
    await world.ledger.converge(3)
    job = await world.run(job)
    assert (job.state, job.result["missing"], job.result["extra"]) == (JobState.DONE, 0, 0)


async def test_a_replay_for_one_address_says_nothing_of_what_its_blocks_were_read_for(world: PastWorld) -> None:
    """The token that was listed meanwhile was looked for on behalf of nobody else."""
    world.node.listed = (COIN, TOKEN, LATE_TOKEN)
    async with transaction(world.ledger.engine) as connection:
        await register_chain(connection, replace(world.ledger.configuration, assets=world.node.listed), NOW)
    before = await world.execute("SELECT height, reading, proof, agreed_by, node FROM blocks ORDER BY height")
    await world.execute("DELETE FROM entries WHERE tenant_id = 'ten_b'")
    job = await world_of(world.ledger).replay(0, 39, address="0x" + BOB.hex())
    assert job.result["missing"] == 2
    assert await world.execute("SELECT height, reading, proof, agreed_by, node FROM blocks ORDER BY height") == before


async def test_one_tracers_word_takes_nothing_back_that_one_tracer_told(world: PastWorld) -> None:
    await world.execute(
        "UPDATE entries SET id = 'dep_traced', transfer_id = 'tr_traced', locator_kind = 'trace', proof = 'trace'"
        " WHERE amount_atomic = 5"
    )
    chain = world.ledger.chain
    chain.blocks[1] = replace(chain.blocks[1], trace_proof=TraceProof.TRACE)
    assert (False, "extra") in {
        (one["mended"], one["kind"]) for one in (await world.replay(0, 39)).result["differences"]
    }
    chain.blocks[1] = replace(chain.blocks[1], trace_proof=TraceProof.AGREED)
    assert (True, "extra") in {
        (one["mended"], one["kind"]) for one in (await world.replay(0, 39)).result["differences"]
    }


async def test_a_row_that_was_lost_before_its_transfer_moved_is_told_to_have_moved(world: PastWorld) -> None:
    """The follower puts it into its new block as one that it never saw, so its watch is put out of the way for that time."""
    chain = world.ledger.chain
    again = payment("five", ALICE, 71)
    chain.mine(again, count=2)
    await world.ledger.converge(3)
    (lost,) = await world.execute("DELETE FROM entries WHERE amount_atomic = 71 RETURNING id")
    await world.execute("UPDATE watches SET deleted_at = now() WHERE tenant_id = 'ten_a'")
    chain.drop_to(39)
    chain.mine(count=2, salt="b")
    chain.mine(again, count=2, salt="b")
    await world.ledger.converge(3)
    await world.execute("UPDATE watches SET deleted_at = NULL WHERE tenant_id = 'ten_a'")
    await world.replay(40, 43)
    told = [body for body in await world.ledger.bodies() if body["data"]["id"] == lost.id]
    places = [(body["type"], body["sequence"], body["data"]["block"]["height"]) for body in told]
    assert places[:2] == [("deposit.detected", 1, 40), ("deposit.moved", 2, 42)]
