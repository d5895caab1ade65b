"""Reading a tenant's feed over the REST API, as any backend would: for commands that run far from the database.

The key goes to the API and nowhere else: no redirect is followed with it, and no text of an error repeats it.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import aiohttp
import msgspec
from yarl import URL

from chainbell.errors import ChainbellError, UsageError
from ledger.keys import MalformedKey, parse_key

ANSWER_LIMIT_S = 20.0
"""How long an answer may take, beside the time that was asked to be waited."""

CONNECT_LIMIT_S = 5.0
BUSY = (408, 429)
"""Statuses below 500 that say nothing but "later"."""

WRONG_INPUT = (400, 422)


class FeedUnavailable(ChainbellError):
    """Ask again in a while: the API is away or busy."""


class FeedRefused(ChainbellError):
    """Stop: this key, or whoever answers at this URL, will not do."""


@dataclass(frozen=True, slots=True)
class FeedEvent:
    """An event as the feed holds it."""

    id: str
    type: str
    body: bytes
    """Its exact bytes: what webhooks are signed over."""


@dataclass(frozen=True, slots=True)
class FeedPage:
    """Some events in their order, and the cursor that goes on after them."""

    events: tuple[FeedEvent, ...]
    next_cursor: str


class _Head(msgspec.Struct, frozen=True):
    id: str
    type: str


class _Page(msgspec.Struct, frozen=True):
    data: list[msgspec.Raw]
    next_cursor: str


class _Problem(msgspec.Struct, frozen=True):
    detail: str


def parse_api_url(text: str) -> URL:
    """The base URL of an API. Raises `UsageError`, which repeats no credentials."""
    try:
        url = URL(text.rstrip("/"))
        is_plain = url.scheme in ("http", "https") and bool(url.host) and url.port is not None
    except ValueError:
        is_plain = False
    if not is_plain or url.user or url.password or url.query_string or url.fragment:
        raise UsageError("--api must be the URL of a Chainbell API and nothing more, such as http://127.0.0.1:8080")
    return url


def check_key(text: str) -> str:
    """The key without what surrounds it when it is pasted. Raises `UsageError`."""
    key = text.strip()
    try:
        parse_key(key)
    except MalformedKey as error:
        raise UsageError(f"--key: {error}") from None
    return key


class Feed:
    """A tenant's feed while it is entered (`async with`)."""

    def __init__(self, api: URL, key: str) -> None:
        """`api` and `key` are checked ones."""
        self.api = api
        self._key = key
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {self._key}"}, cookie_jar=aiohttp.DummyCookieJar()
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def read(self, place: Mapping[str, str], *, wait_s: int = 0) -> FeedPage:
        """The page at a place (`after` or `since`), held back for up to `wait_s` seconds while it is empty.

        Raises `FeedUnavailable`, `FeedRefused`, and `UsageError` for a place that there is not."""
        status, content = await self._ask(wait_s, {**place, **({"wait": str(wait_s)} if wait_s else {})})
        if status != 200:
            raise self._refusal(status, content)
        try:
            page = msgspec.json.decode(content, type=_Page)
            return FeedPage(tuple(_event_of(raw) for raw in page.data), page.next_cursor)
        except msgspec.MsgspecError:
            raise FeedRefused(f"{self.api} does not answer as a Chainbell API does; correct --api") from None

    async def _ask(self, wait_s: int, query: dict[str, str]) -> tuple[int, bytes]:
        if self._session is None:
            raise RuntimeError("enter the Feed (async with) before reading")
        limits = aiohttp.ClientTimeout(total=wait_s + ANSWER_LIMIT_S, sock_connect=CONNECT_LIMIT_S)
        try:
            async with self._session.get(
                self.api / "v1" / "events", params=query, timeout=limits, allow_redirects=False
            ) as response:
                return response.status, await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise FeedUnavailable(f"{self.api} cannot be reached: {_reason_of(error)}") from error

    def _refusal(self, status: int, content: bytes) -> ChainbellError:
        detail = _detail_of(content)
        if status >= 500 or status in BUSY:
            return FeedUnavailable(f"{self.api} cannot answer: {status}, {detail or 'without a reason'}")
        if detail is None:
            return FeedRefused(f"{self.api} answers {status}, and not as a Chainbell API does; correct --api")
        if status in WRONG_INPUT:
            return UsageError(detail)
        return FeedRefused(f"{self.api}: {detail}")


def _event_of(raw: msgspec.Raw) -> FeedEvent:
    head = msgspec.json.decode(raw, type=_Head)
    return FeedEvent(head.id, head.type, bytes(raw))


def _detail_of(content: bytes) -> str | None:
    """The sentence of a problem (RFC 9457); None where the content is none."""
    try:
        return msgspec.json.decode(content, type=_Problem).detail
    except msgspec.MsgspecError:
        return None


def _reason_of(error: BaseException) -> str:
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(cause, TimeoutError):
        return "it does not answer"
    if isinstance(cause, ssl.SSLError):
        return f"TLS fails ({cause.reason})"
    if isinstance(cause, OSError) and cause.errno is not None:  # event loops word the same error differently
        return os.strerror(cause.errno) if cause.errno > 0 else str(cause.strerror)
    return type(cause).__name__
