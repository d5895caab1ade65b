"""Answers that say more than they may: what was accepted stays accepted, and nothing is that was not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_network

import pytest

from ledger.secrets import new_endpoint_secret
from ledger.states import Outcome
from ledger.urls import EndpointPolicy
from notifier.bounds import make_bounded_response
from notifier.sender import Sender, SendRequest

POLICY = EndpointPolicy(allow_http=True, allow_private=(ip_network("127.0.0.0/8"),))
BODY = b'{"id":"evt_1"}'


@asynccontextmanager
async def answering(answer: bytes, connections: int) -> AsyncIterator[tuple[str, int]]:
    """A server that answers each request by these bytes, until so many connections are over."""
    over = asyncio.Semaphore(0)

    async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await reader.readuntil(BODY)
                writer.write(answer)
        except asyncio.IncompleteReadError:
            writer.close()
            await writer.wait_closed()
        finally:
            over.release()

    server = await asyncio.start_server(_serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()
        async with asyncio.timeout(240):
            for _ in range(connections):
                await over.acquire()
    finally:
        server.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 204 No Content\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.0 204 No Content\r\ncontent-type: text/plain\r\n\r\nok",
    ],
)
async def test_what_follows_a_204_does_not_unsay_it(answer: bytes) -> None:
    async with answering(answer, 2) as (host, port), Sender(POLICY, version="1") as sender:
        request = SendRequest(f"http://{host}:{port}/hook", "evt_1", BODY, (new_endpoint_secret(),))
        for _ in range(2):
            result = await sender.send(request)
            assert (result.outcome, result.status_code, result.error) == (Outcome.ACCEPTED, 204, None)


async def test_a_connection_is_not_used_again_on_which_something_was_said_unasked() -> None:
    loop = asyncio.get_running_loop()
    async with answering(b"", 1) as (host, port):
        _, protocol = await loop.create_connection(lambda: make_bounded_response(loop), host, port)
        protocol.set_response_params()
        protocol.data_received(b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n")
        message, _ = await protocol.read()
        assert (message.code, protocol.is_connected()) == (500, True)
        protocol.data_received(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        assert not protocol.is_connected()
        protocol.close()
