"""Redeliveries by hand: outside the order of their lanes, and yet never two of a lane under way.

A delivery in its lane has its event's feed position, from 1 on. One by hand has none (`BY_HAND`). It waits for nothing but
what is under way in its lane, and nothing waits for it while it waits for its own next attempt. While it is due, what else
is due in its lane lets it go first.

One by hand and the first of its lane are two rows, and two claims at one moment do not see each other's leases. So whoever
claims by hand is the only one who claims from that endpoint at that moment (`ledger/agreement.py`).
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, FromClause, Select, and_, bindparam, func, or_, select

from ledger.agreement import agree, is_alone
from ledger.schema import deliveries
from ledger.states import DeliveryState

BY_HAND = 0
"""Feed position of what is redelivered by hand."""


def is_by_hand(queue: FromClause) -> ColumnElement[bool]:
    """Written into the statement, as the index on them is."""
    return queue.c.feed_position == bindparam(None, BY_HAND, literal_execute=True)


def _is_due_by_hand(queue: FromClause) -> ColumnElement[bool]:
    is_pending = queue.c.state == bindparam(None, DeliveryState.PENDING.value, literal_execute=True)
    return and_(is_by_hand(queue), is_pending, queue.c.due_at <= func.now())


def agree_on(rooms: FromClause) -> Select[tuple[str, str]]:
    """To be run by a claim's transaction in a statement before the one that claims: it tries to be alone where something is
    due by hand."""
    return agree(rooms.c.endpoint_id, select(deliveries.c.endpoint_id).where(_is_due_by_hand(deliveries)))


def may_claim(queue: FromClause) -> ColumnElement[bool]:
    """Whether this claim may take a delivery, by hand or in its lane, of an endpoint that it has agreed about."""
    return or_(queue.c.feed_position > BY_HAND, is_alone(queue.c.endpoint_id))


def goes_first(other: FromClause, queue: FromClause) -> ColumnElement[bool]:
    """Whether another delivery of the same lane is by hand and is to go now, before this one."""
    return and_(_is_due_by_hand(other), or_(queue.c.feed_position > BY_HAND, other.c.id < queue.c.id))
