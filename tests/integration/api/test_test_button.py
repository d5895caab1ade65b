"""The test button: any event, as the real one is, on the way of the real one, and to one endpoint alone."""

from __future__ import annotations

from typing import Any

import jsonschema_rs
from sqlalchemy import func, text, update

from api.app import OPEN_ROUTES, ROUTES
from api.openapi import describe
from api.webhooks import example_of
from ledger.claims import EndpointRoom, claim_due_deliveries
from ledger.database import transaction
from ledger.ids import EndpointId
from ledger.schema import deliveries, endpoints
from ledger.secrets import SecretBox
from ledger.states import EVENT_TYPES
from notifier.recovery import recover_once
from tests.fakes.receiver import answer, running_receiver
from tests.integration.api.conftest import MASTER_KEY, Service
from tests.integration.notifier.conftest import Post

DOCUMENT = describe(ROUTES, OPEN_ROUTES, "1.2.3")


async def create(service: Service, **body: object) -> Any:  # noqa: ANN401
    answered = await service.ask("POST", "/v1/endpoints", {"url": "https://merchant.example/", **body})
    assert answered.status == 201, answered.json
    return answered.json


async def press(service: Service, endpoint: EndpointId, event_type: str) -> Any:  # noqa: ANN401
    """The event that a test made."""
    answered = await service.ask("POST", f"/v1/endpoints/{endpoint}/test", {"event_type": event_type})
    assert answered.status == 200, answered.json
    assert answered.json["delivery"]["event_type"] == event_type
    return (await service.ask("GET", f"/v1/events/{answered.json['event_id']}")).json


async def test_at_an_endpoint_that_rests_what_a_person_asked_for_is_what_it_is_asked_by(service: Service) -> None:
    """A test, and after it a redelivery: each goes before all that has been due for long, as the one probe."""
    made = await create(service)
    await press(service, made["id"], "test.ping")
    overdue = update(deliveries).values(due_at=func.now() - text("interval '1 hour'"))
    rest = update(endpoints).values(rests_until=func.now() + text("interval '1 hour'"), rests=3)
    async with transaction(service.owner) as connection:
        await connection.execute(overdue)
        await connection.execute(rest)
    pressed = await press(service, made["id"], "deposit.confirmed")
    rooms = [EndpointRoom(service.tenant_id, made["id"], 5)]
    async with transaction(service.owner) as connection:
        [probe] = await claim_due_deliveries(connection, rooms, lease_s=60.0, token="worker")
        assert probe.event_id == pressed["id"]
        await connection.execute(update(deliveries).values(lease_token=None, leased_until=None))
        await connection.execute(rest)
    [first] = [row for row in (await service.ask("GET", "/v1/deliveries")).json["data"] if row["id"] != probe.id]
    async with transaction(service.owner) as connection:
        await connection.execute(
            update(deliveries).where(deliveries.c.id == first["id"]).values(state="exhausted", settled_at=func.now())
        )
    again = await service.ask("POST", f"/v1/deliveries/{first['id']}/redeliver")
    async with transaction(service.owner) as connection:
        [probe] = await claim_due_deliveries(connection, rooms, lease_s=60.0, token="worker")
    assert probe.id == again.json["id"]


def schema_of(event_type: str) -> Any:  # noqa: ANN401
    content = DOCUMENT["webhooks"][event_type]["post"]["requestBody"]["content"]["application/json"]
    return {**content["schema"], "components": DOCUMENT["components"]}


def shape_of(value: object) -> object:
    """A document's fields, whatever they hold; what is null or free-form has no shape."""
    if isinstance(value, dict):
        return {name: shape_of(item) for name, item in value.items() if name != "metadata"}
    return type(value)


async def test_every_type_can_be_sent_and_is_the_real_one_but_for_livemode(service: Service) -> None:
    endpoint = (await create(service))["id"]
    subjects = set()
    for event_type in EVENT_TYPES:
        event, published = await press(service, endpoint, event_type), example_of(event_type)
        jsonschema_rs.validator_for(schema_of(event_type)).validate(event)
        assert shape_of(event) == shape_of(published), event_type
        for field in ("type", "api_version", "sequence", "previous_state"):
            assert event[field] == published[field], (event_type, field)
        assert event["livemode"] is False
        if event_type.startswith(("deposit.", "withdrawal.")):
            assert event["data"]["livemode"] is False
            assert event["data"]["updated_at"] == event["timestamp"]
            assert event["data"]["watch"]["reference"] == "chainbell-test"
            subjects.add(event["data"]["id"])
        elif event_type.startswith("endpoint."):
            assert event["data"]["id"] == endpoint
    entries = sum(event_type.startswith(("deposit.", "withdrawal.")) for event_type in EVENT_TYPES)
    assert len(subjects) == entries


async def test_a_type_that_there_is_not_gets_the_ones_that_there_are(service: Service) -> None:
    endpoint = (await create(service))["id"]
    for wrong in ("deposit.lost", "deposit.*", "*", ""):
        refused = await service.ask("POST", f"/v1/endpoints/{endpoint}/test", {"event_type": wrong})
        assert (refused.status, refused.json["errors"][0]["pointer"]) == (422, "/event_type")
        assert all(event_type in refused.json["detail"] for event_type in EVENT_TYPES)
    assert (await service.ask("GET", "/v1/events")).json["data"] == []


async def test_a_test_goes_the_way_of_a_real_event_and_none_waits_for_another(
    service: Service, database_url: str
) -> None:
    post = Post(service.owner, database_url, SecretBox(MASTER_KEY))
    async with running_receiver() as receiver:
        made = await create(service, url=receiver.url, event_types=["withdrawal.*"])
        receiver.secrets.append(made["secret"])
        failed = await press(service, made["id"], "deposit.reversed")
        receiver.script_event(failed["id"], answer(500, b"no"))
        taken = await press(service, made["id"], "deposit.reversed")
        async with post.dispatching():
            await post.wait_for_attempts(failed["id"], 1)
            await post.wait_for_attempts(taken["id"], 1)
        assert all(request.is_signed for request in receiver.requests)
        [request] = receiver.of_event(taken["id"])
        assert request.body == (await service.ask("GET", f"/v1/events/{taken['id']}")).content
    states = {}
    for row in (await service.ask("GET", "/v1/deliveries")).json["data"]:
        states[row["event_id"]] = row["state"]
        [attempt] = (await service.ask("GET", f"/v1/deliveries/{row['id']}/attempts")).json["data"]
        assert attempt["status_code"] == (500 if row["event_id"] == failed["id"] else 204)
    assert states == {failed["id"]: "pending", taken["id"]: "delivered"}


async def test_recovering_brings_no_endpoint_the_tests_of_another(service: Service) -> None:
    tested, other = (await create(service))["id"], (await create(service))["id"]
    for event_type in ("deposit.reversed", "test.ping", "endpoint.paused"):
        await press(service, tested, event_type)
    for only in ("missing", "all"):
        asked = {"since": "2026-01-01T00:00:00Z", "only": only}
        job = (await service.ask("POST", f"/v1/endpoints/{other}/recover", asked)).json["id"]
        while (await service.ask("GET", f"/v1/jobs/{job}")).json["state"] in ("queued", "running"):
            await recover_once(service.owner)
    owed = (await service.ask("GET", "/v1/deliveries", query={"endpoint": other})).json["data"]
    assert owed == []
