"""A connection that is kept for a few statements, which go out together as one transaction and are waited for once.

For what is asked thousands of times a second, as an exchange (`ledger/exchange.py`): the driver's own pipelines took several
times as much of this process as Postgres' answer.

What is sent between two sync messages is one transaction, also without BEGIN and COMMIT (PostgreSQL, "Pipeline Mode"): a
setting that is made for the transaction holds for the statements behind it and ends with them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import cached_property
from hashlib import sha256

from psycopg.errors import InvalidSqlStatementName
from psycopg.pq.abc import PGresult
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ledger.exchange import Compiled, Driver, Row, exchange, execute_prepared, prepare, rows_of, sqlalchemy_errors

KEPT_S = 60.0
"""How long a connection is kept from its pool."""

_PREPARED = "chainbell_prepared"
"""In the `info` of a connection: names of what was prepared on it."""


class Prepared(Compiled):
    """A statement that is prepared once on each connection."""

    @cached_property
    def name(self) -> bytes:
        """What it is called on a connection: the same for the same text."""
        return b"chainbell_" + sha256(self.text).hexdigest()[:32].encode()


Step = tuple[Prepared, Mapping[str, object]]


class Pipeline:
    """One connection out of an engine's pool, taken when it is first needed; one `run` at a time."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._connection: AsyncConnection | None = None
        self._driver: Driver | None = None
        self._kept_until = 0.0

    @property
    def is_kept(self) -> bool:
        """True while it has a connection, which somebody may have cut off meanwhile."""
        return self._connection is not None

    async def run(self, steps: Sequence[Step]) -> list[list[Row]]:
        """Run the statements as one transaction, in one round trip; returns the rows of each. After an error the connection
        is given up."""
        driver, known = await self._take()
        try:
            with sqlalchemy_errors():
                results = await _exchanged(driver, steps, known)
                return [rows_of(driver, result) for result in results]
        except BaseException:
            await self.drop()
            raise

    async def _take(self) -> tuple[Driver, set[bytes]]:
        now = asyncio.get_running_loop().time()
        if self._connection is not None and now >= self._kept_until:
            await self.give_back()
        if self._connection is None or self._driver is None:
            self._connection = await self._engine.connect()
            self._driver = (await self._connection.get_raw_connection()).driver_connection
            self._kept_until = now + KEPT_S
        if self._driver is None:
            raise RuntimeError("the connection has been closed by its pool")
        return self._driver, self._connection.info.setdefault(_PREPARED, set())

    async def give_back(self) -> None:
        """Let the pool have the connection."""
        connection, self._connection, self._driver = self._connection, None, None
        if connection is not None:
            await connection.close()

    async def drop(self) -> None:
        """Let nobody have the connection any more."""
        if self._connection is not None:
            await self._connection.invalidate()
        await self.give_back()


async def _exchanged(driver: Driver, steps: Sequence[Step], known: set[bytes]) -> list[PGresult]:
    """Ask, and once more where what was prepared is gone: after a rollback the driver takes back all that was prepared on
    its connection, what we prepared too (DEALLOCATE ALL). Nothing was done then, for all is one transaction; but what was
    prepared just before stays so."""
    fresh = {step.name for step, _ in steps} - known
    try:
        return await _asked(driver, steps, known)
    except InvalidSqlStatementName:
        known.clear()
        known.update(fresh)
        return await _asked(driver, steps, known)


async def _asked(driver: Driver, steps: Sequence[Step], known: set[bytes]) -> list[PGresult]:
    prepared = {step.name: (step, given) for step, given in steps}
    fresh = [
        prepare(name, step.text, step.values(given)) for name, (step, given) in prepared.items() if name not in known
    ]
    asking = [execute_prepared(driver, step.name, step.values(given)) for step, given in steps]
    results = await driver.wait(exchange(driver, [*fresh, *asking]))
    known.update(prepared)
    return results[len(fresh) :]
