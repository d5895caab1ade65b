"""One signed POST to one endpoint: the only place where bytes leave for merchants.

A receiver is somebody else's program and may do anything: hang, drip, reset, redirect, answer without end, set cookies,
compress a bomb. None of it raises here, none of it holds a slot longer than the limit, none of it costs more memory
than the limit, none of it is remembered for the next endpoint. `Sender.send` always returns an attempt.

One session lives per process, with one TLS context: building either per delivery costs more than the delivery. Slots
and order are the dispatcher's business.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache, partial
from types import TracebackType
from typing import Self

import aiohttp
import msgspec
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from yarl import URL

from ledger.redaction import hide_secrets
from ledger.states import Outcome
from ledger.urls import EndpointPolicy, RefusedAddress, UnsafeUrl, parse_endpoint_url
from notifier.bounds import EXCHANGE_BYTES_MAX, AnswerTooLarge
from notifier.errors import CannotSign
from notifier.guard import DNS_CACHE_S, GuardedConnector, RefusedSocket, VettingResolver, lookup_addresses
from notifier.names import Lookup, NotLookedUp
from notifier.outcome import AttemptError, judge
from notifier.signing import webhook_headers

FROZEN_S = 1.0
"""How late a time limit is seen before it is this process that stood still, and how long then what came is read."""

READ_BODY_S = 2.0
"""How long an answer's body is waited for, once its status is there. It is only shown; a slot is worth more."""

ANSWER_KEPT_BYTES_MAX = 4 * 1024
"""How much of an answer is kept with the attempt."""


URLS_REMEMBERED = 4096
"""Endpoints whose URL need not be parsed again for each delivery."""


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """How long one attempt may take, in seconds."""

    total_s: float = 20.0
    """The whole exchange, from looking up the name to the last byte that is read."""
    connect_s: float = 5.0
    """TCP and TLS together, for each address."""
    dns_s: float = 3.0


@dataclass(frozen=True, slots=True)
class SendRequest:
    """One attempt to make."""

    url: str
    """As stored; it is judged again under today's policy."""
    event_id: str
    body: bytes
    """The event's stored bytes: signed and sent as they are."""
    secrets: tuple[str, ...] = field(repr=False)
    """Live secrets of the endpoint, the newest first."""


class AttemptResult(msgspec.Struct, frozen=True):
    """What became of one attempt, as it is stored."""

    started_at: datetime
    duration_ms: int
    outcome: Outcome
    status_code: int | None
    error: AttemptError | None
    response_excerpt: str | None
    """The start of the answer's body as text, fit for Postgres; None when no answer came."""
    retry_after: str | None
    """The header as it came; `notifier/backoff.py` judges it."""


@dataclass(slots=True)
class _Exchange:
    """What has come of the answer so far: it outlives a time limit that cuts the exchange off."""

    status_code: int | None = None
    retry_after: str | None = None
    received: bytearray = field(default_factory=bytearray)
    was_frozen: bool = False
    """This process stood still while the time limit passed."""

    def excerpt(self) -> str | None:
        """The start of the answer as text that Postgres keeps; None when none came."""
        if self.status_code is None:
            return None
        # Hidden before it is cut, which might leave a part of a secret. Latin-1 stands for any bytes, one by one.
        safe = hide_secrets(self.received.decode("latin-1")).encode("latin-1")
        text = safe[:ANSWER_KEPT_BYTES_MAX].decode("utf-8", errors="replace")
        return text.replace("\0", "\N{REPLACEMENT CHARACTER}")  # Postgres keeps no NUL in text


def utc_now() -> datetime:
    """The clock that attempts are stamped with outside tests."""
    return datetime.now(UTC)


class Sender:
    """Sends attempts while it is entered (`async with`); safe for many at once."""

    def __init__(
        self,
        policy: EndpointPolicy,
        *,
        version: str,
        limits: TimeLimits | None = None,
        ssl_context: ssl.SSLContext | None = None,
        lookup: Lookup = lookup_addresses,
        dns_cache_s: int = DNS_CACHE_S,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        """`version` is Chainbell's, told in the user agent. The rest is for tests and unusual installations."""
        self._policy = policy
        # The verdict on a URL depends on nothing but its text and the policy; what it resolves to is judged at connect.
        self._judge_url = lru_cache(URLS_REMEMBERED)(partial(_judged_url, policy=policy))
        self._user_agent = f"Chainbell/{version}"
        self.limits = limits or TimeLimits()
        self._ssl_context = ssl_context
        self._lookup = lookup
        self._dns_cache_s = dns_cache_s
        self._clock = clock
        self._resolver: VettingResolver | None = None
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        ssl_context = self._ssl_context or ssl.create_default_context()
        self._resolver = VettingResolver(self._policy, self._lookup, self.limits.dns_s)
        self._session = aiohttp.ClientSession(
            connector=GuardedConnector(self._policy, self._resolver, ssl_context, self._dns_cache_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,  # a proxy from the environment would make the connection for us, behind the guard's back
            auto_decompress=False,
            read_bufsize=EXCHANGE_BYTES_MAX,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self.limits.connect_s),
            headers={
                "content-type": "application/json",
                "user-agent": self._user_agent,
                "accept-encoding": "identity",
            },
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None and self._resolver is not None:
            await self._session.close()
            await self._resolver.close()

    async def send(self, request: SendRequest) -> AttemptResult:
        """Make one attempt. Raises nothing for anything that a receiver, a URL or a name server does."""
        started_at, started = self._clock(), time.monotonic()
        exchange = _Exchange()
        error = await self._run(request, started_at, exchange)
        judgement = judge(exchange.status_code, error)
        return AttemptResult(
            started_at=started_at,
            duration_ms=round((time.monotonic() - started) * 1000),
            outcome=judgement.outcome,
            status_code=exchange.status_code,
            error=judgement.error,
            response_excerpt=exchange.excerpt(),
            retry_after=exchange.retry_after,
        )

    def abandoned(self, began_at: float) -> AttemptResult:
        """An attempt that was broken off by us; `began_at` is of the monotonic clock."""
        elapsed_s = time.monotonic() - began_at
        started_at = self._clock() - timedelta(seconds=elapsed_s)
        word = AttemptError.ABANDONED
        return AttemptResult(started_at, round(elapsed_s * 1000), Outcome.RETRYABLE, None, word, None, None)

    async def _run(self, request: SendRequest, started_at: datetime, exchange: _Exchange) -> AttemptError | None:
        """Post within the time limit and name what ended it early, if anything did."""
        try:
            url = self._judge_url(request.url)
            headers = webhook_headers(request.event_id, started_at, request.body, request.secrets)
            async with asyncio.timeout(None) as limit:
                expiry = self._expire_later(limit, exchange)
                try:
                    await self._post(url, headers, request.body, exchange)
                finally:
                    expiry.cancel()
        except (aiohttp.ClientError, HttpProcessingError, OSError, ValueError, CannotSign) as error:
            is_ours = exchange.was_frozen and isinstance(error, TimeoutError)
            return AttemptError.ABANDONED if is_ours else attempt_error_of(error)
        return None

    def _expire_later(self, limit: asyncio.Timeout, exchange: _Exchange) -> asyncio.TimerHandle:
        """Let the time limit pass, but not unheard: a process that stood still (a paused machine, a stopped one) finds
        answers in its sockets and timers that ran out at one moment, and must not take the one for the other."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.limits.total_s

        def _expire() -> None:
            exchange.was_frozen = loop.time() - deadline > FROZEN_S
            limit.reschedule(loop.time() + (FROZEN_S if exchange.was_frozen else 0.0))

        return loop.call_at(deadline, _expire)

    async def _post(self, url: URL, headers: dict[str, str], body: bytes, exchange: _Exchange) -> None:
        if self._session is None:
            raise RuntimeError("enter the Sender (async with) before sending")
        async with self._session.post(url, data=body, headers=headers, allow_redirects=False) as response:
            exchange.status_code = response.status
            exchange.retry_after = response.headers.get("retry-after")
            await _read_start(response, exchange.received)


def _judged_url(text: str, policy: EndpointPolicy) -> URL:
    """The URL for aiohttp, which must read the same host and port in it as we did. Raises `UnsafeUrl`."""
    endpoint = parse_endpoint_url(text, policy)
    url = URL(endpoint.text, encoded=True)
    if (url.raw_host, url.port) != (endpoint.host, endpoint.port):
        raise UnsafeUrl("the URL is read differently by different programs; write it more plainly")
    return url


async def _read_start(response: aiohttp.ClientResponse, received: bytearray) -> None:
    """Read until the end or a limit; there the connection is closed, since the rest would be in its way. The status has
    decided: what is read is only shown."""
    content = response.content
    if content.is_eof():  # all of it came with the status, as with most receivers: nothing to wait for
        received += content.read_nowait(EXCHANGE_BYTES_MAX)
    else:
        await _read_what_comes(content, received)
    if not content.at_eof():
        response.close()


async def _read_what_comes(content: aiohttp.StreamReader, received: bytearray) -> None:
    try:
        async with asyncio.timeout(READ_BODY_S):
            while len(received) < EXCHANGE_BYTES_MAX:
                chunk = await content.read(EXCHANGE_BYTES_MAX - len(received))
                if not chunk:
                    return
                received += chunk
    except TimeoutError:
        return


_ERRORS: tuple[tuple[type[BaseException], AttemptError], ...] = (
    (CannotSign, AttemptError.UNSIGNABLE),
    (RefusedAddress, AttemptError.REFUSED_ADDRESS),
    (UnsafeUrl, AttemptError.BAD_URL),
    (AnswerTooLarge, AttemptError.TOO_LARGE),
    (TimeoutError, AttemptError.TIMEOUT),
    (aiohttp.ClientConnectorCertificateError, AttemptError.TLS),
    (aiohttp.ClientConnectorSSLError, AttemptError.TLS),
    (ssl.SSLError, AttemptError.TLS),
    (aiohttp.ClientConnectorDNSError, AttemptError.DNS),
    (aiohttp.ClientConnectorError, AttemptError.CONNECT),
    (aiohttp.InvalidURL, AttemptError.BAD_URL),
    (aiohttp.ClientConnectionError, AttemptError.RESET),
    (aiohttp.ClientError, AttemptError.PROTOCOL),
    (HttpProcessingError, AttemptError.PROTOCOL),
    (OSError, AttemptError.RESET),
    (ValueError, AttemptError.BAD_HEADER),
)
"""First match wins, so special comes before general."""


def attempt_error_of(error: BaseException) -> AttemptError:
    """The word that is stored for an exception of one exchange."""
    if isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, RefusedSocket):
        return AttemptError.REFUSED_ADDRESS
    if isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, NotLookedUp):
        return AttemptError.ABANDONED
    if any(isinstance(cause, LineTooLong) for cause in _causes(error)):
        return AttemptError.TOO_LARGE
    return next(word for kind, word in _ERRORS if isinstance(error, kind))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
