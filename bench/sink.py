"""A merchant who accepts everything at once and remembers when it came: `python -m bench.sink`."""

from __future__ import annotations

import time

import msgspec
from aiohttp import web

from bench.serving import serve_until_stdin_closes


class Arrival(msgspec.Struct, array_like=True):
    """One received webhook: when its last byte was read, in seconds since 1970, and its bytes as text."""

    at: float
    body: str


class Sink:
    """What was received since the last look."""

    def __init__(self) -> None:
        self.arrivals: list[tuple[float, bytes]] = []

    async def accept(self, request: web.Request) -> web.Response:
        """A webhook."""
        body = await request.read()
        self.arrivals.append((time.time(), body))
        return web.Response(text="ok")

    async def count(self, _request: web.Request) -> web.Response:
        """How many came."""
        return web.Response(text=str(len(self.arrivals)))

    async def take(self, _request: web.Request) -> web.Response:
        """All of them, forgotten afterwards."""
        taken, self.arrivals = self.arrivals, []
        return web.Response(body=msgspec.json.encode([Arrival(at, body.decode()) for at, body in taken]))


def make_app() -> web.Application:
    """Any POST is a webhook."""
    sink = Sink()
    app = web.Application()
    app.router.add_get("/count", sink.count)
    app.router.add_get("/take", sink.take)
    app.router.add_post("/{path:.*}", sink.accept)
    return app


if __name__ == "__main__":
    serve_until_stdin_closes(make_app())
