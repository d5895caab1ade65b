"""What a job puts into a lane beside claims that are half done: never are two of a lane under way."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime

import pytest

from ledger.claims import Claimed
from ledger.database import Connection, database_now, transaction
from ledger.holding import Held, Task, pause_endpoint, resume_endpoint, start_task
from ledger.ids import EndpointId, EventId
from notifier.recovery import recover_once
from tests.fakes.claiming import claim_any
from tests.fakes.receiver import running_receiver
from tests.integration.notifier.conftest import TENANT, Post


@pytest.fixture
async def endpoint_id(post: Post) -> AsyncIterator[EndpointId]:
    async with running_receiver() as receiver:
        yield await post.add_endpoint(receiver)


async def claim(connection: Connection, worker: str) -> list[Claimed]:
    return await claim_any(connection, 10, token=worker)


async def recover(post: Post, endpoint_id: EndpointId) -> None:
    """Ask for all that failed to be told again."""
    asked: Mapping[str, object] = {
        "since": datetime(2020, 1, 1, tzinfo=UTC).isoformat(),
        "until": None,
        "only": "failed",
    }
    async with transaction(post.engine) as connection:
        await start_task(connection, TENANT, endpoint_id, Task.RECOVER, asked, await database_now(connection))


async def let_jobs_have_their_turn(post: Post) -> None:
    await post.execute("UPDATE jobs SET turn_at = now()")
    assert await recover_once(post.engine)


async def exhausted(post: Post, subject: str) -> EventId:
    """An event that its endpoint did not take."""
    event_id = await post.record(subject, 1)
    await post.execute(
        "UPDATE deliveries SET state = 'exhausted', settled_at = now() WHERE event_id = :id", id=event_id
    )
    return event_id


async def test_nothing_is_put_before_what_a_claim_is_taking(post: Post, endpoint_id: EndpointId) -> None:
    """A claim that came next would see the one that was put there, and not the lease of the other."""
    first, second = await exhausted(post, "dep_1"), await post.record("dep_1", 2)
    await recover(post, endpoint_id)
    async with transaction(post.engine) as early:
        assert [one.event_id for one in await claim(early, "early")] == [second]
        await let_jobs_have_their_turn(post)
        async with transaction(post.engine) as late:
            assert await claim(late, "late") == []
    await let_jobs_have_their_turn(post)
    assert [row.event_id for row in await post.deliveries() if row.state == "pending"] == [first, second]
    async with transaction(post.engine) as connection:
        assert await claim(connection, "last") == []


async def test_a_job_that_met_a_half_done_claim_says_so_and_has_done_nothing(
    post: Post, endpoint_id: EndpointId
) -> None:
    await exhausted(post, "dep_1")
    await post.record("dep_2", 1)
    await recover(post, endpoint_id)
    async with transaction(post.engine) as early:
        assert len(await claim(early, "early")) == 1
        await let_jobs_have_their_turn(post)
    waiting = (
        "SELECT 1 FROM jobs WHERE state = 'running' AND done = 0 AND lease_token IS NULL AND reason LIKE '%claim%'"
    )
    assert await post.execute(waiting) == 1


async def test_what_is_let_go_is_not_due_beside_the_one_that_overtakes_it(post: Post, endpoint_id: EndpointId) -> None:
    """It failed five times and was held; what came after the resumption may overtake it, until it is due again."""
    await post.record("dep_1", 1)
    await post.execute("UPDATE deliveries SET attempts = 5, due_at = now() + interval '1 hour'")
    async with transaction(post.engine) as connection:
        now = await database_now(connection)
        await pause_endpoint(connection, TENANT, endpoint_id, now, reason="")
    await let_jobs_have_their_turn(post)
    async with transaction(post.engine) as connection:
        await resume_endpoint(connection, TENANT, endpoint_id, Held.ALL, await database_now(connection))
    second = await post.record("dep_1", 2)
    async with transaction(post.engine) as early:
        assert [one.event_id for one in await claim(early, "early")] == [second]
        await let_jobs_have_their_turn(post)
        async with transaction(post.engine) as late:
            assert await claim(late, "late") == []
