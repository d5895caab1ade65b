"""One of the nodes lies: nothing is missed, nothing is doubled, nothing is invented, or the chain holds and says why.

A scenario is mostly patience (pauses, time-outs, a node that is left alone for a while), so several run side by side, each
with a chain and a ledger of its own. `CHAINBELL_LYING_SEEDS` asks for more seeds than the few that run always, and then
nodes stall too.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from random import Random
from typing import Protocol

import pytest
from sqlalchemy import Engine

from chainbell.demo.anvil import anvil
from indexer.follower import Halted
from tests.fakes.liar import LIES, STALLS, Lie
from tests.fixtures.postgres import new_database
from tests.integration.lying_world import World, lying_world

STEPS = 12
SIDE_BY_SIDE = 6
SEEDS_ALWAYS = 12
SEEDS = int(os.environ.get("CHAINBELL_LYING_SEEDS", SEEDS_ALWAYS))


class Open(Protocol):
    """Opens a world with a chain and a ledger of its own."""

    def __call__(self, lies: Sequence[Lie], seed: int, *, honest: int) -> AbstractAsyncContextManager[World]:
        """For as long as the block lasts."""


@pytest.fixture
def open_world(postgres_url: str, postgres_admin: Engine, migrated_template: str) -> Open:

    @asynccontextmanager
    async def _open(lies: Sequence[Lie], seed: int, *, honest: int) -> AsyncIterator[World]:
        database = new_database(postgres_url, postgres_admin, migrated_template)
        # In threads: a database is dropped when every other session has taken note, and those are served by this loop.
        url = await asyncio.to_thread(database.__enter__)
        try:
            async with (
                anvil(extra_args=["--slots-in-an-epoch", "4"]) as node,
                lying_world(node, url, lies, seed, honest=honest) as world,
            ):
                yield world
        finally:
            await asyncio.to_thread(database.__exit__, None, None, None)

    return _open


async def side_by_side(scenarios: Sequence[tuple[str, Callable[[], Awaitable[None]]]]) -> None:
    """Run scenarios, a few at a time; all that fail are told, each by its name."""
    places = asyncio.Semaphore(SIDE_BY_SIDE)

    async def _run(name: str, scenario: Callable[[], Awaitable[None]]) -> Exception | None:
        async with places:
            try:
                await scenario()
            except Exception as error:  # noqa: BLE001 - raised below, with the others
                error.add_note(f"scenario: {name}")
                return error
            return None

    failures = await asyncio.gather(*(_run(*row) for row in scenarios))
    if any(failures):
        raise ExceptionGroup("scenarios failed", [failure for failure in failures if failure is not None])


async def check(world: World) -> None:
    """The ledger tells the chain's truth, all of it credited, and nothing credited was ever taken back."""
    assert await world.told() == await world.truth(), world.last_reason()
    for subject, story in (await world.states()).items():
        assert "reversed" not in story, f"{subject}: {story}"


async def with_honest_hosts(open_world: Open, lies: Sequence[Lie], seed: int) -> None:
    """The liar is asked first; two hosts beside it are honest."""
    async with open_world(lies, seed, honest=2) as world:
        await world.traffic(STEPS)
        await world.settle()
        await check(world)


async def alone(open_world: Open, lie: Lie) -> None:
    """The liar is the only node; then it comes to its senses."""
    async with open_world([lie], 2, honest=0) as world:
        await world.traffic(STEPS)
        await world.converge()
        behind = await world.truth_up_to_our_tip()
        assert await world.told() == behind, world.last_reason()
        world.liar.lies = ()
        await world.restart()
        await world.settle()
        await check(world)


async def test_with_two_honest_hosts_a_lie_changes_nothing(open_world: Open) -> None:
    await side_by_side([(lie.name, partial(with_honest_hosts, open_world, [lie], 1)) for lie in LIES])


CAUGHT_OTHERWISE = ("hides what contracts sent on", "claims that all is final")
"""What a chain's only node hides of its traces takes an audit of balances; what it calls final halts the chain when its
branch changes after all."""


async def test_with_nobody_else_to_ask_nothing_false_is_told_and_nothing_is_missed_when_the_lie_ends(
    open_world: Open,
) -> None:
    lies = [lie for lie in LIES if lie.name not in CAUGHT_OTHERWISE]
    await side_by_side([(lie.name, partial(alone, open_world, lie)) for lie in lies])


async def test_a_false_finality_of_the_only_node_halts_and_tells_why(open_world: Open) -> None:
    (lie,) = [lie for lie in LIES if lie.name == "claims that all is final"]
    async with open_world([lie], 2, honest=0) as world:
        await world.traffic(2)
        await world.settle()
        await world.node.mine(1)
        await world.converge()
        await world.node.reorg(1)
        outcome = await world.converge()
        assert isinstance(outcome, Halted)
        assert "deeper than finality" in outcome.reason


async def test_combinations_of_lies_change_nothing(open_world: Open) -> None:
    lies_known = LIES if SEEDS <= SEEDS_ALWAYS else (*LIES, STALLS)
    combinations = [(seed, Random(seed).sample(lies_known, 3)) for seed in range(SEEDS)]
    await side_by_side(
        [
            (f"seed {seed}: {[lie.name for lie in lies]}", partial(with_honest_hosts, open_world, lies, seed))
            for seed, lies in combinations
        ]
    )
