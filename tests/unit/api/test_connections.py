"""Connections that take up more than they may, over real sockets: slow ones, idle ones, large ones, many."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from functools import wraps
from ipaddress import ip_network
from typing import ClassVar, ParamSpec

import msgspec
import pytest
import uvloop
from aiohttp import web
from prometheus_client import REGISTRY

import api.server
from api.callers import Network
from api.connections import Bounds, Connection
from api.middleware import answer_safely
from api.server import serving

LIMIT_S = 240.0
"""Far longer than anything here takes, on a machine that does ten other things."""

SHORT_S = 0.05
LONG_S = 600.0
LONGER_S = 6000.0
PATIENT = Bounds(head_s=LONG_S, idle_s=LONGER_S, answer_s=LONG_S)
SHORT = Bounds(head_s=SHORT_S, idle_s=SHORT_S, answer_s=SHORT_S)
ASKED = b"GET /small HTTP/1.1\r\nHost: a\r\n\r\n"
LARGE_BYTES = 32 * 1024 * 1024
"""More than the system's buffers hold of what is not taken."""


P = ParamSpec("P")


def over_uvloop(test: Callable[P, Coroutine[None, None, None]]) -> Callable[P, None]:
    """Run a test on the loop that serves in production: its transports are others than asyncio's."""

    @wraps(test)
    def _run(*arguments: P.args, **named: P.kwargs) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(test(*arguments, **named))

    return _run


class Room:
    """A server, and what happens in it."""

    def __init__(self) -> None:
        self.begun: asyncio.Queue[str] = asyncio.Queue()
        self.may_end = asyncio.Event()

    async def small(self, request: web.Request) -> web.Response:
        """Answer at once, without reading a body."""
        return web.Response(text="small")

    async def slow(self, request: web.Request) -> web.Response:
        """Answer when it is allowed."""
        self.begun.put_nowait("slow")
        await self.may_end.wait()
        return web.Response(text="slow")

    async def large(self, request: web.Request) -> web.Response:
        """Answer more than the system's buffers hold."""
        self.begun.put_nowait("large")
        return web.Response(body=b"x" * LARGE_BYTES)


@pytest.fixture(autouse=True)
def _watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api.server, "Connection", Watched)


Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Watched(Connection):
    """A connection that tests can look at, from the server's side."""

    made: ClassVar[list[Watched]] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember it."""
        self.finished = asyncio.Event()
        self.made.append(self)
        super().connection_made(transport)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Tell when it has."""
        try:
            return await super().finish_response(request, resp, start_time)
        finally:
            self.finished.set()

    def has_s(self) -> float | None:
        """For how long it may go on like this; None: for as long as it likes."""
        return None if self._patience is None else self._patience.when() - asyncio.get_running_loop().time()

    def shorten(self) -> None:
        """From now on, as soon as something begins, it has next to no time."""
        self._bounds = SHORT


class Door:
    """Where clients come in."""

    def __init__(self, room: Room, host: str, port: int) -> None:
        self.room = room
        self._address = (host, port)
        self._opened: list[asyncio.StreamWriter] = []

    async def open(self, sent: bytes = b"") -> Stream:
        """A client that has sent this and says no more."""
        reader, writer = await asyncio.open_connection(*self._address)
        self._opened.append(writer)
        writer.write(sent)
        return reader, writer

    async def close(self) -> None:
        """All clients go away."""
        for writer in self._opened:
            writer.transport.abort()


@asynccontextmanager
async def opened(bounds: Bounds, proxies: Sequence[Network] = ()) -> AsyncIterator[Door]:
    room = Room()
    Watched.made.clear()
    app = web.Application(middlewares=[answer_safely])
    for name in ("small", "slow", "large"):
        app.router.add_route("*", f"/{name}", getattr(room, name))
    listening = serving(app, "127.0.0.1", 0, bounds=bounds, trusted_proxies=proxies)
    async with asyncio.timeout(LIMIT_S), listening as place:
        door = Door(room, *place)
        try:
            yield door
        finally:
            room.may_end.set()
            await door.close()


async def answer_of(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """The next answer of a connection."""
    status = int((await reader.readline()).split()[1])
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
    headers = dict(line.lower().split(": ", 1) for line in lines if line)
    return status, headers, await reader.readexactly(int(headers["content-length"]))


async def require_refusal(reader: asyncio.StreamReader, status: int, code: str) -> str:
    """A problem as every other, and then the end; its sentence."""
    found, headers, body = await answer_of(reader)
    document = msgspec.json.decode(body)
    assert (found, document["status"], document["code"]) == (status, status, code)
    assert headers["content-type"] == "application/problem+json"
    assert headers["x-request-id"] == document["request_id"]
    assert (headers["server"], headers["cache-control"], headers.get("connection", "close")) == (
        "chainbell",
        "no-store",
        "close",
    )
    assert await reader.read() == b""
    return str(document["detail"])


async def require_end(reader: asyncio.StreamReader) -> None:
    """The connection ends."""
    with suppress(ConnectionError):
        await reader.read()


async def require_cut(reader: asyncio.StreamReader) -> None:
    """The connection ends, without a word."""
    with suppress(ConnectionResetError):
        assert await reader.read() == b""


def cut_for(reason: str) -> float:
    """How many were cut off for this, so far."""
    return REGISTRY.get_sample_value("chainbell_api_connections_cut_total", {"reason": reason}) or 0.0


@over_uvloop
async def test_who_connects_and_says_nothing_is_cut_off_without_a_word() -> None:
    async with opened(Bounds(head_s=SHORT_S, idle_s=LONG_S)) as door:
        before = cut_for("head_slow")
        for reader, _ in [await door.open() for _ in range(50)]:
            await require_cut(reader)
        assert cut_for("head_slow") == before + 50


@over_uvloop
async def test_a_head_that_comes_a_byte_at_a_time_is_cut_off_however_often_one_comes() -> None:
    async with opened(Bounds(head_s=0.2, idle_s=LONG_S)) as door:
        reader, writer = await door.open(b"GET /small HTTP/1.1\r\nX-Slow: ")
        with suppress(ConnectionError):
            while not reader.at_eof() and not writer.is_closing():
                writer.write(b"a")
                await writer.drain()
                await asyncio.sleep(0.01)
        await require_end(reader)


@over_uvloop
async def test_a_second_head_has_as_long_as_the_first_and_a_quiet_connection_is_kept() -> None:
    async with opened(PATIENT) as door:
        reader, writer = await door.open(ASKED)
        assert (await answer_of(reader))[0] == 200
        [connection] = Watched.made
        while (connection.has_s() or 0) <= LONG_S:  # noqa: ASYNC110 - a connection sets no event
            await asyncio.sleep(0.001)
        connection.shorten()
        writer.write(ASKED[:20])
        await require_refusal(reader, 408, "request_timeout")


@over_uvloop
async def test_a_connection_that_is_kept_for_nothing_is_closed() -> None:
    async with opened(Bounds(head_s=LONG_S, idle_s=SHORT_S)) as door:
        reader, _ = await door.open(ASKED)
        assert (await answer_of(reader))[0] == 200
        await require_end(reader)


@over_uvloop
async def test_what_is_being_answered_is_left_in_peace_however_long_it_takes() -> None:
    async with opened(PATIENT) as door:
        reader, _ = await door.open(ASKED.replace(b"small", b"slow"))
        await door.room.begun.get()
        [connection] = Watched.made
        assert connection.has_s() is None
        door.room.may_end.set()
        assert (await answer_of(reader))[2] == b"slow"


@over_uvloop
async def test_a_body_that_nobody_reads_is_no_head() -> None:
    async with opened(Bounds(head_s=LONG_S, idle_s=LONG_S, head_bytes=1000)) as door:
        head = b"POST /small HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n"
        reader, writer = await door.open(head + b"x")
        assert (await answer_of(reader))[0] == 200
        writer.write(b"x" * 99_999 + ASKED)
        assert (await answer_of(reader))[0] == 200


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /small HTTP/1.1\r\nHost: a\r\nX-Long: " + b"a" * 9000 + b"\r\n\r\n",
        b"GET /small HTTP/1.1\r\nHost: a\r\n" + b"X-Many: a\r\n" * 101 + b"\r\n",
        b"GET /small HTTP/1.1\r\nHost: a\r\n" + (b"X-Many: " + b"a" * 4000 + b"\r\n") * 20,  # and no end
    ],
    ids=["line", "header", "count", "sum"],
)
@over_uvloop
async def test_headers_that_are_too_large_are_refused_with_what_is_allowed(sent: bytes) -> None:
    async with opened(PATIENT) as door:
        before = cut_for("head_large")
        reader, _ = await door.open(sent)
        assert "at most 100" in await require_refusal(reader, 431, "headers_too_large")
        assert cut_for("head_large") == before + 1


@pytest.mark.parametrize("sent", [b"\x16\x03\x01\x02\x00\x01\x00", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\nA b: c\r\n\r\n"])
@over_uvloop
async def test_what_is_no_http_is_a_problem_too_and_fills_no_log(sent: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with opened(PATIENT) as door:
        reader, _ = await door.open(sent)
        await require_refusal(reader, 400, "bad_request")
    assert caplog.records == []


@over_uvloop
async def test_an_answer_that_is_not_taken_ends_and_nothing_is_answered_behind_it() -> None:
    async with opened(Bounds(head_s=LONG_S, idle_s=LONG_S, answer_s=0.5)) as door:
        asked = ASKED.replace(b"small", b"large")
        before = cut_for("answer_slow")
        _, writer = await door.open(asked * 2)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await door.room.begun.get()
        while cut_for("answer_slow") == before:  # noqa: ASYNC110 - a counter sets no event
            await asyncio.sleep(0.01)
        assert door.room.begun.empty()


@over_uvloop
async def test_in_a_full_room_the_one_that_has_waited_longest_makes_room() -> None:
    async with opened(Bounds(head_s=LONG_S, idle_s=LONG_S, connections=3, connections_of_address=3)) as door:
        first = await door.open(ASKED)
        await answer_of(first[0])
        busy = await door.open(ASKED.replace(b"small", b"slow"))
        await door.room.begun.get()
        others = [await door.open(ASKED[:10])]
        await require_cut_when_another_comes(door, first[0])
        await require_cut_when_another_comes(door, others[0][0])
        door.room.may_end.set()
        assert (await answer_of(busy[0]))[2] == b"slow"


async def require_cut_when_another_comes(door: Door, reader: asyncio.StreamReader) -> None:
    newcomer, _ = await door.open(ASKED)
    assert (await answer_of(newcomer))[0] == 200
    await require_end(reader)


@pytest.mark.parametrize("proxies", [(), (ip_network("127.0.0.0/8"),)], ids=["address", "proxy"])
@over_uvloop
async def test_where_all_are_being_answered_the_newcomer_is_told_to_come_again(proxies: Sequence[Network]) -> None:
    most = 2 if proxies else 10
    bounds = Bounds(LONG_S, LONG_S, LONG_S, connections=most, connections_of_address=2)
    async with opened(bounds, proxies) as door:
        for _ in range(2):
            await door.open(ASKED.replace(b"small", b"slow"))
            await door.room.begun.get()
        reader, _ = await door.open()
        assert "too many connections" in await require_refusal(reader, 503, "unavailable")


@over_uvloop
async def test_nothing_waits_for_a_client_who_went_away_while_he_was_answered() -> None:
    async with opened(PATIENT) as door:
        _, writer = await door.open(ASKED.replace(b"small", b"slow"))
        await door.room.begun.get()
        [connection] = Watched.made
        writer.transport.abort()
        while connection.transport is not None:  # noqa: ASYNC110 - a connection sets no event
            await asyncio.sleep(0.001)
        door.room.may_end.set()
        await connection.finished.wait()
        assert connection.has_s() is None
