"""Waiting between two polls: until it is time, until a node announces a new head, or until the end.

There is one loop, and it polls; an announcement only ends a pause early. So there are never two polls under way, and a
node that announces nonsense costs polls up to the budget of `indexer.timing`, never a block. An announced head whose node
is behind a load balancer may not be had from its neighbour yet: then it is asked for again shortly, a few times.
"""

from __future__ import annotations

import asyncio
from collections import deque

from chains.adapter import HeadHint, HeadHints
from chains.model import BlockHash
from indexer.follower import Extended, Follower, Halted, Holding, Nothing, Outcome, Reorged
from indexer.timing import PollTimer

RETRY_INTERVAL_S = 2.0
"""Pause after a cycle that could not be used: nodes have their own, longer back-off."""

REPEAT_PAUSES_S = (0.15, 0.3, 0.6)
"""How soon a head that somebody named, and nobody could give us, is asked for again; then it is left to the usual pace."""

ANNOUNCED_KEPT = 8


class Pacer:
    """Runs a follower's cycles, each at its time."""

    def __init__(self, timer: PollTimer, follower: Follower, hints: HeadHints, stop: asyncio.Event) -> None:
        """`timer` outlives a change of leadership: what it learnt stays true."""
        self._timer = timer
        self._follower = follower
        self._hints = hints
        self._stop = stop
        self._clock = asyncio.get_running_loop().time
        self._announced: deque[BlockHash] = deque(maxlen=ANNOUNCED_KEPT)
        self._wanted: int | None = None
        """Height of a head that was named and that we do not have."""
        self._repeats = 0

    async def poll(self) -> Outcome:
        """Run one cycle, and learn from it when the next is due."""
        asked_at = self._clock()
        outcome = await self._follower.converge()
        head_height = self._follower.head_height
        is_answered = not isinstance(outcome, Holding | Halted)
        has_risen = self._timer.note_poll(
            asked_at, head_height if is_answered else None, was_announced=self._wanted is not None
        )
        match outcome:
            case Extended() | Reorged() if self._wanted is not None and self._wanted <= (head_height or 0):
                self._wanted = None
            case Nothing() if has_risen and self._wanted is None:
                self._wanted, self._repeats = head_height, 1
            case _:
                self._repeats += 1
        if self._repeats > len(REPEAT_PAUSES_S):
            self._wanted = None
        return outcome

    async def pause(self, outcome: Outcome) -> None:
        """Return when the next poll is due, or at the end."""
        ended_at = self._clock()
        while not self._stop.is_set():
            remaining_s = self._due_at(outcome, ended_at) - self._clock()
            if remaining_s <= 0:
                return
            hint = await self._hint_within(remaining_s)
            if hint is not None:
                self._note_hint(hint)

    def _due_at(self, outcome: Outcome, ended_at: float) -> float:
        """When to poll after a cycle that ended then, by what is known now. A flood of hints does not push it back."""
        match outcome:
            case Extended(is_behind=True):
                return ended_at
            case Extended() | Reorged() | Nothing():
                is_announced = self._follower.tip_hash in self._announced
                usual_at = self._timer.next_at(ended_at, is_announced=is_announced)
                return usual_at if self._wanted is None else min(usual_at, self._wanted_at(ended_at))
            case Holding() | Halted():
                return ended_at + max(self._timer.poll_interval_s, RETRY_INTERVAL_S)

    def _wanted_at(self, ended_at: float) -> float:
        pause_s = REPEAT_PAUSES_S[self._repeats - 1] if self._repeats else 0.0
        return max(ended_at + pause_s, self._timer.allowed_at(ended_at))

    def _note_hint(self, hint: HeadHint) -> None:
        """Nothing of a hint is believed, except where that only spares a poll: one that names our tip is no news."""
        self._announced.append(hint.hash)
        if hint.hash == self._follower.tip_hash or hint.height < (self._follower.head_height or 0):
            return
        if self._wanted is None or hint.height > self._wanted:
            self._wanted, self._repeats = hint.height, 0

    async def _hint_within(self, seconds: float) -> HeadHint | None:
        """The next hint; None when the time is over or the end has come. A hint that comes at that instant is kept."""
        ending = asyncio.create_task(self._stop.wait())
        hearing = asyncio.create_task(self._hints.next_hint())
        try:
            await asyncio.wait((ending, hearing), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            return hearing.result() if hearing.done() else None
        finally:
            ending.cancel()
            hearing.cancel()
