"""Several statements to Postgres at once, and one wait for what comes of all of them.

The driver's own pipelines wait at each of their steps, make a cursor for each statement and write each query anew. Each
wait is a turn of the event loop, and a busy loop's turn takes milliseconds: of a claim's thirty most were that. So libpq is
spoken to through the driver's face of it (`psycopg.pq`); the driver's adapters turn values into parameters and results into
values, as always.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import cached_property
from select import POLLIN, poll
from typing import Any

import psycopg
from psycopg import postgres
from psycopg.abc import PQGen
from psycopg.adapt import PyFormat, Transformer
from psycopg.errors import error_from_result
from psycopg.pq import ConnStatus, ExecStatus, Format
from psycopg.pq.abc import PGconn, PGresult
from psycopg.waiting import READY_R, WAIT_R, WAIT_RW
from sqlalchemy import Executable
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DBAPIError, OperationalError

_STOOD_STILL = ("25P03", "25P04")
"""`idle_in_transaction_session_timeout` and `transaction_timeout`: to the driver, errors of the next statement."""

_READ_ONLY = "25006"
"""`read_only_sql_transaction` (PostgreSQL, appendix A)."""

_TYPES: Mapping[type, int] = {
    python: postgres.types[name].oid
    for python, name in ((bool, "bool"), (float, "float8"), (timedelta, "interval"), (datetime, "timestamptz"))
}

Driver = psycopg.AsyncConnection[Any]
Row = tuple[Any, ...]

Sending = Callable[[PGconn], None]
"""What puts one message for the server into the connection's buffer."""


class Compiled:
    """A statement as Postgres takes it, compiled once. Parameters are plain values and go as text; JSON is text to begin
    with."""

    def __init__(self, statement: Executable) -> None:
        self.statement = statement

    @cached_property
    def _compiled(self) -> tuple[bytes, tuple[str, ...], Mapping[str, Any]]:
        dialect = postgresql.psycopg.dialect(paramstyle="numeric_dollar")  # type: ignore[no-untyped-call]
        compiled = self.statement.compile(dialect=dialect)  # type: ignore[attr-defined]
        expanded = compiled.construct_expanded_state(dict(compiled.params))
        return expanded.statement.encode(), tuple(expanded.positiontup or ()), expanded.parameters

    @cached_property
    def text(self) -> bytes:
        """The SQL, with the server's placeholders."""
        return self._compiled[0]

    def values(self, given: Mapping[str, object]) -> list[object]:
        """What was given, and the constants that are in the statement, in its order."""
        _, names, constants = self._compiled
        return [given.get(name, constants[name]) for name in names]


def prepare(name: bytes, text: bytes, values: Sequence[object]) -> Sending:
    """Let the session know a statement by a name; `values` are of the types that it will be executed with."""
    types = _types_of(values)
    return lambda link: link.send_prepare(name, text, types)


def execute_prepared(driver: Driver, name: bytes, values: Sequence[object]) -> Sending:
    """Execute what was prepared; its rows come in binary."""
    dumped, formats = _dumped(driver, values)
    return lambda link: link.send_query_prepared(name, dumped, formats, Format.BINARY)


def execute(driver: Driver, text: bytes, values: Sequence[object] = ()) -> Sending:
    """Execute a statement that nobody prepared."""
    dumped, formats = _dumped(driver, values)
    types = _types_of(values)
    return lambda link: link.send_query_params(text, dumped, types, formats, Format.BINARY)


def _dumped(driver: Driver, values: Sequence[object]) -> tuple[Any, Sequence[Format] | None]:
    transformer = Transformer(driver)
    return transformer.dump_sequence(values, [PyFormat.TEXT] * len(values)), transformer.formats


def _types_of(values: Sequence[object]) -> list[int]:
    """Numbers of types in Postgres; 0 where it finds out by itself. It would take a value that stands alone for text, and
    what is taken from a time for a time."""
    return [_TYPES.get(type(value), 0) for value in values]


def exchange(driver: Driver, sendings: Sequence[Sending]) -> PQGen[list[PGresult]]:
    """Send everything, and receive until the answer to the sync message: a result for each sending. Raises the first error
    that Postgres told. For `driver.wait`."""
    link = driver.pgconn
    link.enter_pipeline_mode()
    for send in sendings:
        send(link)
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
    return results


def _receive(link: PGconn) -> PQGen[list[PGresult]]:
    results: list[PGresult] = []
    arrived = poll()
    arrived.register(link.socket, POLLIN)
    while True:
        while link.is_busy():
            # What is there already needs no turn of the loop: libpq reads some kilobytes of it at a time. A wait may end
            # with nothing, where the driver looks up in between or takes a cancelled one up again.
            if arrived.poll(0) or (yield WAIT_R):
                link.consume_input()
        result = link.get_result()  # None stands between the results of two statements
        if result is None and link.status != ConnStatus.OK:
            raise psycopg.OperationalError(link.get_error_message())
        if result is not None and result.status == ExecStatus.PIPELINE_SYNC:
            return results
        if result is not None:
            results.append(result)


def rows_of(driver: Driver, result: PGresult) -> list[Row]:
    """None, of a statement that has none."""
    if result.status != ExecStatus.TUPLES_OK:
        return []
    transformer = Transformer(driver)
    transformer.set_pgresult(result, format=Format.BINARY)
    return transformer.load_rows(0, result.ntuples, tuple)


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
