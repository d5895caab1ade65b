"""Whose request is next at the database: a few connections, shared among keys however many requests each of them sends.

A process has a handful of connections to Postgres. If requests took them as they come, a key that sends a thousand slow
ones would have them all, and whoever asks next would wait for the thousand. So a key has at most half of the places at a
time, its other requests wait in a line of their own, and a place that comes free goes to the keys in turn: nobody waits
for more than one request of each other key.

A line is bounded, and so is the wait in it: who is beyond is told to come again. A long poll has no place while it waits for
news. Like a bucket of `api/limits.py`, a line belongs to what was *sent* as a key, so nobody stands in another's.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ledger.keys import KeyParts

WAITING_MAX = 400
"""Requests of one key that may wait: as many as its bucket admits at once (`api/limits.py`)."""

WAIT_LIMIT_S = 30.0
"""As long as anybody waits for a connection."""


class TooManyAtOnce(Exception):
    """Refuse the request: as many of this key wait already, or this one has waited too long. Nothing was done for it."""


class Turns:
    """The places of one process."""

    def __init__(self, places: int, *, wait_limit_s: float = WAIT_LIMIT_S) -> None:
        self._free = max(places, 1)
        self._of_key_max = max(places // 2, 1)
        self._wait_limit_s = wait_limit_s
        self._held: Counter[KeyParts] = Counter()
        self._lines: OrderedDict[KeyParts, deque[asyncio.Future[None]]] = OrderedDict()
        """Those who wait, by key; the key whose turn is next first."""

    @asynccontextmanager
    async def taken(self, key: KeyParts) -> AsyncIterator[None]:
        """A place for as long as the block lasts. Raises `TooManyAtOnce`."""
        await self._take(key)
        try:
            yield
        finally:
            self._give_back(key)

    def waiting(self, key: KeyParts) -> int:
        """How many requests of a key wait for a place."""
        return len(self._lines.get(key, ()))

    async def _take(self, key: KeyParts) -> None:
        if self._may_enter(key):  # then nobody waits who may: a place that comes free is handed on at once
            return self._enter(key)
        if self.waiting(key) >= WAITING_MAX:
            raise TooManyAtOnce
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lines.setdefault(key, deque()).append(turn)
        try:
            async with asyncio.timeout(self._wait_limit_s):
                await turn
        except TimeoutError:
            self._leave(key, turn)
            raise TooManyAtOnce from None
        except asyncio.CancelledError:
            self._leave(key, turn)
            raise
        return None

    def _may_enter(self, key: KeyParts) -> bool:
        return self._free > 0 and self._held[key] < self._of_key_max

    def _enter(self, key: KeyParts) -> None:
        self._free -= 1
        self._held[key] += 1

    def _leave(self, key: KeyParts, turn: asyncio.Future[None]) -> None:
        """Who gives up may have been given a place in that very moment."""
        if not turn.cancelled():
            self._give_back(key)
            return
        line = self._lines.get(key)
        if line is None or turn not in line:
            return
        line.remove(turn)
        if not line:
            del self._lines[key]

    def _give_back(self, key: KeyParts) -> None:
        self._free += 1
        self._held[key] -= 1
        if not self._held[key]:
            del self._held[key]
        self._hand_on()

    def _hand_on(self) -> None:
        """Give the place that came free to the next one who still waits for it."""
        while key := next((key for key in self._lines if self._may_enter(key)), None):
            line = self._lines.pop(key)
            turn = line.popleft()
            if line:
                self._lines[key] = line  # at the end: the others come first
            if not turn.done():
                self._enter(key)
                turn.set_result(None)
                return
