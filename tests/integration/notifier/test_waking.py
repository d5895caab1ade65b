"""A dispatcher that has nothing to do: woken by hints, and right without them. And what it claims before it can send it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
from aiohttp import web
from sqlalchemy import text

from ledger.events import NewEvent, record_events
from notifier.ahead import AHEAD
from tests.fakes.receiver import Receiver, running_receiver, wait_for
from tests.integration.notifier.conftest import TENANT, Post

FOR_EVER_S = 3600.0
"""An idle interval that no test lives to see the end of: what is delivered was hinted at."""


@pytest.fixture
async def receiver(post: Post) -> AsyncIterator[Receiver]:
    """A receiver that is one endpoint of the tenant."""
    async with running_receiver() as receiver:
        await post.add_endpoint(receiver)
        yield receiver


async def test_a_commit_wakes_an_idle_dispatcher(post: Post, receiver: Receiver) -> None:
    async with post.dispatching(idle_interval_s=FOR_EVER_S):
        for number in range(1, 6):
            await post.record(f"dep_{number}")
            await post.wait_for_states(delivered=number)


async def test_what_follows_in_its_lane_needs_no_hint_of_its_own(post: Post, receiver: Receiver) -> None:
    async with post.dispatching(idle_interval_s=FOR_EVER_S, slots=2):
        await post.record_all([("dep_1", sequence) for sequence in range(1, 6)])
        await post.wait_for_states(delivered=5)
    assert [request.document["sequence"] for request in receiver.requests] == [1, 2, 3, 4, 5]


async def test_a_queue_larger_than_the_slots_is_drained_on_one_hint(post: Post, receiver: Receiver) -> None:
    async with post.dispatching(idle_interval_s=FOR_EVER_S, slots=3):
        await post.record_all([(f"dep_{number}", 1) for number in range(100)])
        await post.wait_for_states(delivered=100)


async def test_what_nobody_hinted_at_is_found_by_looking(post: Post, receiver: Receiver) -> None:
    async with post.dispatching(idle_interval_s=0.05):
        async with post.engine.begin() as connection:  # not `transaction`: this commit tells nobody
            await record_events(
                connection, [NewEvent(TENANT, "test.ping", "ep_1", False, {"id": "ep_1"})], datetime.now(UTC)
            )
        await post.wait_for_states(delivered=1)


async def test_a_dispatcher_whose_listener_is_killed_hears_again(
    post: Post, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ledger.hints.RECONNECT_INTERVAL_S", 0.05)
    async with post.dispatching(idle_interval_s=FOR_EVER_S):
        await post.record("dep_1")
        await post.wait_for_states(delivered=1)
        async with post.engine.begin() as connection:
            killed = await connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE application_name = 'dispatcher' AND datname = current_database()"
                )
            )
        assert (
            len(killed.all()) >= 1
        )  # its listener's among them, whose last word may have been LISTEN or a sign of life
        for number in (2, 3, 4):
            await post.record(f"dep_{number}")
            await post.wait_for_states(delivered=number)


async def test_slots_that_hang_hold_nothing_that_others_could_send(
    post: Post, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots, release = 4, asyncio.Event()
    monkeypatch.setattr("notifier.dispatcher.AHEAD_MAX_S", FOR_EVER_S)  # until it was seen
    accepted = await post.record_all([(f"dep_early_{number}", 1) for number in range(slots)])
    hanging = await post.record_all([(f"dep_{number}", 1) for number in range(40)])
    for event_id in hanging:
        receiver.script_event(event_id, wait_for(release))
    async with post.dispatching(slots=slots):
        await post.wait_until(
            "more is claimed than there are slots",
            lambda rows: sum(row.lease_token is not None for row in rows) > slots,
        )
        monkeypatch.undo()
        await post.wait_until(
            "what has no slot is given back and counts no attempt",
            lambda rows: [row.attempts for row in rows if row.state == "pending"].count(1) == slots,
        )
        rows = [row for row in await post.deliveries() if row.event_id in hanging]
        assert {(row.attempts, row.lease_token is None) for row in rows} == {(1, False), (0, True)}
        async with post.dispatching(slots=1):  # another process has something to do
            await receiver.wait_until(
                "another worker sends one of them",
                lambda: len({request.event_id for request in receiver.requests} - set(accepted)) > slots,
            )
            release.set()


async def test_a_dispatcher_that_stops_gives_back_what_it_has_not_begun(
    post: Post, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots, is_given_back = 4, asyncio.Event()
    monkeypatch.setattr("notifier.dispatcher.AHEAD_MAX_S", FOR_EVER_S)

    async def fail_in_the_end(_: web.BaseRequest) -> web.StreamResponse:
        await is_given_back.wait()
        return web.Response(status=500)

    async def watch() -> None:
        await post.wait_until(
            "what was not begun is given back",
            lambda rows: sum(row.lease_token is not None for row in rows) <= slots,
        )
        is_given_back.set()

    events = await post.record_all([(f"dep_{number}", 1) for number in range(slots + 40)])
    for event_id in events[slots:]:
        receiver.script_event(event_id, fail_in_the_end)
    async with asyncio.TaskGroup() as group, post.dispatching(slots=slots):
        await post.wait_until(
            "more is claimed than there are slots",
            lambda rows: sum(row.lease_token is not None for row in rows) > slots,
        )
        group.create_task(watch())
    rows = await post.deliveries()
    assert {row.lease_token for row in rows} == {None}
    begun = [row.attempts for row in rows if row.state == "pending"]
    assert set(begun) == {0, 1}
    assert 0 < sum(begun) <= slots
    assert slots < slots * (1 + AHEAD) < len(rows)
