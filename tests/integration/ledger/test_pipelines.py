"""Statements that are prepared on a connection of a shared pool, where others come and go."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Integer, bindparam, func, select, text

from ledger.database import connect
from ledger.pipelines import Pipeline, Prepared

DOUBLED = Prepared(select(bindparam("number", type_=Integer) * 2))
BACKEND = Prepared(select(func.pg_backend_pid()))


@pytest.mark.parametrize("known", [[0], [1], [0, 1]], ids=["the first", "the second", "both"])
async def test_what_the_driver_takes_back_after_a_rollback_is_prepared_again(
    database_url: str, known: list[int]
) -> None:
    """The driver forgets all prepared statements of a connection when it rolls back and had some of its own."""
    engine = connect(database_url, application="tests", pool_size=1)
    pipeline = Pipeline(engine)
    asked: list[tuple[Prepared, dict[str, Any]]] = [(DOUBLED, {"number": 21}), (BACKEND, {})]
    await pipeline.run([asked[index] for index in known])
    await pipeline.give_back()
    async with engine.connect() as connection:
        for number in range(8):  # so often that the driver prepares it
            await connection.execute(text("SELECT CAST(:number AS int)"), {"number": number})
        await connection.rollback()
        await connection.execute(text("SELECT 1"))  # before which it takes all of them back
        prepared = await connection.execute(
            text("SELECT count(*) FROM pg_prepared_statements WHERE name ~ 'chainbell'")
        )
        assert prepared.scalar_one() == 0
    for _ in range(2):
        [[(doubled,)], [(_,)]] = await pipeline.run(asked)
        assert doubled == 42
    await pipeline.give_back()
    await engine.dispose()
