"""One of the nodes lies: nothing is missed, nothing is doubled, nothing is invented, or the chain holds and says why."""

from __future__ import annotations

from collections.abc import AsyncIterator
from random import Random

import pytest
import pytest_asyncio

from chainbell.demo.anvil import AnvilNode, anvil
from indexer.follower import Halted
from tests.fakes.liar import LIES, Lie
from tests.integration.lying_world import World, lying_world

pytestmark = pytest.mark.asyncio(loop_scope="module")

STEPS = 12


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node() -> AsyncIterator[AnvilNode]:
    async with anvil(extra_args=["--slots-in-an-epoch", "4"]) as running:
        yield running


async def check(world: World) -> None:
    """The ledger tells the chain's truth, all of it credited, and nothing credited was ever taken back."""
    assert await world.told() == await world.truth(), world.last_reason()
    for subject, story in (await world.states()).items():
        assert "reversed" not in story, f"{subject}: {story}"


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.name)
async def test_with_two_honest_hosts_a_lie_changes_nothing(node: AnvilNode, database_url: str, lie: Lie) -> None:
    async with lying_world(node, database_url, [lie], seed=1, honest=2) as world:
        await world.traffic(STEPS)
        await world.settle()
        await check(world)


ALONE = [lie for lie in LIES if lie.name not in ("hides what contracts sent on", "claims that all is final")]
"""What a chain's only node can be caught at. What it hides of its traces takes an audit of balances; what it calls final
halts the chain when its branch changes after all."""


@pytest.mark.parametrize("lie", ALONE, ids=lambda lie: lie.name)
async def test_with_nobody_else_to_ask_nothing_false_is_told_and_nothing_is_missed_when_the_lie_ends(
    node: AnvilNode, database_url: str, lie: Lie
) -> None:
    async with lying_world(node, database_url, [lie], seed=2, honest=0) as world:
        await world.traffic(STEPS)
        await world.converge()
        behind = await world.truth_up_to_our_tip()
        assert await world.told() == behind, world.last_reason()
        world.liar.lies = ()
        await world.restart()
        await world.settle()
        await check(world)


async def test_a_false_finality_of_the_only_node_halts_and_tells_why(node: AnvilNode, database_url: str) -> None:
    (lie,) = [lie for lie in LIES if lie.name == "claims that all is final"]
    async with lying_world(node, database_url, [lie], seed=2, honest=0) as world:
        await world.traffic(2)
        await world.settle()
        await world.node.mine(1)
        await world.converge()
        await world.node.reorg(1)
        outcome = await world.converge()
        assert isinstance(outcome, Halted)
        assert "deeper than finality" in outcome.reason


@pytest.mark.parametrize("seed", range(6))
async def test_combinations_of_lies_change_nothing(node: AnvilNode, database_url: str, seed: int) -> None:
    lies = Random(seed).sample(LIES, 3)
    async with lying_world(node, database_url, lies, seed, honest=2) as world:
        await world.traffic(STEPS)
        await world.settle()
        await check(world)
