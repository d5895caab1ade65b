"""The circuit breaker of an endpoint: after ten failures in a row it rests, and is asked again by one delivery at a time.

While it is open, what the endpoint is owed is held: no attempt is made and none is used up. When the rest is over, the
delivery that has been due for longest is the probe: a real one, by its own schedule, in the order of its lane. What it is
answered closes the breaker or lets the next rest begin, twice as long, up to ten minutes: a merchant who has mended a server
waits no longer than that.

The breaker is `endpoints.rests_until`, null while it is closed, and how many rests there were. Deliveries are not written
to when it opens and closes: whether a pending one is held is asked, never stored. So an endpoint with a million of them is
held and released in one row, and no delivery can be forgotten on the way. Pausing is another thing, and done by people
(`ledger/holding.py`).

Whoever sends something by hand, a redelivery or a test, says that it is worth a try: the rest is over. A new URL and a
resumption close the breaker.

Two processes may probe at one moment, each with one delivery: that asks nothing of the endpoint that it could not bear.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, FromClause, and_, case, func, not_, or_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.ids import EndpointId, TenantId
from ledger.schema import endpoints


class Breaker(StrEnum):
    """How an endpoint's breaker stands at a moment."""

    CLOSED = "closed"
    OPEN = "open"
    """The endpoint rests: nothing is sent."""
    HALF_OPEN = "half_open"
    """The rest is over: one delivery at a time is tried."""


def breaker_at(now: datetime, rests_until: datetime | None) -> Breaker:
    """How it stands, by its column."""
    if rests_until is None:
        return Breaker.CLOSED
    return Breaker.OPEN if rests_until > now else Breaker.HALF_OPEN


OPENS_AFTER_FAILURES = 10
"""Failures in a row that open it."""

REST_FIRST = timedelta(seconds=5)
"""As long as the first wait of a delivery: what was a moment's hiccup is over by then."""

REST_MAX = timedelta(minutes=10)

_DOUBLINGS_MAX = 10
"""More than it takes to come to `REST_MAX`; the power of a large number is none that fits."""


def is_open(endpoint: FromClause) -> ColumnElement[bool]:
    """Whether the breaker of an endpoint is open, or half open: its deliveries are held."""
    return endpoint.c.rests_until.is_not(None)


def is_resting(endpoint: FromClause) -> ColumnElement[bool]:
    """Whether nothing at all may be sent to an endpoint, not even a probe. False, never null, when the breaker is closed."""
    return and_(is_open(endpoint), endpoint.c.rests_until > func.now())


def after(
    endpoint: FromClause,
    failures: ColumnElement[int],
    has_failed: ColumnElement[bool],
    has_accepted: ColumnElement[bool],
) -> dict[str, ColumnElement[Any]]:
    """The breaker's columns once the outcomes of some requests are known: `failures` in a row by now, of which the last was
    one (`has_failed`), perhaps after an acceptance among them (`has_accepted`).

    It is the number of rests that lengthens them, not of failures: what was under way when it opened fails too, and says
    nothing new."""
    was_open = and_(is_open(endpoint), not_(has_accepted))
    is_probe = and_(was_open, endpoint.c.rests_until <= func.now())
    opens = and_(has_failed, or_(is_probe, and_(not_(was_open), failures >= OPENS_AFTER_FAILURES)))
    doublings = case((was_open, func.least(endpoint.c.rests, _DOUBLINGS_MAX)), else_=0)
    rest_s = func.least(REST_FIRST.total_seconds() * func.power(2, doublings), REST_MAX.total_seconds())
    return {
        "rests_until": case(
            (opens, func.now() + func.make_interval(0, 0, 0, 0, 0, 0, rest_s)), (was_open, endpoint.c.rests_until)
        ),
        "rests": case((opens, doublings + 1), (was_open, endpoint.c.rests), else_=0),
    }


async def end_rest(connection: AsyncConnection, tenant_id: TenantId, endpoint_id: EndpointId) -> None:
    """Let an endpoint that rests be asked again at once."""
    await connection.execute(
        update(endpoints)
        .where(endpoints.c.tenant_id == tenant_id, endpoints.c.id == endpoint_id, is_resting(endpoints))
        .values(rests_until=func.now())
    )


CLOSED = {"rests_until": None, "rests": 0, "failures_consecutive": 0}
"""Columns of an endpoint whose breaker is closed and that may fail anew."""
