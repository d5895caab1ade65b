"""Connections: what a client may take up of us before it asks for something, while it asks, and while it is answered.

The HTTP library reads and answers requests; it waits for a head, and for an answer to be taken, for as long as the client
likes. Here every wait has an end. A head has to be there soon after the connection is made, or after its own first byte. A
connection that is kept for later is closed after a while. An answer has to be taken, and nothing is read on before it is. An
answer that refuses a head is a problem like any other; who has sent nothing yet is cut off without a word.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import cast

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from api.callers import Network, caller_of, is_within
from api.crowds import Crowds, household_of
from api.metrics import CONNECTIONS_CUT
from api.middleware import HEADERS
from api.problems import MEDIA_TYPE, Code, Refused, problem_document


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one connection, one address and all of them together may take up."""

    head_s: float = 10.0
    """From the connection, or from a later head's first byte, to the end of the head."""
    idle_s: float = 75.0
    """Between an answer and the next request: longer than the minute for which proxies keep connections."""
    answer_s: float = 60.0
    """For taking an answer: 5 MiB need a line of 90 kB a second."""
    head_bytes: int = 64 * 1024
    line_bytes: int = 8190
    """Of the request's first line, and of each header."""
    headers: int = 100
    connections: int = 4000
    connections_of_address: int = 1000


class Connection(web.RequestHandler):
    """One connection: the library's protocol, bounded. It waits until a head is whole, and then is answered."""

    def __init__(
        self, server: web.Server, bounds: Bounds, crowds: Crowds[Connection], proxies: Sequence[Network]
    ) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type]  # which the library takes for "no log"
            keepalive_timeout=bounds.idle_s,
            max_line_size=bounds.line_bytes,
            max_field_size=bounds.line_bytes,
            max_headers=bounds.headers,
            auto_decompress=False,  # a compressed body is refused by its route, whatever codings this machine can read
        )
        self._bounds = bounds
        self._crowds = crowds
        self._proxies = proxies
        self._wire: asyncio.Transport | None = None
        """The library forgets its own when it closes it, though what was written may still be waiting."""
        self._answered = 0
        self._head_bytes = 0
        """Of a head that has begun and is not whole."""
        self._is_body_over: Callable[[], bool] = _always
        """Of the request that was answered last: what we did not read of it comes before the next head."""
        self._patience: asyncio.TimerHandle | None = None
        self._taking: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Let the client in, and give it until its first head is whole."""
        super().connection_made(transport)
        self._wire = cast(asyncio.Transport, transport)
        leaver = self._crowds.enter(self, self._home())
        if leaver is self:
            self._refuse(Code.UNAVAILABLE, "too many connections are open; close some, or try again", "crowded")
        elif leaver is not None:
            leaver.cut("crowded")
        self._wait_at_most(self._bounds.head_s, self._give_up_head)

    def _home(self) -> Network | None:
        caller = caller_of(_peer_of(self._wire), (), self._proxies)
        return None if caller is None or is_within(caller, self._proxies) else household_of(caller)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget it."""
        self._crowds.leave(self)
        for timer in (self._patience, self._taking):
            if timer is not None:
                timer.cancel()
        self._wire = None  # what is still being answered shall not wait for who is gone
        self._is_body_over = _always  # it leads back to us: nothing is to wait for the collector of cycles
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on; what does not end a head, while one is waited for, is a part of one."""
        known, is_within_body = self._request_count, not self._is_body_over()
        super().data_received(data)
        if self._request_count != known:
            self._head_bytes = 0
            self._crowds.begin(self)
            self._wait_at_most(None)
        elif self._request_count == self._answered and data and not is_within_body:
            self._read_head(len(data))

    def _read_head(self, count: int) -> None:
        if not self._head_bytes and self._answered:
            self._wait_at_most(self._bounds.head_s, self._give_up_head)
        self._head_bytes += count
        if self._head_bytes > self._bounds.head_bytes:
            self._refuse(Code.HEADERS_TOO_LARGE, _too_large(self._bounds), "head_large")

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send an answer, and wait until most of it was taken: the library would go on and pile up the next ones."""
        finished, is_lost = await super().finish_response(request, resp, start_time)
        if not is_lost:
            try:
                await request.writer.drain()
            except ConnectionError:
                is_lost = True
        if self._wire is None:
            return finished, True
        self._answered += 1
        self._is_body_over = request.content.is_eof
        if self._answered == self._request_count:
            self._crowds.wait(self)
            self._wait_at_most(self._bounds.idle_s, self.cut, "idle")
        return finished, is_lost

    def pause_writing(self) -> None:
        """More waits to be taken than the system's buffers hold."""
        super().pause_writing()
        self._taking = asyncio.get_running_loop().call_later(self._bounds.answer_s, self.cut, "answer_slow")

    def resume_writing(self) -> None:
        """It was taken."""
        if self._taking is not None:
            self._taking.cancel()
        super().resume_writing()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what is no HTTP, or too large a head. What escapes our own handlers is a fault, and logged."""
        if status >= 500:
            super().handle_error(request, status, exc, message)
            refused = Refused(Code.INTERNAL, "this is our fault and was logged; name the request_id")
        elif isinstance(exc, LineTooLong) or "Too many headers" in str(message):
            CONNECTIONS_CUT.labels("head_large").inc()
            refused = Refused(Code.HEADERS_TOO_LARGE, _too_large(self._bounds))
        else:
            CONNECTIONS_CUT.labels("no_http").inc()
            refused = Refused(Code.BAD_REQUEST, "this is no HTTP/1.1 that can be read; send well-formed headers")
        return answer_to_head(refused)

    def cut(self, reason: str) -> None:
        """End the connection now, whatever waits to be taken."""
        self._crowds.leave(self)
        if self._wire is None:
            return
        if reason != "idle":
            CONNECTIONS_CUT.labels(reason).inc()
        self.force_close()
        self._wire.abort()

    def _give_up_head(self) -> None:
        """A browser may connect ahead of need: it is not told of a request that it never began."""
        if self._head_bytes:
            within = f"the head of the request did not arrive within {self._bounds.head_s:.0f} s"
            self._refuse(Code.REQUEST_TIMEOUT, f"{within}; send it again", "head_slow")
        else:
            self.cut("head_slow")

    def _refuse(self, code: Code, detail: str, reason: str) -> None:
        """Answer before there is a request, and close."""
        self._crowds.leave(self)
        if self._wire is None or self._wire.is_closing():
            return
        CONNECTIONS_CUT.labels(reason).inc()
        again = {"Retry-After": "2"} if code is Code.UNAVAILABLE else {}
        status, headers, body = _problem(Refused(code, detail, headers=again))
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        lines += [f"Content-Length: {len(body)}", "Connection: close", "", ""]
        self._wire.write("\r\n".join(lines).encode() + body)
        self.force_close()
        self._wait_at_most(self._bounds.head_s, self._wire.abort)  # for as long as the refusal is not taken

    def _wait_at_most(self, limit_s: float | None, give_up: Callable[..., None] | None = None, *words: str) -> None:
        """Do this unless something happens before; None: wait for ourselves, who have limits of our own."""
        if self._patience is not None:
            self._patience.cancel()
        if limit_s is None or give_up is None:
            self._patience = None
        else:
            self._patience = asyncio.get_running_loop().call_later(limit_s, give_up, *words)


def answer_to_head(refused: Refused) -> web.Response:
    """The answer to a request of which no more than the head is looked at: it is the connection's last."""
    status, headers, body = _problem(refused)
    answer = web.Response(status=status, body=body, headers=headers)
    answer.force_close()
    return answer


def _always() -> bool:
    return True


def _peer_of(transport: asyncio.Transport | None) -> str | None:
    peer = None if transport is None else transport.get_extra_info("peername")
    return str(peer[0]) if peer else None


def _too_large(bounds: Bounds) -> str:
    return (
        f"the headers are too large: at most {bounds.headers}, each of {bounds.line_bytes} bytes, and all of"
        f" {bounds.head_bytes}"
    )


def _problem(refused: Refused) -> tuple[int, dict[str, str], bytes]:
    request_id = f"req_{secrets.token_hex(12)}"
    document = problem_document(refused, request_id)
    headers = {**HEADERS, **refused.headers, "Content-Type": MEDIA_TYPE, "X-Request-Id": request_id}
    return document.status, headers, msgspec.json.encode(document)
