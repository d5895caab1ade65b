"""Endpoints that hang, fail and are owed much: the others are told as if they were not there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from ledger.breaker import OPENS_AFTER_FAILURES
from ledger.claims import Claimed, DueFrom, EndpointRoom, claim_due_deliveries, claim_to_send
from ledger.database import Connection, transaction
from ledger.deliveries import AttemptRow, Settled, Settlement, count_deliveries, settle_deliveries
from ledger.direct import direct_transaction
from ledger.ids import EndpointId
from ledger.owed import START, Owed, Place, find_fresh, find_owed
from ledger.states import DeliveryState, EndpointHealth, Outcome
from notifier.claiming import Claiming
from notifier.isolation import SLOTS
from notifier.metrics import LEASES_LOST
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
            await asyncio.gather(*(receiver.wait_until("all came", _has_all(receiver, told)) for receiver in good))
        hanging = [row for row in await post.deliveries() if row.event_type == "deposit.failed"]
        assert len(hanging) == 12 * 40 > SLOTS
        assert {row.state for row in hanging} == {"pending"}
        assert sum(len(receiver.requests) for receiver in bad) >= 12
        assert await post.execute("SELECT 1 FROM attempts WHERE outcome <> 'accepted'") == 0
        release.set()


def _has_so_many(receiver: Receiver, number: int) -> bool:
    return len(receiver.requests) == number


def _has_all(receiver: Receiver, told: Sequence[str]) -> Callable[[], bool]:
    return lambda: set(told) <= {request.event_id for request in receiver.requests}


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
    rooms = [EndpointRoom(TENANT, first, 7), EndpointRoom(TENANT, second, 0), EndpointRoom(TENANT, third, 4)]
    async with transaction(post.engine) as connection:
        claimed = await claim_due_deliveries(connection, rooms, lease_s=60.0, token="t")
    taken = [one.endpoint_id for one in claimed]
    assert {one: taken.count(one) for one in endpoints} == {first: 7, second: 0, third: 4}
    assert [one.feed_position for one in claimed] == sorted(one.feed_position for one in claimed)


async def test_a_sweep_goes_over_all_that_are_owed_anything_a_few_at_a_time(
    post: Post, endpoints: list[EndpointId]
) -> None:
    first, second, third = endpoints
    await post.execute("UPDATE endpoints SET rests_until = now() + interval '1 hour' WHERE id = :id", id=second)
    found, place, steps = list[str](), START, 0
    while steps == 0 or place != START:
        async with transaction(post.engine) as connection:
            owed, place = await find_owed(connection, place, 1)
        found += [one.endpoint_id for one in owed]
        steps += 1
    assert (found, steps) == ([first, third], 4)


async def test_what_became_due_lately_is_found_by_its_time(post: Post, endpoints: list[EndpointId]) -> None:
    first, second, third = endpoints
    await post.execute("UPDATE deliveries SET due_at = now() - interval '1 hour' WHERE endpoint_id = :id", id=first)
    await post.execute("UPDATE deliveries SET due_at = now() + interval '1 hour' WHERE endpoint_id = :id", id=second)
    async with transaction(post.engine) as connection:
        assert [one.endpoint_id for one in await find_fresh(connection, 600.0)] == [third]


async def test_a_claim_tells_since_when_something_is_pending_and_reads_from_there(
    post: Post, endpoints: list[EndpointId]
) -> None:
    room = EndpointRoom(TENANT, endpoints[0], 20)
    older = "UPDATE deliveries SET due_at = now() - interval '1 minute' WHERE endpoint_id = :id"
    assert await post.execute(older, id=room.endpoint_id) == 20
    made = min(row.id for row in await post.deliveries() if row.endpoint_id == room.endpoint_id)
    assert await post.execute("UPDATE deliveries SET due_at = due_at - interval '1 hour' WHERE id = :id", id=made) == 1
    due = sorted(row.due_at for row in await post.deliveries() if row.endpoint_id == room.endpoint_id)

    async with direct_transaction(post.engine) as connection:
        told = await claim_to_send(connection, post.secret_box, [room], lease_s=60.0, token="a", unsure=[room])
    assert len(told.claimed) == 20
    due_from = told.due_from[room.tenant_id, room.endpoint_id]
    assert due_from.live == due[0]
    assert due[-1] < due_from.late < datetime.now(UTC)

    assert await post.execute("UPDATE deliveries SET lease_token = NULL, leased_until = NULL WHERE attempts = 1") == 20
    later = replace(room, due_from=DueFrom(due[1], due_from.late))
    async with direct_transaction(post.engine) as connection:
        told = await claim_to_send(connection, post.secret_box, [later], lease_s=60.0, token="b")
    assert {one.id for one in told.claimed} == {row.id for row in await post.deliveries() if row.lease_token == "b"}
    assert len(told.claimed) == 19
    assert made not in {one.id for one in told.claimed}


async def test_a_beginning_is_moved_back_for_what_was_committed_a_while_after_it_was_due(
    post: Post, endpoints: list[EndpointId]
) -> None:
    room = EndpointRoom(TENANT, endpoints[0], 20)
    assert await post.execute("UPDATE deliveries SET due_at = now() - interval '3 seconds'") > 0
    due = next(row.due_at for row in await post.deliveries())
    later = replace(room, due_from=DueFrom(due + timedelta(seconds=2), due))
    async with direct_transaction(post.engine) as connection:
        told = await claim_to_send(connection, post.secret_box, [later], lease_s=60.0, token="a", unsure=[later])
    assert (told.claimed, told.due_from[room.tenant_id, room.endpoint_id].live) == ([], due)


async def test_the_probe_of_an_open_breaker_is_the_longest_due_whatever_is_known_of_the_beginning(
    post: Post, endpoints: list[EndpointId]
) -> None:
    await post.execute(
        "UPDATE endpoints SET rests = 1, rests_until = now(), failures_consecutive = 10 WHERE id = :id", id=endpoints[0]
    )
    [first, *_] = sorted(row.id for row in await post.deliveries() if row.endpoint_id == endpoints[0])
    assert await post.execute("UPDATE deliveries SET due_at = due_at - interval '1 hour' WHERE id = :id", id=first) == 1
    now = datetime.now(UTC)
    room = EndpointRoom(TENANT, endpoints[0], 20, DueFrom(now - timedelta(minutes=1), now))
    async with direct_transaction(post.engine) as connection:
        told = await claim_to_send(connection, post.secret_box, [room], lease_s=60.0, token="a")
    assert [one.id for one in told.claimed] == [first]


async def test_what_was_committed_long_after_it_was_due_is_found_all_the_same(post: Post) -> None:
    async with post.dispatching(), running_receiver() as receiver:
        await post.add_endpoint(receiver)
        await post.record("dep_1")
        await post.wait_for_states(delivered=1)
        again = "UPDATE deliveries SET state = 'pending', settled_at = NULL, due_at = now() - interval '1 hour'"
        assert await post.execute(again) == 1
        await receiver.wait_until("it came again", lambda: len(receiver.requests) == 2)
        await post.wait_for_states(delivered=1)


async def test_a_claim_given_back_twice_takes_nothing_from_who_has_it_now(
    post: Post, endpoints: list[EndpointId]
) -> None:
    """The answer to a COMMIT was lost, and the same worker claimed the same delivery again before it settled once more."""
    rooms = [EndpointRoom(TENANT, endpoints[0], 1)]
    async with transaction(post.engine) as connection:
        [earlier] = await claim_due_deliveries(connection, rooms, lease_s=60.0, token="worker-1")
    back = Settlement(earlier, DeliveryState.PENDING, is_given_back=True)
    async with transaction(post.engine) as connection:
        assert (await settle_deliveries(connection, [back])).ids == {earlier.id}
    async with transaction(post.engine) as connection:
        [later] = await claim_due_deliveries(connection, rooms, lease_s=60.0, token="worker-2")
    assert (later.id, later.attempts) == (earlier.id, earlier.attempts)
    async with transaction(post.engine) as connection:
        assert (await settle_deliveries(connection, [back])).ids == set()


async def test_a_burst_of_failures_is_one_rest_and_what_fails_meanwhile_lengthens_none(post: Post) -> None:
    async with running_receiver() as receiver:
        endpoint_id = await post.add_endpoint(receiver)
    await post.record_all([(f"dep_{number}", 1) for number in range(30)])
    async with transaction(post.engine) as connection:
        rooms = [EndpointRoom(TENANT, endpoint_id, 30)]
        claimed = await claim_due_deliveries(connection, rooms, lease_s=60.0, token="t")
    rests = []
    for batch in (claimed[:24], claimed[24:]):
        async with transaction(post.engine) as connection:
            await settle_deliveries(connection, [failed(one) for one in batch])
        rests.append(await post.rest_of(endpoint_id))
    assert rests[0] == rests[1]
    assert rests[0] is not None
    assert rests[0].rests == 1
    assert await post.end_rests() == 1
    async with transaction(post.engine) as connection:
        await connection.execute(text("UPDATE deliveries SET due_at = now()"))
    async with transaction(post.engine) as connection:
        [probe] = await claim_due_deliveries(connection, rooms, lease_s=60.0, token="t2")
    async with transaction(post.engine) as connection:
        await settle_deliveries(connection, [failed(probe)])
    assert (await post.rest_of(endpoint_id)).rests == 2


def failed(claimed: Claimed) -> Settlement:
    """A settlement after a reset."""
    attempt = AttemptRow(datetime.now(UTC), 3, Outcome.RETRYABLE, None, "reset", None)
    return Settlement(claimed, DeliveryState.PENDING, timedelta(seconds=5), attempt)


async def test_an_endpoint_that_somebody_has_locked_keeps_no_other_from_being_settled(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An owner who deletes it while it is owed much, or a process that stands still in the middle of a settling."""
    monkeypatch.setattr("notifier.dispatcher.UNSETTLED_MAX", 40)
    async with (
        post.dispatching(),
        receivers(post, 1, ["deposit.failed"]) as [locked],
        receivers(post, 1, ["deposit.detected"]) as [other],
    ):
        async with transaction(post.engine) as connection:
            is_locked = text("SELECT 1 FROM endpoints WHERE event_types = '{deposit.failed}' FOR NO KEY UPDATE")
            assert len((await connection.execute(is_locked)).all()) == 1
            stuck = await post.record_all([(f"dep_locked_{number}", 1) for number in range(100)], "deposit.failed")
            await locked.wait_until("some came", lambda: len(locked.requests) > 0)
            told = await post.record_all([(f"dep_{number}", 1) for number in range(50)])
            await other.wait_until("all came", _has_all(other, told))
            await post.wait_until(
                "what others accepted is settled",
                lambda rows: all(row.state == "delivered" for row in rows if row.event_id in told),
            )
            assert {row.state for row in await post.deliveries() if row.event_id in stuck} == {"pending"}
        await post.wait_for_states(delivered=150)
    assert len(locked.requests) == 100


async def test_no_claim_waits_for_a_sweep(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    """Among many that are owed something, and under a snapshot that somebody holds, it may take long."""
    is_sweeping, end = asyncio.Event(), asyncio.Event()

    async def sweep_for_long(connection: Connection, after: Place, limit: int) -> tuple[list[Owed], Place]:
        is_sweeping.set()
        await end.wait()
        return await find_owed(connection, after, limit)

    monkeypatch.setattr("notifier.claiming.find_owed", sweep_for_long)
    async with post.dispatching(), receivers(post, 1, ["deposit.detected"]) as [receiver]:
        await is_sweeping.wait()
        for number in range(1, 4):
            await post.record(f"dep_{number}")
            await receiver.wait_until("it came", partial(_has_so_many, receiver, number))
        end.set()


async def test_no_claim_waits_for_one_for_failing_endpoints(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is what failing ones are owed looked at by the claim that a hint calls for."""
    is_claiming, end, claim = asyncio.Event(), asyncio.Event(), Claiming.claim_for_failing

    async def claim_for_long(claiming: Claiming) -> int:
        if any(claiming.isolation.lines[EndpointHealth.FAILING]):
            is_claiming.set()
            await end.wait()
        return await claim(claiming)

    monkeypatch.setattr(Claiming, "claim_for_failing", claim_for_long)
    async with (
        receivers(post, 1, ["deposit.failed"]) as [bad],
        receivers(post, 1, ["deposit.detected"]) as [well],
    ):
        await post.execute("UPDATE endpoints SET failures_consecutive = 5 WHERE event_types = '{deposit.failed}'")
        await post.record_all([(f"dep_bad_{number}", 1) for number in range(5)], "deposit.failed")
        async with post.dispatching():
            await is_claiming.wait()
            told = await post.record_all([(f"dep_{number}", 1) for number in range(5)])
            await well.wait_until("all came", _has_all(well, told))
            assert bad.requests == []
            end.set()
            await bad.wait_until("all came", lambda: len(bad.requests) == 5)


async def test_who_cannot_settle_keeps_its_leases_and_claims_no_more(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was accepted would be sent again, by this process or another."""
    monkeypatch.setattr("notifier.dispatcher.HEARTBEAT_S", 0.05)
    monkeypatch.setattr("notifier.claiming.DATABASE_RETRY_S", 0.05)
    is_broken = asyncio.Event()
    is_broken.set()
    settle = settle_deliveries

    async def settle_unless_broken(
        connection: Connection, settlements: Sequence[Settlement], *, commits: bool = False, is_repeated: bool = False
    ) -> Settled:
        if is_broken.is_set():
            raise OperationalError("UPDATE", None, OSError("away"))
        return await settle(connection, settlements, commits=commits, is_repeated=is_repeated)

    monkeypatch.setattr("notifier.dispatcher.settle_deliveries", settle_unless_broken)
    async with post.dispatching() as [dispatcher], running_receiver() as receiver:
        await post.add_endpoint(receiver)
        first = await post.record("dep_1")
        await receiver.wait_until("it came", lambda: len(receiver.requests) == 1)
        await post.wait_until("settling fails", lambda _: dispatcher.is_settling_late)
        await post.record("dep_2")
        lease = (await post.delivery(first)).leased_until
        await post.wait_until("the lease is extended", lambda rows: rows[0].leased_until > lease)
        assert len(receiver.requests) == 1
        is_broken.clear()
        await post.wait_for_states(delivered=2)
    assert len(receiver.requests) == 2


async def test_a_settling_that_takes_long_keeps_its_leases_and_holds_no_other_up(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("notifier.dispatcher.HEARTBEAT_S", 0.05)
    monkeypatch.setattr("notifier.dispatcher.SETTLE_BESIDE", 1)
    end, settle, slow = asyncio.Event(), settle_deliveries, list[Settlement]()

    async def settle_slowly_at_first(
        connection: Connection, settlements: Sequence[Settlement], *, commits: bool = False, is_repeated: bool = False
    ) -> Settled:
        if not slow:
            slow.extend(settlements)
            await end.wait()
        return await settle(connection, settlements, commits=commits, is_repeated=is_repeated)

    monkeypatch.setattr("notifier.dispatcher.settle_deliveries", settle_slowly_at_first)
    async with post.dispatching() as [dispatcher], running_receiver() as receiver:
        await post.add_endpoint(receiver)
        first = await post.record("dep_1")
        await post.wait_until("it is being settled", lambda _: len(dispatcher.settling) == 1)
        second = await post.record("dep_2")
        await post.wait_until("the next is settled", lambda rows: [row.state for row in rows].count("delivered") == 1)
        assert (await post.delivery(second)).state == "delivered"
        lease = (await post.delivery(first)).leased_until
        await post.wait_until("the lease is extended", lambda rows: rows[0].leased_until > lease)
        end.set()
        await post.wait_for_states(delivered=2)
    assert len(receiver.requests) == 2


async def test_ten_failures_open_the_breaker_and_what_is_owed_is_held_without_burning_attempts(post: Post) -> None:
    async with running_receiver() as receiver, post.dispatching():
        await post.add_endpoint(receiver)
        receiver.behaviour = answer(500)
        await post.record_all([(f"dep_{number}", 1) for number in range(30)])
        await receiver.wait_until("ten came", lambda: len(receiver.requests) >= OPENS_AFTER_FAILURES)
        await post.rest_for_long()
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
        await post.rest_for_long()
        untold = [row.event_id for row in await post.deliveries() if row.attempts == 0]
        probed = receiver.requests[-1].event_id
        await post.wait_for_attempts(probed, 1)  # type: ignore[arg-type]
        await post.wait_until("nothing is under way", lambda rows: all(row.lease_token is None for row in rows))
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
        await post.wait_until("it is counted", lambda _: LEASES_LOST._value.get() == before + 1)
        assert (await post.delivery(event_id)).lease_token == "another"
        assert await post.execute("SELECT 1 FROM attempts WHERE number = 1 AND error = 'abandoned'") == 1
        assert await post.execute("SELECT 1 FROM endpoints WHERE failures_consecutive = 0") == 1
