"""A bound on calls a second to one node: the operator's, and what the node itself shows that it takes.

A node that answers 429 is asked half as often from then on, and a little more often with every answer: additive
increase, multiplicative decrease, as TCP does it and for its reason. Without a limit of the operator's the first 429 sets
one, from how often the node was asked just before; once that has grown far beyond, there is none again.
"""

from __future__ import annotations

import asyncio
from collections import deque

BURST_S = 1.0
"""A node that was left alone may be asked for this many seconds' worth of calls at once."""

RATE_MIN = 1.0
"""Calls a second that a node is asked in any case."""

RATE_FREE = 500.0
"""Calls a second from which on a limit that the node once showed is forgotten."""

GAIN_RPS = 0.5
"""By how many calls a second the rate grows in each second in which the node answers."""


class Pace:
    """A token bucket, kept as the instant at which it will be full again: no timer, no task of its own."""

    def __init__(self, rps: float | None) -> None:
        self._limit = rps
        self._rate = rps
        self._full_at = 0.0
        self._recent: deque[tuple[float, int]] = deque()
        self._slowed_at: float | None = None

    @property
    def rate(self) -> float | None:
        """Calls a second that may be sent at the moment; None: any number."""
        return self._rate

    def backlog_s(self) -> float:
        """How long a call that comes now would wait."""
        return max(0.0, self._full_at - self._now() - BURST_S)

    async def wait(self, calls: int) -> None:
        """Return when `calls` more may be sent; waiters go in the order in which they came."""
        now = self._now()
        self._recent.append((now, calls))
        while self._recent[0][0] < now - BURST_S:
            self._recent.popleft()
        if not self._rate:
            return
        self._full_at = max(self._full_at, now) + calls / self._rate
        await asyncio.sleep(max(0.0, self._full_at - now - BURST_S))

    def slow_down(self) -> None:
        """The node said that it is asked too often. What was under way together is refused together, and counts once."""
        now = self._now()
        if self._slowed_at is not None and now - self._slowed_at < BURST_S:
            return
        self._slowed_at = now
        asked_rps = sum(calls for _, calls in self._recent) / BURST_S
        self._rate = max(RATE_MIN, (self._rate or asked_rps) / 2)

    def note_answer(self, calls: int) -> None:
        """The node answered: it may be asked a little more often, up to the operator's limit."""
        if self._rate is None or self._rate == self._limit:
            return
        grown = self._rate + GAIN_RPS * calls / self._rate
        if self._limit is None:
            self._rate = grown if grown < RATE_FREE else None
        else:
            self._rate = min(self._limit, grown)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
