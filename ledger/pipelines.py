"""A connection that is kept for a few statements, which go out together as one transaction and are waited for once.

For what is asked thousands of times a second. The driver's own pipelines wait at each of their steps, and make a cursor for
each statement: that took several times as much of this process as Postgres' answer. So libpq is spoken to through the
driver's face of it (`psycopg.pq`); the driver's adapters turn values into parameters and results into values, as always.

What is sent between two sync messages is one transaction, also without BEGIN and COMMIT (PostgreSQL, "Pipeline Mode"): a
setting that is made for the transaction holds for the statements behind it and ends with them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import cached_property
from hashlib import sha256
from typing import Any

import psycopg
from psycopg.abc import PQGen
from psycopg.adapt import PyFormat, Transformer
from psycopg.errors import error_from_result
from psycopg.pq import ConnStatus, ExecStatus, Format
from psycopg.pq.abc import PGconn, PGresult
from psycopg.waiting import READY_R, WAIT_R, WAIT_RW
from sqlalchemy import Select
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ledger.direct import sqlalchemy_errors

KEPT_S = 60.0
"""How long a connection is kept from its pool."""

_PREPARED = "chainbell_prepared"
"""In the `info` of a connection: names of what was prepared on it."""

Row = tuple[Any, ...]


class Prepared:
    """A statement as Postgres takes it, prepared once on each connection. Its parameters are plain values and go as text."""

    def __init__(self, statement: Select[Any]) -> None:
        self.statement = statement

    @cached_property
    def _compiled(self) -> tuple[bytes, tuple[str, ...], Mapping[str, Any]]:
        dialect = postgresql.psycopg.dialect(paramstyle="numeric_dollar")  # type: ignore[no-untyped-call]
        compiled = self.statement.compile(dialect=dialect)
        return str(compiled).encode(), tuple(compiled.positiontup or ()), compiled.params

    @cached_property
    def text(self) -> bytes:
        """The SQL, with the server's placeholders."""
        return self._compiled[0]

    @cached_property
    def name(self) -> bytes:
        """What it is called on a connection: the same for the same text."""
        return b"chainbell_" + sha256(self.text).hexdigest()[:32].encode()

    def values(self, given: Mapping[str, object]) -> list[object]:
        """What was given, and the constants that are in the statement, in its order."""
        _, names, constants = self._compiled
        return [given.get(name, constants[name]) for name in names]


Step = tuple[Prepared, Mapping[str, object]]


class Pipeline:
    """One connection out of an engine's pool, taken when it is first needed; one `run` at a time."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._connection: AsyncConnection | None = None
        self._driver: psycopg.AsyncConnection[Any] | None = None
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
                return [_rows_of(driver, result) for result in results]
        except BaseException:
            await self.drop()
            raise

    async def _take(self) -> tuple[psycopg.AsyncConnection[Any], set[bytes]]:
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


async def _exchanged(driver: psycopg.AsyncConnection[Any], steps: Sequence[Step], known: set[bytes]) -> list[PGresult]:
    """Ask, and once more where what was prepared is gone: after a rollback the driver takes back all that was prepared on
    its connection, what we prepared too (DEALLOCATE ALL). Nothing was done then, for all is one transaction; but what was
    prepared just before stays so."""
    fresh = {step.name for step, _ in steps} - known
    try:
        return await driver.wait(_exchange(driver, steps, known))
    except psycopg.errors.InvalidSqlStatementName:
        known.clear()
        known.update(fresh)
        return await driver.wait(_exchange(driver, steps, known))


def _exchange(driver: psycopg.AsyncConnection[Any], steps: Sequence[Step], known: set[bytes]) -> PQGen[list[PGresult]]:
    """Send everything, and receive until the answer to the sync message. Raises the first error that Postgres told."""
    link = driver.pgconn
    link.enter_pipeline_mode()
    prepared = {step.name: step for step, _ in steps}
    for name in prepared.keys() - known:
        link.send_prepare(name, prepared[name].text)
    for step, given in steps:
        transformer = Transformer(driver)
        values = step.values(given)
        dumped = transformer.dump_sequence(values, [PyFormat.TEXT] * len(values))
        link.send_query_prepared(step.name, dumped, transformer.formats, Format.BINARY)
    link.pipeline_sync()
    while link.flush():
        ready = yield WAIT_RW
        if ready and ready & READY_R:
            link.consume_input()
    results = yield from _receive(link)
    link.exit_pipeline_mode()
    for result in results:
        if result.status == ExecStatus.FATAL_ERROR:
            raise error_from_result(result)
    known.update(prepared)
    return [result for result in results if result.status == ExecStatus.TUPLES_OK]


def _receive(link: PGconn) -> PQGen[list[PGresult]]:
    results: list[PGresult] = []
    while True:
        while link.is_busy():
            if (yield WAIT_R):  # nothing, where the driver looks up in between or takes a cancelled one up again
                link.consume_input()
        result = link.get_result()  # None stands between the results of two statements
        if result is None and link.status != ConnStatus.OK:
            raise psycopg.OperationalError(link.get_error_message())
        if result is not None and result.status == ExecStatus.PIPELINE_SYNC:
            return results
        if result is not None:
            results.append(result)


def _rows_of(driver: psycopg.AsyncConnection[Any], result: PGresult) -> list[Row]:
    transformer = Transformer(driver)
    transformer.set_pgresult(result, format=Format.BINARY)
    return transformer.load_rows(0, result.ntuples, tuple)
