"""Lanes: which deliveries stand in the way of which.

A lane is one endpoint and one subject (an entry, most often). Within it one delivery is under way at a time, in the order of
the feed; lanes never wait for each other. After five failed attempts of one delivery the next of its lane may overtake it,
but only while it waits for its own next attempt: a receiver goes by `sequence`, and news about a deposit must not wait a day
behind a poisoned one. What is redelivered by hand is in no order (`ledger/by_hand.py`).

Two claims at one moment do not see each other's leases. What keeps them apart is that both would have to want the same row,
and `SKIP LOCKED` gives it to one; for the first of a lane has no one else in front. Overtaking is the exception: so it ends
a while before the wait does (`OVERTAKING_ENDS`), longer than any claim can stay open.
"""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import ColumnElement, FromClause, and_, bindparam, func, literal, literal_column, not_, or_, select

from ledger.by_hand import BY_HAND, goes_first
from ledger.schema import deliveries
from ledger.states import DeliveryState

OVERTAKEN_AFTER_ATTEMPTS = 5
"""Failed attempts after which the next delivery of a lane may go first (the contract's figure)."""

OVERTAKING_ENDS = timedelta(seconds=60)
"""How long before its next attempt a delivery is not overtaken any more: as long as `ledger/database.py` lets a transaction
stay idle, so that a claim of the next one has either committed or is gone when this one is claimed."""

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

blocking = select(literal(1)).where(_is_in_the_way).offset(literal_column("0"))
"""What keeps a delivery from being claimed. OFFSET 0 keeps Postgres from making a join of it, which by old statistics reads
all that an endpoint is owed for each row: looked up by the lane's index it is a row or two."""
