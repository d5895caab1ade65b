"""The pace of an endpoint: how many deliveries a second it wants, held by all workers together.

The generic cell rate algorithm (ITU-T I.371, annex A; what web servers and `redis-cell` limit by) needs one moment for each
endpoint: until when what was claimed has used its rate up. A claim moves it forward by its number over the rate, and may
move it `BURST_S` past now and no further. So an endpoint that was quiet may get a second's worth at once. Less would slow it
down: a worker that is idle looks twice a second, and what may not be claimed then is not made up for.

What waits for its turn is not touched: it keeps its place and its time, and burns no attempt. Everything that is claimed
counts, also retries, probes, tests and what is sent by hand, and what is given back unsent has used the rate all the same.

The moment is in a row of its own, which only claims lock, and not in the endpoint's: settling takes that one, and would
leave an endpoint alone for a while whose row a claim has. Nobody waits for it: what another claim has locked gets nothing
this time. Endpoints without a limit have no such row, and it is not looked for.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import (
    ColumnElement,
    Double,
    FromClause,
    Integer,
    UpdateBase,
    and_,
    case,
    cast,
    func,
    literal,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.ids import EndpointId, TenantId
from ledger.schema import endpoints
from ledger.schema_health import endpoint_paces

MAX_PER_S_LARGEST = 10_000
"""Far beyond what one endpoint is sent: whoever wants no limit sets none."""

BURST_S = 1.0
"""Seconds' worth of deliveries that may go at once after a pause."""


async def set_pace(connection: AsyncConnection, tenant_id: TenantId, endpoint_id: EndpointId, now: datetime) -> None:
    """Give an endpoint that gets a limit the row that its claims lock, if it has none yet."""
    row = {"tenant_id": tenant_id, "endpoint_id": endpoint_id, "paced_until": now}
    await connection.execute(insert(endpoint_paces).values(row).on_conflict_do_nothing())


AHEAD_MAX = timedelta(seconds=10)
"""Beyond this the moment is none that a claim made, which stays within `BURST_S`: the database's clock was set back."""

_used_until = case(
    (endpoint_paces.c.paced_until > func.now() + AHEAD_MAX, func.now()),
    else_=func.greatest(endpoint_paces.c.paced_until, func.now()),
)
pace_of_endpoint = case((endpoints.c.deleted_at.is_(None), endpoints.c.max_per_s))
"""The limit that an endpoint's claims keep to, null where there is none: what is owed to a deleted one is not sent."""


def allowance_of(queue: FromClause, max_per_s: ColumnElement[int | None]) -> FromClause:
    """How many may be claimed now of an endpoint of `queue` that has a limit, one row at most: none where it has no limit,
    or another claim is at it. The row is locked until the commit."""
    ahead_s = func.extract("epoch", _used_until - func.now())
    number = func.floor((BURST_S - cast(ahead_s, Double)) * max_per_s)
    return (
        select(cast(func.greatest(number, 0), Integer).label("number"))
        .where(
            max_per_s.is_not(None),
            endpoint_paces.c.tenant_id == queue.c.tenant_id,
            endpoint_paces.c.endpoint_id == queue.c.endpoint_id,
        )
        .with_for_update(key_share=True, skip_locked=True, of=endpoint_paces)
        .correlate_except(endpoint_paces)
        .lateral("allowance")
    )


def paced(room: ColumnElement[int], max_per_s: ColumnElement[int | None], allowance: FromClause) -> ColumnElement[int]:
    """Of the room for an endpoint, what its pace allows."""
    return case((max_per_s.is_not(None), func.least(room, func.coalesce(allowance.c.number, 0))), else_=room)


def charge(placed: FromClause, claimed: FromClause) -> UpdateBase:
    """Move the pace of each endpoint that has one forward by what was claimed. `placed` has the rooms, with `max_per_s`."""
    is_of = and_(claimed.c.tenant_id == placed.c.tenant_id, claimed.c.endpoint_id == placed.c.endpoint_id)
    key = placed.c.tenant_id, placed.c.endpoint_id, placed.c.max_per_s
    taken = (
        select(*key, (cast(func.count(), Double) / placed.c.max_per_s).label("seconds"))
        .select_from(placed.join(claimed, is_of))
        .where(placed.c.max_per_s.is_not(None))
        .group_by(*key)
        .cte("taken")
    )
    forward = func.make_interval(0, 0, 0, 0, 0, 0, taken.c.seconds)
    return (
        update(endpoint_paces)
        .where(endpoint_paces.c.tenant_id == taken.c.tenant_id, endpoint_paces.c.endpoint_id == taken.c.endpoint_id)
        .values(paced_until=_used_until + forward)
        .returning(literal(1))
    )
