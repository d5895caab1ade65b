"""Polls cost no more than is paid for, whatever the chain does, and find the blocks of a regular one soon."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chains.profile import load_profile, profile_names
from indexer.timing import POLLS_PER_MINUTE_MAX, PollTimer, budget_of

ANSWER_S = 0.05
"""How long a cycle takes here."""


@dataclass(frozen=True)
class Run:
    """What happened when a chain was followed: when it was asked, and how long each block had been there."""

    polled_at: list[float]
    waits_s: list[float]
    timer: PollTimer

    @property
    def minute_max(self) -> int:
        """The most polls in any minute."""
        return max(n + 1 - bisect_right(self.polled_at, at - 60) for n, at in enumerate(self.polled_at))

    @property
    def per_minute(self) -> float:
        """Polls a minute, over all."""
        return 60 * len(self.polled_at) / (self.polled_at[-1] - self.polled_at[0])


def follow(
    blocks: Sequence[float],
    poll_interval_s: float,
    block_time_s: float,
    *,
    skip: int = 20,
    first_poll_s: float = 1.0,
    has_hint: Callable[[int], bool] = lambda height: False,
) -> Run:
    """Poll a chain whose block `n` can be had from `blocks[n]` on; the waits leave out the first `skip` blocks."""
    timer = PollTimer(poll_interval_s, block_time_s)
    now, seen, waits, polled = blocks[0] - first_poll_s, 0, [], []
    while now < blocks[-1] + 1:
        height = bisect_right(blocks, now)
        polled.append(now)
        waits += [now - at for at in blocks[seen:height]]
        seen = height
        timer.note_poll(now, height, was_announced=has_hint(height - 1))
        due_at = timer.next_at(now + ANSWER_S, is_announced=has_hint(height))
        assert 0 <= due_at - now - ANSWER_S <= max(timer.pause_max_s, 1 / timer.budget.rate) + 1e-6
        if height < len(blocks) and has_hint(height):
            due_at = min(due_at, max(blocks[height], timer.allowed_at(now + ANSWER_S)))
        now = due_at
    return Run(polled, waits[skip:], timer)


def slots(rng: random.Random, count: int, period_s: float, jitter_s: float, missed: float = 0.0) -> list[float]:
    """Blocks of a chain with slots: each at its slot's instant, more or less, and some slots without one."""
    filled = [n for n in range(count) if rng.random() >= missed]
    return sorted(1000 + n * period_s + rng.gauss(0, jitter_s) for n in filled)


def intervals(rng: random.Random, count: int, period_s: float, jitter_s: float) -> list[float]:
    """Blocks of a chain where each counts from the one before."""
    return list(accumulate((max(0.01, rng.gauss(period_s, jitter_s)) for _ in range(count)), initial=1000.0))


@pytest.mark.parametrize(
    ("blocks", "poll_interval_s", "block_time_s", "median_max_s"),
    [
        pytest.param(slots(random.Random(1), 400, 12, 0.05, 0.02), 3, 12, 0.12, id="Ethereum near its proposers"),
        pytest.param(slots(random.Random(2), 400, 12, 0.7, 0.02), 3, 12, 0.35, id="Ethereum far from them"),
        pytest.param(slots(random.Random(3), 400, 12, 0.05, 0.3), 3, 12, 0.15, id="a third of the slots missed"),
        pytest.param(intervals(random.Random(4), 400, 12, 0.5), 3, 12, 0.3, id="each counts from the one before"),
        pytest.param(slots(random.Random(5), 1500, 2, 0.05, 0.01), 1, 2, 0.12, id="two seconds"),
        pytest.param(intervals(random.Random(6), 1500, 2, 0.05), 1, 2, 0.12, id="two seconds from the one before"),
        pytest.param(slots(random.Random(7), 1000, 2, 0.05), 2, 12, 0.2, id="the profile says twelve, it is two"),
        pytest.param(slots(random.Random(8), 400, 12, 0.2), 3, 2, 0.3, id="the profile says two, it is twelve"),
        pytest.param(slots(random.Random(9), 400, 12.3, 0.1), 3, 12, 0.2, id="the profile is a little off"),
    ],
)
def test_a_regular_chain_is_found_soon(
    blocks: list[float], poll_interval_s: float, block_time_s: float, median_max_s: float
) -> None:
    run = follow(blocks, poll_interval_s, block_time_s)
    assert median(run.waits_s) < median_max_s
    assert run.minute_max <= POLLS_PER_MINUTE_MAX
    assert run.per_minute < 52


@pytest.mark.parametrize("phase", [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
@pytest.mark.parametrize(("period_s", "poll_interval_s"), [(2, 1.0), (2, 2.0), (3, 1.5), (12, 3.0), (12, 6.0)])
def test_a_chain_like_clockwork_is_found_soon_whenever_we_begin(
    period_s: float, poll_interval_s: float, phase: float
) -> None:
    """Polls and blocks may beat against each other; that must not keep the rhythm from being found."""
    blocks = slots(random.Random(1), 200, period_s, 0.002)
    run = follow(blocks, poll_interval_s, period_s, skip=30, first_poll_s=phase * period_s)
    assert median(run.waits_s) < 0.15
    assert run.minute_max <= POLLS_PER_MINUTE_MAX


def test_announcements_on_a_fast_chain_leave_polls_for_each_block() -> None:
    run = follow(slots(random.Random(1), 500, 2, 0.05), 1.0, 2.0, has_hint=lambda height: True)
    assert sorted(run.waits_s)[int(0.95 * len(run.waits_s))] < 0.1
    assert run.per_minute < 45


@pytest.mark.parametrize(("period_s", "poll_interval_s"), [(0.25, 1.0), (0.45, 1.0), (1.0, 1.0), (1.0, 2.0)])
def test_a_chain_faster_than_the_pace_is_polled_at_the_pace(period_s: float, poll_interval_s: float) -> None:
    run = follow(slots(random.Random(1), 2000, period_s, 0.02), poll_interval_s, period_s)
    assert median(run.waits_s) < poll_interval_s
    assert max(run.waits_s) < run.timer.pause_max_s + 0.2
    assert run.minute_max <= POLLS_PER_MINUTE_MAX


def test_an_irregular_chain_keeps_the_plain_pace() -> None:
    rng = random.Random(3)
    blocks = list(accumulate((rng.expovariate(1 / 40) for _ in range(300)), initial=1000.0))
    run = follow(blocks, 0.25, 1.0)
    gaps = [b - a for a, b in zip(run.polled_at, run.polled_at[1:], strict=False)]
    assert median(gaps) == pytest.approx(0.25 + ANSWER_S)
    assert max(run.waits_s) < 0.5
    assert run.minute_max <= budget_of(0.25).polls_per_minute_max


def test_a_chain_without_a_block_time_is_never_timed() -> None:
    timer = PollTimer(3.0)
    for n in range(100):
        timer.note_poll(n * 3.0, n)
        assert timer.next_at(n * 3.0 + 0.1) == pytest.approx(n * 3.0 + 3.1)


def test_announced_blocks_are_polled_for_at_once_and_the_rest_is_the_plain_pace() -> None:
    blocks = slots(random.Random(1), 300, 12, 0.7)
    announced, timed = follow(blocks, 3, 12, has_hint=lambda height: True), follow(blocks, 3, 12)
    assert max(announced.waits_s) < 0.2
    assert announced.per_minute < timed.per_minute


def test_a_socket_that_falls_silent_costs_one_plain_interval() -> None:
    blocks = slots(random.Random(1), 300, 12, 0.7)
    run = follow(blocks, 3, 12, skip=150, has_hint=lambda height: height < 150)
    assert max(run.waits_s) < 3.2
    assert median(run.waits_s) < 0.4


def test_a_head_that_stands_still_is_asked_for_at_the_plain_pace_and_found_soon_afterwards() -> None:
    before = slots(random.Random(1), 100, 12, 0.05)
    after = [at + 100 * 12 + 3600 + 5 for at in slots(random.Random(2), 100, 12, 0.05)]
    run = follow([*before, *after], 3, 12)
    idle = [at for at in run.polled_at if before[-1] + 8 * 12 < at < after[0]]
    assert 3600 / 3.1 - 40 < len(idle) < 3600 / 3
    assert max(run.waits_s) < 3.2
    assert median(run.waits_s[-50:]) < 0.12


@pytest.mark.parametrize("jump_s", [-500.0, -3.0, 4.5, 100_000.0])
def test_a_clock_that_jumps_is_lived_through(jump_s: float) -> None:
    rng, timer = random.Random(1), PollTimer(3.0, 12.0)
    blocks = slots(rng, 200, 12, 0.05)
    now, waits = blocks[0], []
    seen = 0
    while now < blocks[-1]:
        clock = now if now < blocks[100] else now + jump_s
        height = bisect_right(blocks, now)
        waits += [now - at for at in blocks[seen:height]]
        seen = height
        timer.note_poll(clock, height)
        pause_s = timer.next_at(clock) - clock
        assert 0 <= pause_s <= timer.pause_max_s + 1e-6
        now += max(pause_s, 0.01)
    assert max(waits[20:]) < 3.5
    assert median(waits[-50:]) < 0.12


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    poll_interval_s=st.floats(0.05, 60),
    block_time_s=st.floats(0.1, 600),
    true_time_s=st.floats(0.1, 100),
    jitter=st.floats(0, 2),
    missed=st.floats(0, 0.9),
)
def test_whatever_the_chain_does_no_minute_holds_more_polls_than_its_budget(
    seed: int, poll_interval_s: float, block_time_s: float, true_time_s: float, jitter: float, missed: float
) -> None:
    blocks = [1000.0, *slots(random.Random(seed), 150, true_time_s, jitter * true_time_s, missed), 1200.0]
    run = follow(sorted(blocks), poll_interval_s, block_time_s)
    assert run.minute_max <= budget_of(poll_interval_s).polls_per_minute_max + 1e-6
    patience_s = max(run.timer.pause_max_s, 1 / run.timer.budget.rate)
    assert max(run.waits_s, default=0) <= patience_s + ANSWER_S + 1e-6


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 20), st.booleans(), st.booleans()), max_size=300), st.floats(0.1, 30))
def test_hints_at_any_instant_stay_within_the_budget(
    steps: list[tuple[float, bool, bool]], poll_interval_s: float
) -> None:
    """Every hint is answered by a poll as soon as the budget has one."""
    timer = PollTimer(poll_interval_s, 2.0)
    now, height, polled = 0.0, 0, []
    for wait_s, is_hint, is_new in steps:
        now = max(timer.allowed_at(now), now + wait_s) if is_hint else timer.next_at(now)
        height += is_new
        polled.append(now)
        timer.note_poll(now, height)
    most = max((n + 1 - bisect_right(polled, at - 60) for n, at in enumerate(polled)), default=0)
    assert most <= timer.budget.polls_per_minute_max + 1e-6


@pytest.mark.parametrize("name", profile_names())
def test_no_profile_of_a_chain_with_money_on_it_is_polled_more_than_once_a_second(name: str) -> None:
    profile = load_profile(name)
    if profile.livemode:
        assert budget_of(profile.poll_interval_s).polls_per_minute_max <= POLLS_PER_MINUTE_MAX + 1e-9
