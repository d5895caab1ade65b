"""Upkeep of the queue: leases of the dead are freed and counted, and what makes Postgres slow is measured and named."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection
from structlog.testing import capture_logs

from ledger.database import connect, database_now, transaction
from ledger.embedded import embedded_postgres
from ledger.errors import JobTaken
from ledger.jobs import JobRow, create_job, find_job, progress_job, take_next
from ledger.partitions import day_of, list_partitions
from ledger.schema_jobs import jobs
from ledger.states import JobKind
from ledger.upkeep import HOT_TABLES, Held, Holder, TableRows, count_rows, find_holders
from notifier.upkeep import free_leases, has_many_dead, is_too_old, watch_database
from tests.fakes.receiver import running_receiver
from tests.fixtures.postgres import cluster_directory
from tests.integration.notifier.conftest import TENANT, Post


def sample(name: str, **labels: str) -> float:
    """A metric's value; 0 before it was set."""
    return REGISTRY.get_sample_value(name, labels) or 0.0


@asynccontextmanager
async def open_snapshot(url: str, application: str) -> AsyncIterator[AsyncConnection]:
    """A transaction that goes on seeing what there is now."""
    engine = connect(url, application=application, pool_size=1)
    async with engine.connect() as connection:
        reader = await connection.execution_options(isolation_level="REPEATABLE READ")
        await reader.execute(text("SELECT 1"))
        yield reader
        await reader.rollback()
    await engine.dispose()


async def lease(post: Post, subject: str, ends_in_s: float) -> None:
    """As if a worker had claimed it, and its lease ended then."""
    changed = await post.execute(
        "UPDATE deliveries SET attempts = 1, lease_token = 'dead', leased_until = now() + make_interval(secs => :s)"
        " WHERE subject = :subject",
        s=ends_in_s,
        subject=subject,
    )
    assert changed == 1


async def test_what_a_dead_worker_held_is_freed_and_counted_and_nothing_else(post: Post) -> None:
    async with running_receiver() as receiver:
        await post.add_endpoint(receiver)
    await post.record_all([(subject, 1) for subject in ("long_over", "held", "just_over", "running", "idle")])
    for subject, ends_in_s in (("long_over", -600), ("held", -600), ("just_over", -5), ("running", 600)):
        await lease(post, subject, ends_in_s)
    await post.execute("UPDATE deliveries SET state = 'held' WHERE subject = 'held'")
    before = sample("chainbell_leases_expired_total", of="deliveries")
    await free_leases(post.engine)
    leased = {row.subject: (row.lease_token, row.attempts) for row in await post.deliveries()}
    assert leased == {
        "long_over": (None, 1),  # the attempt was counted at the claim, and stays
        "held": (None, 1),
        "just_over": ("dead", 1),
        "running": ("dead", 1),
        "idle": (None, 0),
    }
    assert sample("chainbell_leases_expired_total", of="deliveries") == before + 2
    await free_leases(post.engine)
    assert sample("chainbell_leases_expired_total", of="deliveries") == before + 2


async def take_job(connection: AsyncConnection, now: datetime) -> JobRow:
    """A job that a process has taken at that time."""
    return await create_job(
        connection,
        tenant_id=TENANT,
        kind=JobKind.RECOVER,
        chain_id=None,
        request={},
        total=None,
        now=now,
        is_taken=True,
    )


async def test_a_job_whose_process_fell_silent_is_freed_and_is_not_its_any_more(post: Post) -> None:
    async with transaction(post.engine) as connection:
        now = await database_now(connection)
        silent, busy = [await take_job(connection, moment) for moment in (now - timedelta(minutes=5), now)]
    before = sample("chainbell_leases_expired_total", of="jobs")
    await free_leases(post.engine)
    assert sample("chainbell_leases_expired_total", of="jobs") == before + 1
    async with transaction(post.engine) as connection:
        found = [await find_job(connection, TENANT, job.id) for job in (silent, busy)]
        assert [job.lease_token is None for job in found if job] == [True, False]
        with pytest.raises(JobTaken):
            await progress_job(connection, silent, datetime.now(UTC), done=1)
        taken = await take_next(connection, jobs.c.tenant_id == TENANT, datetime.now(UTC))
        assert taken is not None
        assert taken.id == silent.id


async def wait_for_rows(post: Post, *, live: int, dead: int) -> None:
    """Until the statistics know of so many: sessions report them when they end, and not in the moment."""
    async with asyncio.timeout(120):
        while True:
            async with transaction(post.engine) as connection:
                [rows] = [row for row in await count_rows(connection) if row.table == "deliveries"]
            if rows.live >= live and rows.dead >= dead:
                return
            await asyncio.sleep(0.02)


async def test_dead_rows_and_who_keeps_them_are_measured_and_named(post: Post) -> None:
    async with transaction(post.engine) as connection:
        await connection.execute(text("ALTER TABLE deliveries SET (autovacuum_enabled = off)"))
    async with running_receiver() as receiver:
        await post.add_endpoint(receiver)
    writer = Post(connect(post.url, application="writer", pool_size=1), post.url)
    await writer.record_all([(f"dep_{number}", 1) for number in range(50)])
    async with open_snapshot(post.url, "a long report"):
        await writer.execute("UPDATE deliveries SET due_at = due_at + interval '1 second'")
        await writer.engine.dispose()
        await wait_for_rows(post, live=50, dead=50)
        async with transaction(post.engine) as connection:
            [report] = [one for one in await find_holders(connection) if "a long report" in one.name]
        assert report.holder is Holder.SESSION
        assert report.age_s is not None
        assert report.age_transactions >= 1
        await watch_database(post.engine)
        assert sample("chainbell_database_dead_rows", table="deliveries") >= 50
        assert sample("chainbell_database_live_rows", table="deliveries") >= 50
        assert sample("chainbell_database_oldest_snapshot_seconds", holder="session") >= report.age_s
        assert sample("chainbell_database_vacuum_held_back_transactions", holder="session") >= report.age_transactions
    async with transaction(post.engine) as connection:
        assert not [one for one in await find_holders(connection) if "a long report" in one.name]
        assert {row.table for row in await count_rows(connection)} == set(HOT_TABLES)


async def test_what_is_bad_is_said_in_the_log(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    async with transaction(post.engine) as connection:
        last = (await database_now(connection)).date() + timedelta(days=2)
        for name in await list_partitions(connection, "events"):
            if day_of(name) > last:
                await connection.execute(text(f'DROP TABLE "{name}"'))
    monkeypatch.setattr("notifier.upkeep.SNAPSHOT_AGE_MAX_S", 0.0)
    monkeypatch.setattr("notifier.upkeep.has_many_dead", lambda table: table.table == "deliveries")
    async with open_snapshot(post.url, "a long report"):
        with capture_logs() as logs:
            await watch_database(post.engine)
    said = {(line["event"], line.get("table")): line for line in logs}
    assert said["partitions run out", "events"]["days"] == 2
    assert ("partitions run out", "attempts") not in said
    assert ("dead rows pile up", "deliveries") in said
    assert ("dead rows pile up", "entries") not in said
    assert any("a long report" in line.get("by", "") for line in logs if line["event"] == "vacuum is held back")
    assert sample("chainbell_database_partition_days_ahead", table="events") == 2


def test_only_what_matters_is_bad() -> None:
    assert not has_many_dead(TableRows("deliveries", live=10, dead=9_999))
    assert not has_many_dead(TableRows("deliveries", live=1_000_000, dead=150_000))
    assert has_many_dead(TableRows("deliveries", live=1_000_000, dead=250_000))
    assert has_many_dead(TableRows("tenants", live=3, dead=20_000))
    assert not is_too_old(Held(Holder.SESSION, "a", 299.0, 10**9))
    assert is_too_old(Held(Holder.PREPARED, "a", 301.0, 1))
    assert not is_too_old(Held(Holder.SLOT, "a", None, 1_000))
    assert is_too_old(Held(Holder.SLOT, "a", None, 2_000_000))


async def test_tables_that_change_all_the_time_are_vacuumed_early(post: Post) -> None:
    async with transaction(post.engine) as connection:
        statement = (
            "SELECT option_value::float FROM pg_class, pg_options_to_table(reloptions) WHERE relname = :name"
            + (" AND option_name = 'autovacuum_vacuum_scale_factor'")
        )
        for table in HOT_TABLES:
            [share] = (await connection.execute(text(statement), {"name": table})).scalars()
            assert share <= 0.02, table


@pytest.fixture
def other_postgres() -> Iterator[str]:
    """A server that admits what ours does not: prepared transactions and logical slots."""
    settings = {"fsync": "off", "max_prepared_transactions": "1", "wal_level": "logical"}
    with cluster_directory() as directory, embedded_postgres(directory, settings=settings) as url:
        yield url


async def test_prepared_transactions_and_slots_are_found_and_other_roles_sessions_only_by_right(
    other_postgres: str,
) -> None:
    engine = connect(other_postgres, application="tests", pool_size=1)
    plain = connect(other_postgres, application="plain", pool_size=1, role="plain")
    async with transaction(engine) as connection:
        await connection.execute(text("CREATE ROLE plain"))
        await connection.execute(text("CREATE TABLE t AS SELECT 1 n"))
    async with transaction(engine) as connection:  # before the other, for whose end it would wait
        await connection.execute(text("SELECT pg_create_logical_replication_slot('gone', 'pgoutput')"))
    async with engine.connect() as connection:
        await connection.execute(text("UPDATE t SET n = 2"))
        await connection.execute(text("PREPARE TRANSACTION 'forgotten'"))
        await connection.rollback()
    async with open_snapshot(other_postgres, "a long report"):
        async with transaction(engine) as connection:
            found = {one.holder: one for one in await find_holders(connection)}
        async with transaction(plain) as connection:
            seen = {one.holder for one in await find_holders(connection)}
    assert set(found) == {Holder.SESSION, Holder.PREPARED, Holder.SLOT}
    assert found[Holder.PREPARED].name.startswith("prepared transaction forgotten (")
    assert found[Holder.PREPARED].age_s is not None
    assert found[Holder.SLOT].name == "replication slot gone (inactive)"
    assert found[Holder.SLOT].age_s is None
    assert seen == {Holder.PREPARED, Holder.SLOT}
    await engine.dispose()
    await plain.dispose()
