"""The hottest statements, past SQLAlchemy to the driver: compiled once, several in one round trip, answers in binary.

SQLAlchemy still writes them and still owns the connection. What is saved is what it does for each execution, a round trip
for each statement, and the hexadecimal text in which `bytea` comes otherwise: together half of what claiming and settling
cost this process. In a `direct_transaction` BEGIN and COMMIT travel with the statements as well. Nothing else should need
it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import cached_property
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus
from sqlalchemy import Executable
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

_STOOD_STILL = ("25P03", "25P04")
"""`idle_in_transaction_session_timeout` and `transaction_timeout`: to the driver, errors of the next statement."""


class Direct:
    """A statement as the driver takes it. Parameters are plain values that the driver knows; JSON comes as text."""

    def __init__(self, statement: Executable, *, is_prepared: bool = True) -> None:
        """One that is not prepared is planned anew at each execution, with its parameters known."""
        self.statement = statement
        self.is_prepared = is_prepared

    @cached_property
    def _compiled(self) -> tuple[bytes, Mapping[str, Any]]:
        dialect = postgresql.psycopg.dialect()  # type: ignore[no-untyped-call]
        compiled = self.statement.compile(dialect=dialect)  # type: ignore[attr-defined]
        expanded = compiled.construct_expanded_state(dict(compiled.params))
        return expanded.statement.encode(), expanded.parameters

    def text(self) -> bytes:
        """The SQL, with the driver's placeholders."""
        return self._compiled[0]

    def with_parameters(self, given: Mapping[str, object]) -> Mapping[str, object]:
        """What was given, beside the constants that are in the statement itself."""
        return {**self._compiled[1], **given}


Step = tuple[Direct, Mapping[str, object]]
"""A statement and its parameters."""

Rows = Sequence[tuple[Any, ...]]

_BEGIN, _COMMIT = b"BEGIN", b"COMMIT"


@asynccontextmanager
async def direct_transaction(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A transaction for `run_direct` alone: it begins with the first statements, in their round trip, and may be committed
    in that of the last ones. What is open at the end is committed, or rolled back when the block raises."""
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        driver = await _driver_of(connection)
        yield connection
        if not driver.closed:
            with sqlalchemy_errors():
                await driver.commit()


async def run_direct(connection: AsyncConnection, *steps: Step) -> Rows:
    """Run statements in the connection's transaction, in one round trip; returns the rows of the last."""
    return (await run_together(connection, *steps))[-1]


async def run_together(connection: AsyncConnection, *steps: Step, commits: bool = False) -> list[Rows]:
    """The same; returns the rows of each. With `commits`, which is for a `direct_transaction`, they are its last ones: when
    one of them fails, nothing is committed."""
    driver = await _driver_of(connection)
    try:
        with sqlalchemy_errors():
            async with driver.pipeline():
                if driver.autocommit and driver.info.transaction_status is TransactionStatus.IDLE:
                    await driver.execute(_BEGIN, prepare=False)
                cursors = [
                    await driver.execute(
                        statement.text(), statement.with_parameters(given), prepare=statement.is_prepared, binary=True
                    )
                    for statement, given in steps
                ]
                if commits:
                    await driver.execute(_COMMIT, prepare=False)
            return [await cursor.fetchall() if cursor.description else [] for cursor in cursors]
    except OperationalError as error:
        if driver.closed or (isinstance(error.orig, psycopg.Error) and calls_for_another_session(error.orig)):
            await connection.invalidate()
        raise


async def _driver_of(connection: AsyncConnection) -> psycopg.AsyncConnection[Any]:
    driver: psycopg.AsyncConnection[Any] | None = (await connection.get_raw_connection()).driver_connection
    if driver is None:
        raise RuntimeError("the connection has been closed by its pool")
    return driver


_READ_ONLY = "25006"
"""`read_only_sql_transaction` (PostgreSQL, appendix A)."""


def calls_for_another_session(error: psycopg.Error) -> bool:
    """True when Postgres ended the session because its client said nothing for too long within a transaction, or when the
    server writes nothing: after a failover the session is at what has become a standby, and its address leads elsewhere."""
    return error.sqlstate in (*_STOOD_STILL, _READ_ONLY)


@contextmanager
def sqlalchemy_errors() -> Iterator[None]:
    """The driver's errors as those that callers know: `DBAPIError` and its kinds."""
    try:
        yield
    except psycopg.Error as error:
        is_unavailable = isinstance(error, psycopg.OperationalError) or calls_for_another_session(error)
        kind = OperationalError if is_unavailable else DBAPIError
        raise kind(type(error).__name__, None, error) from error
