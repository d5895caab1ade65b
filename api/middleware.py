"""The outermost layer: every answer has a request id and safe headers, every failure is a problem, every request a log
line."""

from __future__ import annotations

import secrets
import time
from functools import cache

import msgspec
import structlog
from aiohttp import web
from aiohttp.typedefs import Handler
from prometheus_client import Counter, Histogram

from api.callers import caller_of
from api.metrics import REQUEST_DURATION, REQUESTS
from api.problems import CODE_OF_STATUS, KINDS, MEDIA_TYPE, Code, Refused, problem_document
from api.reading import BODY_TOO_LARGE
from api.routes import KEY_ID, SERVICES, TENANT_ID
from ledger.database import UNAVAILABLE

HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Server": "chainbell",
    "X-Content-Type-Options": "nosniff",
}
"""On every answer: nothing here is for a browser to keep, run or frame."""

CODE: web.ResponseKey[str] = web.ResponseKey("code", str)
"""The code of an answer that is a problem: for the log."""

log = structlog.get_logger()

_DETAIL_OF_CODE = {
    Code.NOT_FOUND: "there is nothing at this path; the routes are listed in /openapi.json",
    Code.METHOD_NOT_ALLOWED: "the path is right, the method is not; the Allow header names the ones that are",
    Code.BODY_TOO_LARGE: BODY_TOO_LARGE,
}


@web.middleware
async def answer_safely(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn whatever a handler raises into a problem, and finish every answer."""
    request_id = f"req_{secrets.token_hex(12)}"
    started = time.perf_counter()
    try:
        response = await handler(request)
    except Refused as refused:
        response = _problem(refused, request_id)
    except web.HTTPException as error:
        response = _problem(_refusal_of(error), request_id)
    except UNAVAILABLE as error:
        log.warning("database unavailable", request_id=request_id, error=type(error).__name__)
        response = _problem(
            Refused(Code.UNAVAILABLE, "the database cannot be reached; try again", headers={"Retry-After": "2"}),
            request_id,
        )
    except Exception:
        # The supervisor of all handlers: a fault is logged with its traceback, counted, and told without detail.
        log.exception("request failed", request_id=request_id, route=_route_of(request))
        response = _problem(Refused(Code.INTERNAL, "this is our fault and was logged; name the request_id"), request_id)
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)  # the page to read has a policy of its own
    response.headers["X-Request-Id"] = request_id
    _record(request, response, request_id, time.perf_counter() - started)
    return response


def _route_of(request: web.Request) -> str:
    if request.match_info.http_exception is not None:
        return "none"
    return str(getattr(request.match_info.handler, "__name__", "none"))


@cache
def _requests_of(route: str, status: int) -> Counter:
    return REQUESTS.labels(route, str(status))


@cache
def _duration_of(route: str) -> Histogram:
    return REQUEST_DURATION.labels(route)


def _record(request: web.Request, response: web.StreamResponse, request_id: str, elapsed_s: float) -> None:
    """Count the request, and log who asked what: never a query, a header or a body."""
    route = _route_of(request)
    _requests_of(route, response.status).inc()
    if not request.query_string or "wait" not in request.query:
        _duration_of(route).observe(elapsed_s)
    resource = request.match_info.route.resource
    services = request.app.get(SERVICES)
    proxies = services.trusted_proxies if services else ()
    caller = caller_of(request.remote, request.headers.getall("X-Forwarded-For", ()), proxies)
    log.info(
        "request finished",
        route=route,
        method=request.method,
        path=None if resource is None else resource.canonical,
        status=response.status,
        code=response.get(CODE),
        key=request.get(KEY_ID),
        tenant=request.get(TENANT_ID),
        peer=str(caller) if caller else request.remote,
        elapsed_ms=round(elapsed_s * 1000, 1),
        request_id=request_id,
    )


def _refusal_of(error: web.HTTPException) -> Refused:
    code = CODE_OF_STATUS.get(error.status, Code.BAD_REQUEST if error.status < 500 else Code.INTERNAL)
    headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
    return Refused(code, _DETAIL_OF_CODE.get(code, KINDS[code].title), headers=headers)


def _problem(refused: Refused, request_id: str) -> web.Response:
    document = problem_document(refused, request_id)
    response = web.Response(
        status=document.status, body=msgspec.json.encode(document), content_type=MEDIA_TYPE, headers=refused.headers
    )
    response[CODE] = document.code
    return response
