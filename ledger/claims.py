"""Claiming: which deliveries a worker may send next, handed out in turns over the endpoints that are owed any.

A claim says of which endpoints it wants how many, and looks for these alone: what other endpoints are owed is not read,
however much that is. Which endpoints are owed anything is found by `ledger/owed.py`; which of them have their turn, with how
much room, is `notifier/isolation.py`'s business; one whose breaker is open (`ledger/breaker.py`) has none. Of each lane a
claim takes the first, if nothing stands in its way (`ledger/lanes.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import (
    ColumnElement,
    FromClause,
    Integer,
    Select,
    Text,
    bindparam,
    case,
    cast,
    func,
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
from ledger.by_hand import agree_on, may_claim
from ledger.by_index import READ_BY_INDEX
from ledger.columns import TIME
from ledger.direct import Direct, Rows, Step, run_direct, run_together
from ledger.endpoint_pace import allowance_of, charge, pace_of_endpoint, paced
from ledger.endpoint_secrets import LeftOut, LiveSecrets, live_secrets_step, open_secrets
from ledger.events import LATE_PRIORITY, LIVE_PRIORITY
from ledger.ids import DeliveryId, EndpointId, EventId, TenantId
from ledger.lanes import blocking, is_in
from ledger.owed import EVER, LATE_COMMIT, TURN, is_due_to, is_left_alone, is_ordinary, joined, place_of, seconds
from ledger.schema import deliveries, endpoints
from ledger.secrets import SecretBox
from ledger.states import DeliveryState

LOOKED_BACK = timedelta(seconds=5)
"""How far before the last beginning a new one is looked for: a large block's commit takes a while."""


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
    suspect_id: DeliveryId | None = None
    """Wanted is this one alone, a suspect (`ledger/suspects.py`); and else none of them."""


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


_now = func.now()

_rooms = recordset(
    "rooms", tenant_id=Text(), endpoint_id=Text(), room=Integer(), live_from=TIME, late_from=TIME, suspect_id=Text()
)
_room = case(
    (or_(is_left_alone, not_(has_agreed(_rooms.c.endpoint_id))), 0),
    (breaker.is_open(endpoints), func.least(_rooms.c.room, 1)),
    else_=_rooms.c.room,
)
# A probe is the one that has been due for longest, of all: what a person asked for was put there.
_FROM = "live_from", "late_from"
_from = [case((breaker.is_open(endpoints), None), else_=_rooms.c[name]).label(name) for name in _FROM]
_asked = joined(_rooms, _room.label("room"), pace_of_endpoint.label("max_per_s"), *_from)
_allowance = allowance_of(_rooms, _asked.c.max_per_s)
_placed = (
    select(
        _rooms.c.tenant_id,
        _rooms.c.endpoint_id,
        paced(_asked.c.room, _asked.c.max_per_s, _allowance).label("room"),
        _asked.c.max_per_s,
        _asked.c.live_from,
        _asked.c.late_from,
        _rooms.c.suspect_id,
    )
    .select_from(_rooms.join(_asked, true()).outerjoin(_allowance, true()))
    .cte("placed")
)


_may_be = case((_placed.c.suspect_id.is_(None), is_ordinary), else_=deliveries.c.id == _placed.c.suspect_id)


def _due_at_priority(priority: int, due_from: ColumnElement[Any]) -> Select[Any]:
    """What is due to one endpoint, the oldest first: read in the order of the index, and no further than its room."""
    due = (
        select(deliveries.c.tenant_id, deliveries.c.id, deliveries.c.lease_token.is_not(None).label("is_taken_over"))
        .where(
            is_due_to(_placed, priority, func.coalesce(due_from, EVER), _may_be),
            may_claim(deliveries),
            ~blocking.correlate(deliveries).exists(),
        )
        .order_by(*TURN)
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
        takeovers=deliveries.c.takeovers + cast(_due_of_all.c.is_taken_over, Integer),
        lease_token=bindparam("token"),
        leased_until=_now + seconds("lease_s"),
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

_claimed_endpoint = joined(_claim, endpoints.c.url, endpoints.c.deleted_at.is_not(None).label("is_gone"))
_claim_with_urls = (
    select(_claim, _claimed_endpoint.c.url, _claimed_endpoint.c.is_gone)
    .select_from(_claim.join(_claimed_endpoint, true()))
    .add_cte(charge(_placed, _claim).cte("charged"))
)


def _pending_from(priority: int, due_from: ColumnElement[Any]) -> ColumnElement[Any]:
    """Since when something is pending: not later than a moment ago, for what is being committed may be due since then."""
    place = place_of(_rooms, priority)
    pending = (
        select(deliveries.c.due_at)
        .where(
            is_in(deliveries, DeliveryState.PENDING),
            tuple_(*TURN) >= tuple_(*place, func.coalesce(due_from, EVER) - LOOKED_BACK),
            tuple_(*TURN[:3]) <= tuple_(*place),
        )
        .order_by(*TURN)
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
                "suspect_id": one.suspect_id,
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
