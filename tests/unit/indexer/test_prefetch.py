"""Fetching ahead keeps the order, bounds what is held, and hands over the first failure at its place."""

from __future__ import annotations

import asyncio

import pytest

from chains.errors import NodeUnavailable
from chains.model import Block
from indexer.prefetch import prefetch
from tests.fakes.adapter import FakeChain


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

    async with prefetch(fetch, 3, 29, in_flight=4) as blocks:
        heights = [block.ref.height async for block in blocks]
    assert heights == list(range(3, 30))
    assert most <= 4


async def test_a_failure_is_raised_after_the_blocks_before_it() -> None:
    chain = FakeChain()
    chain.mine(count=10)

    async def fetch(height: int) -> Block:
        if height == 5:
            raise NodeUnavailable("gone")
        return await chain.fetch_block(height)

    got = []
    async with prefetch(fetch, 0, 9, in_flight=8) as blocks:
        with pytest.raises(NodeUnavailable):
            async for block in blocks:
                got.append(block.ref.height)
    assert got == [0, 1, 2, 3, 4]
