"""What its workers died with, again and again, is found out, and takes nothing with it that was only claimed beside it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from aiohttp import web

from ledger.claims import Claimed, EndpointRoom, claim_due_deliveries
from ledger.database import transaction
from ledger.deliveries import Settlement, settle_deliveries
from ledger.ids import EndpointId
from ledger.states import DeliveryState
from ledger.suspects import Suspect, find_suspects
from notifier.backoff import ATTEMPTS_MAX
from notifier.suspects import room_for
from notifier.upkeep import free_leases
from tests.fakes.claiming import claim_any
from tests.fakes.receiver import Behaviour, Receiver, running_receiver
from tests.integration.notifier.conftest import LEASE_S, TENANT, Post
from tests.integration.notifier.test_leases import dispatcher_process

INNOCENT = 6
LIVES = 4
"""Attempts that are left to the one that kills."""
SHARED_LIVES = 2
"""Lives in which the others are all under way when the worker dies."""


def kill_by(process: asyncio.subprocess.Process, receiver: Receiver, under_way: int) -> Behaviour:
    """Whoever is answered so does not live to see the answer. It dies when so many others are under way."""
    before = len(receiver.requests)

    async def kill(_: web.BaseRequest) -> web.StreamResponse:
        await receiver.wait_until("others are under way", lambda: len(receiver.requests) - before > under_way)
        process.kill()
        await process.wait()
        return web.Response(status=204)

    return kill


def accept_after(event: asyncio.Event) -> Behaviour:
    """Accept what comes, not before that."""

    async def accept(_: web.BaseRequest) -> web.StreamResponse:
        await event.wait()
        await asyncio.sleep(0.1)
        return web.Response(status=204)

    return accept


async def test_what_kills_its_workers_takes_nothing_with_it_that_was_claimed_beside_it(post: Post) -> None:
    """Real processes, and `kill -9` at each request for one event."""
    may_answer = asyncio.Event()
    async with running_receiver(behaviour=accept_after(may_answer)) as receiver:
        killing = await post.add_endpoint(receiver, ["deposit.confirmed"])
        for _ in range(INNOCENT // 2):
            await post.add_endpoint(receiver, ["deposit.detected"])
        await post.record_all([("dep_1", 1), ("dep_2", 1)])
        poison = await post.record("dep_3", 1, "deposit.confirmed")
        made = ATTEMPTS_MAX - LIVES
        await post.execute("UPDATE deliveries SET attempts = :made WHERE endpoint_id = :id", made=made, id=killing)
        for life in range(LIVES):
            async with dispatcher_process(post.url) as process:
                receiver.script_event(poison, kill_by(process, receiver, INNOCENT if life < SHARED_LIVES else 0))
                await asyncio.wait_for(process.wait(), 300)
            assert await post.expire_leases() > 0
            if life == SHARED_LIVES - 1:
                may_answer.set()
        async with post.dispatching():
            await post.wait_for_states(delivered=INNOCENT, faulted=1)
    assert (await post.delivery(poison)).fault == "workers_died"
    assert len(receiver.of_event(poison)) == LIVES
    attempts = [row.attempts for row in await post.deliveries() if row.endpoint_id != killing]
    assert max(attempts) <= SHARED_LIVES + 2, attempts


async def take_over(post: Post, token: str) -> list[str]:
    """Claim as a worker of that name, whose lease then ends; the subjects of what it had."""
    claimed = await claim(post, token)
    await post.expire_leases()
    return [one.subject for one in claimed]


async def claim(post: Post, token: str, *rooms: EndpointRoom) -> list[Claimed]:
    """Claim what is wanted, or anything."""
    async with transaction(post.engine) as connection:
        if rooms:
            return await claim_due_deliveries(connection, rooms, lease_s=LEASE_S, token=token)
        return await claim_any(connection, 10, lease_s=LEASE_S, token=token)


async def find(post: Post, own: str = "me") -> list[Suspect]:
    """What a process of that name may claim alone."""
    async with transaction(post.engine) as connection:
        return await find_suspects(connection, own)


@pytest.fixture
async def endpoint_id(post: Post) -> AsyncIterator[EndpointId]:
    """An endpoint that is owed two deliveries."""
    async with running_receiver() as receiver:
        endpoint_id = await post.add_endpoint(receiver)
        await post.record_all([("dep_1", 1), ("dep_2", 1)])
        yield endpoint_id


async def test_what_two_workers_in_a_row_fell_silent_with_is_claimed_alone(post: Post, endpoint_id: EndpointId) -> None:
    assert await take_over(post, "a") == ["dep_1", "dep_2"]
    assert await find(post) == []
    assert await take_over(post, "b") == ["dep_1", "dep_2"]
    assert await claim(post, "c") == []
    assert await claim(post, "c", EndpointRoom(TENANT, endpoint_id, 10)) == []
    await post.record("dep_3")
    assert [one.subject for one in await claim(post, "c")] == ["dep_3"]

    [suspect] = await find(post)
    [claimed] = await claim(post, "me-1", room_for(suspect))
    assert (claimed.id, claimed.attempts, claimed.is_taken_over) == (suspect.id, 3, True)
    assert (await post.deliveries())[0].takeovers == 2
    assert await find(post, own="other") == []  # whoever has it may be about to die of it
    [other] = await find(post, own="me")
    assert other.id != suspect.id

    await post.expire_leases()
    assert [one.takeovers for one in await find(post, own="other")] == [1]  # the other one is tried before it


async def test_one_sweep_finds_all_that_an_endpoint_is_owed(post: Post) -> None:
    """Whom one machine that died twice had owed hundreds is not told for minutes."""
    async with running_receiver() as receiver:
        await post.add_endpoint(receiver)
        await post.record_all([(f"dep_{number}", 1) for number in range(20)])
        await post.execute("UPDATE deliveries SET takeovers = 2")
        async with post.dispatching(idle_interval_s=300.0):
            await post.wait_for_states(delivered=20)


async def test_an_outcome_ends_the_row_and_what_is_given_back_is_no_outcome(
    post: Post, endpoint_id: EndpointId
) -> None:
    for worker in "ab":
        await take_over(post, worker)
    [suspect] = await find(post)
    for number, (delay, takeovers) in enumerate(((None, 2), (timedelta(0), 0))):
        [claimed] = await claim(post, f"me-{number}", room_for(suspect))
        settlement = Settlement(claimed, DeliveryState.PENDING, delay, is_given_back=delay is None)
        async with transaction(post.engine) as connection:
            assert (await settle_deliveries(connection, [settlement])).ids == {suspect.id}
        assert (await post.delivery(claimed.event_id)).takeovers == takeovers
    assert [one.id for one in await claim(post, "c")] == [suspect.id]


async def test_leases_that_are_freed_count_as_taken_over(post: Post, endpoint_id: EndpointId) -> None:
    for worker in "ab":
        await claim(post, worker)
        await post.execute(
            "UPDATE deliveries SET leased_until = now() - interval '1 hour' WHERE lease_token IS NOT NULL"
        )
        await free_leases(post.engine)
    assert [row.takeovers for row in await post.deliveries()] == [2, 2]
    assert await claim(post, "c") == []
    assert len(await find(post)) == 1


async def test_suspects_of_an_endpoint_that_rests_or_behind_another_of_their_lane_are_left(
    post: Post, endpoint_id: EndpointId
) -> None:
    await post.execute("UPDATE deliveries SET takeovers = 2, subject = 'dep_1'")
    first, second = await post.deliveries()
    assert [one.id for one in await find(post)] == [first.id]
    await post.execute("UPDATE deliveries SET takeovers = 0 WHERE id = :id", id=first.id)
    assert await find(post) == []
    await post.execute("UPDATE deliveries SET takeovers = 2 WHERE id = :id", id=first.id)
    await post.execute("UPDATE endpoints SET rests_until = now() + interval '1 hour'")
    assert await find(post) == []
    await post.end_rests()
    assert [one.id for one in await find(post)] == [first.id]
    assert second.id != first.id
