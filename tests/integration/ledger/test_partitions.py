"""Daily partitions: made ahead, made once, and dropped only when they are old and nobody is owed anything of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine

from ledger import partitions
from ledger.database import connect, transaction
from ledger.partitions import (
    count_days_ahead,
    day_of,
    drop_partitions,
    ensure_partitions,
    list_partitions,
    partition_name,
)
from ledger.schema import PARTITIONED

NOW = datetime(2031, 5, 10, 23, 59, 59, tzinfo=UTC)
"""Far from the partitions that a migrated database has."""


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    """A migrated ledger."""
    engine = connect(database_url, application="tests")
    yield engine
    await engine.dispose()


async def make(engine: AsyncEngine, now: datetime = NOW, days_ahead: int = 7) -> list[str]:
    """Make partitions in a transaction of their own."""
    async with transaction(engine) as connection:
        return await ensure_partitions(connection, now, days_ahead)


async def drop(engine: AsyncEngine, now: datetime = NOW, retention_days: int = 90) -> list[str]:
    """Drop partitions in a transaction of their own."""
    async with transaction(engine) as connection:
        return await drop_partitions(connection, now, retention_days)


async def insert_event(engine: AsyncEngine, created_at: datetime, state: str | None = None) -> None:
    """An event of that time, and where a state is given the delivery that is owed of it."""
    async with transaction(engine) as connection:
        await connection.execute(
            text(
                "INSERT INTO events (tenant_id, id, feed_position, type, subject, body, created_at)"
                " VALUES ('ten_ops', 'evt_1', 1, 'test.ping', 's', 'x', :at)"
            ),
            {"at": created_at},
        )
        if state is None:
            return
        await connection.execute(
            text(
                "INSERT INTO endpoints (tenant_id, id, url, created_at, updated_at)"
                " VALUES ('ten_ops', 'ep_1', 'https://a.example/', :at, :at)"
            ),
            {"at": created_at},
        )
        await connection.execute(
            text(
                "INSERT INTO deliveries (tenant_id, id, event_id, event_type, event_created_at, feed_position, endpoint_id,"
                " subject, priority, state, due_at, created_at)"
                " VALUES ('ten_ops', 'del_1', 'evt_1', 'test.ping', :at, 1, 'ep_1', 's', 0, :state, :at, :at)"
            ),
            {"at": created_at, "state": state},
        )


async def days(engine: AsyncEngine, table: str = "events") -> list[date]:
    """The days that a table has partitions for."""
    async with transaction(engine) as connection:
        return [day_of(name) for name in await list_partitions(connection, table)]


def test_a_partitions_name_says_its_day() -> None:
    assert partition_name("events", date(2026, 11, 1)) == "events_20261101"
    assert day_of("attempts_20261101") == date(2026, 11, 1)


async def test_partitions_are_made_ahead_for_both_tables_and_once(engine: AsyncEngine) -> None:
    made = await make(engine, days_ahead=3)
    expected = {date(2031, 5, 9) + timedelta(days=offset) for offset in range(5)}
    assert set(made) == {partition_name(table, day) for table in PARTITIONED for day in expected}
    assert await make(engine, days_ahead=3) == []
    assert await make(engine, NOW + timedelta(seconds=1), days_ahead=3) == ["events_20310514", "attempts_20310514"]


async def test_a_moment_near_midnight_in_another_zone_belongs_to_the_day_in_utc(engine: AsyncEngine) -> None:
    west = datetime.fromisoformat("2031-05-10T23:30:00-10:00")  # the 11th in UTC
    made = await make(engine, west, days_ahead=0)
    assert made == ["events_20310510", "events_20310511", "attempts_20310510", "attempts_20310511"]
    await insert_event(engine, datetime(2031, 5, 11, 23, 59, 59, 999999, tzinfo=UTC))
    async with transaction(engine) as connection:
        assert (await connection.execute(text("SELECT count(*) FROM events_20310511"))).scalar_one() == 1


async def test_a_row_for_a_day_without_partition_fails_loudly(engine: AsyncEngine) -> None:
    with pytest.raises(DBAPIError, match="no partition of relation"):
        await insert_event(engine, NOW)


async def test_several_processes_make_them_at_one_moment(engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partitions, "LOCK_TIMEOUT", "120s")
    made = await asyncio.gather(*(make(engine) for _ in range(4)))
    assert sorted(len(names) for names in made) == [0, 0, 0, 18]


async def test_old_days_are_dropped_with_what_is_in_them(engine: AsyncEngine) -> None:
    await make(engine)
    await insert_event(engine, NOW)
    later = NOW + timedelta(days=91)
    await make(engine, later)
    dropped = await drop(engine, later)
    assert {"events_20310509", "events_20310510", "attempts_20310510"} <= set(dropped)
    assert "events_20310511" not in dropped
    assert min(await days(engine)) == date(2031, 5, 11)
    assert min(await days(engine, "attempts")) == date(2031, 5, 11)
    assert await drop(engine, later) == []


@pytest.mark.parametrize("state", ["pending", "held"])
async def test_no_day_is_dropped_from_the_oldest_event_on_that_is_still_owed(engine: AsyncEngine, state: str) -> None:
    await make(engine)
    await insert_event(engine, NOW, state)
    dropped = await drop(engine, NOW + timedelta(days=400))
    assert "events_20310509" in dropped
    assert min(await days(engine)) == min(await days(engine, "attempts")) == date(2031, 5, 10)


async def test_a_long_read_makes_housekeeping_give_up_and_not_writers_wait(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions, "LOCK_TIMEOUT", "50ms")
    async with transaction(engine) as reader:
        await reader.execute(text("SELECT count(*) FROM events"))
        with pytest.raises(OperationalError, match="lock timeout"):
            await make(engine)
    assert len(await make(engine)) == 18


async def test_days_ahead_are_counted_up_to_the_first_that_has_no_partition(engine: AsyncEngine) -> None:
    await make(engine)
    async with transaction(engine) as connection:
        assert await count_days_ahead(connection, NOW) == {"events": 7, "attempts": 7}
        await connection.execute(text(f'DROP TABLE "{partition_name("events", date(2031, 5, 13))}"'))
        assert await count_days_ahead(connection, NOW) == {"events": 2, "attempts": 7}
        assert await count_days_ahead(connection, NOW + timedelta(days=30)) == {"events": 0, "attempts": 0}
