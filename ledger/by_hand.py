"""Redeliveries by hand: outside the order of their lanes, and yet never two of a lane under way.

A delivery in its lane has its event's feed position, from 1 on. One by hand has none (`BY_HAND`). It waits for nothing but
what is under way in its lane, and nothing waits for it while it waits for its own next attempt. While it is due, what else
is due in its lane lets it go first.

Two claims at one moment do not see each other's leases. Within a lane that does no harm: both want its first delivery, and
`SKIP LOCKED` gives that to one. But one by hand and the first of its lane are two rows. So whoever claims by hand is the
only one who claims at that moment: claims share an advisory lock until they commit, and to claim by hand it takes to have
it alone. Nobody waits for it. Who does not get it alone leaves what is by hand to a later claim; who does not even get a
share, because another one has it alone, goes on with everything else, and lets what is by hand go first.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, FromClause, and_, bindparam, case, cast, func, literal, or_, select
from sqlalchemy.types import Text

from ledger.schema import deliveries
from ledger.states import DeliveryState

BY_HAND = 0
"""Feed position of what is redelivered by hand."""

_LOCK = 0x6279_6861_6E64
"""Number of the advisory lock: "byhand"."""

_IS_ALONE = "chainbell.claims_alone"
"""Setting that lasts as long as the transaction: whether this claim may take what is by hand."""


def is_by_hand(queue: FromClause) -> ColumnElement[bool]:
    """Written into the statement, as the index on them is."""
    return queue.c.feed_position == bindparam(None, BY_HAND, literal_execute=True)


def _is_due_by_hand(queue: FromClause) -> ColumnElement[bool]:
    is_pending = queue.c.state == bindparam(None, DeliveryState.PENDING.value, literal_execute=True)
    return and_(is_by_hand(queue), is_pending, queue.c.due_at <= func.now())


_some_due = select(literal(1)).where(_is_due_by_hand(deliveries)).exists()
_alone = case((_some_due, func.pg_try_advisory_xact_lock(_LOCK)), else_=False)

AGREE = (func.set_config(_IS_ALONE, cast(_alone, Text), True), func.pg_try_advisory_xact_lock_shared(_LOCK))
"""To be selected by a claim's transaction in a statement before the one that claims, which sees what others did before."""


def may_claim(queue: FromClause) -> ColumnElement[bool]:
    """Whether this claim may take a delivery, by hand or in its lane."""
    return or_(queue.c.feed_position > BY_HAND, func.current_setting(_IS_ALONE) == "true")


def goes_first(other: FromClause, queue: FromClause) -> ColumnElement[bool]:
    """Whether another delivery of the same lane is by hand and is to go now, before this one."""
    return and_(_is_due_by_hand(other), or_(queue.c.feed_position > BY_HAND, other.c.id < queue.c.id))
