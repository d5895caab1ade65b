"""Many merchants in one process, most of them well and some of them not: `python -m bench.merchants`.

The first word of an endpoint's path says how it behaves. Remembered is only when which event's request had come, and only
for those that are well.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from enum import StrEnum

import msgspec
from aiohttp import web

from bench.serving import serve_until_stdin_closes

BYTE_INTERVAL_S = 1.0
HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n"
BODY = b"x" * 1000
LOOK_INTERVAL_S = 1.0


class Mood(StrEnum):
    """How a merchant meets a webhook."""

    WELL = "well"
    """Accepts at once."""
    HANGS = "hangs"
    """Takes it and never answers."""
    DRIPS_HEAD = "drips-head"
    """Answers from the first byte on at one byte a second."""
    DRIPS_BODY = "drips-body"
    """Accepts at once, and then sends a body at one byte a second."""
    BUSY = "busy"
    """Answers 429."""
    RESETS = "resets"
    """Breaks the connection off."""


class Heard(msgspec.Struct, array_like=True):
    """One request: when its head was here, in seconds since 1970, and the event's id."""

    at: float
    event_id: str


class Merchants:
    """All of them, and what those that are well have heard since the last look."""

    def __init__(self) -> None:
        self.heard: list[Heard] = []

    async def meet(self, request: web.Request) -> web.StreamResponse:
        """A webhook, met as its path says."""
        mood = Mood(request.match_info["mood"])
        if mood is Mood.WELL:
            self.heard.append(Heard(time.time(), request.headers["webhook-id"]))
            await request.read()
            return web.Response(text="ok")
        if mood is Mood.BUSY:
            return web.Response(status=429)
        return await _misbehave(request, mood)

    async def count(self, _request: web.Request) -> web.Response:
        """How many came."""
        return web.Response(text=str(len(self.heard)))

    async def take(self, _request: web.Request) -> web.Response:
        """All of them, forgotten afterwards."""
        taken, self.heard = self.heard, []
        return web.Response(body=msgspec.json.encode(taken))


async def _misbehave(request: web.Request, mood: Mood) -> web.StreamResponse:
    transport = request.transport
    if transport is not None and mood is Mood.RESETS:
        _break_off(transport)
    elif transport is not None and mood is not Mood.HANGS:
        if mood is Mood.DRIPS_BODY:
            transport.write(HEAD)
        await _drip(transport, BODY if mood is Mood.DRIPS_BODY else HEAD + BODY)
    while request.transport is not None and not request.transport.is_closing():  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(LOOK_INTERVAL_S)
    raise ConnectionResetError


async def _drip(transport: asyncio.Transport, answer: bytes) -> None:
    for n in range(len(answer)):
        if transport.is_closing():
            return
        transport.write(answer[n : n + 1])
        await asyncio.sleep(BYTE_INTERVAL_S)


def _break_off(transport: asyncio.Transport) -> None:
    """End the connection with a reset: whoever closes without lingering sends one."""
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def make_app() -> web.Application:
    """Any POST is a webhook."""
    merchants = Merchants()
    app = web.Application()
    app.router.add_get("/count", merchants.count)
    app.router.add_get("/take", merchants.take)
    app.router.add_post("/{mood}/{name}", merchants.meet)
    return app


if __name__ == "__main__":
    serve_until_stdin_closes(make_app())
