"""Fetching ahead: several heights in flight, handed over in order, never more than a bounded number held.

What is asked for and what has come are bounded apart. Answers under way are large (half a megabyte for an ordinary block,
thirty for one stuffed with logs) and are bounded in bytes, judged by the largest of the last ones; blocks that have come
are small and wait for a commit to end, so that fetching and proving go on beside it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from chains.errors import ChainError
from chains.model import Block

IN_FLIGHT_MAX = 8
"""Blocks asked for at one time: enough to hide a node's latency and to keep the cores busy; few, because nobody knows how
large an answer is before it has come."""

IN_FLIGHT_BYTES_MAX = 64 * 1024 * 1024
"""Bytes of the answers that are under way, as far as the last ones tell."""

READY_BLOCKS_MAX = 64
READY_TRANSFERS_MAX = 20_000
"""Blocks that have come and wait for those before them or for a commit."""

SIZES_REMEMBERED = 64


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much is under way or waiting at most."""

    in_flight: int = IN_FLIGHT_MAX
    in_flight_bytes: int = IN_FLIGHT_BYTES_MAX
    ready_blocks: int = READY_BLOCKS_MAX
    ready_transfers: int = READY_TRANSFERS_MAX


class Prefetch:
    """Blocks of a range of heights in their order: an asynchronous iterator."""

    def __init__(
        self, fetch: Callable[[int], Awaitable[Block]], heights: range, bounds: Bounds, sizes: deque[int]
    ) -> None:
        self._fetch = fetch
        self._heights = deque(heights)
        self._bounds = bounds
        self._tasks: deque[asyncio.Task[Block]] = deque()
        self._asking = 0
        self._ready_transfers = 0
        self._sizes = sizes
        self.failure: ChainError | None = None
        """Why there are no more blocks, where that is not the end of the range."""
        self._ask_more()

    def __aiter__(self) -> Prefetch:
        return self

    async def __anext__(self) -> Block:
        if not self._tasks:
            raise StopAsyncIteration
        try:
            block = await self._tasks[0]
        except ChainError as failure:
            self.failure = failure
            raise StopAsyncIteration from None
        self._tasks.popleft()
        self._ready_transfers -= len(block.transfers)
        self._ask_more()
        return block

    def stop(self) -> None:
        """Ask for nothing more; what is under way still comes."""
        self._heights.clear()

    async def cancel(self) -> None:
        """Give up what is under way."""
        self.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _ask_more(self) -> None:
        while self._heights and self._has_room():
            self._asking += 1
            self._tasks.append(asyncio.ensure_future(self._ask(self._heights.popleft())))

    def _has_room(self) -> bool:
        """There is always room for one block, whatever its size: else nothing would ever come."""
        if not self._tasks:
            return True
        bounds = self._bounds
        return (
            self._asking < bounds.in_flight
            and (self._asking + 1) * max(self._sizes, default=0) <= bounds.in_flight_bytes
            and len(self._tasks) - self._asking < bounds.ready_blocks
            and self._ready_transfers < bounds.ready_transfers
        )

    async def _ask(self, height: int) -> Block:
        try:
            block = await self._fetch(height)
            self._sizes.append(block.answer_bytes)
            self._ready_transfers += len(block.transfers)
        finally:
            self._asking -= 1
        self._ask_more()
        return block


def recent_sizes() -> deque[int]:
    """A memory for the sizes of a chain's last answers, in bytes."""
    return deque(maxlen=SIZES_REMEMBERED)


@asynccontextmanager
async def prefetch(
    fetch: Callable[[int], Awaitable[Block]],
    first: int,
    last: int,
    bounds: Bounds | None = None,
    sizes: deque[int] | None = None,
) -> AsyncIterator[Prefetch]:
    """Blocks from `first` to `last` in order. Leaving the context cancels what is still on its way; the first fetch that
    nodes fail ends them, and is `failure`: what came before it is good. `sizes`, from `recent_sizes`, is what is known of
    the chain's answers."""
    ahead = Prefetch(fetch, range(first, last + 1), bounds or Bounds(), recent_sizes() if sizes is None else sizes)
    try:
        yield ahead
    finally:
        await ahead.cancel()
