"""Some nodes lie: nothing is missed, nothing is doubled, nothing is invented, or the chain holds and says why.

A few seeds always; `make soak` plays as many as one likes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import partial

import pytest
from sqlalchemy import Engine

from indexer.follower import TAGS_ASKED_EVERY, Halted
from tests.fakes.liar import STALLS, Lie
from tests.fixtures.postgres import new_database
from tests.integration.lying_scenarios import (
    CAUGHT_OTHERWISE,
    FOUND,
    LIES,
    STEPS,
    Figures,
    Open,
    Scenario,
    opener,
    scenario_of,
    side_by_side,
)

pytestmark = pytest.mark.timeout(1800)
"""Tens of scenarios in each test: a busy machine may take its time for them."""

SEEDS = (*range(15), *FOUND)

STEPS_ALONE = 8
"""Fewer: where nobody else can be asked, each cycle waits for the liar to come to its senses."""

WAIT_MAX = TAGS_ASKED_EVERY + 1
"""Cycles in a row that may bring nothing usable while two hosts are honest; after so many the others' heads are
asked for."""


@pytest.fixture
def open_world(postgres_url: str, postgres_admin: Engine, migrated_template: str) -> Open:
    return opener(partial(new_database, postgres_url, postgres_admin, migrated_template))


async def played(scenarios: Iterable[Scenario], open_world: Open, steps: int = STEPS) -> list[Figures]:
    """Figures of scenarios that all came right; all that fail are told, each by its name."""
    found: list[Figures] = []
    failures: list[Exception] = []

    def _note(scenario: Scenario, figures: Figures | Exception) -> None:
        if isinstance(figures, Figures) and figures.is_right:
            found.append(figures)
        else:
            failure = figures if isinstance(figures, Exception) else AssertionError(repr(figures))
            failure.add_note(scenario.name)
            failures.append(failure)

    await side_by_side(list(scenarios), open_world, _note, steps)
    if failures:
        raise ExceptionGroup("scenarios failed", failures)
    return found


def each_alone(lies: Iterable[Lie], seed: int, honest: int) -> list[Scenario]:
    """A scenario for each lie, that tells nothing else."""
    return [Scenario(seed, ((lie,),), honest) for lie in lies]


async def test_with_two_honest_hosts_a_lie_changes_nothing_and_nothing_waits_for_long(open_world: Open) -> None:
    found = await played(each_alone((*LIES, STALLS), 1, 2), open_world)
    assert {name for one in found for name in one.told} == {lie.name for lie in (*LIES, STALLS)}, "a lie was never told"
    waits = {one.scenario.name: one.longest_wait for one in found if one.longest_wait > WAIT_MAX}
    assert not waits


async def test_with_nobody_else_to_ask_nothing_false_is_told_and_nothing_is_missed_when_the_lie_ends(
    open_world: Open,
) -> None:
    # From the end: those that make a node busy take longest, and the others go on beside them.
    lies = [lie for lie in reversed(LIES) if lie.name not in CAUGHT_OTHERWISE]
    await played(each_alone(lies, 2, 0), open_world, STEPS_ALONE)


async def test_a_false_finality_of_the_only_node_halts_and_tells_why(open_world: Open) -> None:
    (lie,) = [lie for lie in LIES if lie.name == "claims that all is final"]
    async with open_world([[lie]], 2, honest=0) as world:
        await world.act("pay")
        await world.settle()
        await world.node.mine(1)
        await world.converge()
        await world.node.reorg(1)
        outcome = await world.converge()
        assert isinstance(outcome, Halted)
        assert "deeper than finality" in outcome.reason


async def test_combinations_of_lies_of_one_node_or_two_change_nothing(open_world: Open) -> None:
    found = await played((scenario_of(seed, LIES) for seed in SEEDS), open_world)
    assert Counter(len(one.scenario.liars) for one in found)[2] >= 3
    waits = {one.scenario.name: one.longest_wait for one in found if one.scenario.honest >= 2}
    assert max(waits.values()) <= WAIT_MAX, waits
