"""Deposits of the past by the thousand, and a key that may read them: `python -m bench.deposits TASK`.

They are copies of the first one that was found, each with a watch of its own, made by Postgres itself: finalized, so that no
follower has anything to do with them.
"""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime
from random import Random
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, func, insert, literal, literal_column, select, text

from bench.installation import ledger_at
from ledger.database import transaction
from ledger.keys import create_key
from ledger.schema import entries

PATHS_MAX = 1_000


class DepositsTask(msgspec.Struct):
    """Make `count` of them."""

    database_url: str
    count: int
    seed: int


class Deposits(msgspec.Struct):
    """What somebody needs who asks for them."""

    by_id: list[str]
    """Paths of some of them, at random."""
    by_reference: list[str]
    """The same, as lists of one."""
    key: str


async def make_deposits(task: DepositsTask) -> Deposits:
    """Copy the first deposit."""
    now = datetime.now(UTC)
    changed: dict[str, ColumnElement[Any]] = {
        "id": literal("dep_copy").concat(literal_column("n")),
        "watch_id": literal("wat_copy").concat(literal_column("n")),
        "state": literal("finalized"),
        "sequence": literal(3),
        "confirmed_at": literal(now),
        "finalized_at": literal(now),
    }
    made_watches = text(
        """
        INSERT INTO watches (tenant_id, id, scope, address, reference, covered_from, created_at)
        SELECT tenant_id, 'wat_copy' || n, scope, substring(sha256(convert_to('copy ' || n, 'UTF8')) FOR 20),
               'copy-' || n, '{}', now()
        FROM (SELECT tenant_id, scope FROM watches LIMIT 1) first, generate_series(1, :count) n
        """
    )
    names = entries.c.keys()
    async with ledger_at(task.database_url) as engine, transaction(engine) as connection:
        first = select(entries).where(entries.c.side == "deposit").limit(1).cte("first")
        copies = select(*(changed.get(name, first.c[name]) for name in names)).select_from(
            first.join(func.generate_series(1, task.count).alias("n"), literal(True))
        )
        await connection.execute(made_watches, {"count": task.count})
        made = await connection.execute(insert(entries).from_select(names, copies).returning(entries.c.tenant_id))
        tenant_id = made.scalars().first()
        _, key = await create_key(connection, tenant_id, ["entries:read"], now)
    async with ledger_at(task.database_url) as engine, engine.connect() as connection:
        settled = await connection.execution_options(isolation_level="AUTOCOMMIT")
        await settled.execute(text("VACUUM (ANALYZE) entries, watches"))
    chosen = Random(task.seed).sample(range(1, task.count + 1), min(task.count, PATHS_MAX))
    return Deposits(
        [f"/v1/deposits/dep_copy{number}" for number in chosen],
        [f"/v1/deposits?reference=copy-{number}" for number in chosen],
        key,
    )


def main() -> None:
    """Do the task in the first argument and print what came of it."""
    task = msgspec.json.decode(sys.argv[1], type=DepositsTask)
    sys.stdout.buffer.write(msgspec.json.encode(asyncio.run(make_deposits(task))))


if __name__ == "__main__":
    main()
