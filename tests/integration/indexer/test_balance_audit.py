"""The audit of balances: what no block tells is found by what addresses hold, and by nothing that one host says alone."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text

from chains.model import AssetId, BlockRef
from indexer.balance_audit import BalanceAudit, BalanceDifference, audit_balances, findings_of_balances, key_of
from indexer.balances import Untold, Verdict
from indexer.errors import BranchChanged
from ledger.balances import (
    WatchedAddress,
    find_addresses_with_activity,
    find_baselines,
    sample_watched_addresses,
)
from ledger.database import transaction
from tests.fakes.adapter import CHAIN_ID, COIN, TOKEN, Change, FakeChain, address, payment
from tests.integration.indexer.conftest import Ledger, make_ledger

ALICE, BOB, CAROL = address(1), address(2), address(3)
NATIVE, TOKENS = (ALICE, COIN.id), (ALICE, TOKEN.id)


@pytest.fixture
async def world(database_url: str) -> AsyncIterator[Ledger]:
    """Forty-one blocks in which Alice, who had something before, is paid, pays, and fails to pay."""
    chain = FakeChain(tracers={"node-a": "debug_traceBlockByHash"}, opening={NATIVE: 10**6, TOKENS: 500})
    chain.mine()
    made = await make_ledger(database_url, chain)
    await made.converge()
    await made.watch(ALICE, covered_from=1)
    chain.mine(payment("one", ALICE), payment("two", ALICE, 5, asset=TOKEN), count=5)
    chain.mine(payment("three", BOB, 7, sender=ALICE), payment("four", BOB, 9, sender=ALICE, has_failed=True), count=5)
    chain.mine(payment("five", ALICE, 3, sender=ALICE), payment("six", BOB, 5, sender=ALICE, asset=TOKEN), count=30)
    await made.converge(4)
    yield made
    await made.engine.dispose()


async def audit(world: Ledger, height: int = 40, *addresses: WatchedAddress) -> BalanceAudit:
    at = world.chain.blocks[height].ref
    return await audit_balances(world.engine, world.chain, CHAIN_ID, at, addresses or [WatchedAddress(ALICE, 1)])


async def baselines(world: Ledger) -> dict[tuple[bytes, AssetId], int]:
    """The heights of Alice's baselines."""
    async with transaction(world.engine) as connection:
        return {one: row.height for one, row in (await find_baselines(connection, CHAIN_ID, [ALICE])).items()}


async def test_a_ledger_that_is_right_matches_and_its_baseline_moves_up(world: Ledger) -> None:
    for height in (20, 40, 40):
        report = await audit(world, height)
        assert (report.differences, report.untold) == ([], {})
        assert await baselines(world) == {NATIVE: height, TOKENS: height}
    assert (await audit(world, 39)).matched == []
    assert await baselines(world) == {NATIVE: 40, TOKENS: 40}


@pytest.mark.parametrize(("amount", "kind"), [(77, Verdict.MISSING), (-77, Verdict.UNEXPLAINED)])
@pytest.mark.parametrize("account", [NATIVE, TOKENS])
async def test_what_no_block_tells_is_found_and_located_until_it_is_mended(
    world: Ledger, account: tuple[bytes, AssetId], amount: int, kind: Verdict
) -> None:
    await audit(world, 10)
    world.chain.changes.append(Change(23, *account, amount))
    for _ in range(2):
        report = await audit(world)
        ((found),) = report.differences
        expected = world.chain.holdings_at(world.chain.blocks[40].ref, [account])[account].amount_atomic - amount
        assert found == BalanceDifference(*account, expected, expected + amount, kind, 10, 40, 23)
        assert (await baselines(world))[account] == 10
    (finding,) = findings_of_balances(report.differences)
    assert (finding.key, finding.is_missed_deposit) == (key_of(account), kind is Verdict.MISSING)
    assert (finding.kind, finding.from_height, finding.to_height) == ("balance", 23, 23)
    world.chain.changes.clear()
    assert account in (await audit(world)).matched
    assert (await baselines(world))[account] == 40


async def test_an_entry_that_was_removed_is_missing(world: Ledger) -> None:
    async with transaction(world.engine) as connection:
        await connection.execute(text("DELETE FROM entries WHERE amount_atomic = 1000"))
    (found,) = (await audit(world)).differences
    assert (found.kind, found.found - found.expected, found.located_height) == (Verdict.MISSING, 1_000, 1)


async def test_where_the_state_before_is_gone_the_present_is_the_baseline(world: Ledger) -> None:
    world.chain.state_from = 20
    report = await audit(world, 30)
    assert report.untold == {NATIVE: Untold.NO_BASELINE, TOKENS: Untold.NO_BASELINE}
    world.chain.changes.append(Change(35, *NATIVE, 1))
    (found,) = (await audit(world)).differences
    assert (found.kind, found.from_height, found.located_height) == (Verdict.MISSING, 30, 35)


async def test_where_the_state_on_the_way_is_gone_no_block_is_named(world: Ledger) -> None:
    await audit(world, 10)
    world.chain.changes.append(Change(15, *NATIVE, 1))
    world.chain.state_from = 39
    (found,) = (await audit(world)).differences
    assert (found.kind, found.located_height) == (Verdict.MISSING, None)
    (finding,) = findings_of_balances([found])
    assert (finding.from_height, finding.to_height) == (11, 40)


async def test_where_nobody_has_the_state_nothing_is_told_and_nothing_kept(world: Ledger) -> None:
    world.chain.state_from = 100
    assert set((await audit(world)).untold.values()) == {Untold.NO_STATE}
    assert await baselines(world) == {}


async def test_the_fee_of_a_transaction_that_is_no_entry_is_no_difference(world: Ledger) -> None:
    await audit(world, 10)
    world.chain.changes.append(Change(20, *NATIVE, -21_000, is_transaction=True))
    report = await audit(world, 30)
    assert (report.differences, report.untold) == ([], {NATIVE: Untold.UNKNOWN_FEES})
    assert (await baselines(world))[NATIVE] == 30, "from here on all is known again"
    world.chain.changes.append(Change(33, *NATIVE, -1))
    (found,) = (await audit(world)).differences
    assert (found.kind, found.located_height) == (Verdict.UNEXPLAINED, 33)


async def test_where_internal_value_is_not_read_it_is_not_missed(world: Ledger) -> None:
    world.chain.tracers.clear()
    world.chain.changes.append(Change(20, *NATIVE, 5))
    assert (await audit(world)).untold == {NATIVE: Untold.INTERNAL_NOT_READ}


async def test_entries_of_two_tenants_explain_once(world: Ledger) -> None:
    await world.watch(BOB, "ten_a", covered_from=41)
    await world.watch(BOB, "ten_b", covered_from=43, scope="evm")
    world.chain.mine(payment("seven", BOB, 11), count=2)
    world.chain.mine(payment("eight", BOB, 13), count=5)
    await world.converge(2)
    async with transaction(world.engine) as connection:
        found = await find_addresses_with_activity(connection, CHAIN_ID, 41, 47, 10)
        every = await sample_watched_addresses(connection, CHAIN_ID, BOB, 10)
        some = await sample_watched_addresses(connection, CHAIN_ID, BOB, 1)
    assert found == [WatchedAddress(BOB, 41)] == some
    assert every == [WatchedAddress(BOB, 41), WatchedAddress(ALICE, 1)]
    report = await audit(world, 47, *found)
    assert (report.differences, set(report.matched)) == ([], {(BOB, COIN.id), (BOB, TOKEN.id)})


async def test_a_watch_that_was_gone_for_a_while_has_a_new_baseline(world: Ledger) -> None:
    await audit(world, 10)
    world.chain.changes.append(Change(12, *NATIVE, 5))
    report = await audit(world, 40, WatchedAddress(ALICE, 15))
    assert (report.differences, set(report.matched)) == ([], {NATIVE, TOKENS})


async def test_a_host_that_lies_is_set_aside_where_another_agrees_with_the_ledger(world: Ledger) -> None:
    world.chain.other_hosts["node-b"] = FakeChain(host="node-b", blocks=world.chain.blocks, opening=world.chain.opening)
    await audit(world, 10)
    world.chain.lies[TOKENS] = 9
    report = await audit(world)
    assert (report.differences, report.set_aside) == ([], {TOKENS: "node-a"})
    assert list(world.chain.aside) == ["node-a"]
    assert await baselines(world) == {NATIVE: 40, TOKENS: 40}


async def test_hosts_that_differ_from_each_other_and_the_ledger_tell_nothing(world: Ledger) -> None:
    other = FakeChain(host="node-b", blocks=world.chain.blocks, opening=world.chain.opening)
    world.chain.other_hosts["node-b"] = other
    await audit(world, 10)
    world.chain.lies[TOKENS], other.lies[TOKENS] = 9, 8
    report = await audit(world)
    assert (report.differences, report.untold) == ([], {TOKENS: Untold.HOSTS_DIFFER})
    assert (await baselines(world))[TOKENS] == 10
    other.lies[TOKENS] = 9
    (found,) = (await audit(world)).differences
    assert (found.kind, found.found - found.expected) == (Verdict.MISSING, 9)


async def test_one_host_alone_is_believed_where_there_is_no_other(world: Ledger) -> None:
    await audit(world, 10)
    world.chain.lies[TOKENS] = 9
    (found,) = (await audit(world)).differences
    assert (found.kind, found.asset_id) == (Verdict.MISSING, TOKEN.id)


async def test_a_block_that_is_not_ours_is_not_audited(world: Ledger) -> None:
    ref = world.chain.blocks[40].ref
    other = BlockRef(40, b"\7" * 32, ref.parent_hash)
    with pytest.raises(BranchChanged, match="block 40 is not the one"):
        await audit_balances(world.engine, world.chain, CHAIN_ID, other, [WatchedAddress(ALICE, 1)])
    assert await baselines(world) == {}
