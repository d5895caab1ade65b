"""A bound on calls a second to one node."""

from __future__ import annotations

import asyncio

BURST_S = 1.0
"""A node that was left alone may be asked for this many seconds' worth of calls at once."""


class Pace:
    """A token bucket, kept as the instant at which it will be full again: no timer, no task of its own."""

    def __init__(self, rps: float | None) -> None:
        self._rps = rps
        self._full_at = 0.0

    async def wait(self, calls: int) -> None:
        """Return when `calls` more may be sent; waiters go in the order in which they came."""
        if not self._rps:
            return
        now = asyncio.get_running_loop().time()
        self._full_at = max(self._full_at, now) + calls / self._rps
        await asyncio.sleep(max(0.0, self._full_at - now - BURST_S))
