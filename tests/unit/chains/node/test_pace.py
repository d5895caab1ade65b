"""How often a node is asked: as the operator says, and as the node itself shows that it takes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from chains.node.pace import BURST_S, RATE_FREE, RATE_MIN, Pace


async def test_without_a_limit_nothing_waits_until_the_node_says_that_it_is_too_much() -> None:
    pace = Pace(None)
    for _ in range(100):
        await pace.wait(1)
    assert (pace.rate, pace.backlog_s()) == (None, 0.0)
    pace.slow_down()
    assert pace.rate == 50.0


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Lets enough time go by that a refusal counts again."""
    now_s = 0.0
    monkeypatch.setattr(Pace, "_now", lambda _: now_s)

    def _later() -> None:
        nonlocal now_s
        now_s += BURST_S

    return _later


async def test_each_refusal_halves_the_rate_and_it_never_ends_at_nothing(later: Callable[[], None]) -> None:
    pace = Pace(8.0)
    rates = []
    for _ in range(5):
        pace.slow_down()
        rates.append(pace.rate)
        later()
    assert rates == [4.0, 2.0, 1.0, RATE_MIN, RATE_MIN]


async def test_what_is_refused_together_counts_once(later: Callable[[], None]) -> None:
    pace = Pace(64.0)
    for _ in range(16):
        pace.slow_down()
    assert pace.rate == 32.0
    later()
    pace.slow_down()
    assert pace.rate == 16.0


async def test_the_rate_grows_back_to_the_operators_limit_and_no_further() -> None:
    pace = Pace(8.0)
    pace.slow_down()
    grown = [pace.rate or 0.0]
    for _ in range(200):
        pace.note_answer(1)
        grown.append(pace.rate or 0.0)
    assert grown == sorted(grown)
    assert grown[-1] == 8.0


async def test_a_limit_that_nobody_set_is_forgotten_in_the_end() -> None:
    pace = Pace(None)
    await pace.wait(10)
    pace.slow_down()
    for _ in range(2_000_000):
        pace.note_answer(10)
        if pace.rate is None:
            return
    raise AssertionError(f"still {pace.rate} of {RATE_FREE}")


async def test_a_backlog_is_what_a_call_would_wait() -> None:
    pace = Pace(10.0)
    waiting = [asyncio.create_task(pace.wait(10)) for _ in range(3)]
    await asyncio.sleep(0)
    assert 2.0 * BURST_S - 0.1 < pace.backlog_s() <= 2.0 * BURST_S
    for task in waiting:
        task.cancel()
