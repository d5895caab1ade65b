"""The door to Postgres: engines, transactions, and the advisory locks that make one process a leader.

Every statement of the product runs on an `AsyncConnection` that came from here, inside a transaction that `transaction`
opened. No network call of another kind is made while one is open.

Who stands still in the middle of a transaction (a paused machine, a lost network) keeps its locks, and everybody else waits
for them. Postgres ends a session that waits for its client's next statement. One whose client is in the middle of a pipeline
or a COPY is an active one to it, and would wait for ever: from Postgres 17 on the transaction as a whole has a limit.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from hashlib import sha256
from select import POLLIN, poll
from time import monotonic
from typing import Any, cast

import msgspec
import psycopg
from psycopg.types.array import ListBinaryDumper
from sqlalchemy import func, select, text
from sqlalchemy.engine import Dialect, ExceptionContext, make_url
from sqlalchemy.event import listen
from sqlalchemy.exc import InterfaceError, InvalidatePoolError, OperationalError, TimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool

from ledger.bulk import NO_COPY
from ledger.exchange import calls_for_another_session
from ledger.hints import send_hint, take_mark
from ledger.schema import API_ROLE

Connection = AsyncConnection
Engine = AsyncEngine
"""How rooms that write no SQL name what they only hand on."""

STANDSTILL_MAX_S = 60
"""How long a transaction may stand still before Postgres ends its session."""

API_TRANSACTION_LIMIT_S = 60
"""A request's; inserting watches holds a chain's commits up."""

_KNOWS_TRANSACTION_TIMEOUT = 170_000
"""The first version of Postgres that does."""

TRUSTED_S = 1.0
"""How long ago a connection may have been used for the last time to be used again without asking whether it lives."""

_USED_AT = "chainbell_used_at"

LEADER_SILENCE_MAX_S = 90
"""A leader says something with each of its cycles, so far more often than this."""

UNAVAILABLE = (OperationalError, InterfaceError, TimeoutError)
"""What a statement raises when Postgres cannot be reached, is restarting, or has no connection free: try again later."""


def async_url(url: str) -> str:
    """The URL with the driver that we use; raises ValueError when it is no Postgres URL."""
    parsed = make_url(url)
    if parsed.get_backend_name() not in {"postgresql", "postgres"}:
        raise ValueError(f"database.url must begin with postgresql://, not {parsed.get_backend_name()}://")
    return parsed.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)


def _encode_json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def connect(
    url: str,
    *,
    application: str,
    pool_size: int = 5,
    role: str | None = None,
    transaction_limit_s: int | None = None,
) -> AsyncEngine:
    """An engine whose connections call themselves `application`; `role` is taken on at once and RESET comes back to it (the
    API uses `chainbell_api`). SET ROLE NONE would leave it: an installation that wants more gives the API its own login.
    No transaction lasts longer than `transaction_limit_s`."""
    standstill_ms = min(STANDSTILL_MAX_S, transaction_limit_s or STANDSTILL_MAX_S) * 1000
    options = f"-c timezone=UTC -c idle_in_transaction_session_timeout={standstill_ms}"
    if role is not None:
        options += f" -c role={role}"
    engine = create_async_engine(
        async_url(url),
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=30,
        json_serializer=_encode_json,
        json_deserializer=msgspec.json.decode,
        connect_args={"application_name": application, "options": options, "connect_timeout": 10},
    )
    listen(engine.sync_engine, "connect", _send_arrays_in_binary)
    listen(engine.sync_engine, "checkin", _note_use)
    listen(engine.sync_engine, "checkout", partial(_ping_if_doubtful, engine.dialect))
    if role is not None:
        listen(engine.sync_engine, "connect", _mark_restricted)
    if transaction_limit_s is not None:
        listen(engine.sync_engine, "connect", partial(_limit_transactions, transaction_limit_s))
    listen(engine.sync_engine, "handle_error", _as_unavailable, retval=True)
    return engine


def _note_use(_connection: object, record: ConnectionPoolEntry) -> None:
    record.info[_USED_AT] = monotonic()


def _ping_if_doubtful(dialect: Dialect, connection: Any, record: ConnectionPoolEntry, _fairy: object) -> None:  # noqa: ANN401
    """Before a connection is used again: a server that ended it has said so, and that can be read without asking. One that
    was used a moment ago and has nothing to say is taken for alive; a round trip to ask each time was a sixth of a claim."""
    used_at = record.info.get(_USED_AT)
    if used_at is None:  # new
        return
    if monotonic() - used_at < TRUSTED_S and not _has_something_to_say(connection.driver_connection):
        return
    try:
        dialect.do_ping(connection)
    except psycopg.Error as error:
        raise InvalidatePoolError from error  # all that are as old: they are of the same server


def _has_something_to_say(driver: psycopg.AsyncConnection[Any]) -> bool:
    """Whether its server sent anything that nobody asked for, the end of the session most likely."""
    if driver.closed:
        return True
    waiting = poll()
    waiting.register(driver.fileno(), POLLIN)
    return bool(waiting.poll(0))


def _limit_transactions(limit_s: int, connection: Any, _record: object) -> None:  # noqa: ANN401 - as below
    if connection.driver_connection.info.server_version < _KNOWS_TRANSACTION_TIMEOUT:
        return
    cursor = connection.cursor()
    cursor.execute(f"SET transaction_timeout = '{limit_s}s'")
    cursor.close()
    connection.commit()


def _as_unavailable(context: ExceptionContext) -> BaseException | None:
    """The driver has it that who stood still, or is left at a standby, has made an error in SQL: it is the connection that
    is of no use, and another will do."""
    original = context.original_exception
    if not isinstance(original, psycopg.Error) or not calls_for_another_session(original):
        return None
    context.is_disconnect = True
    return OperationalError(context.statement, None, original, connection_invalidated=True)


def _send_arrays_in_binary(connection: Any, _record: object) -> None:  # noqa: ANN401 - SQLAlchemy's face of a connection
    """As text, each element of an array is searched for what has to be escaped: a block's addresses took as long as the
    rest of its commit."""
    connection.adapters.register_dumper(list, ListBinaryDumper)


def _mark_restricted(_connection: object, record: ConnectionPoolEntry) -> None:
    record.info[NO_COPY] = True


def connections_of(engine: AsyncEngine) -> int:
    """How many an engine of ours has at most."""
    return cast(QueuePool, engine.sync_engine.pool).size()


def connect_api(url: str, *, pool_size: int = 10) -> AsyncEngine:
    """The API's engine: it speaks as a role that owns nothing and, until its transaction has found a key, sees no tenant's
    rows (`ledger/tenancy.py`)."""
    return connect(
        url,
        application="chainbell serve",
        pool_size=pool_size,
        role=API_ROLE,
        transaction_limit_s=API_TRANSACTION_LIMIT_S,
    )


@asynccontextmanager
async def transaction(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A connection inside one transaction: committed at the end, rolled back when the block raises. When events were
    committed, others are given a hint."""
    async with engine.begin() as connection:
        take_mark(connection)
        yield connection
        has_news = take_mark(connection)
    if has_news:
        send_hint(engine)


async def database_now(connection: AsyncConnection) -> datetime:
    """The database's clock: the only one by which leases and due times are judged."""
    moment: datetime = (await connection.execute(select(func.clock_timestamp()))).scalar_one()
    return moment


def lock_number(*names: str) -> int:
    """The advisory lock number (a signed 64-bit integer) that stands for `names`."""
    return int.from_bytes(sha256("|".join(names).encode()).digest()[:8], "big", signed=True)


@asynccontextmanager
async def leadership(engine: AsyncEngine, *names: str) -> AsyncIterator[AsyncConnection | None]:
    """Try to become the leader for `names`; yields the connection that holds the session lock, or None when another
    process leads. The lock dies with the connection, so a killed leader is succeeded at once. One that is frozen keeps its
    connection: Postgres ends a session that has said nothing for `LEADER_SILENCE_MAX_S`."""
    number = lock_number(*names)
    async with engine.connect() as connection:
        autocommit = await connection.execution_options(isolation_level="AUTOCOMMIT")
        is_leader = (await autocommit.execute(select(func.pg_try_advisory_lock(number)))).scalar_one()
        if is_leader:
            await autocommit.execute(text(f"SET idle_session_timeout = '{LEADER_SILENCE_MAX_S}s'"))
        try:
            yield autocommit if is_leader else None
        finally:
            if is_leader and not autocommit.closed and not autocommit.invalidated:
                await autocommit.execute(text("RESET idle_session_timeout"))
                await autocommit.execute(select(func.pg_advisory_unlock(number)))


async def is_alive(connection: AsyncConnection) -> bool:
    """True when the connection still answers; raises the driver's error when it does not."""
    return bool((await connection.execute(text("SELECT true"))).scalar_one())
