"""Claiming: which deliveries a worker may send next, handed out in turns over the endpoints that are owed any.

Order. A lane is one endpoint and one subject (an entry, most often). Within it one delivery is under way at a time, in the
order of the feed; lanes never wait for each other. After five failed attempts of one delivery the next of its lane may
overtake it, but only while it waits for its own next attempt: a receiver goes by `sequence`, and news about a deposit must
not wait a day behind a poisoned one. What is redelivered by hand is in no order (`ledger/by_hand.py`).

Two claims at one moment do not see each other's leases. What keeps them apart is that both would have to want the same row,
and `SKIP LOCKED` gives it to one; for the first of a lane has no one else in front. Overtaking is the exception: so it ends
a while before the wait does (`OVERTAKING_ENDS`), longer than any claim can stay open.

Turns. A claim walks from endpoint to endpoint by index and takes from each what the worker still has room for, beginning
after the endpoint where the last claim ended. So the backlog of one endpoint is never read through to find what others are
owed: an endpoint without room costs one look, however much it is owed. Which endpoints get how much room is
`notifier/isolation.py`'s business; one whose breaker is open (`ledger/breaker.py`) has none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import msgspec
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
    cast,
    func,
    literal,
    not_,
    or_,
    select,
    true,
    tuple_,
    union_all,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger import breaker
from ledger.bulk import recordset
from ledger.by_hand import AGREE, BY_HAND, goes_first, may_claim
from ledger.direct import Direct, run_direct
from ledger.events import LATE_PRIORITY, LIVE_PRIORITY
from ledger.ids import DeliveryId, EndpointId, EventId, TenantId
from ledger.schema import deliveries, endpoints, events
from ledger.states import DeliveryState, EndpointHealth

FAILING_AFTER_FAILURES = 3
"""Failures in a row after which an endpoint counts as failing: a single one may be about the event."""

OVERTAKEN_AFTER_ATTEMPTS = 5
"""Failed attempts after which the next delivery of a lane may go first (the contract's figure)."""

OVERTAKING_ENDS = timedelta(seconds=60)
"""How long before its next attempt a delivery is not overtaken any more: as long as `ledger/database.py` lets a transaction
stay idle, so that a claim of the next one has either committed or is gone when this one is claimed."""


class Place(NamedTuple):
    """An endpoint in the order in which claims walk."""

    tenant_id: str
    endpoint_id: str


START = Place("", "")
"""Before the first endpoint."""


@dataclass(frozen=True, slots=True)
class EndpointRoom:
    """What a worker knows of an endpoint that it is telling: how it does, and how many more may be claimed for it."""

    tenant_id: TenantId
    endpoint_id: EndpointId
    health: EndpointHealth
    room: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """How many deliveries a worker has room for: by the endpoints' health in all and for each endpoint, and what differs."""

    limits: Mapping[EndpointHealth, int]
    per_endpoint: Mapping[EndpointHealth, int]
    known: Sequence[EndpointRoom] = ()

    def total(self) -> int:
        """How many may be claimed in all."""
        return sum(self.limits.values())


@dataclass(frozen=True, slots=True)
class Claims:
    """What was claimed, in feed order, and after which endpoint the next claim begins."""

    deliveries: list[Claimed]
    place: Place


def as_json(rows: Sequence[Any] | Mapping[str, Any]) -> str:
    """Rows as the text that a `recordset` takes."""
    return msgspec.json.encode(rows).decode()


@dataclass(frozen=True, slots=True)
class Claimed:
    """A delivery that this worker may send until its lease ends."""

    tenant_id: TenantId
    id: DeliveryId
    event_id: EventId
    event_created_at: datetime
    endpoint_id: EndpointId
    subject: str
    feed_position: int
    priority: int
    attempts: int
    """Attempts made, this one included."""
    health: EndpointHealth
    """The endpoint's, by which this was claimed."""
    is_taken_over: bool
    """Another worker had it, and its lease ended: the receiver may have it already."""
    body: bytes
    url: str
    is_endpoint_gone: bool
    """The endpoint was deleted: nothing is to be sent."""


READ_BY_INDEX = Direct(
    select(
        *(func.set_config(name, "off", True) for name in ("enable_seqscan", "enable_bitmapscan", "enable_sort")),
        *(func.set_config(name, "off", True) for name in ("enable_hashjoin", "enable_mergejoin")),
        func.set_config("random_page_cost", "0.1", True),
    )
)
"""For the rest of the transaction: few rows, each by its index. A queue fills and empties faster than statistics follow, and
by old ones Postgres reads all that is due to hand out a hundred, or all that is pending to settle them."""

_other = deliveries.alias("other")
_now = func.now()


def is_in(queue: FromClause, *states: DeliveryState) -> ColumnElement[bool]:
    """The state written into the statement, not sent as a parameter: a plan that is kept may then use a partial index."""
    values = [state.value for state in states]
    return queue.c.state.in_(bindparam(None, values, expanding=True, literal_execute=True))


_is_in_the_way = and_(
    _other.c.tenant_id == deliveries.c.tenant_id,
    _other.c.endpoint_id == deliveries.c.endpoint_id,
    _other.c.subject == deliveries.c.subject,
    is_in(_other, DeliveryState.PENDING, DeliveryState.HELD),
    _other.c.id != deliveries.c.id,
    or_(
        _other.c.leased_until > _now,
        goes_first(_other, deliveries),
        and_(
            _other.c.feed_position > BY_HAND,
            _other.c.feed_position < deliveries.c.feed_position,
            not_(and_(_other.c.attempts >= OVERTAKEN_AFTER_ATTEMPTS, _other.c.due_at > _now + OVERTAKING_ENDS)),
        ),
    ),
)

# Read once for the whole statement; looking up is a search in a sorted object, where a join would read all of it each time.
_known_all = select(cast(bindparam("known", type_=Text), JSONB).label("rooms")).scalar_subquery()

_stored_health = case(
    (breaker.is_open(endpoints), EndpointHealth.FAILING.value),
    (endpoints.c.failures_consecutive >= FAILING_AFTER_FAILURES, EndpointHealth.FAILING.value),
    (endpoints.c.last_accepted_at.is_not(None), EndpointHealth.ACCEPTING.value),
    else_=EndpointHealth.UNPROVEN.value,
)
_until = bindparam("until_tenant_id", type_=Text), bindparam("until_endpoint_id", type_=Text)


def _first_owed_after(*place: ColumnElement[Any]) -> Select[Any]:
    """The next endpoint that is owed anything, due or not: one look into the index."""
    endpoint = deliveries.c.tenant_id, deliveries.c.endpoint_id
    return (
        select(*endpoint)
        .where(is_in(deliveries, DeliveryState.PENDING), tuple_(*endpoint) > tuple_(*place))
        .order_by(*endpoint)
        .limit(1)
    )


def _not_beyond(found: FromClause) -> ColumnElement[bool]:
    return or_(_until[0].is_(None), tuple_(found.c.tenant_id, found.c.endpoint_id) <= tuple_(*_until))


def _walk() -> FromClause:
    after = bindparam("after_tenant_id", type_=Text), bindparam("after_endpoint_id", type_=Text)
    first = _first_owed_after(*after).subquery("first_one")
    owed = select(first.c.tenant_id, first.c.endpoint_id).where(_not_beyond(first)).cte("owed", recursive=True)
    following = _first_owed_after(owed.c.tenant_id, owed.c.endpoint_id).lateral("following")
    step = select(following.c.tenant_id, following.c.endpoint_id).select_from(owed.join(following, true()))
    return owed.union_all(step.where(_not_beyond(following)))


_owed = _walk()
_known = _known_all[_owed.c.tenant_id + "/" + _owed.c.endpoint_id]
_health = func.coalesce(_known["health"].astext, _stored_health)
_default_room = case(
    *((_stored_health == health.value, bindparam(f"room_{health.value}", type_=Integer)) for health in EndpointHealth)
)
_room = case(
    (breaker.is_resting(endpoints), 0),
    (breaker.is_open(endpoints), func.least(1, func.coalesce(cast(_known["room"].astext, Integer), 1))),
    else_=func.coalesce(cast(_known["room"].astext, Integer), _default_room),
)
_placed = (
    select(_owed.c.tenant_id, _owed.c.endpoint_id, _health.label("health"), _room.label("room"))
    .join(endpoints, and_(endpoints.c.tenant_id == _owed.c.tenant_id, endpoints.c.id == _owed.c.endpoint_id))
    .cte("placed")
)


def _due_at_priority(priority: int) -> Select[Any]:
    """What is due to one endpoint, the oldest first: read in the order of the index, and no further than its room."""
    due = (
        select(deliveries.c.tenant_id, deliveries.c.id, deliveries.c.lease_token.is_not(None).label("is_taken_over"))
        .where(
            deliveries.c.tenant_id == _placed.c.tenant_id,
            deliveries.c.endpoint_id == _placed.c.endpoint_id,
            deliveries.c.priority == bindparam(None, priority, literal_execute=True),
            is_in(deliveries, DeliveryState.PENDING),
            deliveries.c.due_at <= _now,
            or_(deliveries.c.leased_until.is_(None), deliveries.c.leased_until <= _now),
            may_claim(deliveries),
            ~select(literal(1)).where(_is_in_the_way).correlate(deliveries).exists(),
        )
        .order_by(deliveries.c.due_at)
        .limit(_placed.c.room)
        .with_for_update(skip_locked=True)
        .correlate(_placed)
        .subquery()
    )
    return select(due.c.tenant_id, due.c.id, due.c.is_taken_over)


def _due_of(health: EndpointHealth) -> Select[Any]:
    """What is due to endpoints of one health, each within its room. Postgres stops walking when the limit is reached."""
    by_priority = union_all(_due_at_priority(LIVE_PRIORITY), _due_at_priority(LATE_PRIORITY)).subquery()
    due = select(by_priority).limit(_placed.c.room).correlate(_placed).lateral(f"due_{health.value}")
    return (
        select(due.c.tenant_id, due.c.id, due.c.is_taken_over, _placed.c.health)
        .select_from(_placed.join(due, true()))
        .where(_placed.c.health == health.value, _placed.c.room > 0)
        .limit(bindparam(f"limit_{health.value}", type_=Integer))
    )


_due = union_all(*(_due_of(health) for health in EndpointHealth)).cte("due")

_claim = (
    update(deliveries)
    .where(deliveries.c.tenant_id == _due.c.tenant_id, deliveries.c.id == _due.c.id)
    .values(
        attempts=deliveries.c.attempts + 1,
        lease_token=bindparam("token"),
        leased_until=_now + func.make_interval(0, 0, 0, 0, 0, 0, bindparam("lease_s", type_=Double)),
    )
    .returning(
        deliveries.c.tenant_id,
        deliveries.c.id,
        deliveries.c.event_id,
        deliveries.c.event_created_at,
        deliveries.c.endpoint_id,
        deliveries.c.subject,
        deliveries.c.feed_position,
        deliveries.c.priority,
        deliveries.c.attempts,
        _due.c.health,
        _due.c.is_taken_over,
    )
    .cte("claimed")
)

_claim_with_urls = select(_claim, endpoints.c.url, endpoints.c.deleted_at.is_not(None)).join(
    endpoints, and_(endpoints.c.tenant_id == _claim.c.tenant_id, endpoints.c.id == _claim.c.endpoint_id)
)

_told = recordset("told", tenant_id=Text(), id=Text(), created_at=events.c.created_at.type)
_bodies = (
    select(events.c.tenant_id, events.c.id, events.c.body)
    .join(
        _told,
        and_(
            events.c.tenant_id == _told.c.tenant_id,
            events.c.created_at == _told.c.created_at,
            events.c.id == _told.c.id,
        ),
    )
    .where(events.c.created_at.between(bindparam("first"), bindparam("last")))
)

_AGREE = Direct(select(*AGREE))
_CLAIM = Direct(_claim_with_urls)
_HEALTH = 9
"""Where the endpoint's health is in a row of a claim."""

# Planned each time, for the days that are asked for: a plan that is kept opens and locks every day's partition.
_BODIES = Direct(_bodies, is_prepared=False)


async def claim_due_deliveries(
    connection: AsyncConnection, wanted: Wanted, *, after: Place = START, lease_s: float, token: str
) -> Claims:
    """Lease due deliveries, at most one of each lane, of each endpoint the live ones and older ones first. The walk begins
    after the endpoint `after` and goes once around. One of the statements that cross tenants."""
    lease: dict[str, object] = {"lease_s": lease_s, "token": token}
    rows = list(await _claim_between(connection, wanted, after, None, lease))
    place = _place_after(rows, wanted)
    if after != START and place == START:
        found = _counted(rows)
        rest = {health: limit - found[health] for health, limit in wanted.limits.items()}
        others = await _claim_between(connection, Wanted(rest, wanted.per_endpoint, wanted.known), START, after, lease)
        place = _place_after(others, Wanted(rest, wanted.per_endpoint))
        rows += others
    if not rows:
        return Claims([], place)
    bodies = await _find_bodies(connection, {(row[0], row[2]): row[3] for row in rows})
    claimed = [
        Claimed(*(*row[:_HEALTH], EndpointHealth(row[_HEALTH]), row[_HEALTH + 1], bodies[row[0], row[2]], *row[-2:]))
        for row in rows
    ]
    return Claims(sorted(claimed, key=lambda delivery: delivery.feed_position), place)


async def _claim_between(
    connection: AsyncConnection, wanted: Wanted, after: Place, until: Place | None, lease: Mapping[str, object]
) -> Sequence[tuple[Any, ...]]:
    parameters = {
        **lease,
        "after_tenant_id": after.tenant_id,
        "after_endpoint_id": after.endpoint_id,
        "until_tenant_id": until.tenant_id if until else None,
        "until_endpoint_id": until.endpoint_id if until else None,
        "known": as_json(
            {f"{one.tenant_id}/{one.endpoint_id}": {"health": one.health, "room": one.room} for one in wanted.known}
        ),
        **{f"limit_{health}": limit for health, limit in wanted.limits.items()},
        **{f"room_{health}": room for health, room in wanted.per_endpoint.items()},
    }
    return await run_direct(connection, (READ_BY_INDEX, {}), (_AGREE, {}), (_CLAIM, parameters))


def _counted(rows: Sequence[tuple[Any, ...]]) -> Counter[str]:
    return Counter(row[_HEALTH] for row in rows)


def _place_after(rows: Sequence[tuple[Any, ...]], wanted: Wanted) -> Place:
    """Where the walk ended first: of each health whose limit was reached, the last endpoint. The start when none was."""
    found = _counted(rows)
    full = [health for health, limit in wanted.limits.items() if 0 < limit <= found[health]]
    ends = [max(Place(row[0], row[4]) for row in rows if row[_HEALTH] == health) for health in full]
    return min(ends, default=START)


async def _find_bodies(
    connection: AsyncConnection, told: Mapping[tuple[str, str], datetime]
) -> Mapping[tuple[str, str], bytes]:
    """The bodies of events, found by tenant and id, that were stored at these times."""
    asked = [{"tenant_id": key[0], "id": key[1], "created_at": created_at} for key, created_at in told.items()]
    parameters = {"told_rows": as_json(asked), "first": min(told.values()), "last": max(told.values())}
    return {(row[0], row[1]): row[2] for row in await run_direct(connection, (_BODIES, parameters))}
