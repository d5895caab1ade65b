"""Sessions that stand still in the middle of a transaction: Postgres ends them, and whoever wakes up tries again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ledger.database import UNAVAILABLE, connect, transaction
from ledger.direct import Direct, direct_transaction, run_direct, run_together

LOCK_TENANT = "SELECT 1 FROM tenants WHERE id = 'ten_a' FOR UPDATE"
GONE_LIMIT_S = 120.0
RENAME = Direct(text("UPDATE tenants SET name = 'b' WHERE id = 'ten_a' RETURNING name"))
DIVIDE = Direct(text("SELECT 1 / (SELECT count(*) FROM tenants WHERE id = 'none')"))
OWN_PID = Direct(text("SELECT pg_backend_pid()"))


@pytest.fixture
async def others(database_url: str) -> AsyncIterator[AsyncEngine]:
    """Who needs the row that a session at standstill has locked."""
    engine = connect(database_url, application="others", pool_size=1)
    async with transaction(engine) as connection:
        await connection.execute(text("INSERT INTO tenants (id, name, created_at) VALUES ('ten_a', 'a', now())"))
    yield engine
    await engine.dispose()


async def lock_between_statements(connection: AsyncConnection) -> None:
    """Postgres waits for the next statement: the session is idle in its transaction."""
    await connection.execute(text(LOCK_TENANT))


async def lock_within_a_pipeline(connection: AsyncConnection) -> None:
    """Postgres waits for the pipeline's rest, and takes the session for an active one."""
    driver = (await connection.get_raw_connection()).driver_connection
    assert driver is not None
    pipeline = driver.pipeline()
    await pipeline.__aenter__()  # and stays there
    cursor = await driver.execute(LOCK_TENANT)
    assert await cursor.fetchone() == (1,)


async def go_on_directly(connection: AsyncConnection) -> None:
    """The next statement, past SQLAlchemy."""
    await run_direct(connection, (Direct(text("SELECT 1")), {}))


async def go_on_as_usual(connection: AsyncConnection) -> None:
    """The next statement."""
    await connection.execute(text("SELECT 1"))


@pytest.mark.parametrize("go_on", [go_on_directly, go_on_as_usual])
@pytest.mark.parametrize("stand_still", [lock_between_statements, lock_within_a_pipeline])
async def test_a_session_that_stands_still_in_a_transaction_loses_its_locks_and_may_try_again(
    database_url: str,
    others: AsyncEngine,
    stand_still: Callable[[AsyncConnection], Awaitable[None]],
    go_on: Callable[[AsyncConnection], Awaitable[None]],
) -> None:
    engine = connect(database_url, application="frozen", pool_size=1, transaction_limit_s=1)
    with pytest.raises((*UNAVAILABLE, psycopg.OperationalError)):  # the driver's own on a machine too slow for a second
        async with transaction(engine) as frozen:
            await stand_still(frozen)
            async with asyncio.timeout(GONE_LIMIT_S), transaction(others) as connection:
                await connection.execute(text(LOCK_TENANT))
            await go_on(frozen)
    await lock_in_the_end(engine)
    await engine.dispose()


async def lock_in_the_end(engine: AsyncEngine) -> None:
    """Try until it works: a slow machine may take longer for it than the transaction has."""
    async with asyncio.timeout(GONE_LIMIT_S):
        while True:
            with suppress(*UNAVAILABLE):
                async with transaction(engine) as connection:
                    await connection.execute(text(LOCK_TENANT))
                    return


@pytest.mark.parametrize("write", [go_on_directly, go_on_as_usual])
async def test_who_is_left_at_a_standby_tries_again_by_another_connection(
    others: AsyncEngine, write: Callable[[AsyncConnection], Awaitable[None]]
) -> None:
    """As a failover leaves it: the session lives, and its server takes no writes."""
    async with others.connect() as connection:
        await connection.execute(text("SET TRANSACTION READ ONLY"))
        with pytest.raises(UNAVAILABLE):
            if write is go_on_directly:
                await run_direct(connection, (Direct(text("DELETE FROM tenants")), {}))
            else:
                await connection.execute(text("DELETE FROM tenants"))
        assert connection.invalidated


async def name_of_tenant(engine: AsyncEngine) -> str:
    """As others see it."""
    async with engine.connect() as connection:
        return str((await connection.execute(text("SELECT name FROM tenants WHERE id = 'ten_a'"))).scalar_one())


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    """One connection: what one transaction leaves behind, the next would find."""
    engine = connect(database_url, application="direct", pool_size=1)
    yield engine
    await engine.dispose()


async def test_a_direct_transaction_commits_with_its_last_statements(engine: AsyncEngine, others: AsyncEngine) -> None:
    async with direct_transaction(engine) as connection:
        assert await run_direct(connection, (RENAME, {})) == [("b",)]
        assert await name_of_tenant(others) == "a"
        rows = await run_together(connection, (RENAME, {}), (OWN_PID, {}), commits=True)
        assert await name_of_tenant(others) == "b"
    assert rows[0] == [("b",)]


async def test_a_direct_transaction_commits_at_its_end(engine: AsyncEngine, others: AsyncEngine) -> None:
    async with direct_transaction(engine) as connection:
        await run_direct(connection, (RENAME, {}))
    assert await name_of_tenant(others) == "b"


async def test_nothing_is_committed_when_one_of_the_last_statements_fails(
    engine: AsyncEngine, others: AsyncEngine
) -> None:
    with pytest.raises(DBAPIError, match="DivisionByZero"):
        async with direct_transaction(engine) as connection:
            await run_together(connection, (RENAME, {}), (DIVIDE, {}), commits=True)
    assert await name_of_tenant(others) == "a"
    async with transaction(engine) as connection:  # and the connection is fit for what comes next
        await connection.execute(text(LOCK_TENANT))


async def test_a_direct_transaction_whose_block_raises_is_rolled_back(engine: AsyncEngine, others: AsyncEngine) -> None:
    with pytest.raises(KeyError):
        async with direct_transaction(engine) as connection:
            await run_direct(connection, (RENAME, {}))
            raise KeyError
    assert await name_of_tenant(others) == "a"
    async with transaction(others) as connection:
        await connection.execute(text(LOCK_TENANT))


async def test_a_connection_that_its_server_has_ended_is_not_used_again(
    engine: AsyncEngine, others: AsyncEngine
) -> None:
    """Although it was used a moment ago, and nothing is asked of it before."""
    async with direct_transaction(engine) as connection:
        [[(pid,)]] = await run_together(connection, (OWN_PID, {}))
    async with transaction(others) as connection:
        ended = text("SELECT pg_terminate_backend(:pid, 120000)")
        assert (await connection.execute(ended, {"pid": pid})).scalar_one()
    async with direct_transaction(engine) as connection:
        [[(next_pid,)]] = await run_together(connection, (OWN_PID, {}))
    assert next_pid != pid
