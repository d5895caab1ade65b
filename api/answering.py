"""From a request to its answer: the key, the body, one transaction, and in it the idempotency key and the handler."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import msgspec
from aiohttp import web

from api.callers import caller_of
from api.problems import Code, Misformed, Refused
from api.reading import decode_body, decode_query, read_body
from api.routes import KEY_ID, TENANT_ID, Call, Route, Services, StatusCall
from api.turns import TooManyAtOnce
from ledger.cursors import InvalidCursor
from ledger.database import Connection, transaction
from ledger.idempotency import StoredAnswer, find_answer, fingerprint_of, lock_idempotency_key, store_answer
from ledger.ids import OPS_TENANT, EntryId
from ledger.keys import (
    KeyParts,
    KeyRow,
    MalformedKey,
    find_key,
    has_scope,
    is_touch_due,
    is_usable,
    may_be_used_from,
    parse_key,
    touch_key,
)
from ledger.status_reads import StatusRead

POLL_INTERVAL_S = 2.0
"""How often a long poll that hears of nothing asks the ledger: a hint may be lost."""

ASK_INTERVAL_S = 0.25
"""No long poll asks more often, however much is told: most hints are of others' events."""

DECODED_AT_ONCE_MAX = 64 * 1024
"""Bytes. A longer body is read in a thread: megabytes of it would keep every other request waiting. It is let in only where
there is room for it."""

_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="chainbell"'}


@dataclass(frozen=True, slots=True)
class _Request:
    """What is known of a request before its transaction: well-formed, not yet allowed."""

    http: web.Request
    key: KeyParts
    idempotency_key: str | None
    body: bytes


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: bytes
    is_replayed: bool = False
    is_satisfied: bool = True
    wait_s: float = 0.0


async def answer(route: Route, services: Services, http: web.Request) -> web.Response:
    """Answer one request to a route. Raises `Refused`.

    A long poll is the same request answered again and again, each time in a transaction of its own, so that it holds no
    connection while it waits and a revoked key ends it."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    key = _read_key(http)
    http[KEY_ID] = key.id
    _take_turn(services, key, started)
    if (status := await _answer_status(route, services, http, key)) is not None:
        return _response(status)
    idempotency_key = _read_idempotency_key(route, http)
    try:
        async with _room_for_body(route, services, http, key):
            request = _Request(http, key, idempotency_key, await _read_body(route, http))
            return await _answer_in_time(route, services, request, started)
    except TooManyAtOnce:
        raise _too_many() from None


@asynccontextmanager
async def _room_for_body(route: Route, services: Services, http: web.Request, key: KeyParts) -> AsyncIterator[None]:
    """Memory for a body that takes much of it: only for a key that is good, and for a few at a time until they are answered.
    Who has no key could fill all memory with bodies that are not to be read."""
    if not _is_large(route, http):
        yield
        return
    async with services.turns.taken(key), transaction(services.engine) as connection:
        _admitted(await find_key(connection, key.id), key, route, services, http)
    async with services.large_bodies.taken(key):
        yield


def _is_large(route: Route, http: web.Request) -> bool:
    """Whether more may come than is read ahead from any connection. One that is sent in chunks does not say."""
    if route.body is type(None) or not http.body_exists:
        return False
    return http.content_length is None or http.content_length > DECODED_AT_ONCE_MAX


async def _answer_in_time(route: Route, services: Services, request: _Request, started: float) -> web.Response:
    """The answer, as soon as it is worth sending. Raises `TooManyAtOnce`."""
    loop = asyncio.get_running_loop()
    found: _Answer | None = None
    while True:
        asked, coming = loop.time(), services.news.coming()
        try:
            found = await _answer_once(route, services, request)
        except TooManyAtOnce:
            if found is None:  # a long poll that was let in stays: what it heard, nothing, is where its cursor goes on
                raise
        left_s = started + found.wait_s - loop.time()
        if found.is_satisfied or left_s <= 0 or services.stopping.is_set():
            return _response(found)
        await _wait_for(coming, min(left_s, POLL_INTERVAL_S))
        await _wait_for(services.stopping, asked + ASK_INTERVAL_S - loop.time())


async def _wait_for(event: asyncio.Event, limit_s: float) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), max(limit_s, 0))


def _response(found: _Answer) -> web.Response:
    headers = {"Idempotent-Replayed": "true"} if found.is_replayed else {}
    if found.status == 204:
        return web.Response(status=204, headers=headers)
    return web.Response(status=found.status, body=found.body, content_type="application/json", headers=headers)


async def _answer_status(route: Route, services: Services, http: web.Request, parts: KeyParts) -> _Answer | None:
    """Answer from one round trip that is shared with whoever asks at the same time; None for what is no status read. Nothing
    of what was read is shown, not even that there is nothing, before the key has been found to be good."""
    found = await _read_status(route, services, http, parts)
    if found is None:
        return None
    query, read = found
    key = _admitted(read.key, parts, route, services, http)
    if is_touch_due(key):
        await services.status_reads.touch(key)
    call: StatusCall[Any, Any] = StatusCall(query or decode_query(http, route.query), None, read)
    result = await route.handler(call) if route.by_reference is None else route.by_reference.handler(call)
    return None if result is None else _Answer(route.status, msgspec.json.encode(result))


async def _read_status(
    route: Route, services: Services, http: web.Request, parts: KeyParts
) -> tuple[Any, StatusRead] | None:
    """What was read, and the query where it had to be decoded for that. One that is wrong is refused later, after the key
    was looked at."""
    if route.is_status:
        return None, await services.status_reads.read(parts.id, EntryId(http.match_info["id"]))
    if route.by_reference is None or "reference" not in http.query_string:
        return None
    try:
        query = decode_query(http, route.query)
    except Refused:
        return None
    reference = route.by_reference.reference_of(query)
    return None if reference is None else (query, await services.status_reads.read_reference(parts.id, reference))


async def _answer_once(route: Route, services: Services, request: _Request) -> _Answer:
    async with services.turns.taken(request.key):
        return await _answer_in_transaction(route, services, request)


def _too_many() -> Refused:
    return Refused(
        Code.RATE_LIMITED,
        "too many requests with this key are under way; wait for answers, then ask again",
        headers={"Retry-After": "1"},
    )


async def _answer_in_transaction(route: Route, services: Services, request: _Request) -> _Answer:
    async with transaction(services.engine) as connection:
        found = await find_key(connection, request.key.id)
        key = _admitted(found, request.key, route, services, request.http)
        if is_touch_due(key):
            await touch_key(connection, key)
        if request.idempotency_key is not None:
            return await _answer_with_idempotency(route, services, request, connection, key)
        return await _handle(route, services, request, connection, key)


async def _handle(route: Route, services: Services, request: _Request, connection: Connection, key: KeyRow) -> _Answer:
    query = decode_query(request.http, route.query)
    call: Call[Any, Any] = Call(
        services=services,
        connection=connection,
        key=key,
        now=key.read_at,
        path=request.http.match_info,
        query=query,
        body=await _decoded(route, request.body, connection),
    )
    try:
        result = await route.handler(call)
    except InvalidCursor as error:
        raise Refused(Code.INVALID_CURSOR, str(error)) from None
    body = b"" if route.status == 204 else msgspec.json.encode(result)
    if route.is_satisfied is None:
        return _Answer(route.status, body)
    return _Answer(route.status, body, is_satisfied=route.is_satisfied(result), wait_s=query.wait)


async def _decoded(route: Route, body: bytes, connection: Connection) -> Any:  # noqa: ANN401 (the type is the route's)
    try:
        if len(body) <= DECODED_AT_ONCE_MAX:
            return decode_body(body, route.body)
        return await asyncio.to_thread(decode_body, body, route.body)
    except Misformed as misformed:
        if route.review is None:
            raise
        raise await route.review(connection, misformed) from None


async def _answer_with_idempotency(
    route: Route, services: Services, request: _Request, connection: Connection, key: KeyRow
) -> _Answer:
    name = request.idempotency_key or ""
    if not await lock_idempotency_key(connection, key.tenant_id, name):
        raise Refused(
            Code.IDEMPOTENCY_IN_PROGRESS,
            "another request with this Idempotency-Key is being answered; send this one again in a moment",
            headers={"Retry-After": "1"},
        )
    fingerprint = fingerprint_of(route.method, request.http.path, request.body)
    stored = await find_answer(connection, services.secret_box, key.tenant_id, name, key.read_at)
    if stored is None:
        made = await _handle(route, services, request, connection, key)
        kept = StoredAnswer(fingerprint, made.status, made.body)
        await store_answer(connection, services.secret_box, key.tenant_id, name, kept, key.read_at)
        return made
    if stored.fingerprint != fingerprint:
        raise Refused(
            Code.IDEMPOTENCY_MISMATCH,
            "this Idempotency-Key was sent with another path or body within the last 24 hours; use a new key",
        )
    return _Answer(stored.status_code, stored.body, is_replayed=True)


def _read_key(http: web.Request) -> KeyParts:
    scheme, _, token = http.headers.get("Authorization", "").partition(" ")
    if not scheme:
        raise Refused(
            Code.MISSING_KEY, "no key was sent; send Authorization: Bearer cb_live_<id>_<secret>", headers=_CHALLENGE
        )
    if scheme.lower() != "bearer":
        raise Refused(Code.MALFORMED_KEY, "the Authorization header must be Bearer and an API key", headers=_CHALLENGE)
    try:
        return parse_key(token.strip())
    except MalformedKey as error:
        raise Refused(Code.MALFORMED_KEY, str(error), headers=_CHALLENGE) from None


def _take_turn(services: Services, key: KeyParts, now: float) -> None:
    wait_s = services.limits.take(key, now)
    if wait_s:
        headers = {"Retry-After": str(wait_s)}
        raise Refused(
            Code.RATE_LIMITED,
            f"this key is used too often; wait {wait_s} s, then ask for more at once",
            headers=headers,
        )


def _read_idempotency_key(route: Route, http: web.Request) -> str | None:
    key = http.headers.get("Idempotency-Key")
    if route.method != "POST" or key is None:
        return None
    if not _IDEMPOTENCY_KEY.fullmatch(key):
        raise Refused(
            Code.INVALID_IDEMPOTENCY_KEY,
            "an Idempotency-Key has 1 to 255 printable ASCII characters and no spaces; a UUID is a good one",
        )
    return key


async def _read_body(route: Route, http: web.Request) -> bytes:
    return b"" if route.body is type(None) else await read_body(http)


def _admitted(key: KeyRow | None, parts: KeyParts, route: Route, services: Services, http: web.Request) -> KeyRow:
    """The key that was found, if whoever sent these parts may use it, from there and for this."""
    if not is_usable(key, parts):
        raise Refused(Code.INVALID_KEY, "the key is unknown, revoked or expired; ask for a new one", headers=_CHALLENGE)
    http[TENANT_ID] = key.tenant_id
    _check_address(key, services, http)
    _authorize(key, route)
    return key


def _check_address(key: KeyRow, services: Services, http: web.Request) -> None:
    """After the secret: only who has it may learn where it is for."""
    if key.networks is None:
        return
    caller = caller_of(http.remote, http.headers.getall("X-Forwarded-For", ()), services.trusted_proxies)
    if not may_be_used_from(key, caller):
        seen = f"it was used from {caller}" if caller else "the address that it was used from cannot be read"
        raise Refused(Code.WRONG_ADDRESS, f"this key is for other addresses; {seen}")


def _authorize(key: KeyRow, route: Route) -> None:
    if not any(has_scope(key.scopes, scope) for scope in route.scopes):
        needed = " or ".join(route.scopes)
        raise Refused(Code.MISSING_SCOPE, f"the key lacks the scope {needed}; it has {', '.join(key.scopes)}")
    if route.is_operators and key.tenant_id != OPS_TENANT:
        raise Refused(
            Code.MISSING_SCOPE,
            f"with {route.scope} only a key of the operator may do this; make one with: chainbell keys create --tenant ops"
            f" --scope {route.scope}",
        )
