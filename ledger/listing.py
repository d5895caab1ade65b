"""Reading for people and backends: pages of entries, events, deliveries and attempts by keyset, and single ones by id.

A page goes on after the last row that its reader saw, by the columns of an index: no offset, no count, and rows written
meanwhile neither repeat nor hide others. Every statement begins with the tenant.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, and_, case, func, not_, or_, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger import breaker
from ledger.chains import list_assets, list_chains
from ledger.cursors import Place, microseconds_of, moment_of
from ledger.documents import DepositDocument, WithdrawalDocument, entry_document, time_of
from ledger.entries import find_labels
from ledger.ids import DeliveryId, EntryId, EventId, Side, TenantId
from ledger.model import Entry
from ledger.rows import entry_from
from ledger.schema import attempts, deliveries, endpoints, entries, events, tenants
from ledger.states import DeliveryState
from ledger.words import DeliveryWord, ErrorWord, FaultWord, OutcomeWord, Time


@dataclass(frozen=True, slots=True)
class DeliveryFilter:
    """Which deliveries a reader wants; None admits all."""

    endpoint_id: str | None = None
    state: DeliveryState | None = None
    event_id: str | None = None
    subject: str | None = None


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event's place in the feed and its exact bytes."""

    feed_position: int
    body: bytes


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


class AttemptDocument(msgspec.Struct, frozen=True, tag_field="object", tag="attempt"):
    """One HTTP request made for a delivery."""

    number: int
    started_at: Time
    duration_ms: int
    status_code: int | None
    outcome: OutcomeWord
    error: ErrorWord | None
    response_excerpt: str | None


def _moment(place: Place) -> datetime:
    return moment_of(int(place[0]))


async def find_entry(connection: AsyncConnection, tenant_id: TenantId, side: Side, entry_id: EntryId) -> Entry | None:
    """A deposit or withdrawal of the tenant."""
    statement = select(entries).where(
        entries.c.tenant_id == tenant_id, entries.c.id == entry_id, entries.c.side == side.value
    )
    row = (await connection.execute(statement)).first()
    return entry_from(row) if row is not None else None


async def describe_entries(
    connection: AsyncConnection, found: Collection[Entry]
) -> list[DepositDocument | WithdrawalDocument]:
    """Entries as JSON, as they stand against their chains' tips now."""
    if not found:
        return []
    chains = {chain.chain_id: chain for chain in await list_chains(connection)}
    assets = await list_assets(connection, sorted({entry.asset_id for entry in found}))
    labels = await find_labels(connection, {(entry.tenant_id, entry.watch_id) for entry in found})
    return [entry_document(e, chains[e.chain_id], assets[e.asset_id], labels[(e.tenant_id, e.watch_id)]) for e in found]


async def list_events(
    connection: AsyncConnection, tenant_id: TenantId, *, after: int = 0, subject: str | None = None, limit: int
) -> list[StoredEvent]:
    """Events in the order of the tenant's feed, from the one after position `after` on; of one subject, or of all."""
    statement = select(events.c.feed_position, events.c.body).where(
        events.c.tenant_id == tenant_id, events.c.feed_position > after
    )
    if subject is not None:
        statement = statement.where(events.c.subject == subject)
    rows = await connection.execute(statement.order_by(events.c.feed_position).limit(limit))
    return [StoredEvent(row.feed_position, row.body) for row in rows]


async def find_feed_end(connection: AsyncConnection, tenant_id: TenantId) -> int:
    """Position of the tenant's newest event; 0 before its first."""
    statement = select(tenants.c.feed_position).where(tenants.c.id == tenant_id)
    return int((await connection.execute(statement)).scalar_one())


async def find_feed_place(connection: AsyncConnection, tenant_id: TenantId, since: datetime) -> int:
    """The position before the first event, in feed order, that was stored at `since` or later; the feed's end where there
    is none. Times do not rise strictly along the feed, so what follows may hold one that is a moment older."""
    first = (
        select(events.c.feed_position - 1)
        .where(events.c.tenant_id == tenant_id, events.c.created_at >= since)
        .order_by(events.c.feed_position)
        .limit(1)
        .scalar_subquery()
    )
    end = select(tenants.c.feed_position).where(tenants.c.id == tenant_id).scalar_subquery()
    # One statement, so that both are of one moment: the end of a moment later is behind what was stored in between.
    return int((await connection.execute(select(func.coalesce(first, end)))).scalar_one())


async def find_event(connection: AsyncConnection, tenant_id: TenantId, event_id: EventId) -> StoredEvent | None:
    """An event of the tenant, as long as it is kept."""
    statement = select(events.c.feed_position, events.c.body).where(
        events.c.tenant_id == tenant_id, events.c.id == event_id
    )
    row = (await connection.execute(statement)).first()
    return StoredEvent(row.feed_position, row.body) if row is not None else None


_stored = [name for name in DeliveryDocument.__struct_fields__ if name not in ("entry_id", "state")]
_is_held = and_(deliveries.c.state == DeliveryState.PENDING.value, breaker.is_open(endpoints))
_state = case((_is_held, DeliveryState.HELD.value), else_=deliveries.c.state)
"""What a delivery is held by may be its own state or its endpoint's breaker."""

_deliveries = select(*(deliveries.c[name] for name in _stored), deliveries.c.subject, _state.label("state")).join(
    endpoints, and_(endpoints.c.tenant_id == deliveries.c.tenant_id, endpoints.c.id == deliveries.c.endpoint_id)
)


def _is_in_state(state: DeliveryState) -> ColumnElement[bool]:
    """By the stored state where that decides, so that an index on it can serve."""
    if state is DeliveryState.HELD:
        return or_(deliveries.c.state == state.value, _is_held)
    if state is DeliveryState.PENDING:
        return and_(deliveries.c.state == state.value, not_(breaker.is_open(endpoints)))
    return deliveries.c.state == state.value


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


async def list_deliveries(
    connection: AsyncConnection, tenant_id: TenantId, wanted: DeliveryFilter, *, after: Place | None = None, limit: int
) -> list[tuple[Place, DeliveryDocument]]:
    """A page of the tenant's deliveries with their places, the newest first."""
    equal = {
        deliveries.c.endpoint_id: wanted.endpoint_id,
        deliveries.c.event_id: wanted.event_id,
        deliveries.c.subject: wanted.subject,
    }
    statement = (
        _deliveries.where(deliveries.c.tenant_id == tenant_id)
        .where(*(column == value for column, value in equal.items() if value is not None))
        .order_by(deliveries.c.created_at.desc(), deliveries.c.id.desc())
        .limit(limit)
    )
    if wanted.state is not None:
        statement = statement.where(_is_in_state(wanted.state))
    if after is not None:
        position = tuple_(deliveries.c.created_at, deliveries.c.id)
        statement = statement.where(position < tuple_(_moment(after), str(after[1])))
    rows = await connection.execute(statement)
    return [((microseconds_of(row.created_at), row.id), _delivery_of(row)) for row in rows]


async def find_delivery(
    connection: AsyncConnection, tenant_id: TenantId, delivery_id: DeliveryId
) -> DeliveryDocument | None:
    """A delivery of the tenant."""
    statement = _deliveries.where(deliveries.c.tenant_id == tenant_id, deliveries.c.id == delivery_id)
    row = (await connection.execute(statement)).first()
    return _delivery_of(row) if row is not None else None


_attempt_columns = [attempts.c[name] for name in AttemptDocument.__struct_fields__]


async def list_attempts(
    connection: AsyncConnection, tenant_id: TenantId, delivery_id: DeliveryId, *, skip: int = 0, limit: int
) -> list[AttemptDocument]:
    """A delivery's attempts in the order in which they were made, without the first `skip`. One that we broke off does not
    count, so the one after it has its number."""
    statement = (
        select(*_attempt_columns)
        .where(attempts.c.tenant_id == tenant_id, attempts.c.delivery_id == delivery_id)
        .order_by(attempts.c.number, attempts.c.started_at)
        .offset(skip)
        .limit(limit)
    )
    rows = [dict(row._mapping) for row in await connection.execute(statement)]
    return [AttemptDocument(**{**row, "started_at": time_of(row["started_at"])}) for row in rows]
