"""Daily partitions of events and attempts: made ahead, dropped whole after retention.

Dropping a partition is the only retention that costs nothing: a DELETE of millions of rows leaves as many dead ones. A
day is kept, however old, while a delivery of one of its events is unsettled. There is no default partition: a row that
silently went there would block the making of its day later. Every role makes partitions a week ahead, so only a week
without any role could run out of them, and then the commit fails loudly.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from itertools import count

from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.database import lock_number
from ledger.schema import PARTITIONED, deliveries
from ledger.states import DeliveryState

DAYS_AHEAD = 7
RETENTION_DAYS = 90

LOCK_TIMEOUT = "5s"
"""How long housekeeping waits for a table. Making or dropping a partition locks the whole table for a moment; waiting for
that lock, behind somebody's long read, would make every writer wait behind it too."""

_unsettled = (DeliveryState.PENDING.value, DeliveryState.HELD.value)


def partition_name(table: str, day: date) -> str:
    """Name of a table's partition for one day (UTC), e.g. `events_20261101`."""
    return f"{table}_{day:%Y%m%d}"


def day_of(partition: str) -> date:
    """The day of a partition, read from its name."""
    return datetime.strptime(partition.rsplit("_", 1)[1], "%Y%m%d").replace(tzinfo=UTC).date()


async def ensure_partitions(connection: AsyncConnection, now: datetime, days_ahead: int = DAYS_AHEAD) -> list[str]:
    """Make the partitions from yesterday (for clocks that differ) to `days_ahead`; returns the names of those that were
    missing."""
    await _lock(connection)
    today = now.astimezone(UTC).date()
    made = []
    for table in PARTITIONED:
        existing = set(await list_partitions(connection, table))
        for offset in range(-1, days_ahead + 1):
            name = partition_name(table, today + timedelta(days=offset))
            if name not in existing:
                await _make(connection, table, today + timedelta(days=offset))
                made.append(name)
    return made


async def drop_partitions(
    connection: AsyncConnection, now: datetime, retention_days: int = RETENTION_DAYS
) -> list[str]:
    """Drop days older than retention, but none from the oldest unsettled delivery's event on; returns their names.

    One of the statements that cross tenants."""
    await _lock(connection)
    oldest_unsettled = (
        await connection.execute(
            select(func.min(deliveries.c.event_created_at)).where(deliveries.c.state.in_(_unsettled))
        )
    ).scalar_one()
    limit = (now - timedelta(days=retention_days)).astimezone(UTC).date()
    if oldest_unsettled is not None:
        limit = min(limit, oldest_unsettled.astimezone(UTC).date())
    dropped = []
    for table in PARTITIONED:
        for name in await list_partitions(connection, table):
            if day_of(name) < limit:
                await connection.execute(text(f'DROP TABLE "{name}"'))
                dropped.append(name)
    return dropped


async def count_days_ahead(connection: AsyncConnection, now: datetime) -> dict[str, int]:
    """For each table, how many days after today have a partition, up to the first that has none."""
    today = now.astimezone(UTC).date()
    found = {}
    for table in PARTITIONED:
        days = {day_of(name) for name in await list_partitions(connection, table)}
        found[table] = next(ahead for ahead in count() if today + timedelta(days=ahead + 1) not in days)
    return found


async def list_partitions(connection: AsyncConnection, table: str) -> Sequence[str]:
    """Names of a table's partitions, oldest first."""
    statement = text(
        "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
        " WHERE i.inhparent = CAST(:parent AS regclass) ORDER BY c.relname"
    )
    return list((await connection.execute(statement, {"parent": table})).scalars())


async def _make(connection: AsyncConnection, table: str, day: date) -> None:
    start = datetime.combine(day, time(), UTC)
    name = partition_name(table, day)
    bounds = f"FROM ('{start.isoformat()}') TO ('{(start + timedelta(days=1)).isoformat()}')"
    await connection.execute(text(f'CREATE TABLE "{name}" PARTITION OF "{table}" FOR VALUES {bounds}'))


async def _lock(connection: AsyncConnection) -> None:
    """One process at a time makes or drops partitions; the lock ends with the transaction."""
    await connection.execute(select(func.pg_advisory_xact_lock(lock_number("partitions"))))
    await connection.execute(select(func.set_config("lock_timeout", LOCK_TIMEOUT, True)))
