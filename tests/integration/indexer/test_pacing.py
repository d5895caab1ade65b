"""Announcements wake the poll and do nothing else: no block is believed, none is missed, and polling goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from chainbell.demo.anvil import AnvilNode, anvil
from chainbell.settings_model import NodeSettings
from chains.adapter import HeadHint
from chains.evm.adapter import EvmAdapter
from chains.profile import load_profile
from indexer.follower import Follower
from indexer.pacing import REPEAT_PAUSES_S
from indexer.run import follow
from indexer.timing import BURST_POLLS
from tests.fakes.adapter import FakeChain
from tests.fakes.announcer import BAD, Announcer, announcing, foreign, mute, no_socket, refusing
from tests.integration.indexer.conftest import Ledger

LONG_S = 3600.0
"""A poll interval that no test waits for."""
SOON_S = 120.0
"""A small part of it, and much even on a busy machine."""


@asynccontextmanager
async def following(follower: Follower, ledger: Ledger, poll_interval_s: float) -> AsyncIterator[None]:
    """`follow` at work."""
    stop = asyncio.Event()
    work = asyncio.create_task(
        follow(
            follower, ledger.engine, poll_interval_s=poll_interval_s, behind_limit_s=60, stop=stop, block_time_s=12.0
        )
    )
    try:
        yield
    finally:
        stop.set()
        await asyncio.wait_for(work, SOON_S)


async def until(is_so: Callable[[], Awaitable[bool]]) -> None:
    """Wait for a condition; fails when it does not come soon."""
    async with asyncio.timeout(SOON_S):
        while True:
            if await is_so():
                return
            await asyncio.sleep(0.01)


async def tip_reaches(ledger: Ledger, height: int) -> None:
    async def is_there() -> bool:
        return (await ledger.row()).tip_height == height

    await until(is_there)


async def asked_times(chain: FakeChain, count: int) -> None:
    async def is_asked() -> bool:
        return len(chain.asked_at) >= count

    await until(is_asked)


async def taken(chain: FakeChain) -> None:
    """Wait until the hint that was put was heard."""

    async def is_taken() -> bool:
        return not chain.announcements.has_news

    await until(is_taken)


def announce(chain: FakeChain, height: int | None = None) -> None:
    """Announce the chain's head or, at another height, a block that nobody has."""
    head = chain.blocks[-1].ref
    chain.announcements.put(
        HeadHint(head.height, head.hash) if height is None else HeadHint(height, height.to_bytes(32, "big"))
    )


async def test_a_hint_wakes_the_poll(ledger: Ledger) -> None:
    async with following(ledger.follower, ledger, LONG_S):
        await tip_reaches(ledger, 0)
        for height in (1, 2, 3):
            ledger.chain.mine()
            announce(ledger.chain)
            await tip_reaches(ledger, height)
    assert len(ledger.chain.asked_at) == 4


async def test_a_hint_of_our_own_tip_or_of_an_older_block_asks_nothing(ledger: Ledger) -> None:
    ledger.chain.mine()
    async with following(ledger.follower, ledger, LONG_S):
        await tip_reaches(ledger, 0)
        announce(ledger.chain)
        await tip_reaches(ledger, 1)
        asked = len(ledger.chain.asked_at)
        for height in (None, 0, None):
            announce(ledger.chain, height)
            await taken(ledger.chain)
        ledger.chain.mine()
        announce(ledger.chain)
        await tip_reaches(ledger, 2)
    assert len(ledger.chain.asked_at) == asked + 1


async def test_a_block_that_the_node_does_not_have_yet_is_asked_for_again_shortly(ledger: Ledger) -> None:
    async with following(ledger.follower, ledger, LONG_S):
        await tip_reaches(ledger, 0)
        announce(ledger.chain, 1)
        await asked_times(ledger.chain, 3)
        ledger.chain.mine()
        await tip_reaches(ledger, 1)


async def test_a_block_that_never_comes_is_asked_for_a_few_times_and_no_more(ledger: Ledger) -> None:
    async with following(ledger.follower, ledger, LONG_S):
        await tip_reaches(ledger, 0)
        announce(ledger.chain, 1_000_000)
        await asked_times(ledger.chain, 2 + len(REPEAT_PAUSES_S))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3 * sum(REPEAT_PAUSES_S)):
                await asked_times(ledger.chain, 3 + len(REPEAT_PAUSES_S))


async def test_a_flood_of_lies_costs_polls_up_to_the_budget(ledger: Ledger) -> None:
    loop = asyncio.get_running_loop()
    async with following(ledger.follower, ledger, LONG_S):
        await tip_reaches(ledger, 0)
        began, height = loop.time(), 1000
        while loop.time() < began + 3 or len(ledger.chain.asked_at) <= 2:
            height += 1
            announce(ledger.chain, height)
            await asyncio.sleep(0.001)
        assert len(ledger.chain.asked_at) <= BURST_POLLS + (loop.time() - began) + 1
        ledger.chain.mine()
        announce(ledger.chain)
        await tip_reaches(ledger, 1)


async def test_a_reorg_is_announced_by_another_hash_at_our_height(ledger: Ledger) -> None:
    ledger.chain.mine(count=3)
    async with following(ledger.follower, ledger, LONG_S):
        await tip_reaches(ledger, 3)
        ledger.chain.drop_to(2)
        other = ledger.chain.mine(salt="other")
        announce(ledger.chain)

        async def is_ours() -> bool:
            return (await ledger.row()).tip_hash == other.hash

        await until(is_ours)


async def test_polling_goes_on_without_a_word_from_anybody(ledger: Ledger) -> None:
    async with following(ledger.follower, ledger, 0.2):
        await tip_reaches(ledger, 0)
        ledger.chain.mine()
        await tip_reaches(ledger, 1)


# --- a real node ------------------------------------------------------------------------------------------------------


def adapter_on(node: AnvilNode, *announcers: str) -> EvmAdapter:
    """One node, several times over, each time with another place for its announcements."""
    nodes = [NodeSettings(url=node.url, ws=url, name=f"node-{n}") for n, url in enumerate(announcers)]
    return EvmAdapter(load_profile("anvil"), nodes)


def follower_of(ledger: Ledger, adapter: EvmAdapter) -> Follower:
    return Follower(ledger.engine, adapter, ledger.follower.followed, ledger.follower.course)


async def test_a_block_of_anvil_is_followed_long_before_the_next_poll(ledger: Ledger) -> None:
    async with AsyncExitStack() as stack:
        node = await stack.enter_async_context(anvil())
        adapter = adapter_on(node, node.url.replace("http://", "ws://"))
        stack.push_async_callback(adapter.close)
        assert await adapter.check_announcements() == {"node-0": None}
        await stack.enter_async_context(following(follower_of(ledger, adapter), ledger, LONG_S))
        await tip_reaches(ledger, 0)
        for _ in range(3):
            await tip_reaches(ledger, await node.mine())


async def test_whatever_a_socket_says_the_follower_goes_on(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chains.node.newheads.OPEN_TIMEOUT_S", 1.0)
    async with AsyncExitStack() as stack:
        node = await stack.enter_async_context(anvil())
        bad = [await stack.enter_async_context(Announcer(behaviour)) for behaviour in (*BAD, foreign)]
        adapter = adapter_on(node, *(announcer.url for announcer in bad))
        stack.push_async_callback(adapter.close)
        refused = {name for name, refusal in (await adapter.check_announcements()).items() if refusal}
        # The others show later what they are, or were too slow for this check.
        assert refused >= {f"node-{BAD.index(one)}" for one in (mute, refusing, no_socket)}
        await stack.enter_async_context(following(follower_of(ledger, adapter), ledger, 0.5))
        await tip_reaches(ledger, 0)

        async def are_opened_anew() -> bool:
            return all(announcer.connections > 1 for announcer in bad)

        await until(are_opened_anew)
        for _ in range(3):
            await tip_reaches(ledger, await node.mine())


async def test_a_node_that_comes_back_is_heard_again(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chains.node.newheads.PAUSE_MAX_S", 0.05)
    async with AsyncExitStack() as stack:
        node = await stack.enter_async_context(anvil())
        flaky = await stack.enter_async_context(Announcer(*BAD[3:], announcing))
        adapter = adapter_on(node, flaky.url)
        stack.push_async_callback(adapter.close)
        await stack.enter_async_context(following(follower_of(ledger, adapter), ledger, LONG_S))
        await tip_reaches(ledger, 0)
        await asyncio.wait_for(flaky.subscribed.wait(), SOON_S)
        height = await node.mine()
        block = await node.rpc("eth_getBlockByNumber", hex(height), False)
        flaky.heads.put_nowait({"number": block["number"], "hash": block["hash"]})
        await tip_reaches(ledger, height)
