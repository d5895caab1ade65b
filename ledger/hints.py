"""A hint that there is news: one coalesced NOTIFY after a commit that wrote events, for whoever would otherwise poll.

A hint carries nothing and promises nothing. Whoever listens looks into the ledger, which is the truth, and looks there
without a hint too: one that is lost costs a moment, never a delivery.

Why not a NOTIFY in the commit itself. Postgres gives notifications the order of their commits, and takes one lock of the
whole database for that, from before such a commit until its flush to disk: commits with a NOTIFY in them wait for each
other. So the committing process sends it afterwards, in a transaction of its own that writes nothing and waits for no
disk, and no more often than every `HINT_INTERVAL_S` however much it commits. The first of a burst is sent at once; what is
asked for while one is under way, or in the pause after it, is sent as one when the pause is over, so that the last commit
of a burst is always followed by a hint.

How a commit is known to carry news: `record_events` marks the connection, `ledger.database.transaction` looks for the mark
when it has committed. So nobody who writes events has to think of it. How to listen: run `listen` as a task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import psycopg
import structlog
from psycopg.sql import SQL, Identifier
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.pool import Pool
from sqlalchemy.util import greenlet_spawn

from ledger.direct import Direct, direct_transaction, run_together

log = structlog.get_logger()

CHANNEL = "chainbell_news"

HINT_INTERVAL_S = 0.01
"""Least time from one hint of an engine to the next: a wait that nobody notices, and at most a hundred wake-ups a second.
Commits at a steady pace should find the pause over: whoever comes a moment too early waits for nearly all of it."""

LIVENESS_INTERVAL_S = 30.0
"""How often a listener that hears nothing asks whether its connection still answers."""

RECONNECT_INTERVAL_S = 1.0
"""Pause before a listener that lost its connection makes another."""

_MARK = "chainbell_news"

# The transaction writes nothing, so there is nothing that its commit should wait for to be on disk.
_NOTIFY = Direct(
    select(func.set_config("synchronous_commit", "off", True), func.pg_notify(CHANNEL, "")), is_prepared=False
)
_LISTEN = SQL("LISTEN {}").format(Identifier(CHANNEL))


def mark_news(connection: AsyncConnection) -> None:
    """Say that what this transaction commits is news to others."""
    connection.info[_MARK] = True


def take_mark(connection: AsyncConnection) -> bool:
    """True once for a connection that was marked. `connection.info` outlives a transaction, so it is cleared before each."""
    return bool(connection.info.pop(_MARK, False))


class _Hinter:
    """The hints of one engine: one at a time, none sooner than the interval after the one before, the last one sent."""

    def __init__(self) -> None:
        self.is_wanted = False
        self.task: asyncio.Task[None] | None = None

    def send(self, engine: AsyncEngine) -> None:
        """Want a hint; it is sent at once, or when the pause after the one before is over."""
        self.is_wanted = True
        if self.task is None or self.task.done():
            self.task = asyncio.get_running_loop().create_task(self._send_while_wanted(engine, engine.pool))

    async def _send_while_wanted(self, engine: AsyncEngine, pool: Pool) -> None:
        clock = asyncio.get_running_loop().time
        while self.is_wanted and engine.pool is pool:  # another pool: the engine was disposed
            began = clock()
            self.is_wanted = False  # before it is sent: what is committed from here on wants another
            try:
                await _notify_through(engine, pool)
            except (SQLAlchemyError, OSError) as error:
                log.info("hint not sent", error=repr(error).splitlines()[0])
            await asyncio.sleep(began + HINT_INTERVAL_S - clock())


async def _notify_through(engine: AsyncEngine, pool: Pool) -> None:
    try:
        async with direct_transaction(engine) as connection:
            await run_together(connection, (_NOTIFY, {}), commits=True)
    finally:
        if engine.pool is not pool:  # disposed meanwhile: what went back to it since nobody else would close
            await greenlet_spawn(pool.dispose)


_hinters: WeakKeyDictionary[AsyncEngine, _Hinter] = WeakKeyDictionary()


def send_hint(engine: AsyncEngine) -> None:
    """Tell listeners, soon and without waiting for it, that there is news. A hint that cannot be sent is forgotten."""
    _hinters.setdefault(engine, _Hinter()).send(engine)


async def listen(engine: AsyncEngine, wake: Callable[[], None]) -> None:
    """Call `wake` whenever there is news, until cancelled, on a connection that the engine's pool has to spare.

    It is also called when the connection has been made again, for what was said in between, and now and then for nothing.
    LISTEN belongs to a session: through a pooler that shares sessions no hint arrives, and polling is all there is.
    """
    while True:
        try:
            await _listen_once(engine, wake)
        except (psycopg.Error, SQLAlchemyError, OSError) as error:
            log.warning("not listening for hints", error=repr(error).splitlines()[0], again_in_s=RECONNECT_INTERVAL_S)
        await asyncio.sleep(RECONNECT_INTERVAL_S)


async def _listen_once(engine: AsyncEngine, wake: Callable[[], None]) -> None:
    """Listen on one connection until it fails, which raises."""
    async with engine.connect() as connection:
        driver: psycopg.AsyncConnection[Any] = (await connection.get_raw_connection()).driver_connection  # type: ignore[assignment]
        try:
            await driver.set_autocommit(True)
            await driver.execute(_LISTEN)
            wake()
            while True:
                async for _ in driver.notifies(timeout=LIVENESS_INTERVAL_S):
                    wake()
                await driver.execute("SELECT 1")
        finally:
            await connection.invalidate()  # closed, and never lent to anybody else while it listens
