"""Pausing, resuming, redelivering and recovering over the API, with the notifier's worker doing its batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from sqlalchemy import select

from ledger import deleting, holding, releasing
from ledger.database import transaction
from ledger.ids import OPS_TENANT
from ledger.schema import deliveries, events
from ledger.schema_access import audit_log
from notifier.recovery import recover_once
from tests.fakes.claiming import claim_any
from tests.integration.api.conftest import Service
from tests.integration.api.telling import create, execute, listed, set_batch, states, tell, work

SINCE = "2026-01-01T00:00:00Z"


async def told_to_ops(service: Service) -> list[str]:
    async with transaction(service.owner) as connection:
        rows = await connection.execute(select(events.c.type).where(events.c.tenant_id == OPS_TENANT))
        return list(rows.scalars())


async def test_a_pause_holds_what_is_pending_and_what_comes(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    set_batch(monkeypatch, 2)
    endpoint = await create(service)
    await tell(service, *(f"dep_{number}" for number in range(5)))
    answer = await service.ask("POST", f"/v1/endpoints/{endpoint}/pause", {"reason": "moving"})
    assert (answer.status, answer.json["state"], answer.json["state_reason"]) == (200, "paused", "moving")
    await tell(service, "dep_9")
    await work(service)
    assert await states(service) == {"held": 6}
    assert {row["attempts"] for row in await listed(service, state="held")} == {0}
    [job] = (await service.ask("GET", "/v1/jobs", query={"kind": "recover"})).json["data"]
    assert (job["request"]["task"], job["state"], job["result"]) == ("hold", "done", {"held": 5})
    assert (job["done"], job["total"]) == (5, 5)
    again = await service.ask("POST", f"/v1/endpoints/{endpoint}/pause", {"reason": "other"})
    assert again.json["state_reason"] == "moving"
    assert await told_to_ops(service) == ["endpoint.paused"]
    async with transaction(service.owner) as connection:
        lines = select(audit_log.c.action).where(audit_log.c.subject == endpoint)
        assert list((await connection.execute(lines)).scalars()).count("endpoint.paused") == 1


async def test_what_is_in_flight_at_a_pause_is_held_only_when_it_comes_back(service: Service) -> None:
    endpoint = await create(service)
    await tell(service, "dep_1", "dep_2")
    async with transaction(service.owner) as connection:
        [claimed] = await claim_any(connection, 1, lease_s=600, token="t")
    await service.ask("POST", f"/v1/endpoints/{endpoint}/pause", {})
    for _ in range(5):
        await recover_once(service.owner)
    assert await states(service) == {"held": 1, "pending": 1}
    assert [row["id"] for row in await listed(service, state="pending")] == [claimed.id]
    await execute(service, "UPDATE deliveries SET lease_token = NULL, leased_until = NULL")
    await execute(service, "UPDATE jobs SET turn_at = now()")
    await work(service)
    assert await states(service) == {"held": 2}


async def in_feed_order(service: Service, subject: str) -> list[str]:
    """The deliveries of a subject by the order of their events. Ids of one millisecond are in no order."""
    statement = select(deliveries.c.id).where(deliveries.c.subject == subject).order_by(deliveries.c.feed_position)
    async with transaction(service.owner) as connection:
        return list((await connection.execute(statement)).scalars())


@pytest.mark.parametrize(
    ("held", "expected", "result"),
    [
        ("all", {"pending": 4, "exhausted": 1}, {"sent": 4}),
        ("latest", {"pending": 2, "superseded": 1, "exhausted": 1}, {"sent": 2, "superseded": 1}),
        ("discard", {"discarded": 3, "exhausted": 1}, {"discarded": 3}),
    ],
)
async def test_a_resumption_does_with_what_was_held_what_is_asked(
    service: Service,
    monkeypatch: pytest.MonkeyPatch,
    held: str,
    expected: dict[str, int],
    result: dict[str, int],
) -> None:
    set_batch(monkeypatch, 2)
    endpoint = await create(service)
    await tell(service, "dep_0")
    await execute(service, "UPDATE deliveries SET state = 'exhausted', settled_at = now(), attempts = 13")
    await tell(service, "dep_1", "dep_2", "dep_1")
    await service.ask("POST", f"/v1/endpoints/{endpoint}/pause", {})
    await work(service)
    answer = await service.ask("POST", f"/v1/endpoints/{endpoint}/resume", {"held": held})
    assert (answer.status, answer.json["state"], answer.json["state_reason"]) == (200, "active", None)
    path, total = f"/v1/jobs/{answer.json['job_id']}", sum(result.values())
    await recover_once(service.owner)
    begun = (await service.ask("GET", path)).json
    assert (begun["done"], begun["total"], sum(begun["result"].values())) == (2, total, 2)
    await work(service)
    assert await states(service) == expected
    job = (await service.ask("GET", path)).json
    assert (job["kind"], job["state"], job["done"], job["total"]) == ("recover", "done", total, total)
    assert job["result"] == result
    assert await told_to_ops(service) == ["endpoint.paused", "endpoint.resumed"]
    if held == "latest":
        superseded, *_ = await listed(service, state="superseded")
        (newer,) = await listed(service, entry="dep_1", state="pending")
        assert superseded["entry_id"] == "dep_1"
        assert await in_feed_order(service, "dep_1") == [superseded["id"], newer["id"]]
    again = await service.ask("POST", f"/v1/endpoints/{endpoint}/resume", {"held": held})
    assert again.json["job_id"] is None


async def test_a_redelivery_is_a_delivery_of_its_own_that_waits_for_no_other(service: Service) -> None:
    await create(service)
    await tell(service, "dep_1", "dep_1")
    first, _ = await in_feed_order(service, "dep_1")
    old = {row["id"]: row for row in await listed(service)}[first]
    await execute(service, f"UPDATE deliveries SET state = 'delivered', settled_at = now() WHERE id = '{first}'")
    headers = {"Idempotency-Key": "once"}
    path = f"/v1/deliveries/{first}/redeliver"
    answers = [await service.ask("POST", path, {}, headers=headers) for _ in range(2)]
    assert answers[0].status == 200
    assert answers[0].json == answers[1].json
    made = answers[0].json
    assert (made["event_id"], made["state"], made["attempts"]) == (old["event_id"], "pending", 0)
    assert await states(service) == {"pending": 2, "delivered": 1}
    async with transaction(service.owner) as connection:
        claimed = await claim_any(connection, 10, lease_s=60, token="t")
    assert [delivery.id for delivery in claimed] == [made["id"]]
    body = (await service.ask("GET", f"/v1/events/{made['event_id']}")).content
    assert claimed[0].body == body


@pytest.mark.parametrize(
    ("only", "redelivered"),
    [("failed", {"dep_1"}), ("missing", {"dep_0"}), ("all", {"dep_0", "dep_1", "dep_2"})],
)
async def test_a_recovery_delivers_what_is_asked_for_once(
    service: Service, monkeypatch: pytest.MonkeyPatch, only: str, redelivered: set[str]
) -> None:
    set_batch(monkeypatch, 2)
    await tell(service, "dep_0")
    endpoint = await create(service)
    await tell(service, "dep_1", "dep_2", "dep_3")
    settled = "settled_at = now() WHERE subject"
    await execute(service, f"UPDATE deliveries SET state = 'exhausted', {settled} = 'dep_1'")
    await execute(service, f"UPDATE deliveries SET state = 'delivered', {settled} = 'dep_2'")
    before = {row["id"] for row in await listed(service)}
    answer = await service.ask("POST", f"/v1/endpoints/{endpoint}/recover", {"since": SINCE, "only": only})
    assert (answer.status, answer.json["state"]) == (202, "queued")
    await work(service)
    made = [row for row in await listed(service) if row["id"] not in before]
    assert {row["entry_id"] for row in made} == redelivered
    job = (await service.ask("GET", f"/v1/jobs/{answer.json['id']}")).json
    assert (job["state"], job["done"], job["total"]) == ("done", 4, 4)
    assert job["result"] == {"redelivered": len(redelivered)}
    repeated = await service.ask("POST", f"/v1/endpoints/{endpoint}/recover", {"since": SINCE, "only": only})
    await work(service)
    job = (await service.ask("GET", f"/v1/jobs/{repeated.json['id']}")).json
    assert job["result"]["redelivered"] == 0


async def test_of_more_than_are_counted_the_total_is_known_in_the_end(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_batch(monkeypatch, 2)
    monkeypatch.setattr(releasing, "COUNTED_MAX", 2)
    endpoint = await create(service)
    await tell(service, "dep_1", "dep_2", "dep_3")
    await service.ask("POST", f"/v1/endpoints/{endpoint}/pause", {})
    await recover_once(service.owner)
    seen = [(await service.ask("GET", "/v1/jobs")).json["data"][0]]
    await work(service)
    seen += (await service.ask("GET", "/v1/jobs")).json["data"]
    assert [(job["state"], job["done"], job["total"]) for job in seen] == [("running", 2, None), ("done", 3, 3)]


async def test_a_cancelled_recovery_does_nothing_more(service: Service) -> None:
    await tell(service, "dep_0")
    endpoint = await create(service)
    asked = {"since": SINCE, "only": "missing"}
    job_id = (await service.ask("POST", f"/v1/endpoints/{endpoint}/recover", asked)).json["id"]
    assert (await service.ask("POST", f"/v1/jobs/{job_id}/cancel")).json["state"] == "cancelled"
    await work(service)
    assert await listed(service) == []


@pytest.mark.parametrize(
    ("held", "expected"), [("discard", {"discarded": 2, "pending": 1}), ("latest", {"superseded": 1, "pending": 2})]
)
async def test_a_resumption_just_after_the_pause_finds_held_what_is_not_under_way(
    service: Service, held: str, expected: dict[str, int]
) -> None:
    endpoint = await create(service)
    await tell(service, "dep_0", "dep_1", "dep_1")
    lease = "lease_token = 't', leased_until = now() + interval '1 hour'"
    await execute(service, f"UPDATE deliveries SET {lease} WHERE subject = 'dep_0'")
    await service.ask("POST", f"/v1/endpoints/{endpoint}/pause", {})
    await service.ask("POST", f"/v1/endpoints/{endpoint}/resume", {"held": held})
    await work(service)
    assert await states(service) == expected
    assert [row["state"] for row in await listed(service, entry="dep_0")] == ["pending"]


async def test_a_resumption_waits_for_a_pause_that_has_much_to_hold(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holding, "HELD_AT_ONCE_MAX", 2)
    endpoint = await create(service)
    await tell(service, "dep_0", "dep_1")
    path = f"/v1/endpoints/{endpoint}/resume"
    await service.ask("POST", f"/v1/endpoints/{endpoint}/pause", {})
    refused = await service.ask("POST", path, {"held": "discard"})
    assert (refused.status, refused.json["code"], refused.headers["Retry-After"]) == (409, "hold_unfinished", "1")
    assert (await service.ask("GET", f"/v1/endpoints/{endpoint}")).json["state"] == "paused"
    await work(service)
    assert await states(service) == {"held": 2}
    assert (await service.ask("POST", path, {"held": "discard"})).status == 200
    await work(service)
    assert await states(service) == {"discarded": 2}


@pytest.mark.parametrize("task", ["hold", "release", "discard"])
async def test_what_a_pause_a_resumption_or_a_deletion_left_to_do_is_not_cancelled(
    service: Service, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    monkeypatch.setattr(deleting, "BATCH", 1)
    endpoint = await create(service)
    await tell(service, "dep_0", "dep_1", "dep_1")
    await service.ask("POST", f"/v1/endpoints/{endpoint}/pause", {})
    if task == "release":
        await work(service)
        await service.ask("POST", f"/v1/endpoints/{endpoint}/resume", {})
    if task == "discard":
        await service.ask("DELETE", f"/v1/endpoints/{endpoint}")
    jobs = (await service.ask("GET", "/v1/jobs", query={"state": "queued"})).json["data"]
    assert [job["request"]["task"] for job in jobs] == [task]
    refused = await service.ask("POST", f"/v1/jobs/{jobs[0]['id']}/cancel")
    assert (refused.status, refused.json["code"]) == (409, "job_needed")
    await work(service)
    assert await states(service) == {{"hold": "held", "release": "pending", "discard": "discarded"}[task]: 3}
    ended = await service.ask("POST", f"/v1/jobs/{jobs[0]['id']}/cancel")
    assert ended.json["code"] == "job_ended"


@pytest.mark.parametrize(
    ("path", "body", "pointer"),
    [
        ("resume", {"held": "some"}, "/held"),
        ("pause", {"reason": ""}, "/reason"),
        ("recover", {}, "/since"),
        ("recover", {"since": "2026-11-01T00:00:00"}, "/since"),
        ("recover", {"since": SINCE, "until": "2025-11-01T00:00:00Z"}, "/since"),
        ("recover", {"since": SINCE, "only": "some"}, "/only"),
        ("recover", {"since": "0001-01-01T00:00:00+14:00"}, "/since"),
        ("recover", {"since": SINCE, "until": "9999-12-31T23:59:59-14:00"}, "/until"),
    ],
)
async def test_bad_input_is_named(service: Service, path: str, body: dict[str, Any], pointer: str) -> None:
    endpoint = await create(service)
    answer = await service.ask("POST", f"/v1/endpoints/{endpoint}/{path}", body)
    assert answer.status == 422
    assert answer.json["errors"][0]["pointer"] == pointer


async def test_a_strangers_endpoints_and_deliveries_are_404(service: Service) -> None:
    endpoint = await create(service)
    await tell(service, "dep_1")
    [delivery] = await listed(service)
    _, stranger = await service.make_tenant("other")
    for path, body in (
        (f"/v1/endpoints/{endpoint}/pause", {}),
        (f"/v1/endpoints/{endpoint}/resume", {"held": "all"}),
        (f"/v1/endpoints/{endpoint}/recover", {"since": SINCE}),
        (f"/v1/deliveries/{delivery['id']}/redeliver", {}),
    ):
        answer = await service.ask("POST", path, body, key=stranger)
        assert (answer.status, answer.json["code"]) == (404, "not_found"), path
    assert await states(service) == {"pending": 1}


async def test_a_body_that_says_nothing_that_is_understood_is_refused_and_nothing_is_sent(service: Service) -> None:
    endpoint = await create(service)
    await tell(service, "dep_1")
    [delivery] = await listed(service)
    job = (await service.ask("POST", f"/v1/endpoints/{endpoint}/recover", {"since": SINCE})).json["id"]
    for path in (f"/v1/deliveries/{delivery['id']}/redeliver", f"/v1/jobs/{job}/cancel"):
        for body, status, code in (
            (b'{"nope":1}', 422, "invalid_request"),
            (b"[1]", 422, "invalid_request"),
            (b"garbage", 400, "invalid_json"),
        ):
            answer = await service.ask("POST", path, body)
            assert (answer.status, answer.json["code"]) == (status, code), (path, body)
        for nothing in (b"{}", None):
            assert (await service.ask("POST", path, nothing)).status == 200
    assert len(await listed(service)) == 1


async def test_a_filter_by_what_is_no_id_is_refused_and_by_what_is_another_tenants_is_empty(service: Service) -> None:
    endpoint, other = await create(service), await create(service, event_types=["withdrawal.*"])
    [event] = await tell(service, "dep_1")
    _, stranger = await service.make_tenant("stranger")
    assert len(await listed(service, endpoint=endpoint, event=event)) == 1
    query: Mapping[str, str]
    for query in ({"endpoint": other}, {"event": event, "state": "delivered"}, {"endpoint": endpoint, "state": "held"}):
        assert (await service.ask("GET", "/v1/deliveries", query=query)).json["data"] == []
    for name, query in (
        ("endpoint", {"endpoint": "nope"}),
        ("endpoint", {"endpoint": event}),
        ("event", {"event": endpoint, "endpoint": endpoint}),
        ("entry", {"entry": "tst_1"}),
    ):
        answer = await service.ask("GET", "/v1/deliveries", query=query)
        assert (answer.status, answer.json["errors"][0]["pointer"]) == (422, f"/{name}")
    for query in ({"endpoint": endpoint}, {"event": event}, {"entry": "dep_1"}):
        answer = await service.ask("GET", "/v1/deliveries", query=query, key=stranger)
        assert (answer.status, answer.json["data"]) == (200, [])
