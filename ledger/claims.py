"""Claiming: which deliveries a worker may send next, handed out in turns over the endpoints that are owed any.

Order. A lane is one endpoint and one subject (an entry, most often). Within it one delivery is under way at a time, in the
order of the feed; lanes never wait for each other. After five failed attempts of one delivery the next of its lane may
overtake it, but only while it waits for its own next attempt: a receiver goes by `sequence`, and news about a deposit must
not wait a day behind a poisoned one. What is redelivered by hand is in no order (`ledger/by_hand.py`).

Two claims at one moment do not see each other's leases. What keeps them apart is that both would have to want the same row,
and `SKIP LOCKED` gives it to one; for the first of a lane has no one else in front. Overtaking is the exception: so it ends
a while before the wait does (`OVERTAKING_ENDS`), longer than any claim can stay open.

Turns. A claim says of which endpoints it wants how many, and looks for these alone: what other endpoints are owed is not
read, however much that is. Which endpoints are owed anything is found in two ways. What became due since the last look
(`find_fresh`) is found by its time, which is quick whoever else is owed what. And a sweep (`find_owed`) goes from endpoint
to endpoint, some hundreds at a time and round and round, and finds what the first way misses: what was committed late, what
a dead worker had, what waited for an endpoint that rested, what another process let go. Which endpoints have their turn,
with how much room, is `notifier/isolation.py`'s business; one whose breaker is open (`ledger/breaker.py`) has none.
"""

from __future__ import annotations

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
    func,
    literal,
    literal_column,
    not_,
    or_,
    select,
    true,
    tuple_,
    union_all,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger import breaker
from ledger.agreement import has_agreed
from ledger.bodies import bodies_steps
from ledger.bulk import as_json, recordset
from ledger.by_hand import BY_HAND, agree_on, goes_first, may_claim
from ledger.by_index import READ_BY_INDEX
from ledger.columns import TIME
from ledger.direct import Direct, Rows, Step, run_direct, run_together
from ledger.endpoint_pace import allowance_of, charge, pace_of_endpoint, paced
from ledger.endpoint_secrets import LeftOut, LiveSecrets, live_secrets_step, open_secrets
from ledger.events import LATE_PRIORITY, LIVE_PRIORITY
from ledger.ids import DeliveryId, EndpointId, EventId, TenantId
from ledger.schema import deliveries, endpoints
from ledger.secrets import SecretBox
from ledger.states import DeliveryState, EndpointHealth, EndpointState

FAILING_AFTER_FAILURES = 3
"""Failures in a row after which an endpoint counts as failing: a single one may be about the event."""

OVERTAKEN_AFTER_ATTEMPTS = 5
"""Failed attempts after which the next delivery of a lane may go first (the contract's figure)."""

LATE_COMMIT = timedelta(seconds=0.5)
"""How long before its commit a delivery may be due and still be found by its time; what was committed later is found by a
sweep."""

LOOKED_BACK = timedelta(seconds=5)
"""How far before the last beginning a new one is looked for: a large block's commit takes a while."""

OVERTAKING_ENDS = timedelta(seconds=60)
"""How long before its next attempt a delivery is not overtaken any more: as long as `ledger/database.py` lets a transaction
stay idle, so that a claim of the next one has either committed or is gone when this one is claimed."""


class Place(NamedTuple):
    """An endpoint in the order in which claims walk."""

    tenant_id: str
    endpoint_id: str


START = Place("", "")
"""Before the first endpoint."""


class DueFrom(NamedTuple):
    """Since when something is pending for an endpoint, of the live ones and of the late ones: where a claim begins to read.
    What was due before is settled, and Postgres has to step over it for as long as anybody may still see it."""

    live: datetime
    late: datetime


@dataclass(frozen=True, slots=True)
class EndpointRoom:
    """How many deliveries a worker wants for an endpoint."""

    tenant_id: TenantId
    endpoint_id: EndpointId
    room: int
    due_from: DueFrom | None = None
    """None where that is not known: all is read."""


class Owed(NamedTuple):
    """An endpoint to which something is due, and how it does by what is stored of it."""

    tenant_id: TenantId
    endpoint_id: EndpointId
    health: EndpointHealth
    live_from: datetime | None = None
    late_from: datetime | None = None
    """Since when, of the live ones and of the late ones, where that was looked for."""


class Claimed(msgspec.Struct, frozen=True):
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
    lease_token: str
    """Of this claim alone: a worker that claims the same again has another."""
    is_taken_over: bool
    """Another worker had it, and its lease ended: the receiver may have it already."""
    body: bytes | None
    """None where its event was retired meanwhile: there is nothing left to send."""
    url: str
    is_endpoint_gone: bool
    """The endpoint was deleted: nothing is to be sent."""


_other = deliveries.alias("other")
_now = func.now()


def is_in(queue: FromClause, *states: DeliveryState) -> ColumnElement[bool]:
    """The state written into the statement, not sent as a parameter: a plan that is kept may then use a partial index."""
    return queue.c.state.in_(bindparam(None, [one.value for one in states], expanding=True, literal_execute=True))


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

# OFFSET 0 keeps Postgres from making a join of it, which by old statistics reads all that an endpoint is owed for each row:
# looked up by the lane's index it is a row or two.
_blocking = select(literal(1)).where(_is_in_the_way).offset(literal_column("0"))

_stored_health = case(
    (breaker.is_open(endpoints), EndpointHealth.FAILING.value),
    (endpoints.c.failures_consecutive >= FAILING_AFTER_FAILURES, EndpointHealth.FAILING.value),
    (endpoints.c.last_accepted_at.is_not(None), EndpointHealth.ACCEPTING.value),
    else_=EndpointHealth.UNPROVEN.value,
)
# What is pending to one that was paused a moment ago is still being held; what was deleted is claimed to be discarded.
_is_stopped = and_(endpoints.c.state != EndpointState.ACTIVE.value, endpoints.c.deleted_at.is_(None))

_is_free = or_(deliveries.c.leased_until.is_(None), deliveries.c.leased_until <= _now)
_EVER: ColumnElement[Any] = literal_column("CAST('-infinity' AS timestamptz)")
_turn = deliveries.c.tenant_id, deliveries.c.endpoint_id, deliveries.c.priority, deliveries.c.due_at


def _place(endpoint: FromClause, priority: int) -> tuple[ColumnElement[Any], ...]:
    of_priority: ColumnElement[int] = bindparam(None, priority, literal_execute=True)
    return endpoint.c.tenant_id, endpoint.c.endpoint_id, of_priority


def _is_due_to(endpoint: FromClause, priority: int, due_from: ColumnElement[Any] = _EVER) -> ColumnElement[bool]:
    """Due to one endpoint; to be read in the order of `_turn`. Compared as rows, which leaves one index that has that order.
    By equalities Postgres may read the due deliveries of everybody, in the order of time, to find those of one."""
    place = _place(endpoint, priority)
    return and_(
        is_in(deliveries, DeliveryState.PENDING),
        tuple_(*_turn) >= tuple_(*place, due_from),
        tuple_(*_turn) <= tuple_(*place, _now),
        _is_free,
    )


def _seconds(name: str) -> ColumnElement[Any]:
    return func.make_interval(0, 0, 0, 0, 0, 0, bindparam(name, type_=Double))


_fresh = (
    select(deliveries.c.tenant_id, deliveries.c.endpoint_id)
    .where(
        is_in(deliveries, DeliveryState.PENDING),
        deliveries.c.due_at > _now - _seconds("age_s"),
        deliveries.c.due_at <= _now,
        deliveries.c.lease_token.is_(None),
    )
    .distinct()
    .cte("fresh")
)


def _of(found: FromClause) -> ColumnElement[bool]:
    return and_(endpoints.c.tenant_id == found.c.tenant_id, endpoints.c.id == found.c.endpoint_id)


def _joined(found: FromClause, *columns: ColumnElement[Any]) -> FromClause:
    """The endpoint of each row that was found, looked up by its key. OFFSET 0 as above: where there are few endpoints
    Postgres would rather go through all of them, and through all that was found for each."""
    return (
        select(*columns).select_from(endpoints).where(_of(found)).offset(literal_column("0")).correlate(found).lateral()
    )


_is_left_alone = or_(_is_stopped, breaker.is_resting(endpoints)).label("is_left_alone")

_fresh_endpoint = _joined(_fresh, _stored_health.label("health"), _is_left_alone)
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


_swept = _joined(_walked, _stored_health.label("health"), _is_left_alone)


def _first_due(priority: int) -> ColumnElement[Any]:
    due = select(deliveries.c.due_at).where(_is_due_to(_walked, priority)).order_by(*_turn).limit(1)
    return case((_swept.c.is_left_alone, None), else_=due.correlate(_walked).scalar_subquery())


_sweep = (
    select(_walked, _swept.c.health, _first_due(LIVE_PRIORITY).label("live"), _first_due(LATE_PRIORITY).label("late"))
    .select_from(_walked.join(_swept, true()))
    .order_by(_walked.c.tenant_id, _walked.c.endpoint_id)
)
_SWEEP = Direct(_sweep)

_rooms = recordset("rooms", tenant_id=Text(), endpoint_id=Text(), room=Integer(), live_from=TIME, late_from=TIME)
_room = case(
    (or_(_is_left_alone, not_(has_agreed(_rooms.c.endpoint_id))), 0),
    (breaker.is_open(endpoints), func.least(_rooms.c.room, 1)),
    else_=_rooms.c.room,
)
# A probe is the one that has been due for longest, of all: what a person asked for was put there.
_FROM = "live_from", "late_from"
_from = [case((breaker.is_open(endpoints), None), else_=_rooms.c[name]).label(name) for name in _FROM]
_asked = _joined(_rooms, _room.label("room"), pace_of_endpoint.label("max_per_s"), *_from)
_allowance = allowance_of(_rooms, _asked.c.max_per_s)
_placed = (
    select(
        _rooms.c.tenant_id,
        _rooms.c.endpoint_id,
        paced(_asked.c.room, _asked.c.max_per_s, _allowance).label("room"),
        _asked.c.max_per_s,
        _asked.c.live_from,
        _asked.c.late_from,
    )
    .select_from(_rooms.join(_asked, true()).outerjoin(_allowance, true()))
    .cte("placed")
)


def _due_at_priority(priority: int, due_from: ColumnElement[Any]) -> Select[Any]:
    """What is due to one endpoint, the oldest first: read in the order of the index, and no further than its room."""
    due = (
        select(deliveries.c.tenant_id, deliveries.c.id, deliveries.c.lease_token.is_not(None).label("is_taken_over"))
        .where(
            _is_due_to(_placed, priority, func.coalesce(due_from, _EVER)),
            may_claim(deliveries),
            ~_blocking.correlate(deliveries).exists(),
        )
        .order_by(*_turn)
        .limit(_placed.c.room)
        .with_for_update(skip_locked=True)
        .correlate(_placed)
        .subquery()
    )
    return select(due.c.tenant_id, due.c.id, due.c.is_taken_over)


def _due() -> FromClause:
    by_priority = union_all(
        _due_at_priority(LIVE_PRIORITY, _placed.c.live_from), _due_at_priority(LATE_PRIORITY, _placed.c.late_from)
    ).subquery()
    due = select(by_priority).limit(_placed.c.room).correlate(_placed).lateral("due_of")
    return select(due.c.tenant_id, due.c.id, due.c.is_taken_over).select_from(_placed.join(due, true())).cte("due")


_due_of_all = _due()

_claim = (
    update(deliveries)
    .where(deliveries.c.tenant_id == _due_of_all.c.tenant_id, deliveries.c.id == _due_of_all.c.id)
    .values(
        attempts=deliveries.c.attempts + 1,
        lease_token=bindparam("token"),
        leased_until=_now + _seconds("lease_s"),
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
        deliveries.c.lease_token,
        _due_of_all.c.is_taken_over,
    )
    .cte("claimed")
)

_claimed_endpoint = _joined(_claim, endpoints.c.url, endpoints.c.deleted_at.is_not(None).label("is_gone"))
_claim_with_urls = (
    select(_claim, _claimed_endpoint.c.url, _claimed_endpoint.c.is_gone)
    .select_from(_claim.join(_claimed_endpoint, true()))
    .add_cte(charge(_placed, _claim).cte("charged"))
)


def _pending_from(priority: int, due_from: ColumnElement[Any]) -> ColumnElement[Any]:
    """Since when something is pending: not later than a moment ago, for what is being committed may be due since then."""
    place = _place(_rooms, priority)
    pending = (
        select(deliveries.c.due_at)
        .where(
            is_in(deliveries, DeliveryState.PENDING),
            tuple_(*_turn) >= tuple_(*place, func.coalesce(due_from, _EVER) - LOOKED_BACK),
            tuple_(*_turn[:3]) <= tuple_(*place),
        )
        .order_by(*_turn)
        .limit(1)
        .correlate(_rooms)
        .scalar_subquery()
    )
    return func.least(pending, _now - LATE_COMMIT)


_PENDING_FROM = Direct(
    select(
        _rooms.c.tenant_id,
        _rooms.c.endpoint_id,
        _pending_from(LIVE_PRIORITY, _rooms.c.live_from).label("live"),
        _pending_from(LATE_PRIORITY, _rooms.c.late_from).label("late"),
    )
)
_AGREE = Direct(agree_on(_rooms))
_CLAIM = Direct(_claim_with_urls)
_EVENT_ID, _EVENT_CREATED_AT, _ENDPOINT_ID, _OF_CLAIM = 2, 3, 4, 11
"""Places in a claim's row; the last is the first of its endpoint's."""


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


async def claim_due_deliveries(
    connection: AsyncConnection, rooms: Sequence[EndpointRoom], *, lease_s: float, token: str
) -> list[Claimed]:
    """Lease due deliveries of these endpoints, at most one of each lane, of each endpoint the live ones and older ones
    first; in feed order. `token` is this claim's alone. One of the statements that cross tenants."""
    rows = await run_direct(connection, (READ_BY_INDEX, {}), *_lease_steps(rooms, lease_s, token))
    return _with_bodies(rows, (await run_together(connection, *bodies_steps(_told_of(rows))))[-1]) if rows else []


class ToSend(NamedTuple):
    """What a claim brought."""

    claimed: list[Claimed]
    live: LiveSecrets
    left_out: list[LeftOut]
    """What to sign it with, and which valid secrets it is not signed with."""
    due_from: Mapping[tuple[TenantId, EndpointId], DueFrom]
    """Since when something is pending for the endpoints that were asked about."""


async def claim_to_send(
    connection: AsyncConnection,
    box: SecretBox,
    rooms: Sequence[EndpointRoom],
    *,
    lease_s: float,
    token: str,
    unsure: Sequence[EndpointRoom] = (),
) -> ToSend:
    """The same with what to sign them with, and the end of its `direct_transaction`: two round trips in all. When the bodies
    or the secrets cannot be read nothing was claimed, and no attempt counted. `unsure` are those of which since when
    something is pending is wanted."""
    asked = ((_PENDING_FROM, {"rooms_rows": _rooms_json(unsure)}),) if unsure else ()
    steps: tuple[Step, ...] = (READ_BY_INDEX, {}), *asked, *_lease_steps(rooms, lease_s, token)
    _, pending, *_, rows = await run_together(connection, *steps)
    due_from = {(TenantId(row[0]), EndpointId(row[1])): DueFrom(row[2], row[3]) for row in pending} if unsure else {}
    if not rows:
        return ToSend([], {}, [], due_from)
    keys = sorted({(TenantId(row[0]), EndpointId(row[_ENDPOINT_ID])) for row in rows})
    *_, bodies, secrets = await run_together(
        connection, *bodies_steps(_told_of(rows)), live_secrets_step(keys), commits=True
    )
    return ToSend(_with_bodies(rows, bodies), *open_secrets(box, secrets), due_from)


def _lease_steps(rooms: Sequence[EndpointRoom], lease_s: float, token: str) -> tuple[Step, Step]:
    rooms_rows = _rooms_json(rooms)
    parameters = {"lease_s": lease_s, "token": token, "rooms_rows": rooms_rows}
    return (_AGREE, {"rooms_rows": rooms_rows}), (_CLAIM, parameters)


def _rooms_json(rooms: Sequence[EndpointRoom]) -> str:
    return as_json(
        [
            {
                "tenant_id": one.tenant_id,
                "endpoint_id": one.endpoint_id,
                "room": one.room,
                "live_from": one.due_from and one.due_from.live,
                "late_from": one.due_from and one.due_from.late,
            }
            for one in rooms
        ]
    )


def _told_of(rows: Rows) -> Mapping[tuple[str, str], datetime]:
    """The events that claimed deliveries tell, by tenant and id, and when they were stored."""
    return {(row[0], row[_EVENT_ID]): row[_EVENT_CREATED_AT] for row in rows}


def _with_bodies(rows: Rows, read: Rows) -> list[Claimed]:
    bodies = {(row[0], row[1]): row[2] for row in read}
    claimed = [Claimed(*[*row[:_OF_CLAIM], bodies.get((row[0], row[_EVENT_ID])), *row[_OF_CLAIM:]]) for row in rows]
    return sorted(claimed, key=lambda delivery: delivery.feed_position)
