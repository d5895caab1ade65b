"""A few places are shared among keys, whatever each of them sends, and none is ever lost."""

from __future__ import annotations

import asyncio
from collections import Counter
from random import Random

import pytest

from api.turns import WAITING_MAX, TooManyAtOnce, Turns
from ledger.ids import KeyId
from ledger.keys import KeyParts

GREEDY, MODEST = (KeyParts(KeyId(name * 16), b"secret") for name in "ab")


class Work:
    """Requests that last until they are let go, and the order in which they were begun."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.begun: list[KeyParts] = []
        self.running: Counter[KeyParts] = Counter()
        self.ends: dict[KeyParts, list[asyncio.Event]] = {GREEDY: [], MODEST: []}

    async def request(self, key: KeyParts) -> None:
        end = asyncio.Event()
        async with self.turns.taken(key):
            self.begun.append(key)
            self.running[key] += 1
            self.ends.setdefault(key, []).append(end)
            await end.wait()
            self.running[key] -= 1


async def settle() -> None:
    """Let everything run that can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_key_has_half_of_the_places_and_others_enter_at_once() -> None:
    work = Work(Turns(6))
    async with asyncio.TaskGroup() as group:
        for _ in range(50):
            group.create_task(work.request(GREEDY))
        await settle()
        assert work.running == {GREEDY: 3}
        modest = group.create_task(work.request(MODEST))
        await settle()
        assert work.running == {GREEDY: 3, MODEST: 1}
        work.ends[MODEST][0].set()
        await modest
        while len(work.begun) < 51 or work.running[GREEDY]:
            for end in work.ends[GREEDY]:
                end.set()
            await settle()
            assert work.running[GREEDY] <= 3
    assert work.turns._free == 6
    assert work.turns.waiting(GREEDY) == 0


async def test_a_place_that_comes_free_goes_to_the_keys_in_turn() -> None:
    work = Work(Turns(2))
    async with asyncio.TaskGroup() as group:
        for key in (GREEDY, MODEST) + (GREEDY,) * 4 + (MODEST,) * 2:
            group.create_task(work.request(key))
        await settle()
        while len(work.begun) < 8 or work.running.total():
            for end in (*work.ends[GREEDY], *work.ends[MODEST]):
                end.set()
            await settle()
    assert Counter(work.begun) == {GREEDY: 5, MODEST: 3}
    assert work.begun.index(MODEST, 2) < 5, "it did not wait for all that came before"


async def test_a_line_is_bounded_and_so_is_the_wait_in_it() -> None:
    turns = Turns(2, wait_limit_s=0.01)
    async with turns.taken(GREEDY):
        with pytest.raises(TooManyAtOnce):
            async with turns.taken(GREEDY):
                raise AssertionError("there is no place")
        assert turns.waiting(GREEDY) == 0
    patient = Turns(2)
    async with patient.taken(GREEDY), asyncio.TaskGroup() as group:
        waiting = [group.create_task(Work(patient).request(GREEDY)) for _ in range(WAITING_MAX)]
        await settle()
        with pytest.raises(TooManyAtOnce):
            async with patient.taken(GREEDY):
                raise AssertionError("the line is full")
        for task in waiting:
            task.cancel()
        await settle()
        assert patient.waiting(GREEDY) == 0
    assert patient._free == 2


@pytest.mark.parametrize("seed", range(5))
async def test_whoever_comes_goes_or_gives_up_no_place_is_lost(seed: int) -> None:
    random, turns = Random(seed), Turns(5)
    keys = [KeyParts(KeyId(str(n) * 16), b"") for n in range(4)]
    running: Counter[KeyParts] = Counter()

    async def _request(key: KeyParts) -> None:
        async with turns.taken(key):
            running[key] += 1
            assert running[key] <= 2
            assert running.total() <= 5
            try:
                for _ in range(random.randrange(5)):
                    await asyncio.sleep(0)
            finally:
                running[key] -= 1

    tasks: list[asyncio.Task[None]] = []
    for _ in range(400):
        tasks.append(asyncio.create_task(_request(random.choice(keys))))
        if random.random() < 0.4:
            random.choice(tasks).cancel()
        if random.random() < 0.5:
            await asyncio.sleep(0)
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(one) for one in ended if one is not None} <= {asyncio.CancelledError}
    assert (turns._free, turns._held, turns._lines) == (5, {}, {})
