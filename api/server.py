"""Listening: the application on a TCP address for as long as a block lasts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import cast

from aiohttp import web

from api.callers import Network
from api.connections import Bounds, Connection, answer_to_head
from api.crowds import Crowds
from api.heads import refusal_of
from api.metrics import CONNECTIONS_CUT

RequestHandler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

SHUTDOWN_TIMEOUT_S = 10.0
"""How long requests under way may take to end; long polls end at once."""

BOUNDS = Bounds()


@asynccontextmanager
async def serving(
    app: web.Application,
    host: str,
    port: int,
    *,
    bounds: Bounds = BOUNDS,
    trusted_proxies: Sequence[Network] = (),
) -> AsyncIterator[tuple[str, int]]:
    """Serve while the block runs; yields the address that was bound (with port 0, the port that was free). Raises
    OSError when the address cannot be bound."""
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=SHUTDOWN_TIMEOUT_S)
    await runner.setup()
    try:
        server = cast(web.Server, runner.server)
        server.request_handler = _looking_at_heads(server.request_handler)
        crowds: Crowds[Connection] = Crowds(bounds.connections, bounds.connections_of_address)
        listener = await asyncio.get_running_loop().create_server(
            lambda: Connection(server, bounds, crowds, trusted_proxies), host, port
        )
        try:
            address = listener.sockets[0].getsockname()
            yield address[0], address[1]
        finally:
            listener.close()
    finally:
        await runner.cleanup()


def _looking_at_heads(answer: RequestHandler) -> RequestHandler:
    async def _look(request: web.BaseRequest) -> web.StreamResponse:
        refused = refusal_of(request)
        if refused is None:
            return await answer(request)
        CONNECTIONS_CUT.labels("no_http").inc()
        return answer_to_head(refused)

    return _look
