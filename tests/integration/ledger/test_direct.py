"""Statements past SQLAlchemy on connections of a shared pool: what is prepared on them, and of which types values are."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Integer, Text, bindparam, func, literal, select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from ledger.database import connect, transaction
from ledger.direct import Direct, direct_transaction, run_direct, run_together

DOUBLED = Direct(select(bindparam("number", type_=Integer) * 2))
BACKEND = Direct(select(func.pg_backend_pid()))
ECHO = Direct(select(bindparam("words", type_=Text)))
LARGE = Direct(select(func.repeat("x", bindparam("number", type_=Integer))))


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    """One connection: what one transaction leaves behind, the next finds."""
    engine = connect(database_url, application="direct", pool_size=1)
    yield engine
    await engine.dispose()


async def let_the_driver_take_back_what_is_prepared(engine: AsyncEngine) -> None:
    """As it does when it rolls back and has prepared something itself."""
    async with engine.connect() as connection:
        for number in range(8):  # so often that the driver prepares it
            await connection.execute(text("SELECT CAST(:number AS int)"), {"number": number})
        await connection.rollback()
        await connection.execute(text("SELECT 1"))
        left = await connection.execute(text("SELECT count(*) FROM pg_prepared_statements WHERE name ~ 'chainbell'"))
        assert left.scalar_one() == 0


@pytest.mark.parametrize(
    "known", [[DOUBLED], [BACKEND], [DOUBLED, BACKEND]], ids=["of the first", "of the second", "of both"]
)
async def test_what_the_driver_takes_back_is_prepared_again(engine: AsyncEngine, known: list[Direct]) -> None:
    async with direct_transaction(engine) as connection:
        await run_together(connection, *((statement, {"number": 1}) for statement in known))
    await let_the_driver_take_back_what_is_prepared(engine)
    for _ in range(2):
        async with direct_transaction(engine) as connection:
            assert await run_direct(connection, (DOUBLED, {"number": 21})) == [(42,)]
            [[(pid,)]] = await run_together(connection, (BACKEND, {}), commits=True)
            assert pid > 0


async def test_a_statement_is_prepared_once(engine: AsyncEngine) -> None:
    for _ in range(3):
        async with direct_transaction(engine) as connection:
            await run_together(connection, (DOUBLED, {"number": 1}), (DOUBLED, {"number": 2}))
            await run_together(connection, (BACKEND, {}), (DOUBLED, {"number": 3}), commits=True)
    async with transaction(engine) as connection:
        known = await connection.execute(text("SELECT count(*) FROM pg_prepared_statements WHERE name ~ 'chainbell'"))
        assert known.scalar_one() == 2


@pytest.mark.parametrize(
    "value", [True, 1.5, timedelta(seconds=90), datetime(2026, 11, 26, 9, 30, tzinfo=UTC)], ids=repr
)
async def test_a_value_that_stands_alone_keeps_its_type(engine: AsyncEngine, value: object) -> None:
    async with direct_transaction(engine) as connection:
        assert await run_direct(connection, (Direct(select(literal(value))), {})) == [(value,)]
    async with transaction(engine) as connection:
        assert await run_direct(connection, (Direct(select(literal(value))), {})) == [(value,)]


async def test_an_answer_of_megabytes_comes_whole(engine: AsyncEngine) -> None:
    asked = [(LARGE, {"number": size}) for size in (0, 1, 100_000, 4_000_000)]
    async with direct_transaction(engine) as connection:
        answered = await run_together(connection, *asked)
    assert [len(row[0]) for [row] in answered] == [0, 1, 100_000, 4_000_000]


async def test_a_question_of_megabytes_arrives_whole(engine: AsyncEngine) -> None:
    """More than the socket takes at once, and answered with as much while it is still being asked."""
    async with direct_transaction(engine) as connection:
        answered = await run_together(connection, *[(ECHO, {"words": "x" * 1_000_000})] * 5)
    assert [len(row[0]) for [row] in answered] == [1_000_000] * 5
