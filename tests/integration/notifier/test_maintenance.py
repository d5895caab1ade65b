"""Housekeeping: what it does at once, what it forgets and keeps, and that its failing stops nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import text

from ledger.database import connect, database_now, transaction
from ledger.partitions import ensure_partitions, list_partitions
from ledger.upkeep import delete_settled_deliveries
from notifier import maintenance
from notifier.maintenance import forget_answers, housekeeping, partition_upkeep, retire
from tests.fakes.receiver import running_receiver
from tests.integration.notifier.conftest import Post

JOBS = (
    *("make_partitions", "retire", "forget_answers", "forget_secrets", "judge_endpoints"),
    *("free_leases", "watch_database", "forget_windows", "discard_leftovers"),
)


def jobs_done(job: str, outcome: str = "done") -> float:
    """How often a job ended so."""
    return REGISTRY.get_sample_value("chainbell_housekeeping_total", {"job": job, "outcome": outcome}) or 0.0


async def wait_for(what: str, condition: Callable[[], bool]) -> None:
    """Return as soon as `condition` holds; fail naming `what` after two minutes."""
    for _ in range(12_000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"not within 120 s: {what}")


async def drop_all_partitions(post: Post) -> None:
    """As if no role had run for a week."""
    async with transaction(post.engine) as connection:
        for table in ("events", "attempts"):
            for name in await list_partitions(connection, table):
                await connection.execute(text(f'DROP TABLE "{name}"'))


async def count_partitions(post: Post) -> int:
    """Partitions of events."""
    async with transaction(post.engine) as connection:
        return len(await list_partitions(connection, "events"))


async def test_every_role_makes_missing_partitions_as_soon_as_it_starts(post: Post) -> None:
    await drop_all_partitions(post)
    before = {job: jobs_done(job) for job in JOBS}
    with partition_upkeep(post.engine):
        await wait_for("partitions are made", lambda: jobs_done("make_partitions") > before["make_partitions"])
    assert await count_partitions(post) == 9
    assert {job: jobs_done(job) for job in JOBS} == {**before, "make_partitions": before["make_partitions"] + 1}


async def test_all_of_housekeeping_runs_once_at_the_start(post: Post) -> None:
    before = {job: jobs_done(job) for job in JOBS}
    failed = {job: jobs_done(job, "failed") for job in JOBS}
    with housekeeping(post.engine):
        await wait_for("each job ran", lambda: all(jobs_done(job) > number for job, number in before.items()))
    assert {job: jobs_done(job, "failed") for job in JOBS} == failed


async def test_a_job_that_fails_is_counted_and_stops_nobody(post: Post) -> None:
    nowhere = connect("postgresql://nobody@127.0.0.1:1/nothing", application="tests", pool_size=1)
    before = jobs_done("retire", "failed")
    with housekeeping(nowhere):
        await wait_for("it failed", lambda: jobs_done("retire", "failed") > before)
    await nowhere.dispose()


async def test_what_is_settled_and_old_goes_and_what_is_owed_stays(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance, "DELETE_MAX", 3)
    async with running_receiver() as receiver:
        await post.add_endpoint(receiver)
    await post.record_all([(f"dep_{number}", 1) for number in range(12)])
    age = "state = 'delivered', settled_at = now() - CAST(:age AS interval)"
    await post.execute(f"UPDATE deliveries SET {age} WHERE feed_position <= 8", age="91 days")
    await post.execute(f"UPDATE deliveries SET {age} WHERE feed_position BETWEEN 9 AND 10", age="89 days")
    async with transaction(post.engine) as connection:
        await ensure_partitions(connection, await database_now(connection) - timedelta(days=100), 0)
    before = await count_partitions(post)
    await retire(post.engine)
    assert await post.states() == {"delivered": 2, "pending": 2}
    assert await count_partitions(post) == before - 2


async def test_deleting_is_bounded_and_spares_what_another_holds(post: Post) -> None:
    async with running_receiver() as receiver:
        await post.add_endpoint(receiver)
    await post.record_all([(f"dep_{number}", 1) for number in range(6)])
    await post.execute("UPDATE deliveries SET state = 'exhausted', settled_at = now() - interval '1 day'")
    async with transaction(post.engine) as holder:
        await holder.execute(text("SELECT 1 FROM deliveries WHERE feed_position <= 3 FOR UPDATE"))
        async with transaction(post.engine) as connection:
            assert await delete_settled_deliveries(connection, datetime.now(UTC), 2) == 2
        async with transaction(post.engine) as connection:
            assert await delete_settled_deliveries(connection, datetime.now(UTC), 5) == 1
    assert await post.states() == {"exhausted": 3}


async def test_stored_answers_are_forgotten_after_a_day(post: Post) -> None:
    await post.execute(
        "INSERT INTO idempotency_keys (tenant_id, key, fingerprint, status_code, sealed_body, created_at)"
        " SELECT 'ten_ops', 'key_' || hours, 'x', 201, 'x', now() - make_interval(hours => hours)"
        " FROM unnest(ARRAY[1, 23, 25, 48]) hours"
    )
    await forget_answers(post.engine)
    async with transaction(post.engine) as connection:
        keys = (await connection.execute(text("SELECT key FROM idempotency_keys ORDER BY key"))).scalars()
        assert list(keys) == ["key_1", "key_23"]
