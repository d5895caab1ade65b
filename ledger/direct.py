"""The hottest statements, past SQLAlchemy to the driver: compiled once, several in one round trip, answers in binary.

SQLAlchemy still writes them and still owns the connection. What is saved is what it does for each execution, a round trip
for each statement, and the driver's waits (`ledger/exchange.py`): together most of what claiming and settling cost this
process. In a `direct_transaction` BEGIN and COMMIT travel with the statements as well. Nothing else should need it.

Statements are prepared on a connection when it first meets them in a `direct_transaction`. The connection is its pool's, and
the driver takes back all that is prepared on it, ours as well, when it rolls back or drops something (DEALLOCATE ALL). Never
within a `direct_transaction`: so its first round trip finds out, when nothing is done yet.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import psycopg
from psycopg.errors import InvalidSqlStatementName
from psycopg.pq import TransactionStatus
from sqlalchemy import Executable
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ledger.exchange import (
    Compiled,
    Driver,
    Row,
    Sending,
    calls_for_another_session,
    exchange,
    execute,
    execute_prepared,
    prepare,
    rows_of,
    sqlalchemy_errors,
)


class Direct(Compiled):
    """A statement for `run_direct`."""

    def __init__(self, statement: Executable, *, is_prepared: bool = True) -> None:
        """One that is not prepared is planned anew at each execution, with its parameters known."""
        super().__init__(statement)
        self.is_prepared = is_prepared


Step = tuple[Direct, Mapping[str, object]]
"""A statement and its parameters."""

Rows = Sequence[Row]

_BEGIN, _COMMIT = b"BEGIN", b"COMMIT"

_PREPARED = "chainbell_direct"
"""In the `info` of a connection: what was prepared on it."""


class _Names:
    """What one connection's session knows statements by. No name is used twice: what was forgotten may still be there."""

    def __init__(self) -> None:
        self.by_statement: dict[Direct, bytes] = {}
        self.made = 0

    def make(self) -> bytes:
        """A new name."""
        self.made += 1
        return b"chainbell_direct_%d" % self.made

    def forget(self) -> None:
        """Nothing is known any more, as far as anybody can tell."""
        self.by_statement.clear()


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
    names = connection.info.setdefault(_PREPARED, _Names()) if driver.autocommit else None
    try:
        with sqlalchemy_errors():
            return await _run(driver, steps, names, commits=commits)
    except OperationalError as error:
        if driver.closed or (isinstance(error.orig, psycopg.Error) and calls_for_another_session(error.orig)):
            await connection.invalidate()
        raise


async def _run(driver: Driver, steps: Sequence[Step], names: _Names | None, *, commits: bool) -> list[Rows]:
    is_first = driver.info.transaction_status is TransactionStatus.IDLE
    if is_first and names is not None and not any(statement in names.by_statement for statement, _ in steps):
        names.forget()  # nothing in this round trip would tell whether the rest is still there
    try:
        return await _exchange(driver, steps, names, is_first=is_first, commits=commits)
    except InvalidSqlStatementName:
        if not is_first or names is None:
            raise
        names.forget()
        await driver.rollback()
        return await _exchange(driver, steps, names, is_first=is_first, commits=commits)


async def _exchange(
    driver: Driver, steps: Sequence[Step], names: _Names | None, *, is_first: bool, commits: bool
) -> list[Rows]:
    before = [execute(driver, _BEGIN)] if is_first else []
    made = dict[Direct, bytes]()
    sendings = list[Sending]()
    for statement, given in steps:
        values = statement.values(given)
        if names is None or not statement.is_prepared:
            sendings.append(execute(driver, statement.text, values))
            continue
        name = names.by_statement.get(statement) or made.get(statement)
        if name is None:
            name = made[statement] = names.make()
            before.append(prepare(name, statement.text, values))
        sendings.append(execute_prepared(driver, name, values))
    after = [execute(driver, _COMMIT)] if commits else []
    results = await driver.wait(exchange(driver, [*before, *sendings, *after]))
    if names is not None:
        names.by_statement |= made
    return [rows_of(driver, result) for result in results[len(before) : len(before) + len(sendings)]]


async def _driver_of(connection: AsyncConnection) -> Driver:
    driver: Driver | None = (await connection.get_raw_connection()).driver_connection
    if driver is None:
        raise RuntimeError("the connection has been closed by its pool")
    return driver
