"""From a stored event to a receiver: once, signed, in order per lane, and what becomes of what is not accepted."""

from __future__ import annotations

import asyncio
from collections import defaultdict

from aiohttp import web

from ledger.database import transaction
from ledger.deleting import delete_endpoint
from notifier.backoff import ATTEMPTS_MAX
from tests.fakes.receiver import Behaviour, Receiver, answer, hang, running_receiver, wait_for
from tests.integration.notifier.conftest import PUBLIC_ONLY, SCHEDULE, SHORT_EXCHANGE_S, TENANT, Post


def sequences_of(receiver: Receiver) -> dict[str, list[int]]:
    """The sequence numbers that a receiver was told of each subject, in the order in which they came."""
    told: dict[str, list[int]] = defaultdict(list)
    for request in receiver.requests:
        told[request.document["data"]["id"]].append(request.document["sequence"])
    return told


async def test_every_event_arrives_once_signed_and_in_sequence(post: Post) -> None:
    subjects = [f"dep_{number}" for number in range(20)]
    async with running_receiver() as receiver, post.dispatching():
        await post.add_endpoint(receiver)
        for sequence in (1, 2, 3, 4):
            await post.record_all([(subject, sequence) for subject in subjects])
        await post.wait_for_states(delivered=80)
    assert sequences_of(receiver) == {subject: [1, 2, 3, 4] for subject in subjects}
    assert len({request.event_id for request in receiver.requests}) == 80
    assert all(request.is_signed for request in receiver.requests)


async def test_the_bytes_that_are_sent_are_the_bytes_that_are_stored(post: Post) -> None:
    async with running_receiver() as receiver, post.dispatching():
        await post.add_endpoint(receiver)
        event_id = await post.record("dep_1")
        await post.wait_for_states(delivered=1)
    assert (
        await post.execute(
            "SELECT 1 FROM events WHERE id = :id AND body = :body", id=event_id, body=receiver.requests[0].body
        )
        == 1
    )
    [attempt] = await post.attempts(event_id)
    assert (attempt.number, attempt.outcome, attempt.status_code, attempt.error) == (1, "accepted", 204, None)


async def test_lanes_do_not_wait_for_each_other(post: Post) -> None:
    async with running_receiver() as receiver:
        await post.add_endpoint(receiver)
        stuck, behind = await post.record_all([("dep_stuck", 1), ("dep_stuck", 2)])
        release = asyncio.Event()
        receiver.script_event(stuck, wait_for(release))
        others = await post.record_all([(f"dep_{number}", 1) for number in range(30)])
        async with post.dispatching():
            await receiver.wait_until(
                "the others came", lambda: {request.event_id for request in receiver.requests} >= set(others)
            )
            assert (await post.delivery(stuck)).lease_token is not None
            assert receiver.of_event(behind) == []
            release.set()


def counting(in_flight: dict[str, int], overlaps: list[str]) -> Behaviour:
    """Accept after a moment, and note subjects that are told of two events at one time."""

    async def behave(request: web.BaseRequest) -> web.StreamResponse:
        subject = (await request.json())["data"]["id"]
        if in_flight[subject]:
            overlaps.append(subject)
        in_flight[subject] += 1
        await asyncio.sleep(0.002)
        in_flight[subject] -= 1
        return web.Response(status=204)

    return behave


async def test_many_dispatchers_never_have_two_of_one_lane_in_flight(post: Post) -> None:
    overlaps: list[str] = []
    async with running_receiver(behaviour=counting(defaultdict(int), overlaps)) as receiver:
        await post.add_endpoint(receiver)
        async with post.dispatching(number=4, slots=8):
            for sequence in range(1, 26):
                await post.record_all([(f"dep_{number}", sequence) for number in range(8)])
            await post.wait_for_states(delivered=200)
    assert overlaps == []
    assert sequences_of(receiver) == {f"dep_{number}": list(range(1, 26)) for number in range(8)}


async def test_two_endpoints_are_told_apart_and_each_by_its_own_secret(post: Post) -> None:
    async with running_receiver() as first, running_receiver() as second, post.dispatching():
        await post.add_endpoint(first)
        await post.add_endpoint(second)
        await post.record("dep_1")
        await post.wait_for_states(delivered=2)
    assert [len(receiver.requests) for receiver in (first, second)] == [1, 1]
    assert first.requests[0].is_signed
    assert second.requests[0].is_signed
    assert first.requests[0].event_id == second.requests[0].event_id


async def test_an_endpoint_is_told_of_what_its_filter_admits(post: Post) -> None:
    async with running_receiver() as receiver, post.dispatching():
        await post.add_endpoint(receiver, ["deposit.*"])
        await post.record("wd_1", event_type="withdrawal.detected")
        wanted = await post.record("dep_1", event_type="deposit.confirmed")
        await post.wait_for_states(delivered=1)
    assert [request.event_id for request in receiver.requests] == [wanted]


async def test_what_was_found_late_lets_live_news_go_first(post: Post) -> None:
    async with running_receiver() as receiver:
        await post.add_endpoint(receiver)
        late = await post.record_all([(f"old_{number}", 1) for number in range(5)], priority=1)
        live = await post.record("dep_1")
        async with post.dispatching(slots=1):
            await post.wait_for_states(delivered=6)
    assert [request.event_id for request in receiver.requests] == [live, *late]


async def test_a_failed_attempt_comes_again_by_the_schedule_of_the_databases_clock(post: Post) -> None:
    async with running_receiver(behaviour=answer(500, b"no")) as receiver, post.dispatching():
        await post.add_endpoint(receiver)
        event_id = await post.record("dep_1")
        for number in (1, 2, 3):
            await post.wait_for_attempts(event_id, number)
            wait_s = SCHEDULE[number].total_seconds()
            within = f"due_at - now() BETWEEN interval '{wait_s - 1200} s' AND interval '{wait_s} s'"
            assert await post.execute(f"SELECT 1 FROM deliveries WHERE {within}") == 1
            if number == 3:
                receiver.behaviour = answer(200, b"fine")
            await post.make_due(event_id)
        await post.wait_for_states(delivered=1)
    outcomes = [
        (row.number, row.outcome, row.status_code, row.response_excerpt) for row in await post.attempts(event_id)
    ]
    assert outcomes == [(number, "retryable", 500, "no") for number in (1, 2, 3)] + [(4, "accepted", 200, "fine")]


async def test_the_next_waits_for_five_failed_attempts_and_then_overtakes(post: Post) -> None:
    async with running_receiver() as receiver:
        await post.add_endpoint(receiver)
        first, second = await post.record_all([("dep_1", 1), ("dep_1", 2)])
        receiver.script_event(first, answer(500))
        async with post.dispatching():
            for number in (1, 2, 3, 4):
                await post.wait_for_attempts(first, number)
                await post.make_due(first)
            await receiver.wait_until("the second overtook", lambda: len(receiver.of_event(second)) == 1)
            assert (await post.delivery(first)).attempts == 5
            await post.wait_for_attempts(second, 1)
            receiver.script_event(first, answer(204))
            await post.make_due(first)
            await post.wait_for_states(delivered=2)
    assert [request.event_id for request in receiver.requests] == [first] * 5 + [second, first]


async def test_a_delivery_about_to_be_due_is_not_overtaken_any_more(post: Post) -> None:
    async with running_receiver() as receiver:
        await post.add_endpoint(receiver)
        first, second = await post.record_all([("dep_1", 1), ("dep_1", 2)])
        await post.execute(
            "UPDATE deliveries SET attempts = 5, due_at = now() + interval '50 s' WHERE event_id = :id", id=first
        )
        async with post.dispatching():
            other = await post.record("dep_2")
            await receiver.wait_until("another lane came", lambda: len(receiver.of_event(other)) == 1)
            assert receiver.of_event(second) == []
            await post.make_due(first)
            await post.wait_for_states(delivered=3)
    assert sequences_of(receiver)["dep_1"] == [1, 2]


async def test_after_thirteen_attempts_a_delivery_is_exhausted_and_the_next_goes_on(post: Post) -> None:
    async with running_receiver() as receiver:
        await post.add_endpoint(receiver)
        event_id = await post.record("dep_1")
        receiver.script_event(event_id, answer(503))
        async with post.dispatching():
            await post.wait_for_attempts(event_id, 1)
            for number in range(2, ATTEMPTS_MAX + 1):
                await post.make_due(event_id)
                await post.wait_for_attempts(event_id, number)
            await post.wait_for_states(exhausted=1)
            await post.record("dep_1", 2)
            assert await post.end_rests() == 1
            await post.wait_for_states(exhausted=1, delivered=1)
    assert len(await post.attempts(event_id)) == ATTEMPTS_MAX == 13
    assert (await post.delivery(event_id)).settled_at is not None


async def test_a_delivery_whose_workers_always_die_is_faulted_without_another_request(post: Post) -> None:
    async with running_receiver() as receiver:
        await post.add_endpoint(receiver)
        await post.record("dep_1")
        await post.execute("UPDATE deliveries SET attempts = :made", made=ATTEMPTS_MAX)
        async with post.dispatching():
            await post.wait_for_states(faulted=1)
    assert receiver.requests == []


async def test_an_endpoint_at_a_private_address_is_refused_at_once(post: Post) -> None:
    async with running_receiver() as receiver, post.dispatching(policy=PUBLIC_ONLY):
        await post.add_endpoint(receiver)
        event_id = await post.record("dep_1")
        await post.wait_for_states(refused=1)
    [attempt] = await post.attempts(event_id)
    assert (attempt.outcome, attempt.error, attempt.status_code) == ("refused", "refused_address", None)
    assert receiver.requests == []


async def test_a_deleted_endpoint_is_told_nothing(post: Post) -> None:
    async with running_receiver() as receiver:
        endpoint_id = await post.add_endpoint(receiver)
        await post.record("dep_1")
        # As by a fan-out that ran beside the deletion: the delivery is still pending.
        await post.execute("UPDATE endpoints SET deleted_at = now() WHERE id = :id", id=endpoint_id)
        async with post.dispatching():
            await post.wait_for_states(discarded=1)
        await post.record("dep_1", 2)
    assert receiver.requests == []
    assert await post.states() == {"discarded": 1}


async def test_deleting_an_endpoint_while_it_is_told_discards_what_is_under_way(post: Post) -> None:
    async with running_receiver(behaviour=hang()) as receiver, post.dispatching(exchange_s=SHORT_EXCHANGE_S):
        endpoint_id = await post.add_endpoint(receiver)
        event_id = await post.record("dep_1")
        await receiver.wait_until("it hangs", lambda: len(receiver.requests) == 1)
        async with transaction(post.engine) as connection:
            delivery = await post.delivery(event_id)
            done = await delete_endpoint(connection, TENANT, endpoint_id, delivery.created_at)
        assert done is not None
        assert (done.discarded, done.job) == (1, None)
    assert await post.states() == {"discarded": 1}
    assert [row.error for row in await post.attempts(event_id)] == ["timeout"]


async def test_a_paused_endpoints_events_are_held_and_burn_no_attempts(post: Post) -> None:
    async with running_receiver() as receiver, running_receiver() as active:
        paused = await post.add_endpoint(receiver)
        await post.add_endpoint(active)
        await post.execute("UPDATE endpoints SET state = 'paused' WHERE id = :id", id=paused)
        async with post.dispatching():
            await post.record("dep_1")
            await post.wait_for_states(held=1, delivered=1)
    assert receiver.requests == []
    assert {row.state: row.attempts for row in await post.deliveries()} == {"held": 0, "delivered": 1}


async def test_health_of_an_endpoint_is_noted(post: Post) -> None:
    async with running_receiver(behaviour=answer(500)) as receiver, post.dispatching():
        await post.add_endpoint(receiver)
        event_id = await post.record("dep_1")
        await post.wait_for_attempts(event_id, 1)
        is_failing = "failures_consecutive = 1 AND last_accepted_at IS NULL AND last_attempt_at IS NOT NULL"
        assert await post.execute(f"SELECT 1 FROM endpoints WHERE {is_failing}") == 1
        receiver.behaviour = answer(204)
        await post.make_due(event_id)
        await post.wait_for_states(delivered=1)
    assert (
        await post.execute("SELECT 1 FROM endpoints WHERE failures_consecutive = 0 AND last_accepted_at IS NOT NULL")
        == 1
    )


async def test_a_secret_that_does_not_open_stops_only_its_own_endpoint_and_uses_up_no_attempt(post: Post) -> None:
    async with running_receiver() as broken, running_receiver() as whole, post.dispatching():
        broken_id = await post.add_endpoint(broken)
        await post.add_endpoint(whole)
        await post.execute(
            "UPDATE endpoint_secrets SET sealed = :bytes WHERE endpoint_id = :id", bytes=b"x" * 64, id=broken_id
        )
        event_id = await post.record("dep_1")
        await post.wait_until(
            "the whole one is told and the broken one waits",
            lambda rows: (
                {(row.state, row.attempts, row.lease_token) for row in rows}
                == {("delivered", 1, None), ("pending", 0, None)}
            ),
        )
        assert await post.execute("SELECT 1 FROM deliveries WHERE due_at > now() + interval '30 s'") == 1
    assert broken.requests == []
    assert [request.event_id for request in whole.requests] == [event_id]
