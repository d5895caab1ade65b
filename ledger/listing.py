"""Reading for people and backends: pages of events and attempts by keyset, and single entries and events by id. Lists of
entries and deliveries are in `ledger/entry_lists.py` and `ledger/delivery_lists.py`.

A page goes on after the last row that its reader saw, by the columns of an index: no offset, no count, and rows written
meanwhile neither repeat nor hide others. Every statement begins with the tenant.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

import msgspec
from sqlalchemy import func, literal, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.chains import list_assets, list_chains
from ledger.cursors import Place, microseconds_of, moment_of
from ledger.documents import DepositDocument, WithdrawalDocument, entry_document, time_of
from ledger.entries import find_labels
from ledger.ids import DeliveryId, EntryId, EventId, Side, TenantId
from ledger.model import Entry
from ledger.rows import entry_from
from ledger.schema import attempts, entries, events, tenants
from ledger.words import ErrorWord, OutcomeWord, Time


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event's place in the feed and its exact bytes."""

    feed_position: int
    body: bytes


class AttemptDocument(msgspec.Struct, frozen=True, tag_field="object", tag="attempt"):
    """One HTTP request made for a delivery."""

    number: int
    started_at: Time
    duration_ms: int
    status_code: int | None
    outcome: OutcomeWord
    error: ErrorWord | None
    response_excerpt: str | None


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


DISORDER_MAX = timedelta(minutes=10)
"""Along the feed times fall by no more than this: by how long the slowest transaction takes from its time to its place."""


async def find_feed_place(connection: AsyncConnection, tenant_id: TenantId, since: datetime) -> int:
    """The position before the first event, in feed order, that was stored at `since` or later; the feed's end where there
    is none. Times do not rise strictly along the feed, so what follows may hold one that is a moment older. Looked for from
    the last event on that is older in any case, and not from the beginning of its day."""
    disorder = func.make_interval(0, 0, 0, 0, 0, 0, DISORDER_MAX.total_seconds())
    is_older = events.c.created_at < literal(since, type_=events.c.created_at.type) - disorder
    older = (
        select(events.c.feed_position)
        .where(events.c.tenant_id == tenant_id, is_older)
        .order_by(events.c.created_at.desc())
        .limit(1)
        .scalar_subquery()
    )
    # A query of its own: by what is compared with a COALESCE, row-level security lets no index be asked.
    low = select(func.coalesce(older, 0)).scalar_subquery()
    is_ahead = (events.c.feed_position > low, events.c.created_at >= since)
    first = (
        select(events.c.feed_position - 1)
        .where(events.c.tenant_id == tenant_id, *is_ahead)
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


_attempt_columns = [attempts.c[name] for name in AttemptDocument.__struct_fields__]


async def list_attempts(
    connection: AsyncConnection, tenant_id: TenantId, delivery_id: DeliveryId, *, after: Place | None = None, limit: int
) -> list[tuple[Place, AttemptDocument]]:
    """A delivery's attempts with their places, in the order in which they were made. One that we broke off does not count,
    so the one after it has its number."""
    statement = (
        select(*_attempt_columns)
        .where(attempts.c.tenant_id == tenant_id, attempts.c.delivery_id == delivery_id)
        .order_by(attempts.c.number, attempts.c.started_at)
        .limit(limit)
    )
    if after is not None:
        position = tuple_(attempts.c.number, attempts.c.started_at)
        statement = statement.where(position > tuple_(int(after[0]), moment_of(int(after[1]))))
    rows = [dict(row._mapping) for row in await connection.execute(statement)]
    return [
        (
            (row["number"], microseconds_of(row["started_at"])),
            AttemptDocument(**{**row, "started_at": time_of(row["started_at"])}),
        )
        for row in rows
    ]
