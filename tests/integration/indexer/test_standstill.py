"""A chain that stands still is told: once when it begins, and once when it is over, whoever follows it by then."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from indexer.follower import Outcome
from indexer.watchkeeping import Watchkeeper
from ledger.documents import chain_document
from ledger.states import ChainState
from tests.integration.indexer.conftest import NOW, Ledger

LIMIT_S = 60.0


@dataclass
class Clock:
    """Seconds, as a test says."""

    now_s: float = 1_000.0

    def __call__(self) -> float:
        return self.now_s


def keeper_of(ledger: Ledger, clock: Clock, *, is_steady: bool = True) -> Watchkeeper:
    return Watchkeeper(ledger.follower, LIMIT_S, is_steady=is_steady, clock=clock)


async def cycle(ledger: Ledger, keeper: Watchkeeper, clock: Clock, after_s: float = 0.0) -> Outcome:
    """One cycle, told to operators, so long after the one before."""
    clock.now_s += after_s
    outcome = await ledger.converge()
    await keeper.show(outcome)
    return outcome


async def told(ledger: Ledger) -> list[str]:
    return [kind for kind, *_ in await ledger.story("ten_ops") if kind != "chain.reorged"]


async def test_a_head_that_stands_is_told_once_and_so_is_its_moving_on(ledger: Ledger) -> None:
    clock = Clock()
    keeper = keeper_of(ledger, clock)
    await cycle(ledger, keeper, clock)
    await cycle(ledger, keeper, clock, LIMIT_S)
    assert await told(ledger) == []
    for _ in range(3):
        await cycle(ledger, keeper, clock, 1.0)
    assert await told(ledger) == ["chain.delayed"]
    row = await ledger.row()
    assert row.state is ChainState.FOLLOWING
    assert row.reason == "local: no new block for more than 60 s: the nodes' head stays at 0"
    assert (chain_document(row, state="following", now=NOW).lag_seconds or 0) > 0
    ledger.chain.mine()
    await cycle(ledger, keeper, clock)
    assert await told(ledger) == ["chain.delayed", "chain.resumed"]
    row = await ledger.row()
    assert (row.reason, row.delayed_since) == (None, None)
    assert chain_document(row, state="following", now=NOW).lag_seconds == 0


@pytest.mark.parametrize("is_moving", [False, True])
async def test_the_next_follower_neither_tells_it_again_nor_forgets_its_end(ledger: Ledger, is_moving: bool) -> None:
    clock = Clock()
    keeper = keeper_of(ledger, clock)
    await cycle(ledger, keeper, clock)
    await cycle(ledger, keeper, clock, LIMIT_S + 1)
    await keeper.show_stopped()
    ledger.restart()
    keeper = keeper_of(ledger, clock)
    if is_moving:
        ledger.chain.mine()
    await cycle(ledger, keeper, clock)
    if not is_moving:
        assert await told(ledger) == ["chain.delayed"]
        await cycle(ledger, keeper, clock, LIMIT_S + 1)
        assert await told(ledger) == ["chain.delayed"]
        ledger.chain.mine()
        await cycle(ledger, keeper, clock)
    assert await told(ledger) == ["chain.delayed", "chain.resumed"]


async def test_a_chain_that_holds_for_long_is_told_with_its_reason(ledger: Ledger) -> None:
    clock = Clock()
    keeper = keeper_of(ledger, clock, is_steady=False)
    await cycle(ledger, keeper, clock)
    ledger.chain.is_down = True
    await cycle(ledger, keeper, clock, 1.0)
    await cycle(ledger, keeper, clock, LIMIT_S)
    assert await told(ledger) == ["chain.delayed"]
    (body,) = await ledger.bodies("ten_ops")
    assert body["data"]["reason"] == "node-a: connection refused"
    assert body["data"]["runbook"].startswith("docs/operations.md#")
    row = await ledger.row()
    assert row.delayed_since is not None
    ledger.chain.is_down = False
    await cycle(ledger, keeper, clock, 1.0)
    ledger.chain.mine()
    await cycle(ledger, keeper, clock, 1.0)
    assert (await told(ledger))[-1] == "chain.resumed"


async def test_a_chain_that_mines_on_demand_may_be_quiet(ledger: Ledger) -> None:
    clock = Clock()
    keeper = keeper_of(ledger, clock, is_steady=False)
    await cycle(ledger, keeper, clock)
    await cycle(ledger, keeper, clock, 10 * LIMIT_S)
    assert await told(ledger) == []
    assert (await ledger.row()).reason is None


async def test_a_chain_that_catches_up_stands_nowhere(ledger: Ledger) -> None:
    clock = Clock()
    keeper = keeper_of(ledger, clock)
    for _ in range(3):
        ledger.chain.mine()
        await cycle(ledger, keeper, clock, 2 * LIMIT_S)
    assert await told(ledger) == []


async def test_a_chain_where_nothing_becomes_final_says_so_until_something_does(ledger: Ledger) -> None:
    clock = Clock()
    keeper = keeper_of(ledger, clock)
    ledger.chain.mine(count=3)
    ledger.chain.finalized = 2
    await cycle(ledger, keeper, clock)
    await cycle(ledger, keeper, clock)
    ledger.chain.finalized = None
    ledger.chain.mine(count=2 * ledger.follower.followed.finality_depth)
    for _ in range(3):
        await cycle(ledger, keeper, clock)
    row = await ledger.row()
    assert row.state is ChainState.FOLLOWING
    assert (row.reason or "").startswith("local: nothing above block 2 has become final for more than 128 blocks")
    assert await told(ledger) == []
    ledger.chain.finalized = 100
    await cycle(ledger, keeper, clock)
    await cycle(ledger, keeper, clock)
    assert (await ledger.row()).reason is None
