"""What nodes say of their heads: back, still, far ahead, and two of them on two branches."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from chains.adapter import NodeHead
from chains.errors import NodeUnavailable
from chains.model import Block, BlockRef
from indexer.follower import CATCH_UP_BLOCKS, Extended, Halted, Holding, Nothing, Reorged
from tests.fakes.adapter import FakeChain, address, payment
from tests.integration.indexer.conftest import Ledger, make_ledger

SHOP = address(1)


class Boaster(FakeChain):
    """Names a head so many blocks above the one that it has."""

    ahead = 0

    async def fetch_head(self) -> NodeHead:
        head = await super().fetch_head()
        if not self.ahead:
            return head
        return NodeHead(head.node, head.host, BlockRef(head.head.height + self.ahead, b"\x77" * 32, b""), None, None)


async def test_what_came_before_a_failure_is_committed(database_url: str) -> None:
    chain = FakeChain()
    chain.mine(count=40)
    whole = chain.fetch_block

    async def fetch_block(height: int) -> Block:
        if height >= 20:
            raise NodeUnavailable("node-a: connection refused")
        return await whole(height)

    ledger = await make_ledger(database_url, chain)
    try:
        await ledger.converge()
        chain.fetch_block = fetch_block  # type: ignore[method-assign]
        assert await ledger.converge() == Extended(19, is_behind=True)
        assert await ledger.converge() == Holding("node-a: connection refused")
        assert (await ledger.row()).tip_height == 19
    finally:
        await ledger.engine.dispose()


@pytest.fixture
async def two(database_url: str) -> AsyncIterator[tuple[Ledger, FakeChain, FakeChain]]:
    """Two hosts with one chain so far, of which both have to agree; a watch from the beginning; credit at two."""
    first, second = FakeChain(), FakeChain(host="node-b")
    first.mine()
    second.blocks = list(first.blocks)
    first.other_hosts = {"node-b": second}
    ledger = await make_ledger(database_url, first, credit_at="2", quorum=2)
    await ledger.watch(SHOP, covered_from=0)
    await ledger.converge()
    yield ledger, first, second
    await ledger.engine.dispose()


async def test_while_two_nodes_are_on_two_branches_nothing_is_credited_on_either(
    two: tuple[Ledger, FakeChain, FakeChain],
) -> None:
    ledger, first, second = two
    first.mine(payment("here", SHOP), count=5, salt="a")
    second.mine(payment("there", SHOP), count=5, salt="b")
    await ledger.converge(6)
    assert [kind for kind, *_ in await ledger.story()] == ["deposit.detected"]
    second.blocks = list(first.blocks)
    first.mine()
    second.blocks = list(first.blocks)
    await ledger.converge(2)
    assert [kind for kind, *_ in await ledger.story()] == ["deposit.detected", "deposit.confirmed"]


async def test_the_branch_of_the_node_that_is_asked_may_end_as_the_wrong_one(
    two: tuple[Ledger, FakeChain, FakeChain],
) -> None:
    ledger, first, second = two
    first.mine(payment("here", SHOP), count=3, salt="a")
    second.mine(payment("there", SHOP), count=5, salt="b")
    await ledger.converge(4)
    first.blocks = list(second.blocks)
    await ledger.converge(3)
    told = [(body["type"], body["data"]["transaction"]["hash"]) for body in await ledger.bodies()]
    here, there = (hash_of(name) for name in ("here", "there"))
    assert told == [
        ("deposit.detected", here),
        ("deposit.reorged", here),
        ("deposit.detected", there),
        ("deposit.confirmed", there),
    ]


async def test_nodes_that_disagree_about_their_newest_block_are_waited_for_and_the_longer_branch_tells(
    two: tuple[Ledger, FakeChain, FakeChain],
) -> None:
    ledger, first, second = two
    first.mine(payment("here", SHOP), salt="a")
    second.blocks = list(first.blocks)
    await ledger.converge()
    first.drop_to(0)
    first.mine(payment("there", SHOP), salt="b")
    for _ in range(3):
        outcome = await ledger.converge()
        assert isinstance(outcome, Nothing)
        assert "node-b still has" in (outcome.reason or "")
    assert [kind for kind, *_ in await ledger.story()] == ["deposit.detected"]
    first.mine()
    assert isinstance(await ledger.converge(), Nothing)
    second.blocks = list(first.blocks)
    assert await ledger.converge() == Reorged(1)
    assert [kind for kind, *_ in await ledger.story()] == ["deposit.detected", "deposit.reorged", "deposit.detected"]


async def test_what_a_quorum_had_named_is_not_taken_back_on_one_hosts_word(
    two: tuple[Ledger, FakeChain, FakeChain],
) -> None:
    ledger, first, second = two
    first.mine(payment("paid", SHOP), count=3)
    second.blocks = list(first.blocks)
    await ledger.converge(4)
    assert (await ledger.story())[-1][0] == "deposit.confirmed"
    first.drop_to(0)
    first.mine(salt="fork", count=9)
    for _ in range(3):
        outcome = await ledger.converge()
        assert isinstance(outcome, Nothing)
        assert outcome.reason == (
            "node-a: names another block 1 than node-b:"
            " what a quorum had named is undone when more hosts leave it than hold it"
        )
    assert first.aside == {}
    assert (await ledger.story())[-1][0] == "deposit.confirmed"
    second.is_down = True  # who does not answer holds nothing
    assert await ledger.converge() == Reorged(3)
    assert "deposit.reversed" in [kind for kind, *_ in await ledger.story()]


async def test_a_host_that_a_majority_contradicts_is_asked_after_the_others(
    two: tuple[Ledger, FakeChain, FakeChain],
) -> None:
    ledger, first, second = two
    first.other_hosts["node-c"] = FakeChain(host="node-c")
    first.mine(payment("paid", SHOP), count=3)
    for other in first.other_hosts.values():
        other.blocks = list(first.blocks)
    await ledger.converge(4)
    first.drop_to(0)
    first.mine(salt="fork", count=9)
    assert isinstance(await ledger.converge(), Nothing)
    assert first.aside == {"node-a": "names another block 1 than node-b, node-c"}
    second.blocks = list(first.blocks)  # now two of three have left our branch
    assert await ledger.converge() == Reorged(3)


async def test_a_host_that_a_majority_contradicts_below_finality_halts_nothing(
    two: tuple[Ledger, FakeChain, FakeChain],
) -> None:
    ledger, first, second = two
    first.other_hosts["node-c"] = FakeChain(host="node-c")
    first.mine(payment("paid", SHOP), count=9)
    for other in first.other_hosts.values():
        other.blocks = list(first.blocks)
        other.finalized = 5
    first.finalized = 5
    await ledger.converge(4)
    assert (await ledger.row()).finalized_height == 5
    first.drop_to(0)
    first.finalized = None
    first.mine(salt="fork", count=12)
    assert isinstance(await ledger.converge(), Nothing)
    assert first.aside == {"node-a": "names another block 5 than node-b, node-c"}
    second.is_down = True  # one against one: a person decides
    assert isinstance(await ledger.converge(), Halted)


async def test_a_block_that_no_host_has_any_more_is_left_at_once(two: tuple[Ledger, FakeChain, FakeChain]) -> None:
    ledger, first, second = two
    first.mine(payment("here", SHOP), salt="a")
    second.blocks = list(first.blocks)
    await ledger.converge()
    first.drop_to(0)
    first.mine(salt="b")
    second.blocks = list(first.blocks)
    assert await ledger.converge() == Reorged(1)


async def test_a_tag_above_the_nodes_own_head_or_of_another_chain_makes_nothing_final(ledger: Ledger) -> None:
    class Boldly(FakeChain):
        async def fetch_head(self) -> NodeHead:
            head = await super().fetch_head()
            beyond = BlockRef(head.head.height + 5, b"\x66" * 32, b"")
            foreign = BlockRef(1, b"\x55" * 32, b"")
            return NodeHead(head.node, head.host, head.head, foreign, beyond)

    chain = Boldly(blocks=ledger.chain.blocks)
    ledger.chain = chain
    ledger.follower.adapter = chain
    chain.mine(count=4)
    await ledger.converge(2)
    chain.mine(count=8)
    await ledger.converge(2)
    row = await ledger.row()
    assert (row.tip_height, row.safe_height, row.finalized_height) == (12, None, None)


async def test_tags_that_go_back_or_away_take_no_finality_back(ledger: Ledger) -> None:
    ledger.chain.mine(count=9)
    ledger.chain.safe, ledger.chain.finalized = 7, 5
    await ledger.converge(2)
    for safe, finalized in ((3, 2), (None, None), (0, 0)):
        ledger.chain.safe, ledger.chain.finalized = safe, finalized
        ledger.chain.mine()
        await ledger.converge()
        row = await ledger.row()
        assert (row.safe_height, row.finalized_height) == (7, 5)


def hash_of(name: str) -> str:
    """The hash of the transaction that pays under this name."""
    carrier = payment(name, SHOP).transaction
    assert carrier is not None
    return "0x" + carrier.hash.hex()


@pytest.mark.parametrize("ahead", [1, CATCH_UP_BLOCKS, CATCH_UP_BLOCKS + 1, 1_000_000])
async def test_a_head_that_is_not_there_holds_nothing_up(ahead: int, database_url: str) -> None:
    chain = Boaster()
    chain.mine()
    ledger = await make_ledger(database_url, chain)
    try:
        await check_boasting(ledger, chain, ahead)
    finally:
        await ledger.engine.dispose()


async def check_boasting(ledger: Ledger, chain: Boaster, ahead: int) -> None:
    await ledger.watch(SHOP, covered_from=0)
    await ledger.converge()
    chain.ahead = ahead
    chain.mine(payment("one", SHOP))
    chain.mine(payment("two", SHOP), count=2)
    await ledger.converge(3)
    assert (await ledger.row()).tip_height == 3
    assert len([kind for kind, *_ in await ledger.story() if kind == "deposit.detected"]) == 2
    chain.ahead = 0
    assert await ledger.converge() == Nothing()
