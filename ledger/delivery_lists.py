"""Pages of deliveries, the newest first, each of a bounded number of rows (`ledger/walks.py`).

Of one event or entry there are few deliveries: they are looked for as a set first. Else a page walks by the narrowest index
that holds what is asked for. What was given up, dropped or refused is rare, and has an index; what was delivered is nearly
everything, and every walk comes by it soon. What is still owed is frequent while a receiver is down and rare otherwise, and
no index has it in the list's order, since each delivery would go in and out: where a walk does not fill the page and little
is owed, that is read as a set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Row, Select, and_, case, not_, or_, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger import breaker
from ledger.cursors import Place, microseconds_of, moment_of
from ledger.documents import time_of
from ledger.ids import DeliveryId, TenantId
from ledger.schema import deliveries, endpoints
from ledger.states import DeliveryState
from ledger.walks import Columns, Order, in_text, split, walk, whole
from ledger.words import DeliveryWord, FaultWord, Time


@dataclass(frozen=True, slots=True)
class DeliveryFilter:
    """Which deliveries a reader wants; None admits all."""

    endpoint_id: str | None = None
    state: DeliveryState | None = None
    event_id: str | None = None
    subject: str | None = None


class DeliveryDocument(msgspec.Struct, frozen=True, tag_field="object", tag="delivery"):
    """One event owed to one endpoint. `entry_id` is null where the event tells of something else than an entry. `fault` says
    what is wrong with us where the delivery could not be sent; it is null where the receiver did not take it."""

    id: str
    event_id: str
    event_type: str
    endpoint_id: str
    entry_id: str | None
    state: DeliveryWord
    fault: FaultWord | None
    attempts: int
    due_at: Time
    created_at: Time
    settled_at: Time | None


@dataclass(frozen=True, slots=True)
class DeliveryPage:
    """Deliveries, the newest first. `next_place` is None where there are no more; only that says so, not their number."""

    deliveries: list[DeliveryDocument]
    next_place: Place | None


_NAMES = (*(name for name in DeliveryDocument.__struct_fields__ if name != "entry_id"), "subject", "tenant_id")
_columns = [deliveries.c[name] for name in _NAMES]

_Condition = Callable[[Columns], ColumnElement[bool]]

_ORDER = Order(("created_at", "id"))

_KEPT = (DeliveryState.EXHAUSTED, DeliveryState.REFUSED, DeliveryState.FAULTED)
_DROPPED = (DeliveryState.DISCARDED, DeliveryState.SUPERSEDED)
_OWED = (DeliveryState.PENDING, DeliveryState.HELD)

_HELD = (("endpoint", "kept"), ("kept",), ("dropped",), ("endpoint",))
"""Conditions that an index holds in the list's order, the narrowest first."""

_Sets = Mapping[tuple[str, ...], Sequence[ColumnElement[Any]]]
"""Conditions, and the order in which an index has what fits them."""

_FIRST_SETS: _Sets = {("event",): (deliveries.c.event_id,), ("entry",): (deliveries.c.created_at,)}
"""Of these there are few deliveries, nearly always: they are looked for before any walk."""

_LANE = (deliveries.c.endpoint_id, deliveries.c.subject, deliveries.c.feed_position)
_SETS: _Sets = {
    ("endpoint", "owed"): _LANE,
    ("owed",): _LANE,
    ("endpoint",): (deliveries.c.created_at, deliveries.c.id),
}
"""What may be rare enough to be read whole."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """One page of one tenant, with its conditions by name: a state's is `kept`, `dropped`, `owed` or `delivered`."""

    tenant_id: TenantId
    conditions: Mapping[str, _Condition]
    after: Place | None
    limit: int

    def admits(self, columns: Columns, *held: str) -> list[ColumnElement[bool]]:
        """The conditions but for the `held` ones."""
        return [condition(columns) for name, condition in self.conditions.items() if name not in held]

    def is_ahead(self, columns: Columns) -> list[ColumnElement[bool]]:
        """Behind the page before, in order."""
        if self.after is None:
            return []
        place = tuple_(moment_of(int(self.after[0])), str(self.after[1]))
        return [tuple_(columns.created_at, columns.id) < place]

    def of_tenant(self, *held: str) -> Select[Any]:
        """The tenant's deliveries that fit the `held` conditions."""
        statement = select(*_columns).where(deliveries.c.tenant_id == self.tenant_id)
        return statement.where(*(self.conditions[name](deliveries.c) for name in held))


async def list_deliveries(
    connection: AsyncConnection, tenant_id: TenantId, wanted: DeliveryFilter, *, after: Place | None = None, limit: int
) -> DeliveryPage:
    """A page of at most `limit` of the tenant's deliveries, from behind `after` on."""
    asked = _Asked(tenant_id, _conditions_of(wanted), after, limit)
    if rare := await _find_rare(connection, asked, _FIRST_SETS):
        return rare
    held = next((held for held in _HELD if asked.conditions.keys() >= set(held)), ())
    page = _page_of(*await _read(connection, asked, _walk(asked, *held)))
    if len(page.deliveries) == limit or page.next_place is None:
        return page
    others = {names: found_in for names, found_in in _SETS.items() if names != held}
    return await _find_rare(connection, asked, others) or page


async def find_delivery(
    connection: AsyncConnection, tenant_id: TenantId, delivery_id: DeliveryId
) -> DeliveryDocument | None:
    """A delivery of the tenant."""
    is_it = (deliveries.c.tenant_id == tenant_id, deliveries.c.id == delivery_id)
    row = (await connection.execute(select(*_as_it_stands(deliveries.c)).where(*is_it))).first()
    return _delivery_of(row) if row is not None else None


def _conditions_of(wanted: DeliveryFilter) -> dict[str, _Condition]:
    conditions: dict[str, _Condition] = {}
    if wanted.endpoint_id is not None:
        conditions["endpoint"] = _is("endpoint_id", wanted.endpoint_id)
    if wanted.subject is not None:
        conditions["entry"] = _is("subject", wanted.subject)
    if wanted.event_id is not None:
        conditions["event"] = _is_event(wanted.event_id)
    state = wanted.state
    if state is None:
        return conditions
    if state in _OWED:
        return conditions | {"owed": _is_held if state is DeliveryState.HELD else _is_pending}
    name = "kept" if state in _KEPT else "dropped" if state in _DROPPED else "delivered"
    return conditions | {name: _is("state", in_text(state.value))}


def _is(name: str, value: object) -> _Condition:
    return lambda columns: columns[name] == value


def _is_event(event_id: str) -> _Condition:
    """As a range that is one value, since that has an order (`_FIRST_SETS`)."""
    return lambda columns: columns.event_id.between(event_id, event_id)


def _rests(columns: Columns) -> ColumnElement[bool]:
    """Whether the breaker of a delivery's endpoint is open, by one look at it."""
    is_its = and_(endpoints.c.tenant_id == columns.tenant_id, endpoints.c.id == columns.endpoint_id)
    return select(breaker.is_open(endpoints)).where(is_its).scalar_subquery()


def _is_waiting(columns: Columns) -> ColumnElement[bool]:
    is_waiting: ColumnElement[bool] = columns.state == in_text(DeliveryState.PENDING.value)
    return is_waiting


def _is_pending(columns: Columns) -> ColumnElement[bool]:
    return and_(_is_waiting(columns), not_(_rests(columns)))


def _is_held(columns: Columns) -> ColumnElement[bool]:
    """What a delivery is held by may be its own state or its endpoint's breaker."""
    is_stored = columns.state == in_text(DeliveryState.HELD.value)
    return or_(is_stored, and_(_is_waiting(columns), _rests(columns)))


async def _find_rare(connection: AsyncConnection, asked: _Asked, sets: _Sets) -> DeliveryPage | None:
    """The page from the first of these sets that has few deliveries; None where none has."""
    asked_for = [names for names in sets if asked.conditions.keys() >= set(names)]
    for names in asked_for:
        rows, last = await _read(connection, asked, _set(asked, names, sets[names]))
        if last is None or not last.is_end:
            return _page_of(rows, last)
    return None


def _set(asked: _Asked, names: tuple[str, ...], found_in: Sequence[ColumnElement[Any]]) -> Select[Any]:
    rows = asked.of_tenant(*(name for name in names if name != "owed"))
    if "owed" in names:
        rows = rows.where(deliveries.c.state.in_([in_text(state.value) for state in _OWED]))
    return whole(
        [rows], found_in, _ORDER, asked.limit, lambda columns: [*asked.admits(columns), *asked.is_ahead(columns)]
    )


def _walk(asked: _Asked, *held: str) -> Select[Any]:
    """The page by an index that has the list's order and holds the `held` conditions."""
    rows = asked.of_tenant(*held).where(*asked.is_ahead(deliveries.c))
    is_held = not asked.conditions.keys() - set(held)
    return walk(rows, _ORDER, asked.limit, None if is_held else lambda columns: asked.admits(columns, *held))


def _state_of(columns: Columns) -> ColumnElement[str]:
    """The stored state, but for what an endpoint's breaker holds."""
    is_held = and_(_is_waiting(columns), _rests(columns))
    return case((is_held, in_text(DeliveryState.HELD.value)), else_=columns.state).label("state")


def _as_it_stands(columns: Columns) -> list[ColumnElement[Any]]:
    return [_state_of(columns) if column.name == "state" else column for column in columns]


async def _read(
    connection: AsyncConnection, asked: _Asked, statement: Select[Any]
) -> tuple[Sequence[Row[Any]], Row[Any] | None]:
    listed = statement.subquery("listed").c
    shown = select(*_as_it_stands(listed)).order_by(listed.is_end, *_ORDER.of(listed))
    return split((await connection.execute(shown)).all(), asked.limit)


def _page_of(rows: Sequence[Row[Any]], last: Row[Any] | None) -> DeliveryPage:
    place = None if last is None else (microseconds_of(last.created_at), last.id)
    return DeliveryPage([_delivery_of(row) for row in rows], place)


def _delivery_of(row: Any) -> DeliveryDocument:  # noqa: ANN401 (a row, whose columns no type names)
    is_entry = row.subject.startswith(("dep_", "wdr_"))
    return DeliveryDocument(
        id=row.id,
        event_id=row.event_id,
        event_type=row.event_type,
        endpoint_id=row.endpoint_id,
        entry_id=row.subject if is_entry else None,
        state=row.state,
        fault=row.fault,
        attempts=row.attempts,
        due_at=time_of(row.due_at),
        created_at=time_of(row.created_at),
        settled_at=time_of(row.settled_at) if row.settled_at else None,
    )
