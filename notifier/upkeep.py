"""Housekeeping of the queue itself: leases that ended with nobody's word are freed, and what makes Postgres slow is told of.

What is found is measured at each look and logged while it is bad. Nothing is ended here: whose session it is, and what it
is for, a person knows (`docs/operations.md`, "The database grows or slows").
"""

from __future__ import annotations

import structlog

from ledger.database import Connection, Engine, database_now, transaction
from ledger.partitions import count_days_ahead
from ledger.upkeep import (
    FREED_MAX,
    Held,
    Holder,
    TableRows,
    count_rows,
    find_holders,
    free_delivery_leases,
    free_job_leases,
    oldest,
)
from notifier.metrics import DEAD_ROWS, HELD_BACK, LEASES_EXPIRED, LIVE_ROWS, OLDEST_SNAPSHOT, PARTITION_DAYS

log = structlog.get_logger()

DEAD_ROWS_MIN = 10_000
DEAD_SHARE_MAX = 0.2
"""Dead rows for each live one from which a table is told of, many times what vacuum is set to leave; fewer than
`DEAD_ROWS_MIN` never."""

SNAPSHOT_AGE_MAX_S = 300.0
"""Our own transactions take moments, and idle ones are ended after a minute: what is older is somebody else's."""

HELD_BACK_MAX = 1_000_000
"""Transactions after which a holder without a time, such as a slot, is told of: minutes to hours of a busy queue."""

DAYS_AHEAD_MIN = 3
"""Days with partitions, below which somebody has to look why none are made."""


async def free_leases(engine: Engine) -> None:
    """Free the deliveries and jobs whose worker died or hangs, and that nobody has taken over."""
    for of, free in (("deliveries", free_delivery_leases), ("jobs", free_job_leases)):
        freed = FREED_MAX
        while freed == FREED_MAX:
            async with transaction(engine) as connection:
                freed = await free(connection)
            LEASES_EXPIRED.labels(of).inc(freed)
            if freed:
                log.warning("leases expired", of=of, count=freed)


async def watch_database(engine: Engine) -> None:
    """Measure dead rows, what keeps vacuum from them, and how far partitions are made ahead."""
    async with transaction(engine) as connection:
        rows = await count_rows(connection)
        held = await find_holders(connection)
        await _watch_partitions(connection)
    for table in rows:
        _tell_of_rows(table)
    for holder in Holder:
        seconds, transactions = oldest(held, holder)
        OLDEST_SNAPSHOT.labels(holder.value).set(seconds)
        HELD_BACK.labels(holder.value).set(transactions)
    for one in held:
        if is_too_old(one):
            log.warning("vacuum is held back", by=one.name, age_s=one.age_s, transactions=one.age_transactions)


async def _watch_partitions(connection: Connection) -> None:
    for table, days in (await count_days_ahead(connection, await database_now(connection))).items():
        PARTITION_DAYS.labels(table).set(days)
        if days < DAYS_AHEAD_MIN:
            log.warning("partitions run out", table=table, days=days)


def _tell_of_rows(table: TableRows) -> None:
    LIVE_ROWS.labels(table.table).set(table.live)
    DEAD_ROWS.labels(table.table).set(table.dead)
    if has_many_dead(table):
        log.warning("dead rows pile up", table=table.table, dead=table.dead, live=table.live)


def has_many_dead(table: TableRows) -> bool:
    """True where vacuum does not keep up with a table."""
    return table.dead > DEAD_ROWS_MIN and table.dead > DEAD_SHARE_MAX * table.live


def is_too_old(held: Held) -> bool:
    """True for what nobody can have meant to hold vacuum back for so long."""
    if held.age_s is not None:
        return held.age_s > SNAPSHOT_AGE_MAX_S
    return held.age_transactions > HELD_BACK_MAX
