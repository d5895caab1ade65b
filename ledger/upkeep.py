"""What a queue in Postgres needs looked after: leases whose holder fell silent, dead rows, and what keeps vacuum from them.

Every claim, settling and heartbeat leaves a dead row behind. Vacuum takes them away again, but none that some transaction
may still see: one forgotten session, a prepared transaction, a slot of a standby that is gone, and the queue grows by each
step it makes, and each claim reads past what is dead. That comes slowly and looks like anything else, so it is watched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Table, and_, delete, func, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.schema import deliveries
from ledger.schema_jobs import jobs
from ledger.states import DeliveryState, JobState

LEASE_GRACE = timedelta(minutes=1)
"""After its end a lease is left alone for so long: whoever claims next takes over what is due, and a worker that was only
slow may still settle."""

FREED_MAX = 1_000
"""Leases that one transaction frees."""

HOT_TABLES = ("deliveries", "endpoints", "entries", "jobs", "chains", "tenants")
"""Tables whose rows change all the time."""


class Holder(StrEnum):
    """What can keep vacuum from dead rows."""

    SESSION = "session"
    """A transaction that is open, at work or idle."""
    PREPARED = "prepared"
    """A transaction that was prepared for two-phase commit and then forgotten. It outlives restarts."""
    SLOT = "slot"
    """A replication slot: of a standby or a subscriber that does not come any more."""
    STANDBY = "standby"
    """A standby with `hot_standby_feedback`, on which somebody reads."""


@dataclass(frozen=True, slots=True)
class Held:
    """One that holds vacuum back, and since when."""

    holder: Holder
    name: str
    """For people: what to end, and whose it is."""
    age_s: float | None
    """Since its transaction began; None where Postgres keeps no time."""
    age_transactions: int
    """How many transactions ago the oldest that it may still see was begun."""


@dataclass(frozen=True, slots=True)
class TableRows:
    """Postgres' own estimate of a table's rows."""

    table: str
    live: int
    dead: int


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


async def free_delivery_leases(connection: AsyncConnection) -> int:
    """Free up to `FREED_MAX` deliveries whose lease ended a while ago, and which nobody took over since (their endpoint
    rests, say); returns how many. Whoever held one can settle it no more. Crosses tenants."""
    is_open = deliveries.c.state.in_((DeliveryState.PENDING.value, DeliveryState.HELD.value))
    return await _free(connection, deliveries, is_open, takeovers=deliveries.c.takeovers + 1)


async def free_job_leases(connection: AsyncConnection) -> int:
    """Free jobs whose process fell silent, in the same way. Crosses tenants."""
    return await _free(connection, jobs, jobs.c.state == JobState.RUNNING.value)


async def _free(
    connection: AsyncConnection, table: Table, is_open: ColumnElement[bool], **values: ColumnElement[int]
) -> int:
    """Reads all that is open (0.3 s for 100,000): an index on leases would cost every claim and heartbeat more than that."""
    expired = (
        select(table.c.tenant_id, table.c.id)
        .where(is_open, table.c.leased_until < func.now() - LEASE_GRACE)
        .limit(FREED_MAX)
        .with_for_update(skip_locked=True)
        .cte("expired")
    )
    is_it = and_(table.c.tenant_id == expired.c.tenant_id, table.c.id == expired.c.id)
    freed = update(table).where(is_it).values(lease_token=None, leased_until=None, **values)
    return (await connection.execute(freed)).rowcount


async def count_rows(connection: AsyncConnection) -> list[TableRows]:
    """Live and dead rows of the hot tables, as Postgres' statistics have them."""
    statement = text(
        "SELECT relname, n_live_tup, n_dead_tup FROM pg_stat_user_tables"
        " WHERE relid = ANY (SELECT CAST(name AS regclass) FROM unnest(CAST(:tables AS text[])) name) ORDER BY relname"
    )
    rows = await connection.execute(statement, {"tables": list(HOT_TABLES)})
    return [TableRows(row.relname, row.n_live_tup, row.n_dead_tup) for row in rows]


# Sessions of other databases do not count: vacuum of ours does not wait for them. Nor do vacuum's own.
_HOLDERS = text("""
SELECT 'session' AS holder,
       format('session %s (%s, %s)', pid, coalesce(nullif(application_name, ''), usename, backend_type), state) AS name,
       extract(epoch FROM clock_timestamp() - xact_start) AS age_s,
       greatest(age(backend_xmin), age(backend_xid)) AS age_transactions
FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type <> 'autovacuum worker'
  AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)
UNION ALL
SELECT 'prepared', format('prepared transaction %s (%s)', gid, owner),
       extract(epoch FROM clock_timestamp() - prepared), age(transaction)
FROM pg_prepared_xacts WHERE database = current_database()
UNION ALL
SELECT 'slot', format('replication slot %s (%s)', slot_name, CASE WHEN active THEN 'active' ELSE 'inactive' END),
       NULL, greatest(age(xmin), age(catalog_xmin))
FROM pg_replication_slots WHERE xmin IS NOT NULL OR catalog_xmin IS NOT NULL
UNION ALL
SELECT 'standby', format('standby %s (%s)', coalesce(nullif(application_name, ''), host(client_addr)), state),
       NULL, age(backend_xmin)
FROM pg_stat_replication WHERE backend_xmin IS NOT NULL
""")


async def find_holders(connection: AsyncConnection) -> list[Held]:
    """All that hold vacuum back at this moment, as far as the role may see: other roles' sessions are hidden from one that
    is not in `pg_read_all_stats`."""
    return [_held_of(row) for row in await connection.execute(_HOLDERS)]


def _held_of(row: Any) -> Held:  # noqa: ANN401 (a row)
    age_s = None if row.age_s is None else max(0.0, float(row.age_s))
    return Held(Holder(row.holder), row.name, age_s, row.age_transactions or 0)


def oldest(held: Sequence[Held], holder: Holder) -> tuple[float, int]:
    """Seconds and transactions of the oldest of a kind; 0 where there is none."""
    kind = [one for one in held if one.holder is holder]
    return max((one.age_s or 0.0 for one in kind), default=0.0), max((one.age_transactions for one in kind), default=0)
