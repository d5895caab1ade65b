"""A node's WebSocket on loopback that announces heads, or does what no node should.

    async with Announcer(shouting, announcing) as announcer:   # the first connection, and every later one

What a connection does is a coroutine; the last one given serves every further connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import msgspec
from aiohttp import WSMsgType, web

from tests.fakes.ending import end

Connection = web.WebSocketResponse
Behaviour = Callable[["Announcer", Connection], Awaitable[None]]
SUBSCRIPTION = "0xcd0c3e8af590364c09d0fa6a1210faf5"


def head(height: int, salt: int = 0xAA) -> dict[str, str]:
    """A header as far as we read it, with more in it."""
    return {"number": hex(height), "hash": "0x" + f"{salt:02x}" * 32, "logsBloom": "0x" + "00" * 256}


def notice(result: object, subscription: str = SUBSCRIPTION) -> dict[str, object]:
    """A notification of a subscription."""
    params = {"subscription": subscription, "result": result}
    return {"jsonrpc": "2.0", "method": "eth_subscription", "params": params}


class Announcer:
    """`heads` is a queue: what a test puts in is announced by whoever behaves."""

    def __init__(self, *behaviours: Behaviour) -> None:
        self.behaviours = behaviours
        self.heads: asyncio.Queue[dict[str, str]] = asyncio.Queue()
        self.connections = 0
        self.subscribed = asyncio.Event()
        """Set once a connection that behaves is subscribed to."""
        self.url = ""
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Announcer:
        app = web.Application()
        app.router.add_get("/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"ws://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._runner:
            await end(self._runner)

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        behaviour = self.behaviours[min(self.connections, len(self.behaviours) - 1)]
        self.connections += 1
        if behaviour is no_socket:
            return web.Response(text="<html>Welcome</html>", content_type="text/html")
        connection = Connection()
        await connection.prepare(request)
        with suppress(ConnectionError):  # the client hung up, as it should on most of these
            await behaviour(self, connection)
        return connection


async def asked(connection: Connection) -> Any:  # noqa: ANN401 - whatever was sent
    """The next request."""
    message = await connection.receive()
    if message.type is not WSMsgType.TEXT:
        raise ConnectionError("the client went away")
    return msgspec.json.decode(message.data)


async def say(connection: Connection, message: object) -> None:
    """Send JSON."""
    await connection.send_str(msgspec.json.encode(message).decode())


async def subscribed(connection: Connection) -> None:
    """Take a subscription."""
    request = await asked(connection)
    assert (request["method"], request["params"]) == ("eth_subscribe", ["newHeads"])
    await say(connection, {"jsonrpc": "2.0", "id": request["id"], "result": SUBSCRIPTION})


async def announcing(announcer: Announcer, connection: Connection) -> None:
    """What a node does."""
    await subscribed(connection)
    announcer.subscribed.set()
    while True:
        await say(connection, notice(await announcer.heads.get()))


async def silent(_: Announcer, connection: Connection) -> None:
    """Takes the subscription and says nothing any more."""
    await subscribed(connection)
    await asked(connection)


async def mute(_: Announcer, connection: Connection) -> None:
    """Does not even answer."""
    await asked(connection)
    await asked(connection)


async def refusing(_: Announcer, connection: Connection) -> None:
    """Takes no subscription, and repeats the key that it was called with."""
    request = await asked(connection)
    error = {"code": -32601, "message": "eth_subscribe not supported for key TOPSECRETKEY"}
    await say(connection, {"jsonrpc": "2.0", "id": request["id"], "error": error})
    await asked(connection)


async def garbling(_: Announcer, connection: Connection) -> None:
    """Sends what is no JSON."""
    await subscribed(connection)
    await connection.send_str("{ newHeads:")
    await asked(connection)


async def garbling_bytes(_: Announcer, connection: Connection) -> None:
    """Sends bytes that are no text."""
    await subscribed(connection)
    await connection.send_bytes(b"\xff\xfe\x00")
    await asked(connection)


async def headless(_: Announcer, connection: Connection) -> None:
    """Announces what is no head."""
    await subscribed(connection)
    await say(connection, notice({"number": "latest", "hash": "0xzz"}))
    await asked(connection)


async def shouting(_: Announcer, connection: Connection) -> None:
    """Sends a frame of eight megabytes."""
    await subscribed(connection)
    await say(connection, notice({**head(1), "extraData": "0x" + "00" * 4_000_000}))
    await asked(connection)


async def leaving(_: Announcer, connection: Connection) -> None:
    """Closes in good order right after the subscription."""
    await subscribed(connection)
    await connection.close()


async def dropping(_: Announcer, connection: Connection) -> None:
    """Cuts the connection without a word."""
    await subscribed(connection)
    transport = connection._req.transport if connection._req else None
    if transport is not None:
        transport.abort()


async def no_socket(_: Announcer, _connection: Connection) -> None:
    """Answers HTTP: never called, the server looks for it."""


async def foreign(announcer: Announcer, connection: Connection) -> None:
    """Answers and announces for others, too."""
    request = await asked(connection)
    await say(connection, {"jsonrpc": "2.0", "id": 999, "result": {"other": [1]}})
    await say(connection, notice(head(900), "0xother"))
    await say(connection, {"jsonrpc": "2.0", "id": request["id"], "result": SUBSCRIPTION})
    await say(connection, {"jsonrpc": "2.0", "id": "seven", "result": None})
    await say(connection, notice(head(901), "0xother"))
    await say(connection, notice({"syncing": True}, "0xother"))
    await say(connection, {"jsonrpc": "2.0", "method": "net_subscription", "params": [1, 2]})
    announcer.subscribed.set()
    while True:
        await say(connection, notice(await announcer.heads.get()))


BAD: tuple[Behaviour, ...] = (
    silent, mute, refusing, garbling, garbling_bytes, headless, shouting, leaving, dropping, no_socket,
)  # fmt: skip
"""Everything after which a socket has to be opened anew."""
