"""Answers without end: each is left after 16 KiB, whatever part of HTTP it is that never ends."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_network

import pytest

from ledger.secrets import new_endpoint_secret
from ledger.states import Outcome
from ledger.urls import EndpointPolicy
from notifier.outcome import AttemptError
from notifier.sender import Sender, SendRequest

POLICY = EndpointPolicy(allow_http=True, allow_private=(ip_network("127.0.0.0/8"),))
SECRET = new_endpoint_secret()
SENT_BYTES_MAX = 48 * 1024 * 1024
"""Where a bomb gives up. The kernel's own buffers between two sockets hold a few MiB of it unread."""
TAKEN_BYTES_MAX = 16 * 1024 * 1024
RSS_GROWTH_KIB_MAX = 20 * 1024

CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
EARLY = b"HTTP/1.1 103 Early Hints\r\n" + b"".join(b"x-%d: %s\r\n" % (n, b"a" * 8000) for n in range(12)) + b"\r\n"


@dataclass
class Bomb:
    """A server that answers with `head` and then `unit` over and over, until it is left."""

    head: bytes
    unit: bytes
    url: str = ""
    sent: int = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Send until the other side is gone or the limit is reached."""
        block = self.unit * max(1, 65536 // len(self.unit))
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(self.head)
            while self.sent < SENT_BYTES_MAX:
                writer.write(block)
                await writer.drain()
                self.sent += len(block)
        except OSError:
            pass  # it was left, as it should be
        finally:
            writer.close()


@asynccontextmanager
async def ticking(head: bytes, unit: bytes) -> AsyncIterator[Bomb]:
    """A bomb on a free port of loopback."""
    bomb = Bomb(head, unit)
    server = await asyncio.start_server(bomb.answer, "127.0.0.1", 0)
    bomb.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    async with server:
        yield bomb


@pytest.mark.parametrize(
    ("head", "unit", "status", "error"),
    [
        pytest.param(b"", b"HTTP/1.1 100 Continue\r\n\r\n", None, AttemptError.TOO_LARGE, id="100 Continue"),
        pytest.param(b"", EARLY, None, AttemptError.TOO_LARGE, id="early hints"),
        pytest.param(b"", b"\r\n", None, AttemptError.TOO_LARGE, id="empty lines before the status"),
        pytest.param(b"HTTP/1.1 200 ", b"a", None, AttemptError.TOO_LARGE, id="reason"),
        pytest.param(b"HTTP/1.1 200 OK\r\nx: ", b"a", None, AttemptError.TOO_LARGE, id="one header"),
        pytest.param(b"HTTP/1.1 200 OK\r\n", b"x: %s\r\n" % (b"a" * 4000), None, AttemptError.TOO_LARGE, id="headers"),
        pytest.param(CHUNKED + b"1;", b"a", 200, None, id="extension of a chunk"),
        pytest.param(CHUNKED, b"1\r\nx\r\n", 200, None, id="chunks of one byte"),
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\n", b"x", 200, None, id="body without a length"),
    ],
)
async def test_what_never_ends_is_left_after_16_kib(
    head: bytes, unit: bytes, status: int | None, error: AttemptError | None
) -> None:
    async with ticking(head, unit) as bomb, Sender(POLICY, version="1") as sender:
        before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        result = await sender.send(SendRequest(bomb.url, "evt_1", b"{}", (SECRET,)))
        assert (result.status_code, result.error) == (status, error)
        assert result.outcome is (Outcome.ACCEPTED if status else Outcome.RETRYABLE)
        assert bomb.sent < TAKEN_BYTES_MAX
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < RSS_GROWTH_KIB_MAX


async def test_trailers_without_end_are_refused_by_their_number() -> None:
    """Whether the status is known by then depends on how the bytes come: together with the trailers or before them."""
    async with ticking(CHUNKED + b"0\r\n", b"x: a\r\n") as bomb, Sender(POLICY, version="1") as sender:
        result = await sender.send(SendRequest(bomb.url, "evt_1", b"{}", (SECRET,)))
        assert (result.status_code, result.error) in {(200, None), (None, AttemptError.PROTOCOL)}
        assert bomb.sent < TAKEN_BYTES_MAX


async def test_what_came_before_the_limit_is_kept_with_the_attempt() -> None:
    async with ticking(b"HTTP/1.1 500 Oops\r\n\r\n", b"x") as bomb, Sender(POLICY, version="1") as sender:
        result = await sender.send(SendRequest(bomb.url, "evt_1", b"{}", (SECRET,)))
    assert (result.outcome, result.status_code, result.error) == (Outcome.RETRYABLE, 500, None)
    assert result.response_excerpt == "x" * 4096


async def test_the_limit_is_each_exchange_s_and_not_the_connection_s() -> None:
    peers: set[object] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peers.add(writer.get_extra_info("peername"))
        while not reader.at_eof():
            try:
                await reader.readuntil(b"\r\n\r\n{}")
            except asyncio.IncompleteReadError:
                break
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 10000\r\n\r\n" + b"y" * 10_000)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    request = SendRequest(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", "evt_1", b"{}", (SECRET,))
    async with server, Sender(POLICY, version="1") as sender:
        results = [await sender.send(request) for _ in range(5)]
    assert [result.outcome for result in results] == [Outcome.ACCEPTED] * 5
    assert len(peers) == 1
