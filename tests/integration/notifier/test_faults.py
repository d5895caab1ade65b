"""What we cannot send is told apart from what a receiver does not take: it is ours, and held against nobody."""

from __future__ import annotations

from prometheus_client import REGISTRY
from sqlalchemy import select

from ledger.database import database_now, transaction
from ledger.deliveries import count_deliveries
from ledger.endpoint_health import glance_at
from ledger.endpoint_secrets import GRACE_DEFAULT, rotate_secret
from ledger.holding import Only, Task, start_task
from ledger.ids import EndpointId
from ledger.schema import endpoints
from ledger.states import Fault
from notifier.backoff import ATTEMPTS_MAX
from notifier.recovery import recover_once
from tests.fakes.receiver import running_receiver
from tests.integration.notifier.conftest import TENANT, Post


def faults(fault: Fault) -> float:
    """How often a delivery could not be sent for that."""
    return REGISTRY.get_sample_value("chainbell_delivery_faults_total", {"fault": fault.value}) or 0.0


async def require_blameless(post: Post, endpoint_id: EndpointId) -> None:
    """Nothing is held against the endpoint."""
    async with transaction(post.engine) as connection:
        row = (await connection.execute(select(endpoints).where(endpoints.c.id == endpoint_id))).one()
        glance = await glance_at(connection, TENANT, endpoint_id, await database_now(connection))
    assert (row.failures_consecutive, row.failing_since, row.last_attempt_at, row.last_error) == (0, None, None, None)
    assert glance.last_hour.attempts == 0


async def test_without_a_secret_that_signs_a_delivery_is_faulted_and_recovered_with_what_failed(post: Post) -> None:
    before = faults(Fault.UNSIGNABLE)
    async with running_receiver() as receiver:
        endpoint_id = await post.add_endpoint(receiver)
        event_id = await post.record("dep_1")
        await post.execute("UPDATE endpoint_secrets SET expires_at = now() - interval '1 s'")
        async with post.dispatching():
            await post.wait_for_states(faulted=1)
        delivery = await post.delivery(event_id)
        assert (delivery.fault, delivery.settled_at is None, receiver.requests) == ("unsignable", False, [])
        await require_blameless(post, endpoint_id)
        async with transaction(post.engine) as connection:
            counts = await count_deliveries(connection)
        assert (counts["faulted"], counts["exhausted"], counts["refused"]) == (1, 0, 0)
        assert faults(Fault.UNSIGNABLE) == before + 1
        await post.execute("UPDATE endpoint_secrets SET expires_at = NULL")
        async with transaction(post.engine) as connection:
            asked = {"event_id": event_id, "only": Only.FAILED.value}
            await start_task(connection, TENANT, None, Task.RECOVER, asked, await database_now(connection))
        while await recover_once(post.engine):
            continue
        async with post.dispatching():
            await post.wait_for_states(faulted=1, delivered=1)
    assert [request.event_id for request in receiver.requests] == [event_id]


async def test_what_kills_its_workers_is_ours_too(post: Post) -> None:
    async with running_receiver() as receiver:
        endpoint_id = await post.add_endpoint(receiver)
        event_id = await post.record("dep_1")
        await post.execute("UPDATE deliveries SET attempts = :made", made=ATTEMPTS_MAX)
        async with post.dispatching():
            await post.wait_for_states(faulted=1)
    assert (await post.delivery(event_id)).fault == "workers_died"
    await require_blameless(post, endpoint_id)


async def test_rotating_away_from_a_secret_that_does_not_open_helps_at_once_and_is_told_of(post: Post) -> None:
    """It is valid for another day; everything is signed with the new one alone, and nobody passes over that in silence."""
    before = REGISTRY.get_sample_value("chainbell_secrets_left_out_total") or 0.0
    async with running_receiver() as receiver:
        endpoint_id = await post.add_endpoint(receiver)
        await post.execute("UPDATE endpoint_secrets SET sealed = :bytes", bytes=b"x" * 64)
        async with transaction(post.engine) as connection:
            now = await database_now(connection)
            made = await rotate_secret(connection, post.secret_box, TENANT, endpoint_id, GRACE_DEFAULT, now)
        assert made is not None
        receiver.secrets[:] = [made.secret]
        async with post.dispatching():
            for number in range(2):
                await post.record(f"dep_{number}")
                await post.wait_for_states(delivered=number + 1)
    assert [request.is_signed for request in receiver.requests] == [True, True]
    assert (REGISTRY.get_sample_value("chainbell_secrets_left_out_total") or 0.0) == before + 2
    told = "SELECT 1 FROM audit_log WHERE action = 'endpoint.secret_left_out' AND subject = :id"
    assert await post.execute(told, id=endpoint_id) == 1


async def test_a_secret_that_does_not_open_shows_with_what_waits_for_it_until_it_is_sent(post: Post) -> None:
    async with running_receiver() as receiver:
        endpoint_id = await post.add_endpoint(receiver)
        event_id = await post.record("dep_1")
        await post.execute("CREATE TABLE kept AS SELECT sealed FROM endpoint_secrets")
        await post.execute("UPDATE endpoint_secrets SET sealed = :bytes", bytes=b"x" * 64)
        async with post.dispatching():
            await post.wait_until("it is faulted", lambda rows: rows[0].fault == "secret_unopened")
            await require_blameless(post, endpoint_id)
            assert await post.states() == {"pending": 1}
            await post.execute("UPDATE endpoint_secrets SET sealed = (SELECT sealed FROM kept)")
            await post.make_due(event_id)
            await post.wait_for_states(delivered=1)
    delivery = await post.delivery(event_id)
    assert (delivery.fault, delivery.attempts) == (None, 1)
