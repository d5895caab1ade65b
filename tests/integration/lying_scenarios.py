"""Scenarios of lying nodes: who lies how, beside how many honest hosts, and what has to be true at the end.

All of a scenario comes from its seed. One that failed is run again by `make soak SEED=17`, and becomes one of `FOUND`.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import Protocol

from chainbell.demo.anvil import anvil
from indexer.follower import Holding
from tests.fakes.abandoned import STANDS_ON_A_BRANCH, SWAYS_BETWEEN_BRANCHES
from tests.fakes.liar import LIES as LIES_IN_ONE_ANSWER
from tests.fakes.liar import STALLS, Lie
from tests.integration.lying_world import Movement, World, lying_world

STEPS = 14
SIDE_BY_SIDE = 8
LIES = (*LIES_IN_ONE_ANSWER, STANDS_ON_A_BRANCH, SWAYS_BETWEEN_BRANCHES)

CAUGHT_OTHERWISE = ("hides what contracts sent on", "claims that all is final")
"""What a chain's only node hides of its traces takes an audit of balances; what it calls final halts the chain when its
branch changes after all."""

FOUND: tuple[int, ...] = ()
"""Seeds that failed once."""

SHAPES = ((1, 2), (2, 2), (1, 2), (1, 1), (1, 0))
"""Liars and honest hosts, by turns of the seed."""


class Open(Protocol):
    """Opens a world with a chain and a ledger of its own."""

    def __call__(self, liars: Sequence[Sequence[Lie]], seed: int, *, honest: int) -> AbstractAsyncContextManager[World]:
        """For as long as the block lasts."""


@dataclass(frozen=True)
class Scenario:
    """Who lies how."""

    seed: int
    liars: tuple[tuple[Lie, ...], ...]
    honest: int

    @property
    def name(self) -> str:
        """What a failing is reported as."""
        lies = " | ".join(", ".join(lie.name for lie in told) for told in self.liars)
        return f"seed {self.seed}, beside {self.honest} honest: {lies}"


@dataclass(frozen=True)
class Figures:
    """What one scenario came to."""

    scenario: Scenario
    told: Counter[str]
    """How often each lie was told."""
    entries: int
    """Movements of watched addresses in the final chain."""
    missed: int
    invented: int
    """Entries in the ledger's chain that are none."""
    taken_back: int
    """Entries that were credited and reversed: none of the chain's reorgs is that deep."""
    cycles: int
    holds: int
    longest_wait: int
    """Cycles in a row without an answer that could be used, before the lies ended."""
    duration_s: float

    @property
    def is_right(self) -> bool:
        """Nothing missed, invented or credited on a lie."""
        return not (self.missed or self.invented or self.taken_back)


def scenario_of(seed: int, lies: Sequence[Lie] = (*LIES, STALLS)) -> Scenario:
    """The scenario of a seed: two to four lies for each liar, no lie for two of them."""
    random = Random(seed)
    liar_count, honest = SHAPES[seed % len(SHAPES)]
    usable = [lie for lie in lies if honest >= 2 or lie.name not in CAUGHT_OTHERWISE]
    drawn = random.sample(usable, 4 * liar_count)
    liars = tuple(tuple(drawn[4 * n : 4 * n + random.randint(2, 4)]) for n in range(liar_count))
    return Scenario(seed, liars, honest)


async def play(scenario: Scenario, open_world: Open, steps: int = STEPS) -> Figures:
    """Traffic among liars. Where two honest hosts stand beside them, they lie to the end, and it has to come right all the
    same. Else the ledger may fall behind, never be wrong; it has to come right once they lie no more."""
    began = time.monotonic()
    async with open_world(scenario.liars, scenario.seed, honest=scenario.honest) as world:
        await world.traffic(steps)
        if scenario.honest < 2:
            await world.converge()
            longest_wait = world.longest_wait
            behind = compared(await world.told(), await world.truth_up_to_our_tip())
            for liar in world.liars:
                liar.lies = ()
            await world.restart()
            await world.settle()
        else:
            behind = (0, 0)
            await world.settle()
            longest_wait = world.longest_wait
        truth = await world.truth()
        missed, invented = compared(await world.told(), truth)
        stories = (await world.states()).values()
        return Figures(
            scenario,
            sum((Counter(liar.told) for liar in world.liars), Counter()),
            len(truth),
            missed + behind[0],
            invented + behind[1],
            sum("reversed" in story for story in stories),
            len(world.outcomes),
            sum(isinstance(outcome, Holding) for outcome in world.outcomes),
            longest_wait,
            time.monotonic() - began,
        )


def compared(told: Sequence[Movement], truth: Sequence[Movement]) -> tuple[int, int]:
    """How many movements are missed, and how many invented."""
    return (Counter(truth) - Counter(told)).total(), (Counter(told) - Counter(truth)).total()


def opener(new_database: Callable[[], AbstractContextManager[str]]) -> Open:
    """Worlds, each with a chain of its own and the database that `new_database` makes."""

    @asynccontextmanager
    async def _open(liars: Sequence[Sequence[Lie]], seed: int, *, honest: int) -> AsyncIterator[World]:
        database = new_database()
        # In threads: a database is dropped when every other session has taken note, and those are served by this loop.
        url = await asyncio.to_thread(database.__enter__)
        try:
            async with (
                anvil(extra_args=["--slots-in-an-epoch", "4"]) as node,
                lying_world(node, url, liars, seed, honest=honest) as world,
            ):
                yield world
        finally:
            await asyncio.to_thread(database.__exit__, None, None, None)

    return _open


async def side_by_side(
    scenarios: Sequence[Scenario],
    open_world: Open,
    note: Callable[[Scenario, Figures | Exception], None],
    steps: int = STEPS,
) -> None:
    """Play scenarios, a few at a time: they are mostly patience, pauses and time-outs. `note` hears how each went."""
    places = asyncio.Semaphore(SIDE_BY_SIDE)

    async def _play(scenario: Scenario) -> None:
        async with places:
            try:
                figures: Figures | Exception = await play(scenario, open_world, steps)
            except Exception as error:  # noqa: BLE001 - whoever notes it raises it or tells it, with the others
                figures = error
            note(scenario, figures)

    await asyncio.gather(*(_play(scenario) for scenario in scenarios))
