"""The application: every route registered from its declaration, and what they work with."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from api import (
    chains,
    coverage,
    deliveries,
    endpoint_secrets,
    endpoints,
    entries,
    events,
    health,
    jobs,
    recoveries,
    watches,
)
from api.answering import answer
from api.callers import Network
from api.heads import go_on_later
from api.health import OPENAPI, PAGE
from api.limits import RPS_PER_KEY, Limits
from api.middleware import answer_safely
from api.news import heard
from api.openapi import describe
from api.page import render_page
from api.reading import BODY_BYTES_MAX
from api.routes import SERVICES, OpenRoute, Route, Services
from api.turns import Turns
from ledger.database import Engine, connections_of
from ledger.secrets import SecretBox
from ledger.status_reads import StatusReads
from ledger.urls import EndpointPolicy

ROUTES: Sequence[Route] = (
    *watches.ROUTES,
    *entries.ROUTES,
    *endpoints.ROUTES,
    *endpoint_secrets.ROUTES,
    *events.ROUTES,
    *deliveries.ROUTES,
    *recoveries.ROUTES,
    *chains.ROUTES,
    *coverage.ROUTES,
    *jobs.ROUTES,
)
OPEN_ROUTES: Sequence[OpenRoute] = health.ROUTES

CONNECTIONS_KEPT = 2
"""Of the engine, for what requests share: status reads, and whether Postgres is there."""

LARGE_BODIES_MAX = 16
"""Bodies of up to 5 MiB that are in memory at once: more than can be worked on at once, and half of them for one key."""

_ID = "{id:[0-9A-Za-z_]{1,100}}"
"""No id has other characters, so anything else is 404 without a question to the ledger."""

_CHAIN = "{chain:[0-9A-Za-z_:-]{1,100}}"
"""Likewise for slugs and CAIP-2 names."""


def create_app(
    *,
    engine: Engine,
    operator_engine: Engine,
    secret_box: SecretBox,
    endpoint_policy: EndpointPolicy,
    cursor_key: bytes,
    version: str,
    rps_per_key: float = RPS_PER_KEY,
    trusted_proxies: Sequence[Network] = (),
    is_for_tenants: bool = False,
) -> web.Application:
    """The API over an engine from `connect_api`, and one from `connect` for `/metrics` and for hearing of news, which
    keeps a connection; both stay their maker's to dispose of. What is for tenants alone has neither `/metrics` nor what only
    the operator may do."""
    app = web.Application(middlewares=[answer_safely], client_max_size=BODY_BYTES_MAX)
    limits = Limits(rps_per_key)
    app[SERVICES] = Services(
        engine,
        operator_engine,
        secret_box,
        endpoint_policy,
        StatusReads(engine),
        cursor_key,
        version,
        limits,
        Turns(connections_of(engine) - CONNECTIONS_KEPT),
        Turns(LARGE_BODIES_MAX),
        trusted_proxies,
        is_for_tenants,
    )
    routes = [route for route in ROUTES if not (is_for_tenants and route.is_operators)]
    open_routes = [route for route in OPEN_ROUTES if not (is_for_tenants and route.is_operators)]
    document = describe(routes, open_routes, version)
    app[OPENAPI] = msgspec.json.encode(document)
    app[PAGE] = render_page(document).encode()
    for route in routes:
        path = route.path.replace("{id}", _ID).replace("{chain}", _CHAIN)
        _add(app, route.method, path, _handler_of(route))
    for open_route in open_routes:
        _add(app, open_route.method, open_route.path, open_route.handler)
    app.cleanup_ctx.append(_hear_news)
    app.on_shutdown.append(_stop_waiting)
    app.on_cleanup.append(_stop_reading)
    return app


def _add(app: web.Application, method: str, path: str, handler: Handler) -> None:
    """Where there is GET there is HEAD (RFC 9110, section 9.1): the same answer, of which the library sends the head."""
    for one in ("GET", "HEAD") if method == "GET" else (method,):
        app.router.add_route(one, path, handler, expect_handler=go_on_later)


def _handler_of(route: Route) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def _handle(request: web.Request) -> web.StreamResponse:
        return await answer(route, request.app[SERVICES], request)

    _handle.__name__ = route.name
    return _handle


async def _hear_news(app: web.Application) -> AsyncIterator[None]:
    async with heard(app[SERVICES].operator_engine, app[SERVICES].news):
        yield


async def _stop_waiting(app: web.Application) -> None:
    app[SERVICES].stopping.set()
    app[SERVICES].news.tell()


async def _stop_reading(app: web.Application) -> None:
    await app[SERVICES].status_reads.close()
