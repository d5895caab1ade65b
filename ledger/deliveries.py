"""The queue of deliveries: leases, settling by compare-and-set, and counting. Claiming is `ledger/claims.py`.

A claim takes a lease in a short transaction and returns: no transaction is open while a merchant is asked. The attempt is
counted at the claim, so that a delivery that kills its worker is counted too. A lease ends by the database's clock, and who
is still sending extends it. Who claims the delivery after it ended writes its own token and the next attempt's number, and
only a worker that knows both can settle: one that comes back late, from another process or from its own past, cannot.

What waits behind a failed one is moved to its next attempt: it could not go earlier, and each claim would have to look at
it in vain. A merchant that is down for an hour leaves many such rows, and they must not slow what others are owed.

Locks are taken in one order: endpoints, then deliveries by their keys. Deleting an endpoint does the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from operator import attrgetter
from typing import NamedTuple

import msgspec
from sqlalchemy import (
    Boolean,
    Double,
    Integer,
    SmallInteger,
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
    union_all,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger import breaker
from ledger.bulk import as_json, recordset
from ledger.by_hand import BY_HAND
from ledger.by_index import READ_BY_INDEX
from ledger.claims import Claimed
from ledger.columns import TIME
from ledger.direct import Direct, run_direct, run_together
from ledger.ids import DeliveryId, EndpointId, TenantId
from ledger.lanes import OVERTAKEN_AFTER_ATTEMPTS, is_in
from ledger.schema import attempts, deliveries, endpoints
from ledger.states import SETTLED_STATES, DeliveryState, Fault, Outcome

GONE_STATUS_CODE = 410
"""The receiver says that nothing will ever be taken there."""


HEALTH_INTERVAL = timedelta(seconds=1)
"""How old the time of an endpoint's last acceptance may be, while it accepts all that it is asked."""


class Settlement(msgspec.Struct, frozen=True):
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
    is_blameless: bool = False
    """The request says nothing of the endpoint: it was we who broke it off."""


class AttemptRow(msgspec.Struct, frozen=True):
    """One HTTP request, as it is stored."""

    started_at: datetime
    duration_ms: int
    outcome: Outcome
    status_code: int | None
    error: str | None
    response_excerpt: str | None


_MADE = ("started_at", "duration_ms", "status_code", "outcome", "error", "response_excerpt")
"""Columns of an attempt that tell of the request itself."""

# Token and state come with each row, and not as parameters: what Postgres can count beforehand, it would rather look for
# in the whole queue than at the few rows that are asked for by their keys.
_asked = select(
    recordset(
        "asked",
        tenant_id=Text(),
        id=Text(),
        token=Text(),
        was=Text(),
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
        deliveries.c.lease_token == _asked.c.token,
        deliveries.c.attempts == _asked.c.attempts,
        deliveries.c.state == _asked.c.was,
    )
    .values(
        state=_asked.c.state,
        fault=_asked.c.fault,
        attempts=deliveries.c.attempts - _asked.c.given_back,
        # What is given back keeps its place among what its endpoint is owed.
        due_at=case(
            (and_(_asked.c.given_back == 1, _asked.c.delay_s == 0), deliveries.c.due_at),
            else_=func.now() + func.make_interval(0, 0, 0, 0, 0, 0, _asked.c.delay_s),
        ),
        settled_at=case((_asked.c.state.in_([state.value for state in SETTLED_STATES]), func.now()), else_=None),
        takeovers=case((_asked.c.given_back == 1, deliveries.c.takeovers), else_=0),
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
        and_(is_in(_settle, DeliveryState.PENDING), _settle.c.attempts < OVERTAKEN_AFTER_ATTEMPTS),
        func.greatest(_settle.c.due_at, func.now()),
    ),
    else_=func.now(),
)

_next = deliveries.alias("next")
_behind = (
    # OFFSET 0 keeps Postgres from joining the other way round: by old statistics it reads all that is pending for each that
    # is settled. Of the partial indexes only that of lanes fits these states, so that is the one that is searched.
    select(_next.c.tenant_id, _next.c.id, _next.c.attempts, _next.c.state)
    .where(
        _next.c.tenant_id == _settle.c.tenant_id,
        _next.c.endpoint_id == _settle.c.endpoint_id,
        _next.c.subject == _settle.c.subject,
        _next.c.feed_position > _settle.c.feed_position,
        is_in(_next, DeliveryState.PENDING, DeliveryState.HELD),
        _next.c.state.concat("") == DeliveryState.PENDING.value,
        _next.c.attempts == 0,
        func.greatest(_next.c.due_at, func.now()) != _lane_due_at,
    )
    .offset(literal_column("0"))
    .correlate(_settle)
    .lateral("behind")
)
_to_move = (
    select(_behind, _lane_due_at.label("lane_due_at"))
    .select_from(_settle.join(_behind, true()))
    .where(_settle.c.feed_position > BY_HAND)
    .cte("to_move")
)

_move_lane = (
    update(deliveries)
    .where(
        deliveries.c.tenant_id == _to_move.c.tenant_id,
        deliveries.c.id == _to_move.c.id,
        deliveries.c.state == _to_move.c.state,
        deliveries.c.attempts == _to_move.c.attempts,
    )
    .values(due_at=_to_move.c.lane_due_at)
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
    has_failed=Boolean(),
    may_move=Boolean(),
)
_is_of_health = and_(endpoints.c.tenant_id == _health.c.tenant_id, endpoints.c.id == _health.c.id)

# What there is to note of one that does well, as it did before, is when it did so last: that may be a moment old. Such a row
# is neither written nor locked, or else workers would stand in each other's way wherever they tell the same endpoints.
_does_well = and_(
    _health.c.has_accepted,
    _health.c.failures == 0,
    endpoints.c.failures_consecutive == 0,
    endpoints.c.gone_answers == 0,
    endpoints.c.failing_since.is_(None),
    endpoints.c.rests_until.is_(None),
    endpoints.c.last_error.is_(None),
    endpoints.c.last_status_code == _health.c.status_code,
    endpoints.c.last_accepted_at == endpoints.c.last_attempt_at,
    endpoints.c.last_accepted_at > func.now() - HEALTH_INTERVAL,
)
_says_nothing_new = and_(not_(_health.c.may_move), or_(not_(_health.c.was_asked), _does_well))
_told = (
    select(endpoints.c.tenant_id, endpoints.c.id)
    .where(_is_of_health, _says_nothing_new.is_(true()))
    .correlate(_health)
    .lateral("told")
)
# Before any delivery. What somebody else has locked is left for later, and nobody waits: another worker that settles is
# through in a moment, but one that stands still, or an owner who deletes an endpoint that is owed much, is not.
_locked = (
    select(endpoints.c.tenant_id, endpoints.c.id)
    .where(_is_of_health, _says_nothing_new.is_not(true()))
    .correlate(_health)
    .with_for_update(key_share=True, skip_locked=True)
    .lateral("locked")
)
_lock_endpoints = union_all(
    select(_told.c.tenant_id, _told.c.id, literal(False)).select_from(_health.join(_told, true())),
    select(_locked.c.tenant_id, _locked.c.id, literal(True)).select_from(_health.join(_locked, true())),
)

_earlier = case((_health.c.has_accepted, None), else_=endpoints.c.failing_since)
_failing = {
    "failing_since": case((_health.c.failures > 0, func.coalesce(_earlier, func.now())), else_=_earlier),
    # Also where all was refused, which is no failure of the endpoint.
    "last_failed_at": case(
        (or_(_health.c.failures > 0, not_(_health.c.has_accepted)), func.now()), else_=endpoints.c.last_failed_at
    ),
    "gone_answers": case((_health.c.has_accepted, 0), else_=endpoints.c.gone_answers) + _health.c.gone_answers,
}
_failures = case(
    (_health.c.has_accepted, _health.c.failures),
    else_=endpoints.c.failures_consecutive + _health.c.failures,
)

_note_health = (
    update(endpoints)
    .where(_is_of_health, _health.c.was_asked)
    .values(
        last_attempt_at=func.now(),
        last_accepted_at=case((_health.c.has_accepted, func.now()), else_=endpoints.c.last_accepted_at),
        failures_consecutive=_failures,
        **breaker.after(endpoints, _failures, _health.c.has_failed, _health.c.has_accepted),
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


class Settled(NamedTuple):
    """What came of settling."""

    ids: set[DeliveryId]
    """Deliveries that still held their lease, and are settled."""
    left: list[Settlement]
    """Those whose endpoint somebody else had locked: nothing was done about them."""


async def settle_deliveries(
    connection: AsyncConnection, settlements: Sequence[Settlement], *, commits: bool = False, is_repeated: bool = False
) -> Settled:
    """Store what became of claimed deliveries. Every request that was made is stored as an attempt, also one whose lease was
    lost: it happened. With `commits` it is the end of its `direct_transaction`. Settling the same again is harmless, so a
    caller that lost the answer to its COMMIT may repeat it; it says so (`is_repeated`), and what is stored already counts
    no second time in the endpoint's health."""
    if is_repeated:
        settlements = await _without_what_counted(connection, settlements)
    health = _health_rows(settlements)
    locked = await run_direct(connection, (READ_BY_INDEX, {}), (_LOCK_ENDPOINTS, {"health_rows": as_json(health)}))
    mine = {(row[0], row[1]): row[2] for row in locked}
    now = [one for one in settlements if (one.claimed.tenant_id, one.claimed.endpoint_id) in mine]
    left = [one for one in settlements if (one.claimed.tenant_id, one.claimed.endpoint_id) not in mine]
    if not now:
        return Settled(set(), left)
    parameters = {
        # By their keys, as a deletion goes over them: who locks rows in one order waits, and is not waited for.
        "asked_rows": as_json(sorted(map(_asked_row, now), key=_KEY_OF_ROW)),
        "health_rows": as_json([one for one in health if mine.get((one.tenant_id, one.id))]),
    }
    rows = (await run_together(connection, (_SETTLE, parameters), commits=commits))[-1]
    return Settled({DeliveryId(row[0]) for row in rows}, left)


_made = recordset("made", tenant_id=Text(), delivery_id=Text(), number=SmallInteger(), started_at=TIME)
_STORED = Direct(
    select(attempts.c.tenant_id, attempts.c.delivery_id, attempts.c.number, attempts.c.started_at).join(
        _made,
        and_(*(attempts.c[name] == _made.c[name] for name in ("tenant_id", "delivery_id", "number", "started_at"))),
    )
)


async def _without_what_counted(connection: AsyncConnection, settlements: Sequence[Settlement]) -> list[Settlement]:
    """Settlements whose attempt is stored already say nothing more of their endpoint."""
    keys = {
        (one.claimed.tenant_id, one.claimed.id, one.claimed.attempts, one.attempt.started_at): one
        for one in settlements
        if one.attempt is not None
    }
    rows = [dict(zip(("tenant_id", "delivery_id", "number", "started_at"), key, strict=True)) for key in keys]
    stored = {
        tuple(row) for row in await run_direct(connection, (READ_BY_INDEX, {}), (_STORED, {"made_rows": as_json(rows)}))
    }
    counted = {id(one) for key, one in keys.items() if key in stored}
    return [msgspec.structs.replace(one, is_blameless=True) if id(one) in counted else one for one in settlements]


class _Asked(msgspec.Struct):
    """One row of the statement that settles."""

    tenant_id: TenantId
    id: DeliveryId
    token: str
    attempts: int
    state: DeliveryState
    delay_s: float
    given_back: int
    fault: Fault | None
    was: DeliveryState = DeliveryState.PENDING
    started_at: datetime | None = None
    duration_ms: int | None = None
    status_code: int | None = None
    outcome: Outcome | None = None
    error: str | None = None
    response_excerpt: str | None = None


_KEY_OF_ROW = _KEY_OF_CLAIM = attrgetter("tenant_id", "id")


def _asked_row(settlement: Settlement) -> _Asked:
    claimed, attempt = settlement.claimed, settlement.attempt
    row = _Asked(
        claimed.tenant_id,
        claimed.id,
        claimed.lease_token,
        claimed.attempts,
        settlement.state,
        settlement.delay.total_seconds() if settlement.delay else 0.0,
        int(settlement.is_given_back),
        settlement.fault,
    )
    if attempt is not None:
        for name in _MADE:
            setattr(row, name, getattr(attempt, name))
    return row


class _Health(msgspec.Struct):
    """How one endpoint did in this settling, if it was asked at all. A refusal is of our making, and no failure of it."""

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
    has_failed: bool = False
    """The last that was asked of it, and not for a fault of ours."""
    may_move: bool = False
    """What waits behind one of its deliveries may be moved, which only who holds the endpoint's lock does."""


def _health_rows(settlements: Sequence[Settlement]) -> list[_Health]:
    """Every endpoint that is concerned, once."""
    found: dict[tuple[TenantId, EndpointId], _Health] = {}
    for settlement in settlements:
        key = (settlement.claimed.tenant_id, settlement.claimed.endpoint_id)
        health = found.setdefault(key, _Health(*key))
        health.may_move |= settlement.claimed.attempts > 1 or settlement.delay is not None
        if settlement.attempt is None or settlement.fault is not None or settlement.is_blameless:
            continue
        health.was_asked = True
        health.status_code, health.error = settlement.attempt.status_code, settlement.attempt.error
        if settlement.attempt.outcome is Outcome.ACCEPTED:
            health.failures, health.gone_answers = 0, 0
            health.has_accepted, health.has_failed = True, False
        elif settlement.attempt.outcome is Outcome.RETRYABLE:
            health.failures += 1
            health.has_failed = True
            health.gone_answers += settlement.attempt.status_code == GONE_STATUS_CODE
    return [found[key] for key in sorted(found)]


_kept = recordset("kept", tenant_id=Text(), id=Text(), token=Text(), was=Text(), attempts=SmallInteger())
_EXTEND = Direct(
    update(deliveries)
    .where(
        deliveries.c.tenant_id == _kept.c.tenant_id,
        deliveries.c.id == _kept.c.id,
        deliveries.c.lease_token == _kept.c.token,
        deliveries.c.attempts == _kept.c.attempts,
        deliveries.c.state == _kept.c.was,
    )
    .values(leased_until=func.now() + func.make_interval(0, 0, 0, 0, 0, 0, bindparam("lease_s", type_=Double)))
    .returning(deliveries.c.id)
)


async def extend_leases(connection: AsyncConnection, claims: Sequence[Claimed], lease_s: float) -> set[DeliveryId]:
    """Let the leases of these begin anew; returns the ids of those that are still the worker's. Crosses tenants."""
    kept = [
        {
            "tenant_id": one.tenant_id,
            "id": one.id,
            "token": one.lease_token,
            "was": DeliveryState.PENDING,
            "attempts": one.attempts,
        }
        for one in sorted(claims, key=_KEY_OF_CLAIM)  # as who settles some of them at this moment
    ]
    parameters = {"lease_s": lease_s, "kept_rows": as_json(kept)}
    return {DeliveryId(row[0]) for row in await run_direct(connection, (READ_BY_INDEX, {}), (_EXTEND, parameters))}


_KEPT_STATES = (DeliveryState.HELD, DeliveryState.EXHAUSTED, DeliveryState.REFUSED, DeliveryState.FAULTED)


async def count_deliveries(connection: AsyncConnection) -> Mapping[str, int]:
    """How many deliveries are due, held (by a pause or a breaker), exhausted, refused and faulted: counted over partial
    indexes. Crosses tenants."""
    is_due = deliveries.c.due_at <= func.now()
    due = select(func.count()).where(is_in(deliveries, DeliveryState.PENDING), is_due)
    # Of the few endpoints that rest, so that what all others are owed is not looked up one by one.
    held = (
        select(func.count().label("held"), func.count().filter(is_due).label("due"))
        .select_from(endpoints)
        .join(
            deliveries,
            and_(deliveries.c.tenant_id == endpoints.c.tenant_id, deliveries.c.endpoint_id == endpoints.c.id),
        )
        .where(breaker.is_open(endpoints), is_in(deliveries, DeliveryState.PENDING))
    )
    kept = select(deliveries.c.state, func.count().label("number")).where(is_in(deliveries, *_KEPT_STATES))
    counts = {row.state: int(row.number) for row in await connection.execute(kept.group_by(deliveries.c.state))}
    resting = (await connection.execute(held)).one()
    counts["held"] = counts.get("held", 0) + resting.held
    due_count = (await connection.execute(due)).scalar_one() - resting.due
    return {"due": max(0, due_count)} | {state.value: counts.get(state.value, 0) for state in _KEPT_STATES}
