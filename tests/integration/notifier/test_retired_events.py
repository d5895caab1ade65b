"""Deliveries that outlive what they told: events go with their day, deliveries by when they were settled."""

from __future__ import annotations

from ledger.database import database_now, transaction
from ledger.holding import Held, pause_endpoint, resume_endpoint
from ledger.ids import DeliveryId
from ledger.redelivery import redeliver
from notifier.recovery import recover_once
from tests.fakes.receiver import running_receiver
from tests.integration.notifier.conftest import TENANT, Post


async def drop_event(post: Post, event_id: str) -> None:
    """Its day is over, and its delivery is not."""
    await post.execute("UPDATE deliveries SET state = 'exhausted', settled_at = now()")
    await post.execute("DELETE FROM events WHERE id = :id", id=event_id)


async def test_what_is_kept_no_longer_is_not_delivered_once_more(post: Post) -> None:
    async with running_receiver() as receiver:
        endpoint = await post.add_endpoint(receiver)
        await drop_event(post, await post.record("dep_1", 1))
        [old] = await post.deliveries()
        async with transaction(post.engine) as connection:
            now = await database_now(connection)
            assert await redeliver(connection, TENANT, DeliveryId(old.id), now) is None
            await pause_endpoint(connection, TENANT, endpoint, now, reason="later")
            await resume_endpoint(connection, TENANT, endpoint, Held.ALL, now)
        while await recover_once(post.engine):
            pass
        assert [row.id for row in await post.deliveries()] == [old.id]


async def test_a_delivery_without_its_event_stops_nobody(post: Post) -> None:
    async with running_receiver() as receiver:
        await post.add_endpoint(receiver)
        await drop_event(post, await post.record("dep_1", 1))
        await post.execute("UPDATE deliveries SET state = 'pending', settled_at = NULL, due_at = now()")
        told = await post.record("dep_2", 1)
        async with post.dispatching():
            await post.wait_until("both ended", lambda rows: all(row.state != "pending" for row in rows))
        states = {row.event_id: (row.state, row.fault) for row in await post.deliveries()}
        assert states.pop(told) == ("delivered", None)
        assert list(states.values()) == [("faulted", "unsignable")]
