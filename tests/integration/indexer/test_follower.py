"""What following promises: each deposit's story once, whatever the chain does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from chains.model import BlockRef, Locator, LocatorKind, Movement, TraceProof
from indexer.commit import Committed, commit_blocks
from indexer.follower import CATCH_UP_BLOCKS, TAGS_ASKED_EVERY, Extended, Halted, Holding, Nothing, Reorged
from ledger.chains import lock_chain, register_chain
from ledger.database import transaction
from ledger.errors import CheckpointMoved
from ledger.halts import resume_chain
from ledger.states import Reason
from tests.fakes.adapter import TOKEN, FakeChain, address, payment
from tests.integration.indexer.conftest import NOW, Ledger, make_ledger

ALICE, BOB = address(1), address(2)


async def test_a_deposit_is_detected_confirmed_and_finalized_in_sequence(ledger: Ledger) -> None:
    await ledger.watch(ALICE)
    ledger.chain.mine(payment("one", ALICE))
    assert await ledger.converge(2) == Extended(1, is_behind=False)
    assert await ledger.story() == [("deposit.detected", 1, None)]
    ledger.chain.mine(count=2)
    await ledger.converge()
    ledger.chain.finalized = 1
    await ledger.converge()
    assert await ledger.story() == [
        ("deposit.detected", 1, None),
        ("deposit.confirmed", 2, "detected"),
        ("deposit.finalized", 3, "confirmed"),
    ]
    assert isinstance(await ledger.converge(), Nothing)
    assert len(await ledger.story()) == 3


async def test_a_transfer_between_two_watched_addresses_is_a_withdrawal_and_a_deposit(ledger: Ledger) -> None:
    await ledger.watch(ALICE)
    await ledger.watch(BOB)
    ledger.chain.mine(payment("one", BOB, sender=ALICE))
    await ledger.converge(2)
    assert sorted(type_ for type_, _, _ in await ledger.story()) == ["deposit.detected", "withdrawal.detected"]


async def test_two_tenants_watching_one_address_each_get_their_own_entry(ledger: Ledger) -> None:
    await ledger.watch(ALICE)
    await ledger.watch(ALICE, "ten_b")
    ledger.chain.mine(payment("one", ALICE))
    await ledger.converge(2)
    assert list((await ledger.entries()).values()) == ["detected"]
    assert list((await ledger.entries("ten_b")).values()) == ["detected"]
    assert set(await ledger.entries()) != set(await ledger.entries("ten_b"))


async def test_overlapping_watches_make_one_entry_of_the_more_specific_one(ledger: Ledger) -> None:
    await ledger.watch(ALICE, scope="evm")
    specific = await ledger.watch(ALICE)
    ledger.chain.mine(payment("one", ALICE))
    await ledger.converge(2)
    bodies = await ledger.bodies()
    assert [body["data"]["watch"]["id"] for body in bodies] == [specific]


async def test_a_watch_covers_from_exactly_its_height(ledger: Ledger) -> None:
    await ledger.watch(ALICE, covered_from=2)
    ledger.chain.mine(payment("early", ALICE))
    ledger.chain.mine(payment("exact", ALICE))
    await ledger.converge(2)
    assert [body["data"]["block"]["height"] for body in await ledger.bodies()] == [2]


async def test_a_failed_transaction_is_a_failed_withdrawal_and_no_deposit(ledger: Ledger) -> None:
    await ledger.watch(ALICE)
    await ledger.watch(BOB)
    ledger.chain.mine(payment("one", BOB, sender=ALICE, has_failed=True))
    await ledger.converge(2)
    assert await ledger.story() == [("withdrawal.failed", 1, None)]
    body = (await ledger.bodies())[0]["data"]
    assert body["failure"]["code"] == "reverted"
    assert body["fee"]["amount_atomic"] == "21000"


async def test_a_failed_native_withdrawal_that_succeeds_after_a_reorg_is_the_same_entry(ledger: Ledger) -> None:
    await ledger.watch(ALICE)
    ledger.chain.mine(payment("one", BOB, sender=ALICE, has_failed=True))
    await ledger.converge(2)
    ledger.chain.drop_to(0)
    ledger.chain.mine(payment("one", BOB, sender=ALICE))
    await ledger.converge()
    assert await ledger.story() == [("withdrawal.failed", 1, None), ("withdrawal.detected", 2, "failed")]
    assert len(await ledger.entries()) == 1


async def test_a_deposit_lost_in_a_reorg_comes_back_as_the_same_entry_with_the_next_sequence(ledger: Ledger) -> None:
    await ledger.watch(ALICE)
    ledger.chain.mine(payment("one", ALICE))
    await ledger.converge(2)
    ledger.chain.drop_to(0)
    ledger.chain.mine(salt="b")
    assert await ledger.converge() == Reorged(1)
    ledger.chain.mine(payment("one", ALICE))
    await ledger.converge()
    assert await ledger.story() == [
        ("deposit.detected", 1, None),
        ("deposit.reorged", 2, "detected"),
        ("deposit.detected", 3, "reorged"),
    ]
    assert list((await ledger.entries()).values()) == ["detected"]
    lost = (await ledger.bodies())[1]["data"]
    assert lost["block"] is None
    assert lost["confirmations"]["current"] == 0


async def test_a_deposit_that_moved_is_told_once_and_never_retracted(ledger: Ledger) -> None:
    await ledger.watch(ALICE)
    ledger.chain.mine(payment("one", ALICE))
    ledger.chain.mine()
    await ledger.converge(2)
    ledger.chain.drop_to(0)
    ledger.chain.mine(salt="b")
    ledger.chain.mine(payment("one", ALICE))
    await ledger.converge()
    assert await ledger.story() == [("deposit.detected", 1, None), ("deposit.moved", 2, "detected")]
    assert (await ledger.bodies())[1]["data"]["block"]["height"] == 2


async def test_a_credited_deposit_that_moved_stays_confirmed(ledger: Ledger) -> None:
    await ledger.watch(ALICE)
    ledger.chain.mine(payment("one", ALICE), count=3)
    await ledger.converge(2)
    ledger.chain.drop_to(0)
    ledger.chain.mine(salt="b")
    ledger.chain.mine(salt="b")
    ledger.chain.mine(payment("one", ALICE))
    await ledger.converge()
    assert (await ledger.story())[-1] == ("deposit.moved", 3, "confirmed")
    assert list((await ledger.entries()).values()) == ["confirmed"]


async def test_a_deposit_lost_after_credit_is_reversed_and_can_be_credited_again(ledger: Ledger) -> None:
    await ledger.watch(ALICE)
    ledger.chain.mine(payment("one", ALICE), count=3)
    await ledger.converge(2)
    ledger.chain.drop_to(0)
    ledger.chain.mine(salt="b", count=3)
    await ledger.converge()
    ledger.chain.mine(payment("one", ALICE), count=3)
    await ledger.converge()
    assert await ledger.story() == [
        ("deposit.detected", 1, None),
        ("deposit.confirmed", 2, "detected"),
        ("deposit.reversed", 3, "confirmed"),
        ("deposit.detected", 4, "reversed"),
        ("deposit.confirmed", 5, "detected"),
    ]


async def test_a_reorg_into_a_height_that_was_empty_is_found(ledger: Ledger) -> None:
    await ledger.watch(ALICE)
    ledger.chain.mine(count=5)
    await ledger.converge(2)
    ledger.chain.drop_to(1)
    ledger.chain.mine(payment("one", ALICE))
    ledger.chain.mine(count=3)
    await ledger.converge(2)
    assert await ledger.story() == [("deposit.detected", 1, None), ("deposit.confirmed", 2, "detected")]
    assert {body["data"]["block"]["height"] for body in await ledger.bodies()} == {2}


async def test_a_reorg_does_not_credit_what_a_watch_did_not_cover(ledger: Ledger) -> None:
    ledger.chain.mine(count=3)
    await ledger.converge(2)
    await ledger.watch(ALICE, covered_from=4)
    ledger.chain.drop_to(1)
    ledger.chain.mine(payment("before", ALICE))
    ledger.chain.mine()
    await ledger.converge(2)
    assert await ledger.story() == []


async def test_a_node_that_goes_back_below_our_tip_undoes_nothing(ledger: Ledger) -> None:
    await ledger.watch(ALICE)
    ledger.chain.mine(payment("one", ALICE), count=3)
    await ledger.converge(2)
    ledger.chain.drop_to(0)
    ledger.chain.mine(salt="b")
    outcome = await ledger.converge()
    assert isinstance(outcome, Nothing) and outcome.reason is not None
    assert (await ledger.row()).tip_height == 3
    assert len(await ledger.story()) == 2


async def test_a_reorg_below_finality_halts_and_only_an_accepted_one_goes_on(ledger: Ledger) -> None:
    await ledger.watch(ALICE)
    ledger.chain.mine(payment("one", ALICE), count=4)
    ledger.chain.finalized = 3
    await ledger.converge(3)
    ledger.chain.drop_to(0)
    ledger.chain.finalized = None
    ledger.chain.mine(salt="b", count=5)
    outcome = await ledger.converge()
    assert isinstance(outcome, Halted)
    assert "deeper than finality" in outcome.reason and "chainbell resume" in outcome.reason
    assert isinstance(await ledger.converge(), Halted)
    assert (await ledger.row()).tip_height == 4
    assert [type_ for type_, _, _ in await ledger.story("ten_ops")] == ["chain.halted"]
    await _resume(ledger, None)
    assert isinstance(await ledger.converge(), Halted)
    await _resume(ledger, 0)
    assert await ledger.converge() == Reorged(4)
    assert (await ledger.story())[-1] == ("deposit.reversed", 4, "finalized")
    row = await ledger.row()
    assert (row.finalized_height, row.accepted_reorg_height) == (0, None)


async def _resume(ledger: Ledger, accept_reorg_to: int | None) -> None:
    async with transaction(ledger.engine) as connection:
        chain, now = await lock_chain(connection, ledger.follower.followed.chain_id)
        await resume_chain(connection, chain, accept_reorg_to, "test", now)


async def test_a_node_that_is_down_holds_the_chain_and_loses_nothing(ledger: Ledger) -> None:
    await ledger.watch(ALICE)
    await ledger.converge()
    ledger.chain.is_down = True
    ledger.chain.mine(payment("one", ALICE))
    assert isinstance(await ledger.converge(), Holding)
    ledger.chain.is_down = False
    await ledger.converge()
    assert await ledger.story() == [("deposit.detected", 1, None)]


async def test_catching_up_tells_the_same_story_in_few_transactions(ledger: Ledger) -> None:
    await ledger.watch(ALICE)
    ledger.chain.mine(payment("one", ALICE))
    ledger.chain.mine(count=200)
    await ledger.converge(2)
    assert (await ledger.row()).tip_height == 201
    assert await ledger.story() == [("deposit.detected", 1, None), ("deposit.confirmed", 2, "detected")]


async def test_nothing_is_credited_on_one_hosts_word_where_two_must_agree(database_url: str) -> None:
    honest, other = FakeChain(), FakeChain("node-b")
    honest.mine()
    other.mine()
    honest.other_hosts["node-b"] = other
    ledger = await make_ledger(database_url, honest, credit_at="1", quorum=2)
    await ledger.watch(ALICE)
    honest.mine(payment("invented", ALICE), count=5)
    other.mine(salt="b", count=5)
    await ledger.converge(3)
    assert await ledger.story() == [("deposit.detected", 1, None)]
    other.drop_to(0)
    other.mine(payment("invented", ALICE), count=5)
    await ledger.converge()
    assert await ledger.story() == [("deposit.detected", 1, None), ("deposit.confirmed", 2, "detected")]
    assert (await ledger.bodies())[1]["data"]["proof"] == {"level": "roots", "agreed_by": 2}
    await ledger.engine.dispose()


@pytest.mark.parametrize("credit_at", ["safe", "finalized"])
async def test_a_policy_by_tag_waits_for_the_tag(database_url: str, credit_at: str) -> None:
    chain = FakeChain()
    chain.mine()
    ledger = await make_ledger(database_url, chain, credit_at=credit_at)
    await ledger.watch(ALICE)
    chain.mine(payment("one", ALICE), count=10)
    await ledger.converge(2)
    assert len(await ledger.story()) == 1
    chain.safe = 1 if credit_at == "safe" else None
    chain.finalized = 1 if credit_at == "finalized" else None
    await ledger.converge()
    expected = ["deposit.detected", "deposit.confirmed"] + (["deposit.finalized"] if credit_at == "finalized" else [])
    assert [type_ for type_, _, _ in await ledger.story()] == expected
    await ledger.engine.dispose()


async def test_where_a_chain_has_no_tags_depth_decides(database_url: str) -> None:
    chain = FakeChain()
    chain.mine()
    ledger = await make_ledger(database_url, chain, has_finality_tags=False, finality_depth=5)
    await ledger.watch(ALICE)
    chain.mine(payment("one", ALICE), count=6)
    await ledger.converge(2)
    assert (await ledger.story())[-1] == ("deposit.finalized", 3, "confirmed")
    chain.drop_to(0)
    chain.mine(salt="b", count=7)
    assert isinstance(await ledger.converge(), Halted)
    await ledger.engine.dispose()


async def test_a_token_that_keeps_a_part_is_told_to_the_end_and_never_counts_as_money(database_url: str) -> None:
    chain = FakeChain()
    chain.mine()
    ledger = await make_ledger(database_url, chain, credit_at="1", reasons={TOKEN.id: (Reason.FEE_ON_TRANSFER,)})
    await ledger.watch(ALICE)
    chain.mine(payment("one", ALICE, asset=TOKEN), payment("two", ALICE))
    chain.finalized = 1
    await ledger.converge(2)
    documents = [body["data"] for body in await ledger.bodies()]
    assert sorted((d["asset"]["symbol"], d["state"], d["disposition"], *d["reasons"]) for d in documents) == [
        ("ETH", "confirmed", "credit"),
        ("ETH", "detected", "credit"),
        ("ETH", "finalized", "credit"),
        ("TST", "confirmed", "ignore", "fee_on_transfer"),
        ("TST", "detected", "ignore", "fee_on_transfer"),
        ("TST", "finalized", "ignore", "fee_on_transfer"),
    ]
    await ledger.engine.dispose()


async def test_a_second_follower_wastes_work_and_corrupts_nothing(ledger: Ledger) -> None:
    await ledger.watch(ALICE)
    await ledger.converge()
    first = ledger.follower
    ledger.restart()
    ledger.chain.mine(payment("one", ALICE))
    tip = first._tip(await ledger.row())
    await ledger.converge()
    assert tip is not None
    with pytest.raises(CheckpointMoved):
        await first._commit(tip, [ledger.chain.blocks[1]])
    assert await ledger.story() == [("deposit.detected", 1, None)]


async def test_starting_at_the_head_covers_from_there(database_url: str) -> None:
    chain = FakeChain()
    chain.mine(count=10)
    ledger = await make_ledger(database_url, chain, start=None)
    await ledger.watch(ALICE)
    await ledger.converge()
    row = await ledger.row()
    assert (row.first_height, row.tip_height) == (9, 9)
    chain.drop_to(5)
    chain.mine(salt="b", count=6)
    assert await ledger.converge() == Reorged(1)
    await ledger.engine.dispose()


async def test_a_node_that_comes_back_to_our_branch_while_it_is_read_undoes_nothing(ledger: Ledger) -> None:
    ledger.chain.mine(count=3)
    await ledger.converge(2)
    ours = list(ledger.chain.blocks)
    ledger.chain.drop_to(2)
    ledger.chain.mine(salt="b", count=2)
    theirs = list(ledger.chain.blocks)
    ledger.chain.blocks = theirs[:]
    fetch_ref = ledger.chain.fetch_ref

    async def _fetch_ref_of_ours(height: int) -> BlockRef | None:
        ledger.chain.blocks = ours[:]
        return await fetch_ref(height)

    ledger.chain.fetch_ref = _fetch_ref_of_ours  # type: ignore[method-assign]
    assert isinstance(await ledger.converge(), Nothing)
    assert (await ledger.row()).tip_hash == ours[3].ref.hash


async def test_a_node_without_our_finalized_block_holds_the_chain_and_does_not_halt_it(ledger: Ledger) -> None:
    ledger.chain.mine(count=4)
    ledger.chain.finalized = 3
    await ledger.converge(3)
    ledger.chain.drop_to(3)
    ledger.chain.mine(salt="b", count=2)

    async def _pruned(height: int) -> BlockRef | None:
        return None

    ledger.chain.fetch_ref = _pruned  # type: ignore[method-assign]
    outcome = await ledger.converge()
    assert isinstance(outcome, Holding)
    assert "does not have" in outcome.reason
    assert (await ledger.row()).tip_height == 4


def traced(name: str, recipient: bytes) -> Movement:
    """A movement that only a trace tells of."""
    return replace(payment(name, recipient), locator=Locator(LocatorKind.TRACE, "0"), proof=TraceProof.TRACE)


async def test_who_traces_is_remembered_before_a_block_is_committed_and_handed_to_the_next_follower(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.chain.tracers = {"node-a": "trace_block"}
    seen: list[Mapping[str, str]] = []

    async def commit(*arguments: Any, **named: Any) -> Committed:  # noqa: ANN401 - handed on as they are
        seen.append((await ledger.row()).tracers)
        return await commit_blocks(*arguments, **named)

    monkeypatch.setattr("indexer.follower.commit_blocks", commit)
    await ledger.converge()
    row = await ledger.row()
    assert seen == [{"node-a": "trace_block"}]
    assert (row.tracers, row.value_paths) == ({"node-a": "trace_block"}, ("native", "logs", "traces"))
    ledger.chain.tracers = {}
    ledger.restart()
    await ledger.converge()
    assert ledger.chain.tracers == {"node-a": "trace_block"}


async def test_a_host_that_is_found_later_is_added_and_none_is_forgotten(ledger: Ledger) -> None:
    ledger.chain.tracers = {"node-a": "trace_block"}
    await ledger.converge()
    ledger.chain.tracers = {"node-b": "debug_traceBlockByHash"}
    ledger.chain.mine()
    ledger.restart()
    await ledger.converge()
    assert (await ledger.row()).tracers == {"node-a": "trace_block", "node-b": "debug_traceBlockByHash"}


async def test_a_restart_of_any_role_forgets_no_tracer(ledger: Ledger) -> None:
    ledger.chain.tracers = {"node-a": "trace_block"}
    await ledger.converge()
    paths: list[tuple[str, ...]] = []
    for hosts in (("node-a", "node-c"), ("node-c",), ()):
        async with transaction(ledger.engine) as connection:
            await register_chain(connection, replace(ledger.configuration, tracing_hosts=hosts), NOW)
        row = await ledger.row()
        paths.append(row.value_paths)
        assert row.tracers == {"node-a": "trace_block"}
    assert paths == [("native", "traces"), ("native",), ("native",)]


async def test_balances_are_asked_for_what_only_traces_tell_of_watched_addresses(ledger: Ledger) -> None:
    await ledger.watch(ALICE)
    ledger.chain.mine(payment("one", ALICE))
    ledger.chain.mine(traced("two", BOB))
    ledger.chain.mine(traced("three", ALICE), traced("four", BOB))
    await ledger.converge(2)
    assert ledger.chain.proven == [{ALICE}]
    told = [body["data"] for body in await ledger.bodies() if body["type"] == "deposit.detected"]
    assert [(row["locator"]["kind"], row["proof"]["level"]) for row in told] == [
        ("native", "roots"),
        ("trace", "trace"),
    ]


async def test_traces_that_balances_contradict_hold_the_chain_and_nothing_is_written(ledger: Ledger) -> None:
    await ledger.watch(ALICE)
    await ledger.converge()
    ledger.chain.mine(traced("one", ALICE))
    ledger.chain.contradiction = "local: block 1: the balance of ..."
    assert await ledger.converge() == Holding("local: block 1: the balance of ...")
    assert ((await ledger.row()).tip_height, await ledger.story()) == (0, [])
    ledger.chain.contradiction = None
    await ledger.converge()
    assert await ledger.story() == [("deposit.detected", 1, None)]


async def test_a_chain_in_dispute_goes_on_holding_when_the_head_has_moved_on(ledger: Ledger) -> None:
    await ledger.watch(ALICE)
    await ledger.converge()
    ledger.chain.mine(traced("one", ALICE))
    ledger.chain.contradiction = "local: block 1: the balance of ..."
    await ledger.converge()
    ledger.chain.mine(count=4 * CATCH_UP_BLOCKS)
    ledger.restart()
    assert await ledger.converge() == Holding("local: block 1: the balance of ...")
    assert ((await ledger.row()).tip_height, await ledger.story()) == (0, [])
    ledger.chain.contradiction = None
    await ledger.converge()
    assert (await ledger.story())[0] == ("deposit.detected", 1, None)


async def test_what_was_read_ahead_is_read_again_only_where_traces_concern_a_watch(ledger: Ledger) -> None:
    await ledger.watch(ALICE)
    await ledger.converge()
    for number in range(3 * CATCH_UP_BLOCKS):
        ledger.chain.mine(traced(f"t{number}", ALICE if number == 5 else BOB), payment(f"p{number}", ALICE))
    await ledger.converge()
    ahead = set(ledger.chain.fetched_ahead)
    assert ahead == set(range(1, 3 * CATCH_UP_BLOCKS + 1))
    assert [height for height in ledger.chain.fetched if ledger.chain.fetched.count(height) > 1] == [6, 6]
    assert ledger.chain.proven == [{ALICE}]


async def test_one_hosts_tag_makes_nothing_final_where_two_must_agree(database_url: str) -> None:
    hasty, sober = FakeChain(), FakeChain(host="node-b")
    sober.blocks = hasty.blocks
    hasty.other_hosts = {"node-b": sober}
    hasty.mine()
    ledger = await make_ledger(database_url, hasty, credit_at="1", quorum=2)
    await ledger.watch(ALICE)
    hasty.mine(payment("one", ALICE), count=4)
    await ledger.converge(4)
    hasty.safe = hasty.finalized = 4
    await ledger.converge()
    assert (await ledger.row()).finalized_height is None
    sober.safe = sober.finalized = 2
    await ledger.converge()
    assert ((await ledger.row()).safe_height, (await ledger.row()).finalized_height) == (2, 2)
    assert [kind for kind, _, _ in await ledger.story()] == [
        "deposit.detected", "deposit.confirmed", "deposit.finalized",
    ]  # fmt: skip
    await ledger.engine.dispose()


async def test_the_first_hosts_tags_may_be_missing(database_url: str) -> None:
    silent, *others = FakeChain(), FakeChain(host="node-b"), FakeChain(host="node-c")
    for other in others:
        other.blocks = silent.blocks
        other.finalized = 1
    silent.other_hosts = {other.host: other for other in others}
    silent.mine(count=4)
    ledger = await make_ledger(database_url, silent, quorum=2)
    await ledger.converge(4 + TAGS_ASKED_EVERY)
    assert (await ledger.row()).finalized_height == 1
    await ledger.engine.dispose()
