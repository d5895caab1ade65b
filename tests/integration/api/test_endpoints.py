"""Endpoints, test events and their deliveries over a real database."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import select, text, update

from ledger.database import database_now, transaction
from ledger.endpoint_secrets import secret_place
from ledger.ids import EndpointId, TenantId
from ledger.schema import attempts, deliveries, endpoint_secrets, endpoints
from ledger.schema_access import audit_log
from ledger.secrets import SecretBox
from ledger.tally import Tally, add_up
from tests.integration.api.conftest import MASTER_KEY, Service

URL = "https://merchant.example/hooks?x=1"


async def create(service: Service, **body: object) -> Any:  # noqa: ANN401
    answer = await service.ask("POST", "/v1/endpoints", {"url": URL, **body})
    assert answer.status == 201, answer.json
    return answer.json


async def test_the_secret_is_shown_once_and_sealed_at_rest(service: Service) -> None:
    made = await create(service, description="orders", event_types=["deposit.*", "test.ping"])
    secret = made.pop("secret")
    assert secret.startswith("whsec_")
    assert made["state"] == "active"
    assert (made["health"]["status"], made["health"]["last_attempt_at"]) == ("unproven", None)
    assert (await service.ask("GET", f"/v1/endpoints/{made['id']}")).json == made
    [listed] = (await service.ask("GET", "/v1/endpoints")).json["data"]
    assert {**listed, "health": None} == {**made, "health": None}
    async with transaction(service.owner) as connection:
        row = (await connection.execute(select(endpoint_secrets))).one()
    assert secret.encode() not in row.sealed
    place = secret_place(service.tenant_id, EndpointId(made["id"]), row.id)
    assert SecretBox(MASTER_KEY).open(row.sealed, place).decode() == secret


async def test_an_endpoint_is_changed_in_the_parts_that_are_named(service: Service) -> None:
    made = await create(service, description="orders", event_types=["deposit.*"])
    path = f"/v1/endpoints/{made['id']}"
    changed = (await service.ask("PATCH", path, {"url": "https://b.example"})).json
    assert (changed["url"], changed["description"], changed["event_types"]) == (
        "https://b.example/",
        "orders",
        ["deposit.*"],
    )
    changed = (await service.ask("PATCH", path, {"event_types": None, "description": None})).json
    assert (changed["event_types"], changed["description"]) == (None, None)
    assert (await service.ask("PATCH", path, {})).json["url"] == "https://b.example/"
    assert (await service.ask("PATCH", path, {"url": None})).json["errors"][0]["pointer"] == "/url"


async def test_a_limit_is_set_changed_and_taken_away(service: Service) -> None:
    assert (await create(service))["max_per_s"] is None
    made = await create(service, url="https://limited.example/", max_per_s=10_000)
    path = f"/v1/endpoints/{made['id']}"
    assert made["max_per_s"] == 10_000
    assert (await service.ask("PATCH", path, {"max_per_s": 3})).json["max_per_s"] == 3
    assert (await service.ask("PATCH", path, {"description": "slow"})).json["max_per_s"] == 3
    assert (await service.ask("GET", path)).json["max_per_s"] == 3
    assert (await service.ask("PATCH", path, {"max_per_s": None})).json["max_per_s"] is None
    for bad in (0, 10_001, 2.5, "3"):
        answer = await service.ask("PATCH", path, {"max_per_s": bad})
        assert (answer.status, answer.json["errors"][0]["pointer"]) == (422, "/max_per_s"), bad


async def test_a_bad_url_or_type_gets_its_sentence(service: Service) -> None:
    made = await create(service)
    for method, path in (("POST", "/v1/endpoints"), ("PATCH", f"/v1/endpoints/{made['id']}")):
        for url, said in (
            ("http://169.254.169.254/latest", "metadata"),
            ("https://10.0.0.1/", "allow_private"),
            ("ftp://a.example/", "scheme"),
            ("https://user:pw@a.example/", "user name"),
            ("nonsense", "absolute"),
        ):
            answer = await service.ask(method, path, {"url": url})
            assert (answer.status, answer.json["errors"][0]["pointer"]) == (422, "/url"), url
            assert said in answer.json["errors"][0]["detail"]
        answer = await service.ask(method, path, {"url": URL, "event_types": ["deposit.*", "deposit.lost"]})
        assert answer.json["errors"][0]["pointer"] == "/event_types/1"
        assert "deposit.reorged" in answer.json["errors"][0]["detail"]
    assert (await service.ask("POST", "/v1/endpoints", {"url": URL, "event_types": []})).status == 422


async def test_a_test_event_goes_to_one_endpoint_whatever_its_filter(service: Service) -> None:
    made = await create(service, event_types=["withdrawal.*"])
    await create(service)
    answer = await service.ask("POST", f"/v1/endpoints/{made['id']}/test")
    assert answer.status == 200
    delivery = answer.json["delivery"]
    assert (delivery["endpoint_id"], delivery["state"], delivery["entry_id"]) == (made["id"], "pending", None)
    assert [row["id"] for row in (await service.ask("GET", "/v1/deliveries")).json["data"]] == [delivery["id"]]
    event = (await service.ask("GET", f"/v1/events/{answer.json['event_id']}")).json
    assert (event["type"], event["livemode"], event["data"]["object"]) == ("test.ping", False, "test")
    named = await service.ask("POST", f"/v1/endpoints/{made['id']}/test", {"event_type": "test.ping"})
    assert named.status == 200


async def test_a_test_event_of_a_paused_endpoint_is_held(service: Service) -> None:
    made = await create(service)
    async with transaction(service.owner) as connection:
        await connection.execute(update(endpoints).values(state="paused"))
    answer = await service.ask("POST", f"/v1/endpoints/{made['id']}/test")
    assert answer.json["delivery"]["state"] == "held"


async def test_deleting_an_endpoint_discards_what_it_is_owed_and_keeps_the_rest(service: Service) -> None:
    made = await create(service)
    path = f"/v1/endpoints/{made['id']}"
    delivery = (await service.ask("POST", f"{path}/test")).json["delivery"]
    async with transaction(service.owner) as connection:
        lease = {"lease_token": "t", "leased_until": datetime.now(UTC)}
        await connection.execute(update(deliveries).values(lease))
    assert (await service.ask("DELETE", path)).status == 204
    seen = (await service.ask("GET", f"/v1/deliveries/{delivery['id']}")).json
    assert seen["state"] == "discarded"
    assert seen["settled_at"] is not None
    for method in ("GET", "DELETE", "PATCH"):
        body: dict[str, object] | None = {} if method == "PATCH" else None
        assert (await service.ask(method, path, body)).status == 404
    assert (await service.ask("GET", "/v1/endpoints")).json["data"] == []
    async with transaction(service.owner) as connection:
        actions = await connection.execute(select(audit_log.c.action).order_by(audit_log.c.id))
        assert actions.scalars().all()[-3:] == ["endpoint.created", "endpoint.tested", "endpoint.deleted"]


async def test_deliveries_are_found_by_each_filter_and_page(service: Service) -> None:
    first, second = await create(service), await create(service)
    sent = [
        (await service.ask("POST", f"/v1/endpoints/{endpoint['id']}/test")).json["delivery"]
        for endpoint in (first, second, first)
    ]

    async def found(**query: object) -> list[str]:
        return [row["id"] for row in (await service.ask("GET", "/v1/deliveries", query=query)).json["data"]]

    assert await found() == [sent[2]["id"], sent[1]["id"], sent[0]["id"]]
    assert await found(endpoint=first["id"]) == [sent[2]["id"], sent[0]["id"]]
    assert await found(event=sent[1]["event_id"]) == [sent[1]["id"]]
    assert await found(state="held") == []
    page = (await service.ask("GET", "/v1/deliveries", query={"limit": 2})).json
    assert await found(cursor=page["next_cursor"]) == [sent[0]["id"]]


async def test_attempts_are_listed_by_number(service: Service) -> None:
    made = await create(service)
    delivery = (await service.ask("POST", f"/v1/endpoints/{made['id']}/test")).json["delivery"]
    now = datetime.now(UTC)
    async with transaction(service.owner) as connection:
        for place, number in enumerate((1, 2, 2, 3)):  # the first of number 2 was broken off by us
            row = {
                "tenant_id": service.tenant_id,
                "delivery_id": delivery["id"],
                "number": number,
                "started_at": now + timedelta(milliseconds=place),
                "duration_ms": 12,
                "status_code": 500,
                "outcome": "retryable",
                "response_excerpt": "oops",
            }
            await connection.execute(attempts.insert().values(row))
    path = f"/v1/deliveries/{delivery['id']}/attempts"
    first = (await service.ask("GET", path, query={"limit": 2})).json
    async with transaction(service.owner) as connection:  # as whole days leave
        await connection.execute(attempts.delete().where(attempts.c.number == 1))
    rest = (await service.ask("GET", path, query={"cursor": first["next_cursor"]})).json
    assert [row["number"] for row in first["data"] + rest["data"]] == [1, 2, 2, 3]
    assert first["data"][0]["status_code"] == 500
    assert rest["next_cursor"] is None


async def test_foreign_endpoints_and_deliveries_are_404(service: Service) -> None:
    made = await create(service)
    delivery = (await service.ask("POST", f"/v1/endpoints/{made['id']}/test")).json["delivery"]
    _, stranger = await service.make_tenant("other")
    for method, path in (
        ("GET", f"/v1/endpoints/{made['id']}"),
        ("PATCH", f"/v1/endpoints/{made['id']}"),
        ("DELETE", f"/v1/endpoints/{made['id']}"),
        ("POST", f"/v1/endpoints/{made['id']}/test"),
        ("GET", f"/v1/deliveries/{delivery['id']}"),
        ("GET", f"/v1/deliveries/{delivery['id']}/attempts"),
    ):
        answer = await service.ask(method, path, {} if method in ("PATCH", "POST") else None, key=stranger)
        assert (answer.status, answer.json["code"]) == (404, "not_found"), path
    assert (await service.ask("GET", "/v1/deliveries", key=stranger)).json["data"] == []
    assert (await service.ask("GET", f"/v1/endpoints/{made['id']}")).status == 200


async def test_an_endpoint_shows_how_its_deliveries_go(service: Service) -> None:
    """One by one with all of it; in a list with what its own row tells."""
    made = await create(service)
    await service.ask("POST", f"/v1/endpoints/{made['id']}/test", {})
    async with transaction(service.owner) as connection:
        statement = "UPDATE endpoints SET failures_consecutive = 3, failing_since = now(), last_failed_at = now()"
        await connection.execute(
            text(f"{statement}, last_status_code = 503, last_accepted_at = now() - interval '1 day'")
        )
        tally = Tally()
        key = (TenantId(service.tenant_id), EndpointId(made["id"]))
        tally.note(key, await database_now(connection), 900, is_accepted=False)
        await add_up(connection, tally.take())
    health = (await service.ask("GET", f"/v1/endpoints/{made['id']}")).json["health"]
    assert (health["status"], health["failures_consecutive"], health["last_status_code"]) == ("failing", 3, 503)
    assert health["deliveries"].pop("oldest_at") is not None
    assert health["deliveries"] == {"pending": 1, "held": 0, "exhausted": 0, "refused": 0, "faulted": 0}
    expected = {"attempts": 1, "accepted": 0, "accepted_share": 0.0, "p50_ms": 1000, "p95_ms": 1000}
    assert health["last_hour"] == health["last_day"] == expected
    assert (health["breaker"], health["rests_until"]) == ("closed", None)
    [listed] = (await service.ask("GET", "/v1/endpoints")).json["data"]
    assert listed["health"] == {**health, "deliveries": None, "last_hour": None, "last_day": None}


async def test_an_endpoint_that_rests_says_so_and_what_it_is_owed_is_held(service: Service) -> None:
    made = await create(service)
    await service.ask("POST", f"/v1/endpoints/{made['id']}/test", {})
    for interval, breaker in (("5 minutes", "open"), ("-1 second", "half_open")):
        async with transaction(service.owner) as connection:
            await connection.execute(text(f"UPDATE endpoints SET rests_until = now() + interval '{interval}'"))
        health = (await service.ask("GET", f"/v1/endpoints/{made['id']}")).json["health"]
        assert health["breaker"] == breaker
        assert health["rests_until"] is not None
        assert (health["deliveries"]["pending"], health["deliveries"]["held"]) == (0, 1)
        assert health["deliveries"]["oldest_at"] is not None
