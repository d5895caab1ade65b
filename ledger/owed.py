"""To whom anything is owed: the endpoints that claims go to, found in two ways.

What became due since the last look (`find_fresh`) is found by its time, which is quick whoever else is owed what. And a
sweep (`find_owed`) goes from endpoint to endpoint, some hundreds at a time and round and round, and finds what the first way
misses: what was committed late, what a dead worker had, what waited for an endpoint that rested, what another process let
go. Neither asks whether something else of its lane stands in the way: the claim does. Suspects are found apart
(`ledger/suspects.py`).
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Double,
    FromClause,
    Integer,
    Select,
    Text,
    and_,
    bindparam,
    case,
    func,
    literal_column,
    not_,
    or_,
    select,
    true,
    tuple_,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger import breaker
from ledger.by_index import READ_BY_INDEX
from ledger.direct import Direct, run_direct
from ledger.events import LATE_PRIORITY, LIVE_PRIORITY
from ledger.ids import EndpointId, TenantId
from ledger.lanes import is_in
from ledger.schema import deliveries, endpoints
from ledger.states import DeliveryState, EndpointHealth, EndpointState

FAILING_AFTER_FAILURES = 3
"""Failures in a row after which an endpoint counts as failing: a single one may be about the event."""

LATE_COMMIT = timedelta(seconds=0.5)
"""How long before its commit a delivery may be due and still be found by its time; what was committed later is found by a
sweep."""

SUSPECT_AFTER = 2
"""Takeovers in a row after which a delivery is a suspect (`ledger/suspects.py`)."""


class Place(NamedTuple):
    """An endpoint in the order in which claims walk."""

    tenant_id: str
    endpoint_id: str


START = Place("", "")
"""Before the first endpoint."""


class Owed(NamedTuple):
    """An endpoint to which something is due, and how it does by what is stored of it."""

    tenant_id: TenantId
    endpoint_id: EndpointId
    health: EndpointHealth
    live_from: datetime | None = None
    late_from: datetime | None = None
    """Since when, of the live ones and of the late ones, where that was looked for."""


_now = func.now()

_stored_health = case(
    (breaker.is_open(endpoints), EndpointHealth.FAILING.value),
    (endpoints.c.failures_consecutive >= FAILING_AFTER_FAILURES, EndpointHealth.FAILING.value),
    (endpoints.c.last_accepted_at.is_not(None), EndpointHealth.ACCEPTING.value),
    else_=EndpointHealth.UNPROVEN.value,
)
# What is pending to one that was paused a moment ago is still being held; what was deleted is claimed to be discarded.
_is_stopped = and_(endpoints.c.state != EndpointState.ACTIVE.value, endpoints.c.deleted_at.is_(None))

is_free = or_(deliveries.c.leased_until.is_(None), deliveries.c.leased_until <= _now)
"""In no worker's hands. Where a lease is over, whoever claims it takes it over."""

is_suspect = or_(
    deliveries.c.takeovers >= SUSPECT_AFTER,
    and_(deliveries.c.takeovers == SUSPECT_AFTER - 1, deliveries.c.lease_token.is_not(None)),
)
"""Of what is free: it was, or would now be, taken over that often."""
is_ordinary = not_(is_suspect)

EVER: ColumnElement[Any] = literal_column("CAST('-infinity' AS timestamptz)")
"""Before anything was due."""

TURN = deliveries.c.tenant_id, deliveries.c.endpoint_id, deliveries.c.priority, deliveries.c.due_at
"""The order in which an endpoint is told, that of an index."""


def place_of(endpoint: FromClause, priority: int) -> tuple[ColumnElement[Any], ...]:
    """The beginning of `TURN` for one endpoint, compared as a row."""
    of_priority: ColumnElement[int] = bindparam(None, priority, literal_execute=True)
    return endpoint.c.tenant_id, endpoint.c.endpoint_id, of_priority


def is_due_to(
    endpoint: FromClause,
    priority: int,
    due_from: ColumnElement[Any] = EVER,
    may_be: ColumnElement[bool] = is_ordinary,
) -> ColumnElement[bool]:
    """Due to one endpoint; to be read in the order of `TURN`. Compared as rows, which leaves one index that has that order.
    By equalities Postgres may read the due deliveries of everybody, in the order of time, to find those of one."""
    place = place_of(endpoint, priority)
    return and_(
        is_in(deliveries, DeliveryState.PENDING),
        tuple_(*TURN) >= tuple_(*place, due_from),
        tuple_(*TURN) <= tuple_(*place, _now),
        is_free,
        may_be,
    )


def seconds(name: str) -> ColumnElement[Any]:
    """A parameter in seconds, as an interval."""
    return func.make_interval(0, 0, 0, 0, 0, 0, bindparam(name, type_=Double))


_fresh = (
    select(deliveries.c.tenant_id, deliveries.c.endpoint_id)
    .where(
        is_in(deliveries, DeliveryState.PENDING),
        deliveries.c.due_at > _now - seconds("age_s"),
        deliveries.c.due_at <= _now,
        deliveries.c.lease_token.is_(None),
    )
    .distinct()
    .cte("fresh")
)


def _of(found: FromClause) -> ColumnElement[bool]:
    return and_(endpoints.c.tenant_id == found.c.tenant_id, endpoints.c.id == found.c.endpoint_id)


def joined(found: FromClause, *columns: ColumnElement[Any]) -> FromClause:
    """The endpoint of each row that was found, looked up by its key. OFFSET 0 keeps Postgres from making a join of it:
    where there are few endpoints it would rather go through all of them, and through all that was found for each."""
    return (
        select(*columns).select_from(endpoints).where(_of(found)).offset(literal_column("0")).correlate(found).lateral()
    )


is_left_alone = or_(_is_stopped, breaker.is_resting(endpoints)).label("is_left_alone")
"""Nothing is sent to it now."""

_fresh_endpoint = joined(_fresh, _stored_health.label("health"), is_left_alone)
_FRESH = Direct(
    select(_fresh, _fresh_endpoint.c.health)
    .select_from(_fresh.join(_fresh_endpoint, true()))
    .where(not_(_fresh_endpoint.c.is_left_alone))
)


def _first_owed_after(*place: ColumnElement[Any]) -> Select[Any]:
    """The next endpoint that is owed anything, due or not: one look into the index."""
    endpoint = deliveries.c.tenant_id, deliveries.c.endpoint_id
    return (
        select(*endpoint)
        .where(is_in(deliveries, DeliveryState.PENDING), tuple_(*endpoint) > tuple_(*place))
        .order_by(*endpoint)
        .limit(1)
    )


def _walk() -> FromClause:
    after = bindparam("after_tenant_id", type_=Text), bindparam("after_endpoint_id", type_=Text)
    first = _first_owed_after(*after).subquery("first_one")
    owed = select(first.c.tenant_id, first.c.endpoint_id).cte("owed", recursive=True)
    following = _first_owed_after(owed.c.tenant_id, owed.c.endpoint_id).lateral("following")
    step = select(following.c.tenant_id, following.c.endpoint_id).select_from(owed.join(following, true()))
    return owed.union_all(step)


_walked = select(_walk()).limit(bindparam("limit", type_=Integer)).subquery("walked")


_swept = joined(_walked, _stored_health.label("health"), is_left_alone)


def _first_due(priority: int) -> ColumnElement[Any]:
    due = select(deliveries.c.due_at).where(is_due_to(_walked, priority)).order_by(*TURN).limit(1)
    return case((_swept.c.is_left_alone, None), else_=due.correlate(_walked).scalar_subquery())


_sweep = (
    select(_walked, _swept.c.health, _first_due(LIVE_PRIORITY).label("live"), _first_due(LATE_PRIORITY).label("late"))
    .select_from(_walked.join(_swept, true()))
    .order_by(_walked.c.tenant_id, _walked.c.endpoint_id)
)
_SWEEP = Direct(_sweep)


async def find_fresh(connection: AsyncConnection, age_s: float) -> list[Owed]:
    """Endpoints to which something became due within the last seconds. Crosses tenants."""
    rows = await run_direct(connection, (READ_BY_INDEX, {}), (_FRESH, {"age_s": age_s}))
    return [_owed_of(row) for row in rows]


async def find_owed(connection: AsyncConnection, after: Place, limit: int) -> tuple[list[Owed], Place]:
    """Of the next endpoints, `limit` at most, those to which something is due, and the place that the sweep has come to: the
    start when it has been at the last. Crosses tenants."""
    parameters = {"after_tenant_id": after.tenant_id, "after_endpoint_id": after.endpoint_id, "limit": limit}
    rows = await run_direct(connection, (READ_BY_INDEX, {}), (_SWEEP, parameters))
    place = Place(rows[-1][0], rows[-1][1]) if len(rows) == limit else START
    return [_owed_of(row) for row in rows if row[3] is not None or row[4] is not None], place


def _owed_of(row: tuple[Any, ...]) -> Owed:
    return Owed(TenantId(row[0]), EndpointId(row[1]), EndpointHealth(row[2]), *row[3:])
