"""Endpoints that only fail: paused when gone, warned of, disabled after days, and each once."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import text

from ledger.database import database_now, transaction
from ledger.partitions import ensure_partitions
from notifier.maintenance import judge_endpoints
from tests.fakes.receiver import running_receiver
from tests.integration.notifier.conftest import Post


async def fail(post: Post, number: int, age: str, status_code: int = 500) -> None:
    """An endpoint whose one delivery failed `number` times, the first time `age` ago."""
    async with running_receiver() as receiver:
        await post.add_endpoint(receiver)
    await post.record_all([("dep_1", 1)])
    await post.execute(
        "INSERT INTO attempts (tenant_id, delivery_id, number, started_at, duration_ms, status_code, outcome)"
        " SELECT tenant_id, id, g, now() - g * interval '1 second', 1, CAST(:code AS int), 'retryable'"
        " FROM deliveries, generate_series(1, CAST(:number AS int)) g",
        number=str(number),
        code=str(status_code),
    )
    await post.execute("UPDATE deliveries SET attempts = 12")
    await post.execute(
        "UPDATE endpoints SET failures_consecutive = CAST(:number AS int),"
        " created_at = now() - interval '30 days', updated_at = now() - interval '30 days'",
        number=str(number),
    )
    async with transaction(post.engine) as connection:
        await ensure_partitions(connection, await database_now(connection) - timedelta(days=10), 10)
    await post.execute("UPDATE attempts SET started_at = now() - CAST(:age AS interval) WHERE number = 1", age=age)


async def seen(post: Post) -> tuple[str, str | None, list[str]]:
    """The endpoint's state, its reason, and what operators were told."""
    async with transaction(post.engine) as connection:
        row: Any = (await connection.execute(text("SELECT state, state_reason FROM endpoints"))).one()
        told = await connection.execute(
            text("SELECT type FROM events WHERE tenant_id = 'ten_ops' ORDER BY feed_position")
        )
        return row.state, row.state_reason, list(told.scalars())


async def test_five_days_of_only_failures_disable(post: Post) -> None:
    await fail(post, 20, "5 days 1 minute")
    await judge_endpoints(post.engine)
    await judge_endpoints(post.engine)
    assert await seen(post) == ("disabled", "it only failed for five days", ["endpoint.paused"])


async def test_few_failures_or_few_days_do_not_disable_and_are_warned_of_once(post: Post) -> None:
    await fail(post, 19, "6 days")
    await judge_endpoints(post.engine)
    await judge_endpoints(post.engine)
    assert await seen(post) == ("active", None, ["endpoint.failing"])


async def test_what_began_to_fail_lately_is_left_alone_however_long_it_was_silent(post: Post) -> None:
    await fail(post, 50, "2 days")
    await judge_endpoints(post.engine)
    assert await seen(post) == ("active", None, [])


async def test_gone_twice_pauses_and_once_does_not(post: Post) -> None:
    await fail(post, 2, "1 second", 410)
    await post.execute("UPDATE attempts SET status_code = 500 WHERE number = 2")
    await judge_endpoints(post.engine)
    assert (await seen(post))[0] == "active"
    await post.execute("UPDATE attempts SET status_code = 410")
    await judge_endpoints(post.engine)
    assert await seen(post) == ("paused", "it answered 410 Gone twice", ["endpoint.paused"])
