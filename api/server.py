"""Listening: the application on a TCP address for as long as a block lasts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

SHUTDOWN_TIMEOUT_S = 10.0
"""How long requests under way may take to end; long polls end at once."""

KEEPALIVE_TIMEOUT_S = 75.0


@asynccontextmanager
async def serving(app: web.Application, host: str, port: int) -> AsyncIterator[tuple[str, int]]:
    """Serve while the block runs; yields the address that was bound (with port 0, the port that was free). Raises
    OSError when the address cannot be bound."""
    runner = web.AppRunner(
        app,
        access_log=None,
        handle_signals=False,
        keepalive_timeout=KEEPALIVE_TIMEOUT_S,
        shutdown_timeout=SHUTDOWN_TIMEOUT_S,
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        address = runner.addresses[0]
        yield address[0], address[1]
    finally:
        await runner.cleanup()
