"""Hints on a real Postgres: heard at once, few however much is committed, the last never swallowed, back after a loss."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import psycopg
import pytest
from sqlalchemy import insert, text
from sqlalchemy.ext.asyncio import AsyncEngine

from ledger.database import connect, connect_api, transaction
from ledger.events import NewEvent, record_events
from ledger.hints import CHANNEL, HINT_INTERVAL_S, listen, send_hint
from ledger.ids import TenantId
from ledger.schema import tenants
from ledger.tenancy import speak_for

TENANT = TenantId("ten_a")
DEADLINE_S = 120.0
LISTENERS = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND datname = current_database()"


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    """An engine on a ledger with one tenant and no endpoint."""
    engine = connect(database_url, application="tests", pool_size=3)
    async with transaction(engine) as connection:
        await connection.execute(insert(tenants).values(id=TENANT, name="a", created_at=datetime.now(UTC)))
    yield engine
    await engine.dispose()


async def commit_news(engine: AsyncEngine, subject: str = "dep_1") -> None:
    """One event in a transaction of its own."""
    async with transaction(engine) as connection:
        await speak_for(connection, TENANT)
        news = NewEvent(TENANT, "deposit.detected", subject, False, {"id": subject}, 1)
        await record_events(connection, [news], datetime.now(UTC))


async def until(what: str, condition: Callable[[], bool]) -> None:
    """Return as soon as the condition holds; fail naming it at the deadline."""
    deadline = asyncio.get_running_loop().time() + DEADLINE_S
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"not within {DEADLINE_S} s: {what}"
        await asyncio.sleep(0.002)


async def listener_pids(engine: AsyncEngine) -> list[int]:
    """Backends that listen in this database."""
    async with engine.connect() as connection:
        return [row.pid for row in await connection.execute(text(LISTENERS))]


@asynccontextmanager
async def heard(engine: AsyncEngine) -> AsyncIterator[list[str]]:
    """What a listener was told while the block runs, once it listens: one item for each call."""
    calls: list[str] = []
    task = asyncio.create_task(listen(engine, lambda: calls.append("woken")))
    try:
        await until("the listener listens", lambda: bool(calls))
        calls.clear()
        yield calls
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_commit_of_events_is_heard(engine: AsyncEngine) -> None:
    async with heard(engine) as calls:
        await commit_news(engine)
        await until("the commit is heard", lambda: len(calls) == 1)


async def test_a_commit_through_the_api_s_role_is_heard(engine: AsyncEngine, database_url: str) -> None:
    api_engine = connect_api(database_url, pool_size=2)
    async with heard(api_engine) as calls:
        await commit_news(api_engine)
        await until("the commit is heard", lambda: len(calls) == 1)
    await api_engine.dispose()


async def test_what_is_no_news_and_what_is_rolled_back_gives_no_hint(engine: AsyncEngine) -> None:
    async with heard(engine) as calls:
        with pytest.raises(LookupError):
            async with transaction(engine) as connection:
                await record_events(connection, [NewEvent(TENANT, "test.ping", "e", False, {})], datetime.now(UTC))
                raise LookupError
        async with transaction(engine) as connection:  # on the same connection of the pool
            await connection.execute(text("UPDATE tenants SET name = name"))
        # Notifications arrive in order: had there been one before this, two would be heard.
        async with engine.begin() as connection:
            await connection.execute(text(f"NOTIFY {CHANNEL}"))
        await until("the marker is heard", lambda: bool(calls))
        assert len(calls) == 1


async def test_three_hundred_commits_make_few_hints_and_the_last_is_followed_by_one(engine: AsyncEngine) -> None:
    async with heard(engine) as calls:
        began = asyncio.get_running_loop().time()
        for number in range(300):
            before = len(calls)
            await commit_news(engine, f"dep_{number}")
        await until("the last commit is followed by a hint", lambda: len(calls) > before)
        elapsed_s = asyncio.get_running_loop().time() - began
        assert len(calls) <= elapsed_s / HINT_INTERVAL_S + 2


async def test_a_thousand_asked_for_at_one_moment_are_two_at_most(engine: AsyncEngine, database_url: str) -> None:
    conninfo = database_url.replace("+psycopg", "")
    async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as listener:
        await listener.execute("LISTEN " + CHANNEL)
        for _ in range(1_000):
            send_hint(engine)
        told = [notify.payload async for notify in listener.notifies(timeout=DEADLINE_S, stop_after=1)]
        await asyncio.sleep(2 * HINT_INTERVAL_S)  # a third would be sent by now
        await listener.execute(f"NOTIFY {CHANNEL}, 'marker'")
        async for notify in listener.notifies(timeout=DEADLINE_S):
            told.append(notify.payload)
            if notify.payload == "marker":
                break
    assert told[1:] in (["marker"], ["", "marker"])


async def test_a_hint_asked_for_while_one_is_under_way_is_not_swallowed(engine: AsyncEngine) -> None:
    async with heard(engine) as calls:
        for number in range(1, 30):
            send_hint(engine)
            await asyncio.sleep(0.0005 * (number % 5))  # at other moments of the one before, each time
            calls.clear()
            send_hint(engine)
            await until("the second one, or one for both, is heard", lambda: bool(calls))


async def test_a_listener_whose_connection_is_killed_comes_back_and_looks_at_what_it_missed(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ledger.hints.RECONNECT_INTERVAL_S", 0.01)
    async with heard(engine) as calls:
        [pid] = await listener_pids(engine)
        async with engine.begin() as connection:
            await connection.execute(text("SELECT pg_terminate_backend(:pid, 120000)"), {"pid": pid})
        await until("it is woken for what was said meanwhile", lambda: bool(calls))
        [again] = await listener_pids(engine)
        assert again != pid
        calls.clear()
        await commit_news(engine)
        await until("a commit is heard again", lambda: bool(calls))


async def test_a_listener_that_ends_leaves_no_connection_that_listens(engine: AsyncEngine) -> None:
    async with heard(engine):
        assert len(await listener_pids(engine)) == 1
    deadline = asyncio.get_running_loop().time() + DEADLINE_S
    while await listener_pids(engine):
        assert asyncio.get_running_loop().time() < deadline, "a connection still listens"


async def test_a_hint_that_cannot_be_sent_stops_nothing(engine: AsyncEngine) -> None:
    unreachable = connect("postgresql://nobody@127.0.0.1:1/none", application="tests", pool_size=1)
    send_hint(unreachable)
    async with heard(engine) as calls:
        await commit_news(engine)
        await until("another engine's hint is heard", lambda: bool(calls))
    await unreachable.dispose()


async def test_an_engine_that_is_disposed_while_it_hints_leaves_no_connection(
    engine: AsyncEngine, database_url: str
) -> None:
    """A connection that is left open is a warning, and so a failure, when it is collected."""
    for pause in range(8):
        short_lived = connect(database_url, application="short-lived", pool_size=2)
        await commit_news(short_lived)
        for _ in range(pause):
            await asyncio.sleep(0)
        await short_lived.dispose()
    statement = text("SELECT 1 FROM pg_stat_activity WHERE application_name = 'short-lived'")
    deadline = asyncio.get_running_loop().time() + DEADLINE_S
    while True:
        async with engine.connect() as connection:
            if not (await connection.execute(statement)).all():
                return
        assert asyncio.get_running_loop().time() < deadline, "connections are left"
