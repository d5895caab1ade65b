"""Deleting an endpoint that is owed much: in steps, nothing sent meanwhile, and nothing left in the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text

from ledger import deleting
from ledger.claims import EndpointRoom, claim_due_deliveries
from ledger.database import database_now, transaction
from ledger.deleting import Deletion, delete_endpoint
from ledger.holding import pause_endpoint
from ledger.ids import EndpointId
from notifier.maintenance import discard_leftovers
from notifier.recovery import recover_once
from tests.fakes.receiver import running_receiver
from tests.integration.notifier.conftest import TENANT, Post

BATCH = 10
OWED = 25


@pytest.fixture
async def owed(post: Post, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[EndpointId]:
    """An endpoint that is owed more than two steps go over, and another that is owed one."""
    monkeypatch.setattr(deleting, "BATCH", BATCH)
    async with running_receiver() as receiver:
        endpoint_id = await post.add_endpoint(receiver, ["deposit.detected"])
        await post.add_endpoint(receiver, ["deposit.confirmed"])
        await post.record_all([(f"dep_{number}", 1) for number in range(OWED)])
        await post.record("dep_0", 2, "deposit.confirmed")
        yield endpoint_id
    assert receiver.requests == []


async def delete(post: Post, endpoint_id: EndpointId) -> Deletion:
    async with transaction(post.engine) as connection:
        done = await delete_endpoint(connection, TENANT, endpoint_id, await database_now(connection))
    assert done is not None
    return done


async def work_off(post: Post) -> None:
    """Until no job has anything to do."""
    while await recover_once(post.engine):
        continue


async def test_what_it_was_owed_is_given_up_in_steps(post: Post, owed: EndpointId) -> None:
    done = await delete(post, owed)
    assert done.job is not None
    assert done.discarded == BATCH
    assert await post.states() == {"discarded": BATCH, "pending": OWED - BATCH + 1}
    await recover_once(post.engine)
    assert await post.states() == {"discarded": 2 * BATCH, "pending": OWED - 2 * BATCH + 1}
    await work_off(post)
    assert await post.states() == {"discarded": OWED, "pending": 1}
    assert await post.execute("SELECT 1 FROM jobs WHERE state = 'done' AND done = :left", left=OWED - BATCH) == 1


async def test_a_pause_is_not_gone_on_with(post: Post, owed: EndpointId) -> None:
    """What it held goes with the rest."""
    async with transaction(post.engine) as connection:
        await pause_endpoint(connection, TENANT, owed, await database_now(connection), reason="")
    await recover_once(post.engine)
    await delete(post, owed)
    await work_off(post)
    assert await post.states() == {"discarded": OWED, "pending": 1}


async def test_what_is_under_way_is_given_up_too_and_cannot_come_back(post: Post, owed: EndpointId) -> None:
    rooms = [EndpointRoom(TENANT, owed, OWED)]
    async with transaction(post.engine) as connection:
        claimed = await claim_due_deliveries(connection, rooms, lease_s=60.0, token="worker")
    assert len(claimed) == OWED
    await delete(post, owed)
    await work_off(post)
    assert await post.states() == {"discarded": OWED, "pending": 1}
    assert await post.execute("SELECT 1 FROM deliveries WHERE lease_token IS NOT NULL") == 0


async def test_housekeeping_finds_what_nobody_goes_over(post: Post, owed: EndpointId) -> None:
    await delete(post, owed)
    await discard_leftovers(post.engine)
    assert await post.execute("SELECT 1 FROM jobs") == 1, "one job is enough"
    await post.execute("UPDATE jobs SET state = 'cancelled', ended_at = now()")
    await discard_leftovers(post.engine)
    await work_off(post)
    assert await post.states() == {"discarded": OWED, "pending": 1}


async def test_what_was_settled_while_a_step_waited_hides_nothing_of_the_rest(post: Post, owed: EndpointId) -> None:
    settle = (
        "UPDATE deliveries SET state = 'delivered', settled_at = now() WHERE endpoint_id = :id AND subject < 'dep_7'"
    )
    waits = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    async with transaction(post.engine) as worker, asyncio.TaskGroup() as group:
        settled = (await worker.execute(text(settle), {"id": owed})).rowcount
        assert OWED - settled < BATCH < settled
        deletion = group.create_task(delete(post, owed))
        while not await post.execute(waits):  # noqa: ASYNC110 - Postgres sets no event
            await asyncio.sleep(0.01)
        await worker.commit()
    done = deletion.result()
    assert done.discarded < BATCH
    assert done.job is not None
