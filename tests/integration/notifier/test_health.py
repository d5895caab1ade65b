"""An endpoint's health: what workers saw of it, added up, and what it is owed."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from ledger.database import connect, database_now, transaction
from ledger.endpoint_health import Glance, glance_at
from ledger.ids import EndpointId
from ledger.tally import Tally, add_up
from notifier.maintenance import forget_windows
from notifier.tallying import write_tally
from tests.fakes.receiver import answer, running_receiver
from tests.integration.notifier.conftest import TENANT, Post


async def glance(post: Post, endpoint_id: EndpointId) -> Glance:
    async with transaction(post.engine) as connection:
        return await glance_at(connection, TENANT, endpoint_id, await database_now(connection))


async def add(post: Post, endpoint_id: EndpointId, number: int, age: timedelta = timedelta(0)) -> None:
    """So many attempts, a while ago, each of 40 ms; every second one was accepted."""
    tally = Tally()
    async with transaction(post.engine) as connection:
        now = await database_now(connection)
        for n in range(number):
            tally.note((TENANT, endpoint_id), now - age, 40, is_accepted=n % 2 == 0)
        await add_up(connection, tally.take())


async def test_what_a_dispatcher_sees_is_there_at_the_latest_when_it_has_stopped(post: Post) -> None:
    async with running_receiver() as receiver:
        receiver.script(answer(500))
        endpoint_id = await post.add_endpoint(receiver)
        async with post.dispatching():
            event = await post.record("dep_1")
            await post.wait_for_attempts(event, 1)
            await post.record_all([(f"dep_{number}", 1) for number in range(2, 5)])
            await post.wait_for_states(delivered=3, pending=1)
    found = await glance(post, endpoint_id)
    assert (found.last_hour.attempts, found.last_hour.accepted, found.last_hour.accepted_share) == (4, 3, 0.75)
    assert found.last_day == found.last_hour
    assert found.last_hour.p50_ms is not None
    assert (found.owed.pending, found.owed.exhausted) == (1, 0)
    assert found.owed.oldest_at is not None


async def test_workers_that_write_at_one_time_add_up(post: Post) -> None:
    async with running_receiver() as receiver:
        first, second = await post.add_endpoint(receiver), await post.add_endpoint(receiver)
    await asyncio.gather(*(add(post, endpoint_id, 10) for endpoint_id in (first, second, first)))
    await add(post, first, 1, timedelta(hours=2))
    await add(post, first, 100, timedelta(days=1, minutes=30))
    found = await glance(post, first)
    assert (found.last_hour.attempts, found.last_day.attempts) == (20, 21)
    assert (found.last_hour.p50_ms, found.last_hour.p95_ms) == (50, 50)
    assert (await glance(post, second)).last_hour.attempts == 10


async def test_what_is_older_than_anybody_asks_about_goes(post: Post) -> None:
    async with running_receiver() as receiver:
        endpoint_id = await post.add_endpoint(receiver)
    await add(post, endpoint_id, 1)
    await add(post, endpoint_id, 1, timedelta(days=3))
    assert await post.execute("SELECT 1 FROM endpoint_windows") == 2
    await forget_windows(post.engine)
    assert await post.execute("SELECT 1 FROM endpoint_windows") == 1


async def test_nothing_is_lost_while_the_ledger_cannot_be_reached(post: Post) -> None:
    async with running_receiver() as receiver:
        endpoint_id = await post.add_endpoint(receiver)
    tally = Tally()
    async with transaction(post.engine) as connection:
        tally.note((TENANT, endpoint_id), await database_now(connection), 40, is_accepted=True)
    nowhere = connect("postgresql://nobody@127.0.0.1:1/nothing", application="tests", pool_size=1)
    await write_tally(nowhere, tally)
    await nowhere.dispose()
    await write_tally(post.engine, tally)
    assert (await glance(post, endpoint_id)).last_hour.attempts == 1
