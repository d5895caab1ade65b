"""Endpoints with a limit of deliveries a second: all workers hold it together, and nobody else is any slower."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from ledger.claims import Claimed, EndpointRoom, claim_due_deliveries
from ledger.database import Connection, transaction
from ledger.ids import EndpointId
from tests.fakes.receiver import running_receiver
from tests.integration.notifier.conftest import TENANT, Post

LIMIT = 5
OWED = 20


@pytest.fixture
async def limited(post: Post) -> EndpointId:
    """An endpoint with a limit, owed much more than a second's worth."""
    async with running_receiver() as receiver:
        endpoint_id = await post.add_endpoint(receiver, ["deposit.detected"], max_per_s=LIMIT)
    await post.record_all([(f"dep_{number}", 1) for number in range(OWED)])
    return endpoint_id


async def claim(connection: Connection, *endpoint_ids: EndpointId, worker: str = "one") -> list[Claimed]:
    """As much as there is, of these endpoints."""
    rooms = [EndpointRoom(TENANT, endpoint_id, 100) for endpoint_id in endpoint_ids]
    return await claim_due_deliveries(connection, rooms, lease_s=60.0, token=worker)


async def use_up(connection: Connection, seconds: float) -> None:
    """As if so many seconds' worth had been claimed by now, which stands still in a transaction."""
    statement = text("UPDATE endpoint_paces SET paced_until = now() + make_interval(secs => :seconds)")
    await connection.execute(statement, {"seconds": seconds})


async def test_no_more_is_claimed_than_a_seconds_worth_and_then_as_time_passes(post: Post, limited: EndpointId) -> None:
    async with transaction(post.engine) as connection:
        assert len(await claim(connection, limited)) == LIMIT
        assert await claim(connection, limited) == []
        await use_up(connection, 0.5)
        assert len(await claim(connection, limited)) == 2
        assert await claim(connection, limited) == []
        await use_up(connection, -30.0)
        assert len(await claim(connection, limited)) == LIMIT, "and no more, however long it was quiet"
        assert await claim(connection, limited) == []


async def test_what_waits_for_its_pace_keeps_its_order_and_its_attempts(post: Post, limited: EndpointId) -> None:
    before = {row.id: row.due_at for row in await post.deliveries()}
    async with transaction(post.engine) as connection:
        claimed = await claim(connection, limited)
    rows = await post.deliveries()
    assert [one.id for one in claimed] == [row.id for row in rows[:LIMIT]]
    assert [row.attempts for row in rows] == [1] * LIMIT + [0] * (OWED - LIMIT)
    assert {row.id: row.due_at for row in rows} == before


async def test_two_that_claim_at_once_hold_the_limit_together_and_neither_waits(
    post: Post, limited: EndpointId
) -> None:
    async with transaction(post.engine) as first:
        taken = await claim(first, limited, worker="first")
        async with transaction(post.engine) as second:
            assert await claim(second, limited, worker="second") == []
    assert len(taken) == LIMIT


async def test_what_was_not_committed_has_used_nothing_up(post: Post, limited: EndpointId) -> None:
    async with post.engine.connect() as connection:
        assert len(await claim(connection, limited)) == LIMIT
        await connection.rollback()
    async with transaction(post.engine) as connection:
        assert len(await claim(connection, limited)) == LIMIT


async def test_a_limit_is_nobody_elses(post: Post, limited: EndpointId) -> None:
    async with running_receiver() as receiver:
        other = await post.add_endpoint(receiver, ["deposit.confirmed"])
    await post.record_all([(f"dep_{number}", 2) for number in range(OWED)], "deposit.confirmed")
    async with transaction(post.engine) as connection:
        claimed = await claim(connection, limited, other)
    endpoints = [one.endpoint_id for one in claimed]
    assert (endpoints.count(limited), endpoints.count(other)) == (LIMIT, OWED)


async def test_an_endpoint_with_a_limit_gets_all_in_the_end(post: Post) -> None:
    """Beside one without: what it may not have yet keeps nobody waiting, and is sent when its time has come."""
    async with running_receiver() as slow, running_receiver() as other:
        await post.add_endpoint(slow, max_per_s=20)
        await post.add_endpoint(other)
        told = await post.record_all([(f"dep_{number}", 1) for number in range(40)])
        async with post.dispatching(number=2):
            await other.wait_until("all came", lambda: len(other.requests) == len(told))
            await slow.wait_until("all came", lambda: len(slow.requests) == len(told))
            await post.wait_for_states(delivered=2 * len(told))
    assert [row.attempts for row in await post.deliveries()] == [1] * (2 * len(told))


async def test_a_clock_that_was_set_back_silences_nobody(post: Post, limited: EndpointId) -> None:
    await post.execute("UPDATE endpoint_paces SET paced_until = now() + interval '1 hour'")
    async with transaction(post.engine) as connection:  # one, whose clock stands still: a slow machine earns no more
        assert len(await claim(connection, limited)) == LIMIT
        assert await claim(connection, limited) == []
