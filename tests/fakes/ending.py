"""The end of a server that callers may be connecting to at that very moment.

Python 3.11 drops a connection that it has accepted, and not yet handed on, when its server is closed: nobody closes it, its
caller waits until it is garbage, and the warning about that falls upon whatever test runs then.
"""

from __future__ import annotations

import asyncio

from aiohttp import web

TURNS = 5
"""Of the loop, until what was accepted is known to its server: a task is made for it, begins, and tells it."""


async def stop_accepting(site: web.BaseSite) -> None:
    """Take no more connections; those that were taken are handed on."""
    loop = asyncio.get_running_loop()
    for listener in getattr(site._server, "sockets", ()):
        loop.remove_reader(listener.fileno())
    for _ in range(TURNS):
        await asyncio.sleep(0)


async def end(runner: web.BaseRunner) -> None:
    """End a server and all of its connections."""
    for site in runner.sites:
        await stop_accepting(site)
    await runner.cleanup()
