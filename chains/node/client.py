"""JSON-RPC over HTTP for one node: time-outs, retries, bounds, and errors as a tree.

A client never believes an answer further than JSON-RPC goes; what is in the answer is proven elsewhere. It repeats a
call only where asking again may help (`NodeBusy`), a few times and with jitter, because several followers that come
back at the same instant are how a recovering node is brought down again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from itertools import count
from typing import TypeVar

import aiohttp
import msgspec
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    wait_random_exponential,
)

from chains.model import Slug
from chains.node.errors import (
    AnswerTooLarge,
    NodeBusy,
    NodeDenied,
    NodeError,
    NodeGarbled,
    NodeOverloaded,
    NodeTimeout,
    NodeUnreachable,
    RpcError,
)
from chains.node.jsonrpc import BatchRefused, Call, fault_of, read_answer, read_answers, write_batch, write_call
from chains.node.metrics import NODE_REQUESTS
from chains.node.naming import host_of, one_line, secrets_in
from chains.node.pace import Pace

CONNECT_TIMEOUT_S = 3.0
TOTAL_TIMEOUT_S = 10.0
TRIES_MAX = 3
RETRY_AFTER_MAX_S = 5.0
"""A node that asks for more patience than this is left for the next one."""
ANSWER_BYTES_MAX = 64 * 1024 * 1024
"""The largest answers known are blocks stuffed with logs, about 30 MB; a peer died of one without a bound."""
BATCH_MAX = 50
IN_FLIGHT_MAX = 16
"""Requests that one node has to answer at the same time: more would only wait for each other there."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How long a whole answer may take, and how large it may be: the node's own where a call asks for no others."""

    timeout_s: float = TOTAL_TIMEOUT_S
    answer_bytes_max: int = ANSWER_BYTES_MAX


T = TypeVar("T")
_jitter = wait_random_exponential(multiplier=0.25, max=2.0)


def open_session() -> aiohttp.ClientSession:
    """The one HTTP session of a process for its nodes: no cookies, no proxies from the environment.

    Must be called inside a running loop; the caller closes it.
    """
    return aiohttp.ClientSession(
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        headers={"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "Chainbell"},
    )


class NodeClient:
    """One node. `name` and `host` are fit for logs; the URL is not, and leaves this class only as HTTP."""

    def __init__(
        self,
        chain: Slug,
        name: str,
        url: str,
        session: aiohttp.ClientSession,
        rps: float | None = None,
        timeout_s: float = TOTAL_TIMEOUT_S,
        answer_bytes_max: int = ANSWER_BYTES_MAX,
    ) -> None:
        self.name = name
        self.host = host_of(url)
        self.batch_max = BATCH_MAX
        """How many calls the node takes in one batch, as far as we have learnt; 1: none."""
        self._chain = chain
        self._url = url
        self._secrets = secrets_in(url)
        self._session = session
        self._pace = Pace(rps)
        self._places = asyncio.Semaphore(IN_FLIGHT_MAX)
        self._bounds = Bounds(timeout_s, answer_bytes_max)
        self._ids = count(1)

    def backlog_s(self) -> float:
        """How long a call that comes now would wait for the node's pace."""
        return self._pace.backlog_s()

    async def call(self, method: str, params: Sequence[object] = (), bounds: Bounds | None = None) -> msgspec.Raw:
        """The result of one call, as raw JSON; `bounds` for one that may take longer, or more, than others. Raises a
        `NodeError`."""
        within = bounds or self._bounds

        async def _ask() -> msgspec.Raw:
            request_id = next(self._ids)
            body = await self._post(write_call((method, params), request_id), 1, within)
            return read_answer(self.name, body, method, request_id)

        return await self._patiently([method], _ask, within)

    async def batch(self, calls: Sequence[Call]) -> list[msgspec.Raw | RpcError]:
        """The results of several calls, in their order; a call's own `RpcError` stands in its place.

        Sent as one batch where the node takes one of that length, else as several, down to single calls: what it takes
        is learnt once. Raises a `NodeError` where there is no whole answer.
        """
        results: list[msgspec.Raw | RpcError] = []
        while len(results) < len(calls):
            part = calls[len(results) : len(results) + self.batch_max]
            try:
                results += [await self._alone(part[0])] if len(part) == 1 else await self._together(part)
            except BatchRefused:
                results += [await self._alone(call) for call in part]
                self.batch_max = len(part) // 2
        return results

    async def _together(self, calls: Sequence[Call]) -> list[msgspec.Raw | RpcError]:
        methods = [method for method, _ in calls]

        async def _ask() -> list[msgspec.Raw | RpcError]:
            ids = [next(self._ids) for _ in calls]
            body = await self._post(write_batch(calls, ids[0]), len(calls), self._bounds)
            return read_answers(self.name, body, methods, ids[0])

        return await self._patiently(methods, _ask, self._bounds)

    async def _alone(self, call: Call) -> msgspec.Raw | RpcError:
        try:
            return await self.call(*call)
        except RpcError as error:
            return error

    async def _patiently(self, methods: Sequence[str], ask: Callable[[], Awaitable[T]], bounds: Bounds) -> T:
        """Ask, again where that may help, and count every try."""
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(NodeBusy),
            stop=lambda state: _is_enough(state, bounds.timeout_s),
            wait=_wait_s,
            reraise=True,
        )

        async def _once() -> T:
            try:
                answer = await ask()
            except NodeError as error:
                error.hide(self._secrets)
                self._count(methods, error.outcome)
                if isinstance(error, NodeOverloaded):
                    self._pace.slow_down()
                raise
            self._pace.note_answer(len(methods))
            self._note_answers(methods, answer)
            return answer

        return await retrying(_once)

    def _count(self, methods: Sequence[str], outcome: str) -> None:
        for method in methods:
            NODE_REQUESTS.labels(self._chain, self.name, method, outcome).inc()

    def _note_answers(self, methods: Sequence[str], answer: object) -> None:
        results = answer if isinstance(answer, list) else [answer]
        for method, result in zip(methods, results, strict=True):
            if isinstance(result, RpcError):
                result.hide(self._secrets)
            self._count([method], result.outcome if isinstance(result, RpcError) else "ok")

    async def _post(self, body: bytes, calls: int, bounds: Bounds) -> bytes:
        await self._pace.wait(calls)
        try:
            async with self._places:
                return await self._exchange(body, bounds)
        except TimeoutError:
            raise NodeTimeout(self.name, f"no whole answer in {bounds.timeout_s:g} s") from None
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, OSError) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise NodeUnreachable(self.name, f"connection failed: {one_line(reason)}") from None
        except aiohttp.ClientError as error:
            raise NodeGarbled(self.name, f"not HTTP: {type(error).__name__}") from None

    async def _exchange(self, body: bytes, bounds: Bounds) -> bytes:
        timeout = aiohttp.ClientTimeout(bounds.timeout_s, sock_connect=min(CONNECT_TIMEOUT_S, bounds.timeout_s))
        async with self._session.post(
            self._url, data=body, timeout=timeout, allow_redirects=False, headers=self._encoding()
        ) as response:
            answer = await self._read(response, bounds.answer_bytes_max)
            if response.status != 200:
                raise self._http_error(response, answer)
            return answer

    async def _read(self, response: aiohttp.ClientResponse, bytes_max: int) -> bytes:
        """The body, uncompressed, and never more of it than the bound."""
        parts, size = [], 0
        async for part in response.content.iter_any():
            parts.append(part)
            size += len(part)
            if size > bytes_max:
                raise AnswerTooLarge(self.name, f"an answer of more than {bytes_max} bytes")
        return b"".join(parts)

    def _encoding(self) -> dict[str, str]:
        """Unpacking a block costs more than parsing it: worth it over a network, not over loopback."""
        is_near = self.host in ("127.0.0.1", "::1", "localhost")
        return {"Accept-Encoding": "identity" if is_near else "gzip"}

    def _http_error(self, response: aiohttp.ClientResponse, body: bytes) -> NodeError:
        status = response.status
        if status in (401, 403):
            return NodeDenied(
                self.name, f"HTTP {status}: the key in the node's url is wrong, spent or not allowed here"
            )
        if status == 429:
            return NodeOverloaded(self.name, "HTTP 429: too many requests", _retry_after_s(response))
        fault = fault_of(self.name, body, f"HTTP {status}")
        if fault is not None:
            return fault
        if status >= 500:
            return NodeOverloaded(self.name, f"HTTP {status}", _retry_after_s(response))
        return NodeGarbled(self.name, f"HTTP {status}, not JSON-RPC: is the URL that of a JSON-RPC server?")


def _is_enough(state: RetryCallState, timeout_s: float) -> bool:
    """Tries are used up, or time is, or the node asks for more patience than we have."""
    is_late = (state.seconds_since_start or 0.0) >= timeout_s
    return state.attempt_number >= TRIES_MAX or is_late or (_asked_s(state) or 0.0) > RETRY_AFTER_MAX_S


def _retry_after_s(response: aiohttp.ClientResponse) -> float | None:
    """`Retry-After` in seconds (RFC 9110, 10.2.3). A date is read against the answer's own `Date`, whatever our clock says;
    without one, or where either is malformed, there is none."""
    value = response.headers.get("Retry-After", "")
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        until, now = (parsedate_to_datetime(text) for text in (value, response.headers.get("Date", "")))
        return max(0.0, (until - now).total_seconds())
    except (TypeError, ValueError):
        return None


def _asked_s(state: RetryCallState) -> float | None:
    error = state.outcome.exception() if state.outcome else None
    return error.retry_after_s if isinstance(error, NodeOverloaded) else None


def _wait_s(state: RetryCallState) -> float:
    return max(_asked_s(state) or 0.0, _jitter(state))
