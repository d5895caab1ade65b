"""A node that repeats, in each of its failings, the address and the credentials that it was called by."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from chains.node.naming import TEXT_MAX
from tests.fakes.ending import end


def _error(message: str) -> web.Response:
    return web.Response(
        text=json.dumps({"jsonrpc": "2.0", "id": None, "error": {"code": -32000, "message": message}}),
        content_type="application/json",
    )


FAILINGS: dict[str, Callable[[str], web.Response]] = {
    "plain": lambda told: _error(f"the project {told} is not active"),
    # Longer than what is repeated of a stranger's words, and cut within a credential.
    "long": lambda told: _error("x" * (TEXT_MAX - told.index("-path")) + told),
    "missing": lambda told: web.Response(status=404, text=f"Cannot POST {told}"),
    "garbled": lambda told: web.Response(text=told),
    "moved": lambda told: web.Response(status=302, headers={"location": f"https://elsewhere.example/{told}"}),
    "denied": lambda told: web.Response(status=403, text=told),
}
"""What it does, by the first part of the path that it is called at."""


async def _answer(request: web.BaseRequest) -> web.StreamResponse:
    told = f"{request.path_qs} {request.headers.get('authorization', '')}"
    return FAILINGS[request.path.split("/")[1]](told)


@asynccontextmanager
async def betraying_node() -> AsyncIterator[int]:
    """Serve on a free port of loopback; yields the port."""
    runner = web.ServerRunner(web.Server(_answer, access_log=None), shutdown_timeout=0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port: int = runner.addresses[0][1]
        yield port
    finally:
        await end(runner)
