"""Reading a request strictly: bodies and queries become structs, or a problem that points at what is wrong."""

from __future__ import annotations

import asyncio
import re
from datetime import datetime
from functools import cache
from typing import Any

import msgspec
from aiohttp import web
from aiohttp.web_protocol import RequestPayloadError

from api.faults import faults_of
from api.heads import awaits_leave
from api.problems import Code, Misformed, Refused, invalid, refusal_of
from api.repeated import escaped, repeated_name

BODY_BYTES_MAX = 5 * 1024 * 1024
BODY_TIMEOUT_S = 30.0

BODY_TOO_LARGE = f"the body has more than {BODY_BYTES_MAX} bytes; send it in parts"

BODY_DEPTH_MAX = 64

# One that nobody closes ends with the body, and what was taken is not given back: else each quote in it would begin another.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_PLAIN_STRING = re.compile(rb'"[^"]*"')
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_NO_MARKS = bytes(set(range(256)) - set(b'[]{}"'))
_DATE = re.compile(r"\d{4}-\d\d-\d\dT", re.IGNORECASE)


async def read_body(request: web.Request) -> bytes:
    """The body's bytes, bounded in size and time. Raises `Refused`."""
    if any(coding.lower() != "identity" for coding in request.headers.getall("Content-Encoding", ())):
        raise Refused(Code.UNSUPPORTED_MEDIA_TYPE, "the body is compressed; send it as it is")
    if (request.content_length or 0) > BODY_BYTES_MAX:
        raise Refused(Code.BODY_TOO_LARGE, BODY_TOO_LARGE)
    if awaits_leave(request):
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            body = await request.read()
    except TimeoutError:
        raise Refused(
            Code.REQUEST_TIMEOUT, f"the body did not arrive within {BODY_TIMEOUT_S:.0f} s; send it again"
        ) from None
    except (ConnectionError, RequestPayloadError):
        raise Refused(Code.BAD_REQUEST, "the body broke off before its end; send it again") from None
    if body and request.content_type != "application/json":
        raise Refused(
            Code.UNSUPPORTED_MEDIA_TYPE,
            f"the body is {request.content_type}; send it as Content-Type: application/json",
        )
    return body


def decode_body(body: bytes, type_: Any) -> Any:  # noqa: ANN401 (the type is the route's)
    """The body as the route's struct; an absent body is an empty object. Raises `Refused`, of what is JSON `Misformed`."""
    if type_ is type(None):
        return None
    if _is_too_deep(body):
        raise Refused(Code.INVALID_JSON, f"the body is nested more than {BODY_DEPTH_MAX} levels deep")
    body = body or b"{}"
    try:
        read = _read(body, type_)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refused(Code.INVALID_JSON, f"the body is not JSON: {_plain(error)}") from None
    repeated = repeated_name(body)
    if repeated is not None:
        raise invalid(repeated.pointer, repeated.detail)
    return read


def _read(body: bytes, type_: Any) -> Any:  # noqa: ANN401
    try:
        return msgspec.json.decode(body, type=type_)
    except msgspec.ValidationError as error:
        given = msgspec.json.decode(body)
        raise Misformed(faults_of(given, type_, str(error)), given) from None


def _is_too_deep(body: bytes) -> bool:
    """True for a body nested deeper than anything of ours is. Decoding recurses in C, where only the interpreter's
    recursion limit stands between a hostile body and the end of the stack; a library may have raised that limit."""
    if body.count(b"[") + body.count(b"{") <= BODY_DEPTH_MAX:
        return False
    depth = 0
    for bracket in _brackets_of(body):
        depth += 1 if bracket in b"[{" else -1
        if depth > BODY_DEPTH_MAX:
            return True
    return False


def _brackets_of(body: bytes) -> bytes:
    """The brackets that stand outside of strings, in order. A long body is mostly what is neither quote nor bracket: that
    goes first, unless there are backslashes, which decide where a string ends."""
    if b"\\" not in body:
        return _PLAIN_STRING.sub(b"", body.translate(None, _NO_MARKS).replace(b'""', b"")).translate(None, b'"')
    return _STRING.sub(b"", body).translate(None, _NO_BRACKETS)


def decode_query(request: web.Request, type_: Any) -> Any:  # noqa: ANN401
    """The query as the route's struct: an unknown or repeated parameter is refused, not ignored. Raises `Refused`."""
    if type_ is type(None):
        if not request.query_string:
            return _NO_QUERY
        type_ = NoQuery
    given = dict(request.query)
    if len(given) != len(request.query):
        repeated = sorted({name for name in given if len(request.query.getall(name)) > 1})
        raise invalid(f"/{escaped(repeated[0])}", "the parameter is given more than once")
    for name, value in given.items():
        if "\x00" in value:
            raise invalid(f"/{escaped(name)}", "it holds a NUL character, which nothing here does")
    try:
        query = msgspec.convert(given, type=type_, strict=False)
    except msgspec.ValidationError as error:
        raise refusal_of(faults_of(given, type_, str(error), is_query=True)) from None
    for part in _fields_of(type_):
        if part.encode_name in given:
            _check_reading(part.encode_name, given[part.encode_name], getattr(query, part.name))
    return query


def _check_reading(name: str, text: str, value: object) -> None:
    """Refuse what msgspec reads into a text out of kindness: "null", by which a filter that was written would be one that
    was left out, and numbers as times, of which nobody knows whether they are seconds or milliseconds."""
    if value is None:
        raise invalid(f"/{name}", "there is no null in a query: leave the parameter out")
    if isinstance(value, datetime) and not _DATE.match(text):
        raise invalid(f"/{name}", "a time is written as in RFC 3339: 2026-11-01T00:00:00Z")


@cache
def _fields_of(type_: type[msgspec.Struct]) -> tuple[msgspec.structs.FieldInfo, ...]:
    return msgspec.structs.fields(type_)  # which reads the annotations anew each time


class NoQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A query without parameters."""


_NO_QUERY = NoQuery()


def _plain(error: Exception) -> str:
    return str(error).removeprefix("JSON is malformed: ") if isinstance(error, msgspec.DecodeError) else "not UTF-8"
