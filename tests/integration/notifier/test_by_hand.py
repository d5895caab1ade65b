"""Redeliveries by hand ignore the order of their lane, hold nothing up, and are never under way beside another of it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.claims import Claimed
from ledger.database import database_now, transaction
from ledger.deliveries import Settlement, settle_deliveries
from ledger.ids import DeliveryId, EndpointId, EventId
from ledger.redelivery import redeliver
from ledger.states import DeliveryState
from tests.fakes.claiming import claim_any
from tests.fakes.receiver import answer, running_receiver
from tests.integration.notifier.conftest import TENANT, Post

TOKEN = "t"


@pytest.fixture
async def told(post: Post) -> AsyncIterator[EventId]:
    """The first event of `dep_1`, which its endpoint has accepted."""
    async with running_receiver() as receiver:
        await post.add_endpoint(receiver, ["deposit.detected"])
    event_id = await post.record("dep_1", 1)
    await post.execute("UPDATE deliveries SET state = 'delivered', settled_at = now()")
    yield event_id


async def by_hand(post: Post, event_id: EventId) -> DeliveryId:
    """Redeliver an event that was settled."""
    [old, *_] = [row for row in await post.deliveries() if row.event_id == event_id and row.settled_at is not None]
    async with transaction(post.engine) as connection:
        made = await redeliver(connection, TENANT, DeliveryId(old.id), await database_now(connection))
    assert made is not None
    return made


async def claim_in(connection: AsyncConnection, token: str = TOKEN) -> list[Claimed]:
    return await claim_any(connection, 10, lease_s=60.0, token=token)


async def claim(post: Post) -> list[Claimed]:
    async with transaction(post.engine) as connection:
        return await claim_in(connection)


async def settle(post: Post, claimed: Sequence[Claimed], state: DeliveryState, token: str = TOKEN) -> None:
    """What became of these: those that stay pending have failed, and are tried again in ten minutes."""
    delay = timedelta(minutes=10) if state is DeliveryState.PENDING else None
    async with transaction(post.engine) as connection:
        await settle_deliveries(connection, [Settlement(one, state, delay) for one in claimed])


async def test_one_that_fails_delays_nothing_of_its_lane(post: Post, told: EventId) -> None:
    made = await by_hand(post, told)
    news = await post.record("dep_1", 2)
    first = await claim(post)
    assert [one.id for one in first] == [made]
    await settle(post, first, DeliveryState.PENDING)
    assert [one.event_id for one in await claim(post)] == [news]


async def test_it_does_not_wait_behind_what_fails_in_its_lane(post: Post, told: EventId) -> None:
    await post.record("dep_1", 2)
    await settle(post, await claim(post), DeliveryState.PENDING)
    made = await by_hand(post, told)
    assert [one.id for one in await claim(post)] == [made]
    assert await claim(post) == []


async def test_what_waits_in_its_lane_keeps_its_time_whatever_becomes_of_it(post: Post, told: EventId) -> None:
    failing, waiting = await post.record("dep_1", 2), await post.record("dep_1", 3)
    await settle(post, await claim(post), DeliveryState.PENDING)
    due_at = {event_id: (await post.delivery(event_id)).due_at for event_id in (failing, waiting)}
    await by_hand(post, told)
    await settle(post, await claim(post), DeliveryState.DELIVERED)
    assert due_at == {event_id: (await post.delivery(event_id)).due_at for event_id in (failing, waiting)}


async def test_what_waited_behind_one_that_leaves_its_lane_by_hand_waits_no_more(post: Post, told: EventId) -> None:
    failing, waiting = await post.record("dep_1", 2), await post.record("dep_1", 3)
    await settle(post, await claim(post), DeliveryState.PENDING)
    async with transaction(post.engine) as connection:
        hurried = (await post.delivery(failing)).id
        assert await redeliver(connection, TENANT, hurried, await database_now(connection)) == hurried
    first = await claim(post)
    assert [one.id for one in first] == [hurried]
    await settle(post, first, DeliveryState.DELIVERED)
    assert [one.event_id for one in await claim(post)] == [waiting]


async def test_neither_is_under_way_while_the_other_is(post: Post, told: EventId) -> None:
    await post.record("dep_1", 2)
    in_flight = await claim(post)
    made = await by_hand(post, told)
    assert await claim(post) == []
    await settle(post, in_flight, DeliveryState.DELIVERED)
    await post.record("dep_1", 3)
    again = await claim(post)
    assert [one.id for one in again] == [made]
    assert await claim(post) == []
    await settle(post, again, DeliveryState.DELIVERED)
    assert len(await claim(post)) == 1


async def test_two_of_one_lane_go_one_after_the_other(post: Post, told: EventId) -> None:
    later = await post.record("dep_1", 2)
    await post.execute("UPDATE deliveries SET state = 'delivered', settled_at = now() WHERE state = 'pending'")
    made = {await by_hand(post, told), await by_hand(post, later)}
    first = await claim(post)
    assert len(first) == 1
    await settle(post, first, DeliveryState.DELIVERED)
    second = await claim(post)
    assert {one.id for one in first + second} == made


async def test_it_is_claimed_only_while_nobody_else_claims_and_keeps_nobody_waiting(post: Post, told: EventId) -> None:
    """A claim that has not committed may hold the lane's first, and nobody sees it."""
    stranger = await other_endpoint(post)
    await post.record("dep_2", 1)
    async with transaction(post.engine) as early:
        assert len(await claim_in(early, "early")) == 1
        made = await by_hand(post, told)
        other = await post.record("dep_3", 1)
        assert [one.event_id for one in await claim(post)] == [other]
    async with transaction(post.engine) as alone:
        assert [one.id for one in await claim_in(alone, "alone")] == [made]
        await post.record("dep_4", 1)
        news = await post.record("dep_5", 1, "deposit.confirmed")
        assert [(one.event_id, one.endpoint_id) for one in await claim(post)] == [(news, stranger)]


async def other_endpoint(post: Post) -> EndpointId:
    """One that shares no lock with the first, and is told of something else."""
    async with running_receiver() as receiver:
        while True:
            made = await post.add_endpoint(receiver, ["deposit.confirmed"])
            if await post.execute("SELECT 1 FROM endpoints GROUP BY hashtext(id) & 63") == 2:
                return made
            await post.execute("DELETE FROM endpoint_secrets WHERE endpoint_id = :id", id=made)
            await post.execute("DELETE FROM endpoints WHERE id = :id", id=made)


async def test_many_workers_never_have_two_of_one_lane_under_way(post: Post, told: EventId) -> None:
    """Four claim, fail or deliver and redeliver by hand as they please, on two lanes, and each looks after every claim."""
    chance = random.Random(6)
    twice: list[str] = []

    async def work(number: int) -> None:
        token = f"worker {number}"
        for _ in range(30):
            async with transaction(post.engine) as connection:
                claimed = await claim_in(connection, token)
            async with transaction(post.engine) as connection:
                rows = await connection.execute(
                    text(
                        "SELECT subject FROM deliveries WHERE leased_until > now() GROUP BY subject HAVING count(*) > 1"
                    )
                )
                twice.extend(rows.scalars())
            await settle(post, claimed, DeliveryState.DELIVERED, token)
            if chance.random() < 0.5:
                await post.record(f"dep_{chance.randint(1, 2)}", 2)
            else:
                await by_hand(post, told)

    await asyncio.gather(*(work(number) for number in range(4)))
    assert twice == []


async def test_a_dispatcher_sends_news_past_a_redelivery_that_fails(post: Post) -> None:
    async with running_receiver() as receiver:
        await post.add_endpoint(receiver)
        async with post.dispatching():
            first = await post.record("dep_1", 1)
            await post.wait_for_states(delivered=1)
            receiver.script_event(first, answer(500))
            await by_hand(post, first)
            await receiver.wait_until("it was sent again", lambda: len(receiver.of_event(first)) == 2)
            await post.record("dep_1", 2)
            await post.wait_for_states(delivered=2, pending=1)


async def test_at_an_endpoint_that_rests_a_dispatcher_tries_what_was_asked_for(post: Post) -> None:
    """Another has been due for an hour."""
    async with running_receiver(behaviour=answer(500)) as receiver:
        endpoint_id = await post.add_endpoint(receiver)
        first = await post.record("dep_1", 1)
        await post.execute("UPDATE deliveries SET state = 'exhausted', settled_at = now()")
        await post.record("dep_2", 1)
        await post.execute("UPDATE deliveries SET due_at = now() - interval '1 hour' WHERE state = 'pending'")
        await post.execute("UPDATE endpoints SET rests_until = now() + interval '1 hour', rests = 4")
        async with post.dispatching():
            await by_hand(post, first)
            await receiver.wait_until("it was tried", lambda: len(receiver.requests) == 1)
            await post.wait_for_attempts(first, 1)
    assert [request.event_id for request in receiver.requests] == [first]
    assert (await post.rest_of(endpoint_id)).rests == 5
