"""Telling again by event and by entry, to one endpoint or to all: whole, in order, each once, and burying nothing."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import select

from ledger import recovery
from ledger.database import database_now, transaction
from ledger.ids import OPS_TENANT, DeliveryId, TenantId
from ledger.model import Entry
from ledger.redelivery import redeliver
from ledger.schema import deliveries
from ledger.schema_access import audit_log
from notifier.recovery import recover_once
from tests.fakes.claiming import claim_any
from tests.integration.api.conftest import Service
from tests.integration.api.seeding import add_chain, add_entry, add_watch, confirm_entry
from tests.integration.api.telling import create, execute, listed, set_batch, states, tell, work

SINCE = "2026-01-01T00:00:00Z"


async def make_deposit(service: Service) -> Entry:
    """A deposit that was detected and confirmed: two events."""
    async with transaction(service.owner) as connection:
        await add_chain(connection, tip=1000)
        watch = await add_watch(connection, service.tenant_id)
        entry = await add_entry(connection, service.tenant_id, watch, 7, now=await database_now(connection))
    async with transaction(service.owner) as connection:
        return await confirm_entry(connection, entry, await database_now(connection))


async def accept_all(service: Service) -> None:
    await execute(service, "UPDATE deliveries SET state = 'delivered', settled_at = now() WHERE state = 'pending'")


async def ask(service: Service, path: str, **body: object) -> str:
    """Ask for it; returns the job's id."""
    answer = await service.ask("POST", f"/v1/{path}/recover", body)
    assert (answer.status, answer.json["state"], answer.json["kind"]) == (202, "queued", "recover"), answer.json
    job_id: str = answer.json["id"]
    return job_id


async def ended(service: Service, job_id: str) -> tuple[str, int, int, dict[str, int]]:
    """What a job has come to: state, done, total, result."""
    job = (await service.ask("GET", f"/v1/jobs/{job_id}")).json
    return job["state"], job["done"], job["total"], job["result"]


async def test_an_event_goes_once_more_to_each_endpoint_that_it_is_for(service: Service) -> None:
    first, second = await create(service), await create(service)
    await create(service, event_types=["withdrawal.*"])
    event, _ = await tell(service, "dep_1", "dep_2")
    await accept_all(service)
    job = await ask(service, f"events/{event}")
    again = await ask(service, f"events/{event}")
    await work(service)
    assert await ended(service, job) == ("done", 3, 3, {"redelivered": 2})
    assert await ended(service, again) == ("done", 3, 3, {"redelivered": 0})
    made = await listed(service, state="pending")
    assert {(row["endpoint_id"], row["event_id"], row["attempts"]) for row in made} == {
        (first, event, 0),
        (second, event, 0),
    }
    async with transaction(service.owner) as connection:
        claimed = await claim_any(connection, 10, lease_s=60, token="t")
    assert {delivery.body for delivery in claimed} == {(await service.ask("GET", f"/v1/events/{event}")).content}


async def test_an_event_goes_to_the_one_endpoint_that_is_named(service: Service) -> None:
    endpoint, _ = await create(service), await create(service)
    [event] = await tell(service, "dep_1")
    await accept_all(service)
    job = await ask(service, f"events/{event}", endpoint=endpoint)
    await work(service)
    assert await ended(service, job) == ("done", 1, 1, {"redelivered": 1})
    assert [row["endpoint_id"] for row in await listed(service, state="pending")] == [endpoint]


async def test_only_what_is_missing_is_sent_where_that_is_asked(service: Service) -> None:
    await create(service)
    [event] = await tell(service, "dep_1")
    later = await create(service)
    job = await ask(service, f"events/{event}", only="missing")
    await work(service)
    assert await ended(service, job) == ("done", 2, 2, {"redelivered": 1})
    assert [row["endpoint_id"] for row in await listed(service) if row["endpoint_id"] == later] == [later]


async def test_a_deposits_whole_story_is_told_again_in_sequence(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_batch(monkeypatch, 1)
    endpoint = await create(service)
    entry = await make_deposit(service)
    await tell(service, "dep_other")
    await accept_all(service)
    job = await ask(service, f"deposits/{entry.id}")
    await work(service)
    assert await ended(service, job) == ("done", 2, 2, {"redelivered": 2})
    assert {row["entry_id"] for row in await listed(service, state="pending")} == {entry.id}
    sent = []
    for _ in range(2):  # one of a lane at a time, the earlier first
        async with transaction(service.owner) as connection:
            claimed = await claim_any(connection, 10, lease_s=60, token="t")
        sent += [delivery.event_id for delivery in claimed]
        await execute(
            service,
            "UPDATE deliveries SET state = 'delivered', settled_at = now(), lease_token = NULL, leased_until = NULL"
            " WHERE lease_token IS NOT NULL",
        )
    told = (await service.ask("GET", f"/v1/deposits/{entry.id}/events")).json["data"]
    assert sent == [event["id"] for event in told]
    assert [event["sequence"] for event in told] == [1, 2]
    assert {row["endpoint_id"] for row in await listed(service)} == {endpoint}


async def test_what_is_told_again_is_written_down(service: Service) -> None:
    await create(service)
    entry = await make_deposit(service)
    job = await ask(service, f"deposits/{entry.id}")
    async with transaction(service.owner) as connection:
        lines = await connection.execute(select(audit_log).where(audit_log.c.subject == entry.id))
        [line] = lines.all()
    assert (line.action, line.tenant_id, line.detail["job"]) == ("entry.recovered", service.tenant_id, job)


async def test_a_paused_endpoint_keeps_what_is_told_again_until_it_is_resumed(service: Service) -> None:
    endpoint = await create(service)
    [event] = await tell(service, "dep_1")
    await accept_all(service)
    await service.ask("POST", f"/v1/endpoints/{endpoint}/pause", {})
    await ask(service, f"events/{event}")
    await work(service)
    assert await states(service) == {"delivered": 1, "held": 1}


async def test_an_endpoint_that_is_deleted_meanwhile_is_passed_over(service: Service) -> None:
    endpoints = [await create(service) for _ in range(3)]
    [event] = await tell(service, "dep_1")
    await accept_all(service)
    job = await ask(service, f"events/{event}")
    await recover_once(service.owner)
    await service.ask("DELETE", f"/v1/endpoints/{sorted(endpoints)[1]}")
    await work(service)
    assert (await ended(service, job))[::3] == ("done", {"redelivered": 2})
    named = await ask(service, f"events/{event}", endpoint=endpoints[2])
    await service.ask("DELETE", f"/v1/endpoints/{endpoints[2]}")
    await work(service)
    assert (await ended(service, named))[0] == "failed"


async def test_two_who_ask_for_one_event_at_one_moment_send_it_once(service: Service) -> None:
    """By hand and by two jobs, each in its own process: whoever comes second finds that it is owed."""
    await create(service)
    [event] = await tell(service, "dep_1")
    [old] = await listed(service)
    await accept_all(service)
    for _ in range(2):
        await ask(service, f"events/{event}")

    async def by_hand() -> None:
        async with transaction(service.owner) as connection:
            now = await database_now(connection)
            assert await redeliver(connection, TenantId(service.tenant_id), DeliveryId(old["id"]), now) is not None

    await asyncio.gather(recover_once(service.owner), recover_once(service.owner), by_hand())
    await work(service)
    assert await states(service) == {"delivered": 1, "pending": 1}


async def test_a_recovery_waits_while_its_endpoint_is_owed_much_and_goes_after_what_is_new(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_batch(monkeypatch, 2)
    monkeypatch.setattr(recovery, "BACKLOG_MAX", 3)
    endpoint = await create(service)
    await tell(service, *(f"dep_{number}" for number in range(6)))
    await accept_all(service)
    job = await ask(service, f"endpoints/{endpoint}", since=SINCE, only="all")
    await work(service)
    waiting = (await service.ask("GET", f"/v1/jobs/{job}")).json
    assert (waiting["state"], waiting["done"], waiting["total"]) == ("running", 4, 6)
    assert waiting["reason"] == "its endpoint is owed 3 deliveries or more"
    [new] = await tell(service, "dep_new")
    async with transaction(service.owner) as connection:
        [claimed] = await claim_any(connection, 1, lease_s=60, token="t")
    assert claimed.event_id == new
    await accept_all(service)
    monkeypatch.setattr(recovery, "BACKLOG_MAX", 100)
    await execute(service, "UPDATE jobs SET turn_at = now()")
    await work(service)
    assert await ended(service, job) == ("done", 6, 6, {"redelivered": 6})


async def test_what_came_after_a_recovery_was_asked_for_is_not_looked_at(service: Service) -> None:
    endpoint = await create(service)
    [event] = await tell(service, "dep_1")
    await accept_all(service)
    job = await ask(service, f"endpoints/{endpoint}", since=SINCE, only="all")
    await tell(service, "dep_2")
    await accept_all(service)
    await work(service)
    assert await ended(service, job) == ("done", 1, 1, {"redelivered": 1})
    assert [row["event_id"] for row in await listed(service, state="pending")] == [event]


async def test_what_is_a_strangers_or_is_not_there_is_refused(service: Service) -> None:
    await create(service)
    entry = await make_deposit(service)
    event = (await service.ask("GET", f"/v1/deposits/{entry.id}/events")).json["data"][0]["id"]
    _, stranger = await service.make_tenant("other")
    foreign = (await service.ask("POST", "/v1/endpoints", {"url": "https://other.example/"}, key=stranger)).json["id"]
    for path, key in (
        (f"events/{event}", stranger),
        (f"deposits/{entry.id}", stranger),
        (f"withdrawals/{entry.id}", None),
        ("events/evt_none", None),
    ):
        answer = await service.ask("POST", f"/v1/{path}/recover", {}, key=key)
        assert (answer.status, answer.json["code"]) == (404, "not_found"), path
    for body, pointer in (({"endpoint": foreign}, "/endpoint"), ({"only": "some"}, "/only")):
        answer = await service.ask("POST", f"/v1/events/{event}/recover", body)
        assert (answer.status, answer.json["errors"][0]["pointer"]) == (422, pointer)
    async with transaction(service.owner) as connection:
        made = select(deliveries.c.id).where(deliveries.c.tenant_id.in_([OPS_TENANT, "other"]))
        assert (await connection.execute(made)).all() == []
    assert await recover_once(service.owner) is False


async def test_a_key_needs_the_scope(service: Service) -> None:
    [event] = await tell(service, "dep_1")
    answer = await service.ask("POST", f"/v1/events/{event}/recover", {}, key=await service.make_key("events:read"))
    assert (answer.status, answer.json["code"]) == (403, "missing_scope")
