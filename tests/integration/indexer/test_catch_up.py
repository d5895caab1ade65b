"""Far behind the head blocks are fetched ahead; at the head nobody waits for that."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import update

from chains.model import AssetId, Block, ChainId, Slug
from indexer.commit import Followed
from indexer.follower import CATCH_UP_BLOCKS, Course, Extended, Follower, Reorged
from indexer.policy import CreditRule, Policy, rules_as_json
from ledger import entries as entries_module
from ledger.chains import ChainConfiguration, find_chain, register_chain
from ledger.database import transaction
from ledger.schema import watches
from tests.fakes.adapter import COIN, FakeChain, address, payment
from tests.integration.indexer.conftest import NOW, Ledger

ALICE = address(1)
OTHER = ChainId("eip155:31338")


async def test_only_a_gap_larger_than_a_few_blocks_is_fetched_ahead(ledger: Ledger) -> None:
    await ledger.converge()
    ledger.chain.mine(count=CATCH_UP_BLOCKS)
    assert await ledger.converge() == Extended(CATCH_UP_BLOCKS, is_behind=False)
    assert ledger.chain.fetched_ahead == []
    ledger.chain.mine(count=CATCH_UP_BLOCKS + 1)
    assert await ledger.converge() == Extended(CATCH_UP_BLOCKS + 1, is_behind=False)
    assert sorted(ledger.chain.fetched_ahead) == list(range(9, 18))


async def test_a_branch_that_changes_while_a_follower_is_far_behind_goes_through_the_reorg_first(
    ledger: Ledger,
) -> None:
    await ledger.watch(ALICE)
    ledger.chain.mine(payment("lost", ALICE), count=3)
    await ledger.converge(2)
    ledger.chain.drop_to(0)
    ledger.chain.mine(salt="b")
    ledger.chain.mine(payment("found", ALICE), count=30, salt="b")
    assert await ledger.converge() == Reorged(3)
    assert (await ledger.row()).tip_height == 3
    assert await ledger.converge() == Extended(28, is_behind=False)
    heights = {body["data"]["id"]: body["data"]["block"] for body in await ledger.bodies()}
    assert [block and block["height"] for block in heights.values()] == [None, 2]
    assert list((await ledger.entries()).values()).count("reversed") == 1


@dataclass
class SlowChain(FakeChain):
    """Its blocks far from the head come when a test lets them."""

    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def fetch_block_ahead(self, height: int) -> Block:
        await self.gate.wait()
        return await super().fetch_block_ahead(height)


async def test_the_head_of_one_chain_advances_while_another_catches_up(ledger: Ledger) -> None:
    behind = SlowChain()
    behind.mine(count=300)
    follower = await other_follower(ledger, behind)
    await follower.converge()
    catching_up = asyncio.ensure_future(follower.converge())
    for height in range(1, 6):
        ledger.chain.mine(payment(f"live {height}", ALICE))
        await ledger.converge(2 if height == 1 else 1)
        assert (await ledger.row()).tip_height == height
        assert not catching_up.done()
    behind.gate.set()
    assert await catching_up == Extended(299, is_behind=False)


async def other_follower(ledger: Ledger, chain: FakeChain) -> Follower:
    """A follower of a second chain in the same ledger."""
    coin = replace(COIN, id=AssetId(f"{OTHER}/slip44:60"))
    rules = (CreditRule("default", "3"),)
    configuration = ChainConfiguration(
        OTHER, Slug("other"), "anvil", False, coin.id, "roots", 1, ("native",), (coin,), rules_as_json(rules)
    )
    async with transaction(ledger.engine) as connection:
        version = await register_chain(connection, configuration, NOW)
    followed = Followed(OTHER, Policy(Slug("other"), version, rules), timedelta(days=36500), 64)
    return Follower(ledger.engine, chain, followed, Course(Slug("other"), 0, has_finality_tags=True))


async def test_a_cycle_that_takes_long_ends_with_a_commit_and_the_next_goes_on(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexer.follower.CYCLE_LIMIT_S", 0.0)
    await ledger.converge()
    ledger.chain.mine(count=500)
    outcomes = [await ledger.converge()]
    while outcomes[-1] != Extended(0, is_behind=False) and (await ledger.row()).tip_height != 500:
        outcomes.append(await ledger.converge())
    assert len(outcomes) > 2
    assert sum(outcome.count for outcome in outcomes if isinstance(outcome, Extended)) == 500
    assert len(set(ledger.chain.fetched)) == len(ledger.chain.fetched)  # nothing was given up on the way


@pytest.mark.parametrize("most", [10_000, 0])
async def test_a_lost_entry_comes_back_in_a_later_block_though_its_watch_is_gone(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(entries_module, "LOST_ADDRESSES_MAX", most)
    watch_id = await ledger.watch(ALICE)
    ledger.chain.mine(payment("one", ALICE))
    await ledger.converge(2)
    ledger.chain.drop_to(0)
    ledger.chain.mine(count=2, salt="empty")
    await ledger.converge(2)
    async with transaction(ledger.engine) as connection:
        deleted = update(watches).where(watches.c.id == watch_id).values(deleted_at=datetime.now(UTC))
        await connection.execute(deleted)
        assert (await find_chain(connection, ledger.follower.followed.chain_id)).tip_height == 2
    ledger.chain.mine(payment("one", ALICE), payment("another", ALICE))
    await ledger.converge()
    assert await ledger.story() == [
        ("deposit.detected", 1, None),
        ("deposit.reorged", 2, "detected"),
        ("deposit.detected", 3, "reorged"),
    ]
