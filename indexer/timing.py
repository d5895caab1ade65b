"""When to ask a node for its head: soon after a block is expected, seldom before, never more often than is paid for. Pure.

Asking once a second finds a block half a second late in the median, and most of those questions are wasted: a chain with
a regular block interval says nothing new for most of it. `PollTimer` learns at which instants blocks can be had from our
nodes, and puts its questions there. It needs no header and no wall clock: a question that found nothing and the next
one, which found a block, hold the instant between them.

Instants are seconds of one clock that the caller reads, from any origin. A clock that jumps makes the timer wrong for a
few blocks: it then asks at the plain pace, and learns anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

POLLS_PER_MINUTE_MAX = 60
"""What following one chain at its head may cost: no more than polling once a second."""

BURST_POLLS = 6
"""Of these, so many may be saved up and follow each other closely."""

COST_FACTOR = 3
"""Timing may cost about this many times what the plain pace costs: a long interval is an operator's wish."""

GAP_MIN_S = 0.1
"""The shortest time between two polls, unless the plain pace itself is shorter."""

AFFORDABLE_MIN = 1.5
"""Fewer polls than this for each block cannot be timed: one that comes too early costs the next block."""

EARLY_SPREADS_MAX = 2.0
LATE_SPREADS = 4.0
"""The window in which a block is looked for, as multiples of how far blocks miss their instant. It opens the later, the
fewer polls there are for each block; when it closes the slot was missed."""

GAIN = 0.3
"""How far one block moves our idea of when the next one comes. Slots with jitter want a small gain, intervals that count
from the block before want a large one; this serves both (`tests/unit/indexer/test_timing.py` has either)."""

PERIOD_GAIN = 0.1
"""How far one block moves our idea of the time between blocks: little, for a profile's word is mostly exact."""

SPREAD_GAIN = 0.2
SPREAD_REGULAR_MAX = 0.2
"""A chain is regular while blocks miss the expected instant by less than this part of the block time, in the mean. Blocks
at random instants miss it by a quarter."""

SILENT_BLOCKS_MAX = 8
"""After this many block times without a block the expectation is worth nothing."""

MISFITS_MAX = 2
"""So many blocks in a row far from where they were expected: the instants have shifted, and are taken up anew."""

SLOTS_MIN = 8
SLOTS_KEPT = 32
"""Blocks over which the period is measured: what one poll is late by is spread over all of them."""

INTERVALS_KEPT = 12
BRACKET_MAX = 0.6
"""Two polls further apart than this part of the block time do not tell when the block between them came."""

PERIOD_TOLERANCE = 1.5
"""A period that is wrong by more than this factor is replaced by what is seen."""


@dataclass(frozen=True, slots=True)
class PollBudget:
    """A bound on polls: any `t` seconds hold at most `burst + rate * t` of them."""

    rate: float
    """Polls a second, in the long run."""
    burst: float
    """Polls that may be saved up."""

    @property
    def polls_per_minute_max(self) -> float:
        """The most polls that any minute can hold."""
        return self.burst + 60 * self.rate


def budget_of(poll_interval_s: float) -> PollBudget:
    """What a chain with this plain pace may be asked: `POLLS_PER_MINUTE_MAX`, however fast its blocks come.

    A plain pace of less than a second is an explicit wish, and is granted: then the bound is that pace.
    """
    allowed = POLLS_PER_MINUTE_MAX / 60 * max(1.0, 1 / poll_interval_s)
    return PollBudget(allowed - BURST_POLLS / 60, BURST_POLLS)


class BlockRhythm:
    """Learns at which instants a chain's blocks come: a period, an anchor on it, and how far blocks miss it."""

    def __init__(self, block_time_s: float) -> None:
        self.period_s = block_time_s
        self.spread_s = block_time_s / 4
        """Mean distance of a block from its expected instant. A quarter of the period: nothing is known."""
        self._anchor_at: float | None = None
        """Where the newest block belongs: the expected instants are whole periods from here."""
        self._seen_at = 0.0
        self._misfits = 0
        self._unbracketed = 0
        """Blocks in a row that had been there for nobody knows how long."""
        self._slots: list[tuple[float, int]] = []
        """Instants of the last blocks, each with the count of expected instants since the first: a missed slot counts."""
        self._heights: list[tuple[float, int]] = []

    def see(self, missing_at: float | None, at: float, height: int) -> None:
        """A poll at `at` found the block at `height`, which the poll at `missing_at` had not found."""
        if at < self._seen_at:  # the clock was set back: nothing that was learnt has an instant any more
            self._anchor_at, self._heights = None, []
        self._seen_at = at
        self._heights = [*self._heights[1 - INTERVALS_KEPT :], (at, height)]
        if self._anchor_at is None:
            self._begin(at)
            return
        before_at, slot = self._slots[-1]
        self._slots = [*self._slots[1 - SLOTS_KEPT :], (at, slot + max(1, round((at - before_at) / self.period_s)))]
        expected = self.expected_at(at - self.period_s / 2)
        if missing_at is not None and at - missing_at <= BRACKET_MAX * self.period_s:
            self._learn(expected, (missing_at + at) / 2)
            self._unbracketed = 0
        else:  # it may have been there long before: ask earlier next time, in growing steps while that goes on
            step_s = min(self.period_s / 4, max(GAP_MIN_S, self.spread_s) / 2 * 2 ** min(self._unbracketed, 8))
            self._anchor_at = expected + GAIN * (min(at, expected) - step_s - expected)
            self.spread_s *= 1 - SPREAD_GAIN / 4  # or nothing would ever be tried
            self._unbracketed += 1
        self._correct_period()

    def expected_at(self, after: float) -> float:
        """The first expected instant after `after`, at least one period from the newest block's own."""
        if self._anchor_at is None:
            return after
        count = max(1, int((after - self._anchor_at) // self.period_s) + 1)
        return self._anchor_at + count * self.period_s

    def is_regular(self, now: float) -> bool:
        """True while blocks come when they are expected."""
        if self._anchor_at is None or not 0 <= now - self._seen_at < SILENT_BLOCKS_MAX * self.period_s:
            return False
        return self.spread_s < SPREAD_REGULAR_MAX * self.period_s

    def _begin(self, at: float) -> None:
        self._anchor_at, self._misfits, self._slots = at, 0, [(at, 0)]

    def _learn(self, expected: float, arrival: float) -> None:
        error = arrival - expected
        is_misfit = abs(error) > max(self.period_s / 4, 4 * self.spread_s)
        self._misfits = self._misfits + 1 if is_misfit else 0
        self._anchor_at = expected + GAIN * error
        self.spread_s += SPREAD_GAIN * (min(abs(error), self.period_s / 2) - self.spread_s)
        if self._misfits >= MISFITS_MAX:
            self._begin(arrival)

    def _correct_period(self) -> None:
        """By a little, from the instants of many blocks; at once, where most blocks' intervals are of another kind."""
        (first_at, first), (last_at, last) = self._slots[0], self._slots[-1]
        if len(self._slots) >= SLOTS_MIN and last > first:
            self.period_s += PERIOD_GAIN * ((last_at - first_at) / (last - first) - self.period_s)
        if len(self._heights) < INTERVALS_KEPT:
            return
        intervals_s = sorted((b_at - a_at) / max(1, b - a) for (a_at, a), (b_at, b) in pairwise(self._heights))
        interval_s = intervals_s[INTERVALS_KEPT // 4]  # no median: a third of the slots may be missed
        if interval_s > 0 and not 1 / PERIOD_TOLERANCE < interval_s / self.period_s < PERIOD_TOLERANCE:
            self.period_s, self.spread_s, self._heights = interval_s, interval_s / 4, []
            self._begin(last_at)


class PollTimer:
    """Says when to poll next, from what the polls so far found."""

    def __init__(self, poll_interval_s: float, block_time_s: float | None = None) -> None:
        """`block_time_s` is where learning starts; None keeps the plain pace for ever."""
        self.poll_interval_s = poll_interval_s
        self.budget = budget_of(poll_interval_s)
        self.rhythm = None if block_time_s is None else BlockRhythm(block_time_s)
        self._gap_min_s = min(GAP_MIN_S, poll_interval_s)
        self._polled_at: float | None = None
        self._missing_at: float | None = None
        """When the poll before was sent, if it was answered: what comes next was not there yet."""
        self._height: int | None = None
        self._saved = self.budget.burst

    def note_poll(self, at: float, height: int | None, *, was_announced: bool = False) -> bool:
        """A poll was sent at `at` and named a head at `height`; None: there was no answer. True where the head rose.

        `was_announced`: an announcement woke it, so that what it found came only just then.
        """
        since_s = 0.0 if self._polled_at is None else max(0.0, at - self._polled_at)
        # Catch-up polls without asking the budget. It is not made to pay for that afterwards, at the head: hence the 0.
        self._saved = max(0.0, min(self.budget.burst, self._saved + since_s * self.budget.rate) - 1)
        self._polled_at = at
        missing_at, self._missing_at = self._missing_at, None if height is None else at
        if height is None:
            return False
        has_risen = self._height is not None and height > self._height
        self._height = height
        if has_risen and self.rhythm is not None:
            self.rhythm.see(at if was_announced else missing_at, at, height)
        return has_risen

    def allowed_at(self, now: float) -> float:
        """The first instant, not before `now`, at which the budget has a poll."""
        if self._polled_at is None:
            return now
        wait_s = max(self._gap_min_s, (1 - self._saved) / self.budget.rate)
        return min(max(now, self._polled_at + wait_s), now + wait_s)  # a clock set back must not stop us

    def next_at(self, now: float, *, is_announced: bool = False) -> float:
        """When to poll next: at most `pause_max_s` from `now`, unless the budget has none.

        `is_announced`: a node says when there is a block, so that the plain pace is enough in between and,
        on a fast chain, one poll when a block is overdue.
        """
        rhythm = self.rhythm
        wanted = now + self.poll_interval_s
        if rhythm is not None and rhythm.is_regular(now) and self._affordable(rhythm) >= AFFORDABLE_MIN:
            opens_at, closes_at = self._window(rhythm, now)
            if is_announced:
                wanted = max(wanted, closes_at)
            elif now < opens_at - self._gap_min_s:
                wanted = opens_at
            else:
                wanted = now + self._gap_s(rhythm, closes_at - opens_at)
        return max(self.allowed_at(now), min(wanted, now + self.pause_max_s))

    @property
    def pause_max_s(self) -> float:
        """The longest pause: the plain pace or, on a chain too fast for a poll in between, what two polls cost."""
        return self.poll_interval_s if self.poll_interval_s < 1 else max(self.poll_interval_s, 2 / self.budget.rate)

    def _affordable(self, rhythm: BlockRhythm) -> float:
        """Polls for each block that there is money for, after those in the long wait before it."""
        polls = rhythm.period_s * min(self.budget.rate, COST_FACTOR / self.poll_interval_s)
        return max(min(polls, AFFORDABLE_MIN), polls - rhythm.period_s // self.pause_max_s)

    def _window(self, rhythm: BlockRhythm, now: float) -> tuple[float, float]:
        """From when to when the next block is looked for."""
        spread_s = max(rhythm.spread_s, self._gap_min_s)
        expected = rhythm.expected_at(now - LATE_SPREADS * spread_s)
        early_spreads = min(EARLY_SPREADS_MAX, (self._affordable(rhythm) - 2) / 2)
        return expected - early_spreads * spread_s, expected + LATE_SPREADS * spread_s

    def _gap_s(self, rhythm: BlockRhythm, window_s: float) -> float:
        """Between two polls of a window: short while polls are saved up, else so that they last for the window."""
        gap_s = rhythm.spread_s / 2 if self._saved >= 2 else window_s / (0.8 * self._affordable(rhythm))
        return max(self._gap_min_s, gap_s)
