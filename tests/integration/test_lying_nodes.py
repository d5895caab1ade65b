"""One of the nodes lies: nothing is missed, nothing is doubled, nothing is invented, or the chain holds and says why."""

from __future__ import annotations

from collections.abc import AsyncIterator
from random import Random

import pytest
import pytest_asyncio

from chainbell.demo.anvil import AnvilNode, anvil
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


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.name)
async def test_with_nobody_else_to_ask_the_chain_holds_and_goes_on_when_the_lie_ends(
    node: AnvilNode, database_url: str, lie: Lie
) -> None:
    async with lying_world(node, database_url, [lie], seed=2, honest=0) as world:
        await world.traffic(STEPS)
        world.liar.lies = ()
        await world.settle()
        await check(world)


@pytest.mark.parametrize("seed", range(6))
async def test_combinations_of_lies_change_nothing(node: AnvilNode, database_url: str, seed: int) -> None:
    lies = Random(seed).sample(LIES, 3)
    async with lying_world(node, database_url, lies, seed, honest=2) as world:
        await world.traffic(STEPS)
        await world.settle()
        await check(world)
