"""The queue of deliveries: claiming by lane with leases, and settling by compare-and-set.

A lane is one endpoint and one subject (an entry, most often). Within it one delivery is in flight at a time, in the
order of the feed; lanes never wait for each other. A claim takes a lease in a short transaction and returns: no
transaction is open while a merchant is asked. The attempt is counted at the claim, so that a delivery that kills its
worker is counted too. A lease ends by the database's clock. Who claims the delivery after that writes its own token and the
next attempt's number, and only a worker that knows both can settle: one that comes back late, from another process or
from its own past, cannot.

After five failed attempts of one delivery the next of its lane may overtake it, but only while it waits for its own next
attempt: a receiver goes by `sequence`, and news about a deposit must not wait a day behind a poisoned one.

Two claims at one moment do not see each other's leases. What keeps them apart is that both would have to want the same row,
and `SKIP LOCKED` gives it to one; for the first of a lane has no one else in front. Overtaking is the exception: so it ends
a while before the wait does (`OVERTAKING_ENDS`), longer than any claim can stay open.

What waits behind a failed one is moved to its next attempt: it could not go earlier, and each claim would have to look at
it in vain. A merchant that is down for an hour leaves many such rows, and they must not slow what others are owed.

Locks are taken in one order: endpoints (sorted), then deliveries. Deleting an endpoint does the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import msgspec
from sqlalchemy import (
    Boolean,
    ColumnElement,
    Double,
    FromClause,
    Integer,
    SmallInteger,
    Text,
    and_,
    bindparam,
    case,
    delete,
    func,
    literal,
    not_,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.bulk import recordset
from ledger.direct import Direct, run_direct
from ledger.ids import DeliveryId, EndpointId, EventId, TenantId
from ledger.schema import attempts, deliveries, endpoints, events
from ledger.states import SETTLED_STATES, DeliveryState, Fault, Outcome

OVERTAKEN_AFTER_ATTEMPTS = 5
"""Failed attempts after which the next delivery of a lane may go first (the contract's figure)."""

GONE_STATUS_CODE = 410
"""The receiver says that nothing will ever be taken there."""

OVERTAKING_ENDS = timedelta(seconds=60)
"""How long before its next attempt a delivery is not overtaken any more: as long as `ledger/database.py` lets a transaction
stay idle, so that a claim of the next one has either committed or is gone when this one is claimed."""


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
    attempts: int
    """Attempts made, this one included."""
    body: bytes
    url: str
    is_endpoint_gone: bool
    """The endpoint was deleted: nothing is to be sent."""


@dataclass(frozen=True, slots=True)
class Settlement:
    """What became of a claimed delivery. `delay` is the wait before the next attempt of one that stays pending."""

    claimed: Claimed
    state: DeliveryState
    delay: timedelta | None = None
    attempt: AttemptRow | None = None
    """The request that was made; None where none was."""
    is_given_back: bool = False
    """It could not be tried, by a fault of ours: the claim is not counted."""
    fault: Fault | None = None
    """Why it could not be sent, where that is a fault of ours: the endpoint has failed at nothing."""


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """One HTTP request, as it is stored."""

    started_at: datetime
    duration_ms: int
    outcome: Outcome
    status_code: int | None
    error: str | None
    response_excerpt: str | None


_read_by_index = select(
    *(func.set_config(name, "off", True) for name in ("enable_seqscan", "enable_bitmapscan", "enable_sort")),
    *(func.set_config(name, "off", True) for name in ("enable_hashjoin", "enable_mergejoin")),
)
"""For the rest of the transaction: few rows, each by its index. A queue fills and empties faster than statistics follow, and
by old ones Postgres reads all that is due to hand out a hundred, or all that is pending to settle them."""

_other = deliveries.alias("other")
_now = func.now()


def _is_in(queue: FromClause, *states: DeliveryState) -> ColumnElement[bool]:
    """The state written into the statement, not sent as a parameter: a plan that is kept may then use a partial index."""
    values = [state.value for state in states]
    return queue.c.state.in_(bindparam(None, values, expanding=True, literal_execute=True))


_is_in_the_way = and_(
    _other.c.tenant_id == deliveries.c.tenant_id,
    _other.c.endpoint_id == deliveries.c.endpoint_id,
    _other.c.subject == deliveries.c.subject,
    _is_in(_other, DeliveryState.PENDING, DeliveryState.HELD),
    _other.c.id != deliveries.c.id,
    or_(
        _other.c.leased_until > _now,
        and_(
            _other.c.feed_position < deliveries.c.feed_position,
            not_(and_(_other.c.attempts >= OVERTAKEN_AFTER_ATTEMPTS, _other.c.due_at > _now + OVERTAKING_ENDS)),
        ),
    ),
)

_due = (
    select(deliveries.c.tenant_id, deliveries.c.id)
    .where(
        _is_in(deliveries, DeliveryState.PENDING),
        deliveries.c.due_at <= _now,
        or_(deliveries.c.leased_until.is_(None), deliveries.c.leased_until <= _now),
        ~select(literal(1)).where(_is_in_the_way).exists(),
    )
    # No more than the index gives: whatever sorts further reads all that is due before the first is claimed.
    .order_by(deliveries.c.priority, deliveries.c.due_at)
    .limit(bindparam("limit"))
    .with_for_update(skip_locked=True)
    .cte("due")
)

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
        deliveries.c.attempts,
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

_READ_BY_INDEX = Direct(_read_by_index)
_CLAIM = Direct(_claim_with_urls)

# Planned each time, for the days that are asked for: a plan that is kept opens and locks every day's partition.
_BODIES = Direct(_bodies, is_prepared=False)


async def claim_due_deliveries(connection: AsyncConnection, *, limit: int, lease_s: float, token: str) -> list[Claimed]:
    """Lease up to `limit` due deliveries, at most one of each lane, live ones and older ones first. One of the statements
    that cross tenants."""
    parameters = {"limit": limit, "lease_s": lease_s, "token": token}
    rows = await run_direct(connection, (_READ_BY_INDEX, {}), (_CLAIM, parameters))
    if not rows:
        return []
    bodies = await _find_bodies(connection, {(row[0], row[2]): row[3] for row in rows})
    claimed = [Claimed(*[*row[:8], bodies[row[0], row[2]], *row[8:]]) for row in rows]
    return sorted(claimed, key=lambda delivery: delivery.feed_position)


async def _find_bodies(
    connection: AsyncConnection, told: Mapping[tuple[str, str], datetime]
) -> Mapping[tuple[str, str], bytes]:
    """The bodies of events, found by tenant and id, that were stored at these times."""
    asked = [{"tenant_id": key[0], "id": key[1], "created_at": created_at} for key, created_at in told.items()]
    parameters = {"told_rows": _as_json(asked), "first": min(told.values()), "last": max(told.values())}
    return {(row[0], row[1]): row[2] for row in await run_direct(connection, (_BODIES, parameters))}


_MADE = ("started_at", "duration_ms", "status_code", "outcome", "error", "response_excerpt")
"""Columns of an attempt that tell of the request itself."""

_asked = select(
    recordset(
        "asked",
        tenant_id=Text(),
        id=Text(),
        attempts=SmallInteger(),
        state=Text(),
        delay_s=Double(),
        given_back=SmallInteger(),
        fault=Text(),
        **{name: attempts.c[name].type for name in _MADE},
    )
).cte("asked")

_settle = (
    update(deliveries)
    .where(
        deliveries.c.tenant_id == _asked.c.tenant_id,
        deliveries.c.id == _asked.c.id,
        deliveries.c.lease_token == bindparam("token"),
        deliveries.c.attempts == _asked.c.attempts,
        _is_in(deliveries, DeliveryState.PENDING),
    )
    .values(
        state=_asked.c.state,
        fault=_asked.c.fault,
        attempts=deliveries.c.attempts - _asked.c.given_back,
        due_at=func.now() + func.make_interval(0, 0, 0, 0, 0, 0, _asked.c.delay_s),
        settled_at=case((_asked.c.state.in_([state.value for state in SETTLED_STATES]), func.now()), else_=None),
        lease_token=None,
        leased_until=None,
    )
    .returning(
        deliveries.c.tenant_id,
        deliveries.c.id,
        deliveries.c.endpoint_id,
        deliveries.c.subject,
        deliveries.c.feed_position,
        deliveries.c.state,
        deliveries.c.attempts,
        deliveries.c.due_at,
    )
    .cte("settled")
)

_lane_due_at = case(
    (
        and_(_is_in(_settle, DeliveryState.PENDING), _settle.c.attempts < OVERTAKEN_AFTER_ATTEMPTS),
        _settle.c.due_at,
    ),
    else_=_now,
)

_move_lane = (
    update(deliveries)
    .where(
        deliveries.c.tenant_id == _settle.c.tenant_id,
        deliveries.c.endpoint_id == _settle.c.endpoint_id,
        deliveries.c.subject == _settle.c.subject,
        deliveries.c.feed_position > _settle.c.feed_position,
        _is_in(deliveries, DeliveryState.PENDING),
        deliveries.c.attempts == 0,
        func.greatest(deliveries.c.due_at, _now) != _lane_due_at,
    )
    .values(due_at=_lane_due_at)
    .returning(deliveries.c.id)
    .cte("moved")
)

_attempt_of = {
    attempts.c.tenant_id: _asked.c.tenant_id,
    attempts.c.delivery_id: _asked.c.id,
    attempts.c.number: _asked.c.attempts,
    **{attempts.c[name]: _asked.c[name] for name in _MADE},
}
_store_attempts = (
    insert(attempts)
    .from_select(list(_attempt_of), select(*_attempt_of.values()).where(_asked.c.outcome.is_not(None)))
    .on_conflict_do_nothing()
    .returning(attempts.c.number)
    .cte("stored")
)

_health = recordset(
    "health",
    tenant_id=Text(),
    id=Text(),
    was_asked=Boolean(),
    failures=Integer(),
    has_accepted=Boolean(),
    gone_answers=Integer(),
    status_code=SmallInteger(),
    error=Text(),
)
_is_of_health = and_(endpoints.c.tenant_id == _health.c.tenant_id, endpoints.c.id == _health.c.id)

# In sorted order, and before any delivery: two workers settle at one time, and an owner may delete an endpoint.
_lock_endpoints = (
    select(endpoints.c.id)
    .join(_health, _is_of_health)
    .order_by(endpoints.c.tenant_id, endpoints.c.id)
    .with_for_update(key_share=True, of=endpoints)
)

_earlier = case((_health.c.has_accepted, None), else_=endpoints.c.failing_since)
_failing = {
    "failing_since": case((_health.c.failures > 0, func.coalesce(_earlier, func.now())), else_=_earlier),
    "last_failed_at": case((_health.c.failures > 0, func.now()), else_=endpoints.c.last_failed_at),
    "gone_answers": case((_health.c.has_accepted, 0), else_=endpoints.c.gone_answers) + _health.c.gone_answers,
}

_note_health = (
    update(endpoints)
    .where(_is_of_health, _health.c.was_asked)
    .values(
        last_attempt_at=func.now(),
        last_accepted_at=case((_health.c.has_accepted, func.now()), else_=endpoints.c.last_accepted_at),
        failures_consecutive=case(
            (_health.c.has_accepted, _health.c.failures),
            else_=endpoints.c.failures_consecutive + _health.c.failures,
        ),
        **_failing,
        last_status_code=_health.c.status_code,
        last_error=_health.c.error,
    )
    .returning(endpoints.c.id)
    .cte("noted")
)

_settle_all = select(_settle.c.id).add_cte(_move_lane, _store_attempts, _note_health)

_LOCK_ENDPOINTS = Direct(_lock_endpoints)
_SETTLE = Direct(_settle_all)


async def settle_deliveries(
    connection: AsyncConnection, token: str, settlements: Sequence[Settlement]
) -> set[DeliveryId]:
    """Store what became of claimed deliveries; returns the ids of those that still held their lease. Every request that
    was made is stored as an attempt, also one whose lease was lost: it happened. Settling the same again is harmless, so a
    caller that lost the answer to its COMMIT may repeat it."""
    health = {"health_rows": _as_json(_health_rows(settlements))}
    asked = {"token": token, "asked_rows": _as_json([_asked_row(settlement) for settlement in settlements])}
    rows = await run_direct(connection, (_READ_BY_INDEX, {}), (_LOCK_ENDPOINTS, health), (_SETTLE, {**asked, **health}))
    return {DeliveryId(row[0]) for row in rows}


def _as_json(rows: list[Any]) -> str:
    return msgspec.json.encode(rows).decode()


def _asked_row(settlement: Settlement) -> dict[str, object]:
    claimed, attempt = settlement.claimed, settlement.attempt
    row: dict[str, object] = {
        "tenant_id": claimed.tenant_id,
        "id": claimed.id,
        "attempts": claimed.attempts,
        "state": settlement.state,
        "delay_s": settlement.delay.total_seconds() if settlement.delay else 0,
        "given_back": int(settlement.is_given_back),
        "fault": settlement.fault,
    }
    return row if attempt is None else row | {name: getattr(attempt, name) for name in _MADE}


class _Health(msgspec.Struct):
    """How one endpoint did in this settling, if it was asked at all."""

    tenant_id: TenantId
    id: EndpointId
    was_asked: bool = False
    failures: int = 0
    """Since it last accepted."""
    has_accepted: bool = False
    gone_answers: int = 0
    """Since it last accepted."""
    status_code: int | None = None
    error: str | None = None


def _health_rows(settlements: Sequence[Settlement]) -> list[_Health]:
    """Every endpoint that is concerned, once."""
    found: dict[tuple[TenantId, EndpointId], _Health] = {}
    for settlement in settlements:
        key = (settlement.claimed.tenant_id, settlement.claimed.endpoint_id)
        health = found.setdefault(key, _Health(*key))
        if settlement.attempt is None or settlement.fault is not None:
            continue
        health.was_asked = True
        health.status_code, health.error = settlement.attempt.status_code, settlement.attempt.error
        if settlement.attempt.outcome is Outcome.ACCEPTED:
            health.failures, health.gone_answers, health.has_accepted = 0, 0, True
        else:
            health.failures += 1
            health.gone_answers += settlement.attempt.status_code == GONE_STATUS_CODE
    return list(found.values())


_KEPT_STATES = (DeliveryState.HELD, DeliveryState.EXHAUSTED, DeliveryState.REFUSED, DeliveryState.FAULTED)


async def count_deliveries(connection: AsyncConnection) -> Mapping[str, int]:
    """How many deliveries are due, held, exhausted, refused and faulted: counted over partial indexes. Crosses tenants."""
    due = select(func.count()).where(_is_in(deliveries, DeliveryState.PENDING), deliveries.c.due_at <= func.now())
    kept = select(deliveries.c.state, func.count().label("number")).where(_is_in(deliveries, *_KEPT_STATES))
    counts = {row.state: int(row.number) for row in await connection.execute(kept.group_by(deliveries.c.state))}
    due_count = (await connection.execute(due)).scalar_one()
    return {"due": due_count} | {state.value: counts.get(state.value, 0) for state in _KEPT_STATES}


async def delete_settled_deliveries(connection: AsyncConnection, before: datetime, limit: int) -> int:
    """Delete up to `limit` deliveries that were settled before a time; returns how many. Crosses tenants."""
    old = (
        select(deliveries.c.tenant_id, deliveries.c.id)
        .where(deliveries.c.settled_at < before)
        .limit(limit)
        .with_for_update(skip_locked=True)
        .cte("old")
    )
    result = await connection.execute(
        delete(deliveries).where(deliveries.c.tenant_id == old.c.tenant_id, deliveries.c.id == old.c.id)
    )
    return result.rowcount
