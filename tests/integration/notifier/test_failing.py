"""Endpoints that only fail: paused when gone, warned of, disabled after days, and each once."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, select, text

from ledger.database import database_now, transaction
from ledger.endpoints import change_endpoint, list_endpoints
from ledger.failing import find_dead_endpoints, is_to_be_stopped
from ledger.schema import endpoints
from ledger.states import EndpointState
from notifier.maintenance import judge_endpoints, stop_endpoint
from tests.fakes.receiver import answer, running_receiver
from tests.integration.notifier.conftest import TENANT, Post


async def fail(post: Post, number: int, age: str, gone: int = 0) -> None:
    """An endpoint whose deliveries failed `number` times, the first time `age` ago."""
    async with running_receiver() as receiver:
        await post.add_endpoint(receiver)
    await post.execute(
        "UPDATE endpoints SET failures_consecutive = CAST(:number AS int), gone_answers = CAST(:gone AS int),"
        " failing_since = now() - CAST(:age AS interval), created_at = now() - interval '30 days'",
        number=str(number),
        age=age,
        gone=str(gone),
    )


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


async def test_one_that_recovers_while_it_is_judged_is_not_stopped(post: Post) -> None:
    """It was found dead; before it is its turn to be stopped it accepts something, or its owner changes it."""
    await fail(post, 20, "6 days")
    async with transaction(post.engine) as connection:
        now = await database_now(connection)
        [key] = await find_dead_endpoints(connection, now)
        assert await is_to_be_stopped(connection, key, EndpointState.DISABLED, now)
    await post.execute("UPDATE endpoints SET failures_consecutive = 0, failing_since = NULL")
    async with transaction(post.engine) as connection:
        await stop_endpoint(connection, key, EndpointState.DISABLED, "it only failed for five days")
    assert await seen(post) == ("active", None, [])


async def test_gone_twice_pauses_and_once_does_not(post: Post) -> None:
    await fail(post, 2, "1 second", gone=1)
    await judge_endpoints(post.engine)
    assert (await seen(post))[0] == "active"
    await post.execute("UPDATE endpoints SET gone_answers = 2")
    await judge_endpoints(post.engine)
    assert await seen(post) == ("paused", "it answered 410 Gone twice", ["endpoint.paused"])


async def test_a_change_by_its_owner_starts_the_days_anew_and_being_stopped_does_not(post: Post) -> None:
    await fail(post, 50, "6 days")
    async with transaction(post.engine) as connection:
        [endpoint], _ = await list_endpoints(connection, TENANT, limit=1)
        now = await database_now(connection)
        changed = await change_endpoint(connection, TENANT, endpoint.id, {"description": "mended"}, now)
    assert changed is not None
    assert changed.failing_since is None
    await judge_endpoints(post.engine)
    assert await seen(post) == ("active", None, [])
    await post.execute("UPDATE endpoints SET failing_since = now() - interval '6 days'")
    await judge_endpoints(post.engine)
    async with transaction(post.engine) as connection:
        [endpoint], _ = await list_endpoints(connection, TENANT, limit=1)
    assert endpoint.state is EndpointState.DISABLED
    assert endpoint.failing_since is not None


async def test_what_an_endpoint_answers_is_kept_with_it(post: Post) -> None:
    """Twice 410, then an answer that accepts: the count of both ends with it."""
    async with running_receiver() as receiver:
        receiver.script(answer(410), answer(410))
        await post.add_endpoint(receiver)
        event = await post.record("dep_1")
        async with post.dispatching():
            await post.wait_for_attempts(event, 1)
            await post.make_due(event)
            await post.wait_for_attempts(event, 2)
            failing = await only_endpoint(post)
            await post.make_due(event)
            await post.wait_for_states(delivered=1)
    assert (failing.failures_consecutive, failing.gone_answers, failing.last_status_code) == (2, 2, 410)
    assert failing.failing_since is not None
    assert failing.failing_since < failing.last_failed_at
    row = await only_endpoint(post)
    assert (row.failures_consecutive, row.gone_answers, row.failing_since, row.last_status_code) == (0, 0, None, 204)


async def only_endpoint(post: Post) -> Row[Any]:
    async with transaction(post.engine) as connection:
        return (await connection.execute(select(endpoints))).one()
