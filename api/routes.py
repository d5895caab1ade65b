"""What a route is: declared once, and everything else (router, checks, OpenAPI) is read off the declaration.

The types of a route's query, body and answer are those in its handler's signature, so they cannot differ from what the
handler works with: `async def list_watches(call: Call[WatchQuery, None]) -> Page[WatchDocument]`. Its summary and
description are the handler's docstring.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any, Generic, TypeVar, get_args, get_type_hints

from aiohttp import web

from api.callers import Network
from api.limits import Limits
from api.news import News
from api.problems import Code, Misformed, Refused
from api.turns import Turns
from api.withholding import may_see_nodes
from ledger.database import Connection, Engine
from ledger.ids import TenantId
from ledger.keys import KeyRow
from ledger.secrets import SecretBox
from ledger.status_reads import StatusRead, StatusReads
from ledger.urls import EndpointPolicy

Query = TypeVar("Query")
Body = TypeVar("Body")


@dataclass(frozen=True, slots=True)
class Services:
    """What handlers work with, made once for the process."""

    engine: Engine
    """Sees one tenant at a time: the one whose key a request has."""
    operator_engine: Engine
    """Sees all tenants, for what the operator is told of them together."""
    secret_box: SecretBox
    endpoint_policy: EndpointPolicy
    status_reads: StatusReads
    cursor_key: bytes
    version: str
    limits: Limits
    turns: Turns
    """At the connections of `engine`."""
    large_bodies: Turns
    """At the memory for bodies that take much of it."""
    trusted_proxies: Sequence[Network]
    is_for_tenants: bool
    """What is the operator's is elsewhere."""
    news: News = field(default_factory=News)
    """What long polls are woken by."""
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the server shuts down: long polls answer at once."""


@dataclass(frozen=True, slots=True)
class Call(Generic[Query, Body]):
    """One authenticated request, checked and decoded, in its transaction."""

    services: Services
    connection: Connection
    key: KeyRow
    now: datetime
    """The database's time."""
    path: Mapping[str, str]
    query: Query
    body: Body

    @property
    def tenant_id(self) -> TenantId:
        """Whose rows this request may see: a part of every statement."""
        return self.key.tenant_id

    @property
    def may_see_nodes(self) -> bool:
        """Whether this request may be told where nodes are and what they say."""
        return may_see_nodes(self.tenant_id, is_for_tenants=self.services.is_for_tenants)


@dataclass(frozen=True, slots=True)
class StatusCall(Generic[Query, Body]):
    """One authenticated question of how an entry stands, with what was read of it."""

    query: Query
    body: Body
    read: StatusRead


@dataclass(frozen=True)
class ByReference:
    """How a list is answered as a status read, where nothing but a reference is asked for and its entries are few."""

    reference_of: Callable[[Any], str | None]
    """The reference in the query; None where more is asked for."""
    handler: Callable[[Any], Any | None]
    """The answer to a `StatusCall`, the same as the list's; None where only the list has it."""


@dataclass(frozen=True)
class Route:
    """A route that needs a key. The handler raises `Refused` for what it will not do."""

    method: str
    path: str
    scope: str
    handler: Callable[[Any], Awaitable[Any]]
    status: int = 200
    problems: tuple[Code, ...] = ()
    """Codes beyond those that every route may answer with."""
    other_scopes: tuple[str, ...] = ()
    """Any one of these does as well as `scope`."""
    is_operators: bool = False
    """For keys of the tenant `ops` only: what it does is done for all tenants."""
    is_status: bool = False
    """The handler takes a `StatusCall`: the entry that the path names is read together with the key, for all who ask at
    once (`ledger/status_reads.py`)."""
    by_reference: ByReference | None = None
    """For a list that may be a status read."""
    review: Callable[[Connection, Misformed], Awaitable[Refused]] | None = None
    """Of a body that is not formed as described: what is wrong with the parts that are, told together with the rest."""
    is_satisfied: Callable[[Any], bool] | None = None
    """For a long poll: whether an answer is worth sending before the `wait` of its query is over."""

    @cached_property
    def _hints(self) -> Mapping[str, Any]:
        return get_type_hints(self.handler, include_extras=True)

    @property
    def query(self) -> Any:  # noqa: ANN401 (a type, known only at run time)
        """Struct of the query's parameters; NoneType where there are none."""
        return get_args(self._hints["call"])[0]

    @property
    def body(self) -> Any:  # noqa: ANN401
        """Struct of the body; NoneType where there is none."""
        return get_args(self._hints["call"])[1]

    @property
    def answer(self) -> Any:  # noqa: ANN401
        """Type of the answer; NoneType where it has no body."""
        return self._hints["return"]

    @property
    def scopes(self) -> tuple[str, ...]:
        """Every scope that suffices."""
        return (self.scope, *self.other_scopes)

    @property
    def name(self) -> str:
        """The operation's name in OpenAPI, in logs and in metrics."""
        return self.handler.__name__

    @property
    def description(self) -> str:
        """What the route does, for its users."""
        return inspect.getdoc(self.handler) or ""


@dataclass(frozen=True)
class OpenRoute:
    """A route that needs no key and answers for the process itself."""

    path: str
    handler: Callable[[web.Request], Awaitable[web.Response]]
    media_type: str
    answer: Any = None
    """Type of a JSON answer."""
    is_operators: bool = False
    """Tells of all tenants together, to whoever asks: left out where tenants are."""

    method = "GET"

    @property
    def name(self) -> str:
        """The operation's name in OpenAPI, in logs and in metrics."""
        return self.handler.__name__

    @property
    def description(self) -> str:
        """What the route does, for its users."""
        return inspect.getdoc(self.handler) or ""


SERVICES: web.AppKey[Services] = web.AppKey("services", Services)

KEY_ID: web.RequestKey[str] = web.RequestKey("key_id", str)
"""Id of the key that a request named, good or not: for the log."""

TENANT_ID: web.RequestKey[str] = web.RequestKey("tenant_id", str)
"""Tenant of the key, once it was found to be good."""
