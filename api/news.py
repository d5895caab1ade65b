"""Waking long polls: whoever waits for events looks again when a hint says that some were committed (`ledger/hints.py`).

A hint is for all tenants and says nothing of whose events came, so a poll that is woken often still asks only so often.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ledger.database import Engine
from ledger.hints import listen


class News:
    """What those who wait, wait for."""

    def __init__(self) -> None:
        self._coming = asyncio.Event()

    def coming(self) -> asyncio.Event:
        """Set by the next news. Taken before the ledger is asked, it misses nothing that is told meanwhile."""
        return self._coming

    def tell(self) -> None:
        """Wake everybody."""
        told, self._coming = self._coming, asyncio.Event()
        told.set()


@asynccontextmanager
async def heard(engine: Engine, news: News) -> AsyncIterator[None]:
    """Tell of hints while the block lasts, on a connection that the engine has to spare."""
    listening = asyncio.create_task(listen(engine, news.tell))
    try:
        yield
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
