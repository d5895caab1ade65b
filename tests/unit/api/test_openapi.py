"""The description is OpenAPI 3.1, agrees with its own examples, and leaves nothing out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from api.app import OPEN_ROUTES, ROUTES
from api.openapi import describe
from api.problems import KINDS, Code
from ledger.keys import SCOPES
from ledger.states import EVENT_TYPES

DOCUMENT = describe(ROUTES, OPEN_ROUTES, "1.2.3")
SCHEMAS = DOCUMENT["components"]["schemas"]
PROBLEMS = Path(__file__).parents[3] / "docs" / "problems.md"


def references(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        yield from ([value["$ref"]] if isinstance(value.get("$ref"), str) else [])
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def operations() -> Iterator[dict[str, Any]]:
    for path in DOCUMENT["paths"].values():
        yield from path.values()


def test_every_reference_leads_somewhere_and_every_schema_is_used() -> None:
    found = set(references(DOCUMENT))
    assert found == {f"#/components/schemas/{name}" for name in SCHEMAS}


def test_every_schema_is_a_valid_json_schema_of_2020_12() -> None:
    for name, schema in SCHEMAS.items():
        assert re.fullmatch(r"[A-Za-z0-9._-]+", name)
        jsonschema_rs.meta.validate({**schema, "$schema": "https://json-schema.org/draft/2020-12/schema"})


def test_every_route_is_described_once_with_its_scope() -> None:
    names = [operation["operationId"] for operation in operations()]
    assert len(names) == len(set(names)) == len(ROUTES) + len(OPEN_ROUTES)
    for route in ROUTES:
        operation = DOCUMENT["paths"][route.path][route.method.lower()]
        assert operation["security"] == [{"bearer": [scope]} for scope in route.scopes]
        assert set(route.scopes) <= set(SCOPES)
        assert all(f"`{scope}`" in operation["description"] for scope in route.scopes)
        assert operation["summary"]
        assert str(route.status) in operation["responses"]


def test_every_operation_says_that_a_head_may_be_refused() -> None:
    for operation in operations():
        assert {"400", "408", "431", "500", "503"} <= operation["responses"].keys()


def test_a_parameter_without_which_a_request_is_refused_is_described_as_required() -> None:
    required = {
        (operation["operationId"], parameter["name"])
        for operation in operations()
        for parameter in operation.get("parameters", [])
        if parameter["in"] == "query" and parameter["required"]
    }
    assert required == {("get_coverage", "chain")}


@pytest.mark.parametrize("event_type", EVENT_TYPES)
def test_each_event_type_has_a_schema_that_its_example_fits(event_type: str) -> None:
    content = DOCUMENT["webhooks"][event_type]["post"]["requestBody"]["content"]["application/json"]
    schema = {**content["schema"], "components": DOCUMENT["components"]}
    validator = jsonschema_rs.validator_for(schema)
    validator.validate(content["example"])
    assert not validator.is_valid({**content["example"], "type": "other.type"})
    assert not validator.is_valid({key: value for key, value in content["example"].items() if key != "data"})
    name = content["schema"]["$ref"].rpartition("/")[2]
    assert SCHEMAS["Event"]["discriminator"]["mapping"][event_type].endswith(name)


def test_every_problem_code_has_its_kind_and_its_section() -> None:
    assert list(KINDS) == list(Code)
    sections = re.findall(r"^## (\S+)$", PROBLEMS.read_text(), re.MULTILINE)
    assert sections == [code.value for code in Code]
    for code, kind in KINDS.items():
        assert f"| [`{code}`](#{code}) | {kind.status} | {kind.title} |" in PROBLEMS.read_text()


def test_every_problem_code_of_a_route_is_described() -> None:
    described = " ".join(
        answer["description"] for operation in operations() for answer in operation["responses"].values()
    )
    undescribed = {code for code in Code if f"`{code}`" not in described}
    assert undescribed == {Code.METHOD_NOT_ALLOWED}  # a path that is described has no such answer


def test_an_answer_links_to_what_takes_the_ids_that_it_shows() -> None:
    links = {
        (operation["operationId"], name): link["parameters"]["id"]
        for operation in operations()
        for response in operation["responses"].values()
        for name, link in response.get("links", {}).items()
    }
    assert (
        links["create_watches", "get_watch"] == links["list_my_watches", "remove_watch"] == "$response.body#/data/0/id"
    )
    assert links["create_my_endpoint", "send_test"] == "$response.body#/id"
    assert links["send_test", "get_delivery"] == "$response.body#/delivery/id"
    assert links["create_my_replay", "cancel_my_job"] == links["recover_my_endpoint", "get_job"] == "$response.body#/id"
    taking = {
        operation["operationId"]
        for path, methods in DOCUMENT["paths"].items()
        for operation in methods.values()
        if "{id}" in path
    }
    # An event is bytes: nothing shows it as an object.
    assert taking - {name for _, name in links} == {"get_event", "recover_event"}


def branches(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """A property's schema, or the alternatives of it that are not null."""
    return [one for one in schema.get("anyOf", [schema]) if one != {"type": "null"}]


def test_every_time_that_is_answered_is_described_as_one() -> None:
    times = re.compile(r"(?:(?<!credit)_at|_since|_until|^timestamp)$")
    found = [
        (name, part, one.get("format"))
        for name, schema in SCHEMAS.items()
        for part, described in schema.get("properties", {}).items()
        if times.search(part)
        for one in branches(described)
    ]
    assert len(found) > 30
    assert [row for row in found if row[2] != "date-time"] == []


@pytest.mark.parametrize(
    ("place", "word"),
    [
        (("DepositDocument", "state"), "reversed"),
        (("DepositDocument", "origin"), "catch_up"),
        (("WithdrawalDocument", "disposition"), "ignore"),
        (("ProofDocument", "level"), "agreed"),
        (("LocatorDocument", "kind"), "output"),
        (("FailureDocument", "code"), "reverted"),
        (("DeliveryDocument", "state"), "superseded"),
        (("DeliveryDocument", "fault"), "workers_died"),
        (("AttemptDocument", "error"), "refused_address"),
        (("AttemptDocument", "outcome"), "retryable"),
        (("JobDocument", "kind"), "recover"),
        (("EndpointDocument", "state"), "disabled"),
        (("WatchDocument", "status"), "exists"),
        (("ChainDocument", "state"), "catching_up"),
        (("ProblemDocument", "code"), "rate_limited"),
    ],
)
def test_words_of_a_fixed_set_are_listed(place: tuple[str, str], word: str) -> None:
    [described] = branches(SCHEMAS[place[0]]["properties"][place[1]])
    assert word in described["enum"]


def test_headers_that_a_client_acts_on_are_described() -> None:
    create = DOCUMENT["paths"]["/v1/endpoints"]["post"]["responses"]
    assert "Idempotent-Replayed" in create["201"]["headers"]
    assert "WWW-Authenticate" in create["401"]["headers"]
    for status in ("409", "429", "503"):
        assert "Retry-After" in create[status]["headers"]
    assert "Idempotent-Replayed" not in DOCUMENT["paths"]["/v1/endpoints"]["get"]["responses"]["200"]["headers"]


@pytest.mark.parametrize("name", ["DepositDocument", "WithdrawalDocument", "WatchDocument", "ProblemDocument"])
def test_an_example_of_an_answer_is_one(name: str) -> None:
    whole = {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}
    [example] = SCHEMAS[name]["examples"]
    jsonschema_rs.validator_for(whole).validate(example)
