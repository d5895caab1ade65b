"""A merchant's server that misbehaves on request: real HTTP on a free port, with answers that change mid-test.

async with running_receiver(secrets=[secret]) as receiver:
    receiver.script(answer(500), hang())            # the next two requests
    receiver.behaviour = answer(204)                # every other one
    ...
    await receiver.wait_until("three requests came", lambda: len(receiver.requests) == 3)
    assert all(request.is_signed for request in receiver.requests)
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from aiohttp import web
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from tests.fakes.ending import end

Behaviour = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class ReceivedRequest:
    """One request as it came, and whether its signature holds by the public library."""

    event_id: str
    timestamp: str
    received_at: datetime
    path: str
    body: bytes
    headers: dict[str, str]
    is_signed: bool
    peer: tuple[str, int]
    """The sender's address and port: equal ports mean one kept connection."""

    @property
    def document(self) -> dict[str, Any]:
        """The body read as a JSON object."""
        document: dict[str, Any] = json.loads(self.body)
        return document


@dataclass(slots=True)
class Receiver:
    """What a test holds of the running server."""

    secrets: list[str]
    behaviour: Behaviour
    url: str = ""
    requests: list[ReceivedRequest] = field(default_factory=list)
    _script: deque[Behaviour] = field(default_factory=deque)
    _by_event: dict[str, Behaviour] = field(default_factory=dict)
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    def script(self, *behaviours: Behaviour) -> None:
        """Answer the next requests by these, one each, before `behaviour` applies again."""
        self._script.extend(behaviours)

    def script_event(self, event_id: str, behaviour: Behaviour) -> None:
        """Answer every request for one event by `behaviour`, whatever else is scripted."""
        self._by_event[event_id] = behaviour

    def of_event(self, event_id: str) -> list[ReceivedRequest]:
        """The requests for one event, in the order in which they came."""
        return [request for request in self.requests if request.event_id == event_id]

    async def wait_until(self, what: str, condition: Callable[[], bool], deadline_s: float = 120.0) -> None:
        """Return as soon as `condition` holds, asked again at every request; fail naming `what` at the deadline."""
        try:
            async with asyncio.timeout(deadline_s), self._changed:
                await self._changed.wait_for(condition)
        except TimeoutError:
            raise AssertionError(f"not within {deadline_s} s: {what}; {len(self.requests)} requests came") from None

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Record a request and answer it as scripted."""
        body = await request.read()
        received = self._record(request, body)
        async with self._changed:
            self.requests.append(received)
            self._changed.notify_all()
        return await self._next_behaviour(received.event_id)(request)

    def _record(self, request: web.BaseRequest, body: bytes) -> ReceivedRequest:
        headers = {name.lower(): value for name, value in request.headers.items()}
        return ReceivedRequest(
            event_id=headers.get("webhook-id", ""),
            timestamp=headers.get("webhook-timestamp", ""),
            received_at=datetime.now(UTC),
            path=request.path_qs,
            body=body,
            headers=headers,
            is_signed=any(_verifies(secret, body, headers) for secret in self.secrets),
            peer=request.transport.get_extra_info("peername")[:2] if request.transport else ("", 0),
        )

    def _next_behaviour(self, event_id: str) -> Behaviour:
        if event_id in self._by_event:
            return self._by_event[event_id]
        return self._script.popleft() if self._script else self.behaviour


def _verifies(secret: str, body: bytes, headers: dict[str, str]) -> bool:
    try:
        Webhook(secret).verify(body, headers, json_parse=False)
    except (WebhookVerificationError, ValueError):
        return False
    return True


def answer(status: int = 204, body: bytes = b"", **headers: str) -> Behaviour:
    """An ordinary answer. Underscores in header names become hyphens."""

    async def behave(_: web.BaseRequest) -> web.StreamResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(status=status, body=body, headers=named)

    return behave


def redirect(location: str, status: int = 302) -> Behaviour:
    """Send the caller elsewhere."""
    return answer(status, location=location)


def gzip_bomb(compressed: bytes) -> Behaviour:
    """A body that says it is compressed."""
    return answer(200, compressed, content_encoding="gzip")


def cookie(value: str) -> Behaviour:
    """Set a cookie for the whole host."""
    return answer(200, b"ok", set_cookie=f"session={value}; Path=/")


def hang() -> Behaviour:
    """Never answer; the caller has to leave."""

    async def behave(_: web.BaseRequest) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError("an event that nobody sets was set")

    return behave


def wait_for(release: asyncio.Event) -> Behaviour:
    """Accept as soon as an event is set."""

    async def behave(_: web.BaseRequest) -> web.StreamResponse:
        await release.wait()
        return web.Response(status=204)

    return behave


def drip(interval_s: float, status: int = 200) -> Behaviour:
    """Answer the headers at once and then one byte at a time, without end."""

    async def behave(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(status=status)
        await response.prepare(request)
        while True:
            await response.write(b".")
            await asyncio.sleep(interval_s)

    return behave


def drip_headers(interval_s: float) -> Behaviour:
    """Drip a header that never ends, so that no status ever comes."""

    async def behave(request: web.BaseRequest) -> web.StreamResponse:
        transport = request.transport
        assert transport is not None
        transport.write(b"HTTP/1.1 200 OK\r\nx-slow: ")
        while not transport.is_closing():
            transport.write(b"a")
            await asyncio.sleep(interval_s)
        raise ConnectionResetError

    return behave


def endless(chunk: bytes = b"x" * 65536) -> Behaviour:
    """A body that never ends, as fast as it is taken."""

    async def behave(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(chunk)

    return behave


def raw(data: bytes) -> Behaviour:
    """Write these bytes in place of an answer and close."""

    async def behave(request: web.BaseRequest) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.write(data)
        request.transport.close()
        raise ConnectionResetError

    return behave


def reset() -> Behaviour:
    """Drop the connection without an answer."""

    async def behave(request: web.BaseRequest) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        raise ConnectionResetError

    return behave


@asynccontextmanager
async def running_receiver(
    *,
    secrets: Sequence[str] = (),
    behaviour: Behaviour | None = None,
    host: str = "127.0.0.1",
    ssl_context: ssl.SSLContext | None = None,
) -> AsyncIterator[Receiver]:
    """Serve on a free port of `host` until the block is left; hanging requests are cut off then."""
    receiver = Receiver(secrets=list(secrets), behaviour=behaviour or answer(204))
    server = web.Server(receiver.handle, access_log=None, handler_cancellation=True)
    runner = web.ServerRunner(server, shutdown_timeout=0)
    await runner.setup()
    site = web.TCPSite(runner, host, 0, ssl_context=ssl_context)
    await site.start()
    try:
        port = runner.addresses[0][1]
        literal = f"[{host}]" if ":" in host else host
        receiver.url = f"{'https' if ssl_context else 'http'}://{literal}:{port}/hook"
        yield receiver
    finally:
        await end(runner)
