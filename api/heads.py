"""Heads of requests that two readers could take for two requests: refused before anything is made of them.

The HTTP library takes the first of two headers, reads a body whose second coding it does not know as if it had none, and
answers in versions of HTTP that it does not speak. A proxy in front of us may do otherwise, and what it allowed would not
be what we do.
"""

from __future__ import annotations

from aiohttp import web

from api.problems import Code, Refused

_ONCE = ("Authorization", "Idempotency-Key")
_CONTINUE = "100-continue"


def refusal_of(request: web.BaseRequest) -> Refused | None:
    """What is wrong with the head of a request, if anything is."""
    detail = _wrong_with(request)
    return None if detail is None else Refused(Code.BAD_REQUEST, detail)


def _wrong_with(request: web.BaseRequest) -> str | None:
    if request.version not in ((1, 0), (1, 1)):
        return "this is no HTTP/1.1; send it as that"
    headers = request.headers
    for name in _ONCE:
        if len(headers.getall(name, ())) > 1:
            return f"the header {name} is there more than once; send it once"
    if headers.get("Transfer-Encoding", "chunked").strip().lower() != "chunked":
        return "the only Transfer-Encoding that is read here is chunked"
    if (
        request.version == (1, 0) and "Transfer-Encoding" in headers
    ):  # RFC 9112, section 6.1: nobody knows where it ends
        return "HTTP/1.0 has no Transfer-Encoding; send Content-Length, or HTTP/1.1"
    if any(value.lower() != _CONTINUE for value in headers.getall("Expect", ())):
        return f"the only Expect that is served here is {_CONTINUE}"
    return None


def awaits_leave(request: web.BaseRequest) -> bool:
    """Whether the client sends its body only when it is told to go on (RFC 9110, section 10.1.1)."""
    return request.version == (1, 1) and "Expect" in request.headers


async def go_on_later(_: web.Request) -> None:
    """What a route does about `Expect` before its handler runs: nothing. Who is refused by the head shall not be told to
    send a body (`read_body` tells him)."""
