"""Workers that die, freeze, come back late or lose their database: nothing is lost, and what comes twice is the same."""

from __future__ import annotations

import asyncio
import sys
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
from msgspec.structs import replace
from sqlalchemy import text

from ledger.claims import Claimed
from ledger.database import transaction
from ledger.deleting import delete_endpoint
from ledger.deliveries import AttemptRow, Settlement, extend_leases, settle_deliveries
from ledger.ids import DeliveryId, EndpointId, TenantId
from ledger.states import DeliveryState, Outcome
from notifier.dispatcher import Dispatcher
from notifier.errors import LeaseTooShort
from notifier.sender import Sender, TimeLimits
from tests.fakes.claiming import claim_any
from tests.fakes.receiver import Receiver, answer, running_receiver
from tests.integration.notifier.conftest import EXCHANGE_S, LEASE_S, LOOPBACK, TENANT, Post


async def claim(post: Post, token: str, limit: int = 10) -> list[Claimed]:
    """Claim as a worker of that name."""
    async with transaction(post.engine) as connection:
        return await claim_any(connection, limit, lease_s=LEASE_S, token=token)


async def settle(post: Post, token: str, *settlements: Settlement) -> set[DeliveryId]:
    """Settle as a worker of that name."""
    async with transaction(post.engine) as connection:
        return (await settle_deliveries(connection, settlements)).ids


def settled(claimed: Claimed, state: DeliveryState, delay: timedelta | None = None) -> Settlement:
    """A settlement after one request."""
    outcome = Outcome.ACCEPTED if state is DeliveryState.DELIVERED else Outcome.RETRYABLE
    return Settlement(claimed, state, delay, AttemptRow(datetime.now(UTC), 3, outcome, 200, None, "ok"))


@pytest.fixture
async def receiver(post: Post) -> AsyncIterator[Receiver]:
    """A receiver that is one endpoint of the tenant."""
    async with running_receiver() as receiver:
        await post.add_endpoint(receiver)
        yield receiver


async def test_a_claim_counts_the_attempt_and_hides_the_lane(post: Post, receiver: Receiver) -> None:
    await post.record_all([("dep_1", 1), ("dep_1", 2), ("dep_2", 1)])
    claimed = await claim(post, "a")
    assert [(delivery.subject, delivery.attempts) for delivery in claimed] == [("dep_1", 1), ("dep_2", 1)]
    assert await claim(post, "b") == []
    assert [row.attempts for row in await post.deliveries()] == [1, 0, 1]


async def test_claims_at_one_moment_share_and_never_split_a_lane(post: Post, receiver: Receiver) -> None:
    await post.record_all([(f"dep_{number}", sequence) for sequence in (1, 2, 3) for number in range(40)])
    shares = await asyncio.gather(*(claim(post, f"worker_{number}", limit=12) for number in range(5)))
    claimed = [delivery for share in shares for delivery in share]
    assert len({delivery.subject for delivery in claimed}) == len(claimed) <= 40
    rest = await claim(post, "last", limit=100)
    assert len(claimed) + len(rest) == 40


async def test_who_lost_the_lease_cannot_settle_but_what_it_did_is_stored(post: Post, receiver: Receiver) -> None:
    event_id = await post.record("dep_1")
    [stale] = await claim(post, "a")
    assert await post.expire_leases() == 1
    [current] = await claim(post, "b")
    assert (current.id, current.attempts) == (stale.id, 2)
    assert await settle(post, "a", settled(stale, DeliveryState.DELIVERED)) == set()
    assert (await post.delivery(event_id)).state == "pending"
    assert await settle(post, "b", settled(current, DeliveryState.DELIVERED)) == {current.id}
    assert [row.number for row in await post.attempts(event_id)] == [1, 2]


async def test_a_worker_cannot_settle_its_own_later_claim(post: Post, receiver: Receiver) -> None:
    event_id = await post.record("dep_1")
    [earlier] = await claim(post, "a")
    await post.expire_leases()
    [later] = await claim(post, "a")
    assert await settle(post, "a", settled(earlier, DeliveryState.PENDING, timedelta(seconds=5))) == set()
    assert (await post.delivery(event_id)).lease_token == "a"
    assert await settle(post, "a", settled(later, DeliveryState.DELIVERED)) == {later.id}


async def test_both_outcomes_of_a_delivery_claimed_twice_may_come_in_one_batch(post: Post, receiver: Receiver) -> None:
    event_id = await post.record("dep_1")
    [earlier] = await claim(post, "a")
    await post.expire_leases()
    [later] = await claim(post, "a")
    both = (settled(later, DeliveryState.DELIVERED), settled(earlier, DeliveryState.PENDING, timedelta(seconds=5)))
    assert await settle(post, "a", *both) == {later.id}
    assert (await post.delivery(event_id)).state == "delivered"


async def test_settling_again_after_a_lost_answer_to_the_commit_is_harmless(post: Post, receiver: Receiver) -> None:
    event_id = await post.record("dep_1")
    [claimed] = await claim(post, "a")
    settlement = settled(claimed, DeliveryState.DELIVERED)
    assert await settle(post, "a", settlement) == {claimed.id}
    assert await settle(post, "a", settlement) == set()
    assert len(await post.attempts(event_id)) == 1


async def test_what_is_settled_again_counts_once_in_the_endpoints_health(post: Post, receiver: Receiver) -> None:
    """Six failed, and the answer to the COMMIT was lost; five more settle with the same six."""
    await post.record_all([(f"dep_{number}", 1) for number in range(7)])
    failed = [settled(one, DeliveryState.PENDING, timedelta(minutes=1)) for one in await claim(post, "a")]
    for settlements in (failed[:6], failed):
        async with transaction(post.engine) as connection:
            assert await settle_deliveries(connection, settlements, is_repeated=settlements is failed)
    assert await post.execute("SELECT 1 FROM endpoints WHERE failures_consecutive = 7 AND rests_until IS NULL") == 1
    assert await post.execute("SELECT 1 FROM attempts") == 7


async def test_refusals_of_ours_open_no_breaker_and_are_no_failures(post: Post, receiver: Receiver) -> None:
    await post.record_all([(f"dep_{number}", 1) for number in range(12)])
    *refused, last = await claim(post, "a", limit=12)
    attempt = AttemptRow(datetime.now(UTC), 0, Outcome.REFUSED, None, "refused_address", None)
    await settle(post, "a", *(Settlement(one, DeliveryState.REFUSED, attempt=attempt) for one in refused))
    noted = "last_error = 'refused_address' AND last_failed_at IS NOT NULL AND failing_since IS NULL"
    assert await post.execute(f"SELECT 1 FROM endpoints WHERE failures_consecutive = 0 AND {noted}") == 1
    await settle(post, "a", settled(last, DeliveryState.PENDING, timedelta(minutes=1)))
    assert await post.execute("SELECT 1 FROM endpoints WHERE failures_consecutive = 1 AND rests_until IS NULL") == 1


async def test_a_delivery_given_back_counts_no_attempt_and_waits(post: Post, receiver: Receiver) -> None:
    event_id = await post.record("dep_1")
    [claimed] = await claim(post, "a")
    back = Settlement(claimed, DeliveryState.PENDING, timedelta(minutes=1), is_given_back=True)
    assert await settle(post, "a", back) == {claimed.id}
    row = await post.delivery(event_id)
    assert (row.attempts, row.state, row.lease_token) == (0, "pending", None)
    assert await claim(post, "a") == []


async def test_what_waits_behind_a_failed_one_waits_as_long_and_then_follows_at_once(
    post: Post, receiver: Receiver
) -> None:
    events = await post.record_all([("dep_1", 1), ("dep_1", 2), ("dep_1", 3), ("dep_2", 1)])
    claimed = {delivery.subject: delivery for delivery in await claim(post, "a")}
    failed = settled(claimed["dep_1"], DeliveryState.PENDING, timedelta(minutes=10))
    await settle(post, "a", failed, settled(claimed["dep_2"], DeliveryState.DELIVERED))
    first, *behind, _ = await post.deliveries()
    assert [row.due_at for row in behind] == [first.due_at, first.due_at]
    await post.make_due(events[0])
    [again] = await claim(post, "a")
    await settle(post, "a", settled(again, DeliveryState.DELIVERED))
    [next_one] = await claim(post, "a")
    assert next_one.event_id == events[1]


async def test_what_waits_behind_five_failures_may_go_at_once(post: Post, receiver: Receiver) -> None:
    first, second = await post.record_all([("dep_1", 1), ("dep_1", 2)])
    await post.execute("UPDATE deliveries SET attempts = 3 WHERE event_id = :id", id=first)
    for number in (4, 5):
        [claimed] = await claim(post, "a")
        assert (claimed.event_id, claimed.attempts) == (first, number)
        await settle(post, "a", settled(claimed, DeliveryState.PENDING, timedelta(minutes=10)))
        if number == 4:
            assert await claim(post, "a") == []
            await post.make_due(first)
    assert [claimed.event_id for claimed in await claim(post, "a")] == [second]


async def test_settling_and_deleting_an_endpoint_at_one_time_do_not_wait_for_each_other_in_a_ring(
    post: Post, receiver: Receiver
) -> None:
    endpoint_id = await post.add_endpoint(receiver)
    for round_ in range(10):
        await post.record_all([(f"dep_{round_}_{number}", sequence) for sequence in (1, 2) for number in range(20)])
        claimed = await claim(post, "a", limit=100)
        failures = [settled(delivery, DeliveryState.PENDING, timedelta(minutes=1)) for delivery in claimed]
        await asyncio.gather(settle(post, "a", *failures), give_up(post, endpoint_id))
    assert await post.execute("SELECT 1 FROM deliveries WHERE state = 'discarded'") > 0


async def give_up(post: Post, endpoint_id: EndpointId) -> None:
    """Delete an endpoint and bring it back, so that it can be deleted again."""
    async with transaction(post.engine) as connection:
        assert await delete_endpoint(connection, TENANT, endpoint_id, datetime.now(UTC)) is not None
    await post.execute("UPDATE endpoints SET deleted_at = NULL WHERE id = :id", id=endpoint_id)


async def test_a_settlement_of_another_tenant_changes_nothing(post: Post, receiver: Receiver) -> None:
    await post.record("dep_1")
    [claimed] = await claim(post, "a")
    foreign = replace(settled(claimed, DeliveryState.DELIVERED), claimed=replace(claimed, tenant_id=TenantId("ten_b")))
    assert await settle(post, "a", foreign) == set()


async def test_a_lease_shorter_than_an_exchange_is_refused(post: Post) -> None:
    sender = Sender(LOOPBACK, version="test", limits=TimeLimits(total_s=20.0))
    with pytest.raises(LeaseTooShort, match="too short for exchanges of 20 s"):
        Dispatcher(post.engine, sender, post.secret_box, lease_s=49.0)


async def test_a_dispatcher_that_stops_settles_what_is_under_way(post: Post, receiver: Receiver) -> None:
    async with post.dispatching():
        await post.record_all([(f"dep_{number}", 1) for number in range(30)])
        await receiver.wait_until("some came", lambda: len(receiver.requests) >= 5)
    assert [row.lease_token for row in await post.deliveries() if row.lease_token is not None] == []


async def test_a_dispatcher_outlives_the_loss_of_its_connections(post: Post, receiver: Receiver) -> None:
    receiver.behaviour = answer(204)
    killed = 0
    async with post.dispatching(slots=8):
        for batch in range(1, 6):
            await post.record_all([(f"dep_{number}", batch) for number in range(40)])
            await receiver.wait_until("more came", lambda: len(receiver.requests) >= batch * 20)  # noqa: B023
            killed += await kill_sessions(post)
        await post.execute("UPDATE deliveries SET leased_until = now() WHERE leased_until IS NOT NULL")
        await post.wait_for_states(delivered=200)
    assert killed >= 5
    assert_all_told(receiver, subjects=40, sequences=5)


async def kill_sessions(post: Post) -> int:
    """End the dispatchers' sessions; how many. At a moment there may be none: those ended before are not made again yet."""
    while True:
        ended = await post.execute(
            "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity"  # and wait until they are gone
            " WHERE application_name = 'dispatcher' AND datname = current_database()"
        )
        if ended:
            return ended
        await asyncio.sleep(0.01)


def assert_all_told(receiver: Receiver, *, subjects: int, sequences: int) -> None:
    """Every event came, those of a subject in order, and what came twice is byte for byte the same."""
    first_told: dict[str, list[int]] = defaultdict(list)
    body_of: dict[str, bytes] = {}
    for request in receiver.requests:
        assert request.is_signed
        if request.event_id not in body_of:
            first_told[request.document["data"]["id"]].append(request.document["sequence"])
        assert body_of.setdefault(request.event_id, request.body) == request.body
    assert first_told == {f"dep_{number}": list(range(1, sequences + 1)) for number in range(subjects)}


@asynccontextmanager
async def dispatcher_process(url: str, exchange_s: float = EXCHANGE_S) -> AsyncIterator[asyncio.subprocess.Process]:
    """A dispatcher in a process of its own, killed at the end of the block."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.integration.notifier.dispatcher_process",
        url,
        str(exchange_s + 35),
        str(exchange_s),
        stdout=asyncio.subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_kill_9_under_load_loses_nothing_and_keeps_order(post: Post, receiver: Receiver) -> None:
    subjects, sequences, kills = 60, 8, 4
    for sequence in range(1, sequences + 1):
        await post.record_all([(f"dep_{number}", sequence) for number in range(subjects)])
    killed_with_leases = 0
    for kill in range(1, kills + 1):
        async with dispatcher_process(post.url) as process:
            wanted = len(receiver.requests) + 40 + 7 * kill
            await receiver.wait_until("it is at work", lambda: len(receiver.requests) >= wanted)  # noqa: B023
            assert process.returncode is None
            process.kill()
            await process.wait()
        killed_with_leases += await post.expire_leases()
    assert killed_with_leases > 0
    async with post.dispatching():
        await post.wait_for_states(delivered=subjects * sequences)
    assert_all_told(receiver, subjects=subjects, sequences=sequences)


async def test_workers_that_settle_for_an_endpoint_that_does_well_are_in_nobodys_way(
    post: Post, receiver: Receiver
) -> None:
    await post.record_all([(f"dep_{number}", 1) for number in range(3)])
    first, second, third = await claim(post, "a")
    await settle(post, "a", settled(first, DeliveryState.DELIVERED))
    lately = "last_accepted_at = now() + interval '1 hour', last_attempt_at = now() + interval '1 hour'"
    assert await post.execute(f"UPDATE endpoints SET {lately}") == 1
    async with transaction(post.engine) as earlier, transaction(post.engine) as later:
        for connection, one in ((earlier, second), (later, third)):
            done = await settle_deliveries(connection, [settled(one, DeliveryState.DELIVERED)])
            assert (done.ids, done.left) == ({one.id}, [])


async def test_what_is_new_of_an_endpoint_is_noted_and_the_rest_each_second(post: Post, receiver: Receiver) -> None:
    await post.record_all([(f"dep_{number}", 1) for number in range(5)])
    first, second, third, fourth, fifth = await claim(post, "a")
    is_old = "last_accepted_at < now() - interval '1 minute'"
    age = (
        "UPDATE endpoints SET last_accepted_at = now() - interval '1 hour', last_attempt_at = now() - interval '1 hour'"
    )

    await settle(post, "a", settled(first, DeliveryState.DELIVERED))
    assert await post.execute(age) == 1
    await settle(post, "a", settled(second, DeliveryState.DELIVERED))
    assert await post.execute(f"SELECT 1 FROM endpoints WHERE {is_old}") == 0
    await settle(post, "a", settled(third, DeliveryState.PENDING, timedelta(minutes=1)))
    assert await post.execute("SELECT 1 FROM endpoints WHERE failures_consecutive = 1") == 1
    await settle(post, "a", settled(fourth, DeliveryState.DELIVERED))
    assert await post.execute("SELECT 1 FROM endpoints WHERE failures_consecutive = 0 AND failing_since IS NULL") == 1
    other = settled(fifth, DeliveryState.DELIVERED)
    assert other.attempt is not None
    await settle(post, "a", replace(other, attempt=replace(other.attempt, status_code=204)))
    assert await post.execute("SELECT 1 FROM endpoints WHERE last_status_code = 204") == 1


async def test_who_settles_and_who_deletes_take_locks_in_one_order(post: Post, receiver: Receiver) -> None:
    """Neither waits for what the other has while the other waits for it."""
    await post.record_all([(f"dep_{number}", 1) for number in range(40)])
    first, *claimed = await claim(post, "a", 40)
    await settle(post, "a", settled(first, DeliveryState.DELIVERED))

    async def delete() -> int | None:
        async with transaction(post.engine) as connection:
            done = await delete_endpoint(connection, TENANT, first.endpoint_id, datetime.now(UTC))
        return done.discarded if done else None

    backwards = [settled(one, DeliveryState.DELIVERED) for one in reversed(claimed)]
    deleted, ids = await asyncio.gather(delete(), settle(post, "a", *backwards))
    assert (deleted, len(ids)) in {(39, 0), (0, 39)}


async def test_a_heartbeat_takes_its_locks_in_that_order_too(post: Post, receiver: Receiver) -> None:
    await post.record_all([(f"dep_{number}", 1) for number in range(40)])
    first, *rest = sorted(await claim(post, "a", 40), key=lambda one: one.id)
    waits = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    lock = text("SELECT id FROM deliveries WHERE id = ANY (:ids) FOR UPDATE NOWAIT")

    async def extend() -> set[DeliveryId]:
        async with transaction(post.engine) as connection:
            return await extend_leases(connection, [*reversed(rest), first], LEASE_S)

    async with transaction(post.engine) as settling, asyncio.TaskGroup() as group:
        await settling.execute(lock, {"ids": [first.id]})
        heartbeat = group.create_task(extend())
        while not await post.execute(waits):  # noqa: ASYNC110 - Postgres sets no event
            await asyncio.sleep(0.01)
        await settling.execute(lock, {"ids": [one.id for one in rest]})
        await settling.commit()
    assert len(heartbeat.result()) == 40
