"""Fetching ahead: several heights in flight, handed over in order, never more than a bounded number held."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from chains.model import Block

IN_FLIGHT_MAX = 8
"""Blocks asked for or waiting at one time: enough to hide a node's latency, little enough to hold in memory."""


@asynccontextmanager
async def prefetch(
    fetch: Callable[[int], Awaitable[Block]], first: int, last: int, in_flight: int = IN_FLIGHT_MAX
) -> AsyncIterator[AsyncIterator[Block]]:
    """Blocks from `first` to `last` in order, fetched up to `in_flight` at a time. Leaving the context cancels what is
    still on its way; the first failed fetch is raised at its place in the order."""
    tasks: deque[asyncio.Task[Block]] = deque()
    heights = iter(range(first, last + 1))

    def _ask_next() -> None:
        height = next(heights, None)
        if height is not None:
            tasks.append(asyncio.ensure_future(_call(fetch, height)))

    async def _ordered() -> AsyncIterator[Block]:
        while tasks:
            block = await tasks[0]
            tasks.popleft()
            _ask_next()
            yield block

    for _ in range(in_flight):
        _ask_next()
    try:
        yield _ordered()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _call(fetch: Callable[[int], Awaitable[Block]], height: int) -> Block:
    return await fetch(height)
