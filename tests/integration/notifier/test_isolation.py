"""Endpoints that hang, fail and are owed much: the others are told as if they were not there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from ledger.breaker import OPENS_AFTER_FAILURES
from ledger.claims import Claims, EndpointRoom, Wanted, claim_due_deliveries
from ledger.database import transaction
from ledger.deliveries import count_deliveries
from ledger.ids import EndpointId
from ledger.states import EndpointHealth
from notifier.isolation import SLOTS
from notifier.metrics import LEASES_LOST
from tests.fakes.claiming import wanting
from tests.fakes.receiver import Receiver, answer, running_receiver, wait_for
from tests.integration.notifier.conftest import TENANT, Post

LONG_S = 120.0
"""An exchange that a test does not live to see the end of."""


@asynccontextmanager
async def receivers(post: Post, number: int, types: Sequence[str]) -> AsyncIterator[list[Receiver]]:
    """So many endpoints, each told of events of these types only."""
    async with AsyncExitStack() as stack:
        found = [await stack.enter_async_context(running_receiver()) for _ in range(number)]
        for receiver in found:
            await post.add_endpoint(receiver, types)
        yield found


async def test_endpoints_that_hang_keep_no_other_waiting(post: Post) -> None:
    """Many more deliveries hang than a process has slots, and none of them has ended when all others are delivered."""
    release = asyncio.Event()
    async with (
        post.dispatching(exchange_s=LONG_S),
        receivers(post, 12, ["deposit.failed"]) as bad,
        receivers(post, 3, ["deposit.detected"]) as good,
    ):
        for receiver in bad:
            receiver.behaviour = wait_for(release)
        await post.record_all([(f"dep_bad_{number}", 1) for number in range(40)], "deposit.failed")
        for round_ in range(5):
            told = await post.record_all([(f"dep_{round_}_{number}", 1) for number in range(20)])
            await asyncio.gather(
                *(receiver.wait_until("all came", _has_all(receiver, told), deadline_s=60.0) for receiver in good)
            )
        hanging = [row for row in await post.deliveries() if row.event_type == "deposit.failed"]
        assert len(hanging) == 12 * 40 > SLOTS
        assert {row.state for row in hanging} == {"pending"}
        assert sum(len(receiver.requests) for receiver in bad) >= 12
        assert await post.execute("SELECT 1 FROM attempts WHERE outcome <> 'accepted'") == 0
        release.set()


def _has_all(receiver: Receiver, told: Sequence[str]) -> Callable[[], bool]:
    return lambda: set(told) <= {request.event_id for request in receiver.requests}


async def claim(post: Post, wanted: Wanted, claims: Claims | None = None) -> Claims:
    """Claim as a worker does, from where the last claim ended."""
    async with transaction(post.engine) as connection:
        if claims is None:
            return await claim_due_deliveries(connection, wanted, lease_s=60.0, token="t")
        return await claim_due_deliveries(connection, wanted, after=claims.place, lease_s=60.0, token="t")


@pytest.fixture
async def endpoints(post: Post) -> list[EndpointId]:
    """Three endpoints that are owed twenty deliveries each, the first some long before the others."""
    made: list[EndpointId] = []
    for name in ("detected", "confirmed", "reorged"):
        async with running_receiver() as receiver:
            made.append(await post.add_endpoint(receiver, [f"deposit.{name}"]))
        await post.record_all([(f"dep_{number}", 1) for number in range(20)], f"deposit.{name}")
    return sorted(made)


async def test_a_claim_takes_of_each_endpoint_what_there_is_room_for(post: Post, endpoints: list[EndpointId]) -> None:
    first, second, third = endpoints
    room = dict.fromkeys(EndpointHealth, 4)
    known = [
        EndpointRoom(TENANT, first, EndpointHealth.ACCEPTING, 7),
        EndpointRoom(TENANT, second, EndpointHealth.FAILING, 0),
    ]
    claims = await claim(post, Wanted(dict.fromkeys(EndpointHealth, 100), room, known))
    taken = [one.endpoint_id for one in claims.deliveries]
    assert {one: taken.count(one) for one in endpoints} == {first: 7, second: 0, third: 4}
    assert {one.health for one in claims.deliveries} == {EndpointHealth.ACCEPTING, EndpointHealth.UNPROVEN}


async def test_claims_go_on_after_the_endpoint_where_the_last_ended(post: Post, endpoints: list[EndpointId]) -> None:
    wanted, claims = Wanted(wanting(5).limits, dict.fromkeys(EndpointHealth, 5)), None
    turns = []
    for _ in range(6):
        claims = await claim(post, wanted, claims)
        turns.append({one.endpoint_id for one in claims.deliveries})
    assert turns == [{one} for one in (*endpoints, *endpoints)]


async def test_ten_failures_open_the_breaker_and_what_is_owed_is_held_without_burning_attempts(post: Post) -> None:
    async with running_receiver() as receiver, post.dispatching():
        await post.add_endpoint(receiver)
        receiver.behaviour = answer(500)
        await post.record_all([(f"dep_{number}", 1) for number in range(30)])
        await receiver.wait_until("ten came", lambda: len(receiver.requests) >= OPENS_AFTER_FAILURES)
        await post.wait_until("nothing is under way", lambda rows: all(row.lease_token is None for row in rows))
        asked = len(receiver.requests)
        assert asked < 30
        async with transaction(post.engine) as connection:
            assert await count_deliveries(connection) == {
                "due": 0,
                "held": 30,
                "exhausted": 0,
                "refused": 0,
                "faulted": 0,
            }
        assert sum(row.attempts for row in await post.deliveries()) == asked

        assert await post.end_rests() == 1
        await receiver.wait_until("the oldest is the probe", lambda: len(receiver.requests) == asked + 1)
        untold = [row.event_id for row in await post.deliveries() if row.attempts == 0]
        probed = receiver.requests[-1].event_id
        await post.wait_for_attempts(probed, 1)  # type: ignore[arg-type]
        assert probed not in untold
        receiver.behaviour = answer(204)
        await post.end_rests()
        await post.wait_until(
            "all that no attempt was burned for is delivered, the rest waits for its own next attempt",
            lambda rows: all(row.state == "delivered" for row in rows if row.event_id in untold),
        )
        async with transaction(post.engine) as connection:
            assert (await count_deliveries(connection))["held"] == 0


async def test_a_longer_exchange_keeps_its_lease(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    release = asyncio.Event()
    monkeypatch.setattr("notifier.dispatcher.HEARTBEAT_S", 0.05)
    async with post.dispatching(exchange_s=LONG_S), running_receiver() as receiver:
        await post.add_endpoint(receiver)
        receiver.behaviour = wait_for(release)
        event_id = await post.record("dep_1")
        await receiver.wait_until("it came", lambda: len(receiver.requests) == 1)
        begun = (await post.delivery(event_id)).leased_until
        await post.wait_until("the lease is extended", lambda rows: rows[0].leased_until > begun)
        release.set()


async def test_who_lost_its_lease_stops_sending_and_says_so(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    release = asyncio.Event()
    monkeypatch.setattr("notifier.dispatcher.HEARTBEAT_S", 0.05)
    before = LEASES_LOST._value.get()
    async with post.dispatching(exchange_s=LONG_S) as [dispatcher], running_receiver() as receiver:
        await post.add_endpoint(receiver)
        receiver.behaviour = wait_for(release)
        event_id = await post.record("dep_1")
        await receiver.wait_until("it came", lambda: len(receiver.requests) == 1)
        await post.execute("UPDATE deliveries SET lease_token = 'another', attempts = attempts + 1")
        await post.wait_until("it stopped", lambda _: not dispatcher.exchanges)
        assert LEASES_LOST._value.get() == before + 1
        assert (await post.delivery(event_id)).lease_token == "another"
