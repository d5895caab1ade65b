"""The hottest statements, past SQLAlchemy to the driver: compiled once, several in one round trip, answers in binary.

SQLAlchemy still writes them and still owns the connection and its transaction. What is saved is what it does for each
execution, a round trip for each statement, and the hexadecimal text in which `bytea` comes otherwise: together half of what
claiming and settling cost this process. Nothing else should need it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import psycopg
from sqlalchemy import Executable
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection

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


async def run_direct(
    connection: AsyncConnection, *steps: tuple[Direct, Mapping[str, object]]
) -> Sequence[tuple[Any, ...]]:
    """Run statements in the connection's transaction, in one round trip; returns the rows of the last."""
    driver: psycopg.AsyncConnection[Any] | None = (await connection.get_raw_connection()).driver_connection
    if driver is None:
        raise RuntimeError("the connection has been closed by its pool")
    try:
        with sqlalchemy_errors():
            async with driver.pipeline():
                for statement, given in steps:
                    cursor = await driver.execute(
                        statement.text(), statement.with_parameters(given), prepare=statement.is_prepared, binary=True
                    )
                return await cursor.fetchall()
    except OperationalError as error:
        if isinstance(error.orig, psycopg.Error) and calls_for_another_session(error.orig):
            await connection.invalidate()
        raise


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
