"""Fetching ahead keeps the order, bounds what is held, and hands over the first failure at its place."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from chains.errors import NodeUnavailable
from chains.model import Block
from indexer.prefetch import Bounds, prefetch, recent_sizes
from tests.fakes.adapter import FakeChain, address, payment


async def test_blocks_come_in_order_and_no_more_than_the_bound_are_under_way() -> None:
    chain = FakeChain()
    chain.mine(count=30)
    under_way, most = 0, 0

    async def fetch(height: int) -> Block:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        for _ in range((height * 7) % 5):
            await asyncio.sleep(0)
        under_way -= 1
        return await chain.fetch_block(height)

    async with prefetch(fetch, 3, 29, Bounds(in_flight=4)) as blocks:
        heights = [block.ref.height async for block in blocks]
    assert heights == list(range(3, 30))
    assert most <= 4


async def test_a_failure_ends_them_after_the_blocks_before_it() -> None:
    chain = FakeChain()
    chain.mine(count=10)

    async def fetch(height: int) -> Block:
        if height == 5:
            raise NodeUnavailable("gone")
        return await chain.fetch_block(height)

    got = []
    async with prefetch(fetch, 0, 9, Bounds(in_flight=8)) as blocks:
        async for block in blocks:
            got.append(block.ref.height)
    assert str(blocks.failure) == "gone"
    assert got == [0, 1, 2, 3, 4]


def gate(chain: FakeChain, answer_bytes: int) -> tuple[Callable[[int], Awaitable[Block]], dict[int, asyncio.Event]]:
    """A fetch whose answers come when a test lets them, each of a size."""
    gates: dict[int, asyncio.Event] = {}

    async def _fetch(height: int) -> Block:
        await gates.setdefault(height, asyncio.Event()).wait()
        return replace(await chain.fetch_block(height), answer_bytes=answer_bytes)

    return _fetch, gates


async def turn() -> None:
    """Let everything that can go on go on."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_large_answers_lower_how_many_are_asked_for() -> None:
    chain = FakeChain()
    chain.mine(count=30)
    fetch, gates = gate(chain, answer_bytes=30)
    async with prefetch(fetch, 0, 29, Bounds(in_flight=8, in_flight_bytes=100)) as blocks:
        await turn()
        assert sorted(gates) == list(range(8))  # nothing is known of their size yet
        for height in range(8):
            gates[height].set()
        await turn()
        assert sorted(height for height, event in gates.items() if not event.is_set()) == [8, 9, 10]
        heights = []
        async for block in blocks:
            heights.append(block.ref.height)
            await turn()
            assert len(gates) - len(heights) - len([e for e in gates.values() if e.is_set()]) <= 3
            for event in gates.values():
                event.set()
    assert heights == list(range(30))


async def test_an_answer_larger_than_the_bound_is_asked_for_alone() -> None:
    chain = FakeChain()
    chain.mine(count=5)
    fetch, gates = gate(chain, answer_bytes=500)
    async with prefetch(fetch, 0, 4, Bounds(in_flight=1, in_flight_bytes=100)) as blocks:
        heights = []
        await turn()
        for height in range(5):
            assert sorted(gates) == list(range(height + 1))
            gates[height].set()
            heights.append((await anext(blocks)).ref.height)
            await turn()
    assert heights == list(range(5))


async def test_what_has_come_and_waits_is_bounded_too() -> None:
    chain = FakeChain()
    chain.mine(count=30)
    async with prefetch(chain.fetch_block, 0, 29, Bounds(in_flight=4, ready_blocks=5)) as blocks:
        await turn()
        assert len(chain.fetched) <= 4 + 5
        assert [block.ref.height async for block in blocks] == list(range(30))


async def test_full_blocks_that_wait_for_a_commit_lower_how_many_are_fetched() -> None:
    chain = FakeChain()
    for height in range(20):
        chain.mine(*(payment(f"{height} {n}", address(n)) for n in range(10)))
    async with prefetch(chain.fetch_block, 0, 19, Bounds(in_flight=2, ready_transfers=30)) as blocks:
        await turn()
        assert len(chain.fetched) <= 5
        assert [block.ref.height async for block in blocks] == list(range(20))


async def test_after_stop_only_what_is_under_way_still_comes() -> None:
    chain = FakeChain()
    chain.mine(count=30)
    async with prefetch(chain.fetch_block, 0, 29, Bounds(in_flight=4, ready_blocks=1)) as blocks:
        first = await anext(blocks)
        blocks.stop()
        rest = [block.ref.height async for block in blocks]
    assert (first.ref.height, rest) == (0, list(range(1, len(chain.fetched))))
    assert len(chain.fetched) < 10


async def test_what_is_known_of_answers_outlasts_a_cycle() -> None:
    chain = FakeChain()
    chain.mine(count=30)
    fetch, gates = gate(chain, answer_bytes=30)
    sizes = recent_sizes()
    sizes.append(50)
    async with prefetch(fetch, 0, 29, Bounds(in_flight=8, in_flight_bytes=100), sizes):
        await turn()
        assert sorted(gates) == [0, 1]
