"""The API's description (OpenAPI 3.1), read off the same declarations that answer requests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from api.links import add_links
from api.problems import KINDS, MEDIA_TYPE, Code, ProblemDocument, invalid, problem_document
from api.routes import OpenRoute, Route
from api.samples import PUBLISHED, sample_data
from api.webhooks import data_type_of, event_name_of, example_of
from ledger.documents import API_VERSION, EventDocument
from ledger.states import EVENT_TYPES

Json = dict[str, Any]

_REF = "#/components/schemas/"
_OF_ANY_HEAD = (
    Code.BAD_REQUEST,
    Code.REQUEST_TIMEOUT,
    Code.HEADERS_TOO_LARGE,
    Code.INTERNAL,
    Code.UNAVAILABLE,
)
"""What is answered before it is known what was asked for, or where nothing can be."""
_EVERYWHERE = (
    *_OF_ANY_HEAD,
    Code.MISSING_KEY,
    Code.MALFORMED_KEY,
    Code.INVALID_KEY,
    Code.MISSING_SCOPE,
    Code.WRONG_ADDRESS,
    Code.INVALID_REQUEST,
    Code.RATE_LIMITED,
)
_WITH_CURSOR = (Code.INVALID_CURSOR,)
_WITH_ID = (Code.NOT_FOUND,)
_WITH_BODY = (Code.INVALID_JSON, Code.BODY_TOO_LARGE, Code.UNSUPPORTED_MEDIA_TYPE)
_WITH_IDEMPOTENCY = (Code.INVALID_IDEMPOTENCY_KEY, Code.IDEMPOTENCY_IN_PROGRESS, Code.IDEMPOTENCY_MISMATCH)

_DESCRIPTION = """\
Chainbell tells a business that money has landed on a blockchain. Watch addresses, receive signed webhooks, read the
event feed, and ask how a deposit stands. Amounts are strings, times are RFC 3339 in UTC, addresses and hashes are
lower-case 0x hex. Decide by ids, states and codes, never by texts."""


def describe(routes: Sequence[Route], open_routes: Sequence[OpenRoute], version: str) -> Json:
    """The whole document."""
    schemas = _components(routes, open_routes)
    paths: dict[str, Json] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    for open_route in open_routes:
        paths.setdefault(open_route.path, {})[open_route.method.lower()] = _open_operation(open_route)
    for name in {_name_of(route.query) for route in routes if route.query is not type(None)}:
        del schemas[name]
    add_links(paths, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Chainbell", "version": version, "description": _DESCRIPTION},
        "servers": [{"url": "/"}],
        "paths": paths,
        "webhooks": {event_type: _webhook(event_type) for event_type in EVENT_TYPES},
        "components": {
            "schemas": dict(sorted(schemas.items())),
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "cb_live_<id>_<secret>",
                    "description": "A key made with `chainbell keys create`; its scopes say what it may do.",
                }
            },
        },
    }


def _components(routes: Sequence[Route], open_routes: Sequence[OpenRoute]) -> dict[str, Json]:
    types: list[Any] = [ProblemDocument, *(route.answer for route in open_routes if route.answer is not None)]
    for route in routes:
        types.extend(t for t in (route.query, route.body, route.answer) if t is not type(None))
    schemas = _schemas_of(types)
    for event_type in EVENT_TYPES:
        schemas.update(_event_schemas(event_type))
    names = [event_name_of(event_type) for event_type in EVENT_TYPES]
    for name, example in _examples().items():
        schemas[name]["examples"] = [example]
    schemas["Event"] = {
        "description": "Any event; `type` says which.",
        "oneOf": [{"$ref": _REF + name} for name in names],
        "discriminator": {
            "propertyName": "type",
            "mapping": {t: _REF + name for t, name in zip(EVENT_TYPES, names, strict=True)},
        },
    }
    return schemas


def _examples() -> dict[str, Any]:
    """An example of what is asked for most: the samples that webhooks' examples are, and a problem as it is made."""
    refused = invalid("/watches/17/address", "an address is 0x and 40 hexadecimal digits")
    types = ("deposit.confirmed", "withdrawal.confirmed", "watch.activated")
    documents = [problem_document(refused, "req_5f2d0c9ab1e84c3796d0a1b2"), *(sample_data(t, PUBLISHED) for t in types)]
    return {type(one).__name__: msgspec.to_builtins(one) for one in documents}


def _schemas_of(types: Iterable[Any]) -> dict[str, Json]:
    _, schemas = msgspec.json.schema_components(types, ref_template=_REF + "{name}")
    for schema in schemas.values():
        if "description" in schema:  # a docstring, with the indentation of its source
            schema["description"] = " ".join(schema["description"].split())
        tag = schema.get("properties", {}).get("object", {})
        if (
            "enum" in tag
        ):  # a tag is optional to msgspec's reader; in what we write it is always there, and always the same
            (schema["properties"]["object"],) = [{"const": value} for value in tag["enum"]]
            schema["required"] = sorted({"object", *schema.get("required", [])})
    return schemas


def _event_schemas(event_type: str) -> dict[str, Json]:
    """The event's own schema, with its type fixed, and those of its data."""
    document: Any = EventDocument
    generic = document[data_type_of(event_type)]
    schemas = _schemas_of([generic])
    event = schemas.pop(_name_of(generic))
    properties = {**event["properties"], "type": {"const": event_type}, "api_version": {"const": API_VERSION}}
    required = [*event["required"], "api_version"]
    title = event_name_of(event_type)
    return {**schemas, title: {**event, "title": title, "properties": properties, "required": required}}


def _name_of(type_: Any) -> str:  # noqa: ANN401
    (reference,), _ = msgspec.json.schema_components([type_], ref_template="{name}")
    return str(reference["$ref"])


def _schema_of(type_: Any) -> Json:  # noqa: ANN401
    (schema,), _ = msgspec.json.schema_components([type_], ref_template=_REF + "{name}")
    return schema


def _operation(route: Route, schemas: dict[str, Json]) -> Json:
    summary, _, description = route.description.partition("\n\n")
    operation: Json = {
        "operationId": route.name,
        "summary": summary,
        "description": " ".join(description.split()) + _access(route),
        "tags": [route.path.split("/")[2]],
        "security": [{"bearer": [scope]} for scope in route.scopes],
        "parameters": [*_path_parameters(route), *_query_parameters(route, schemas), *_header_parameters(route)],
        "responses": {**_success(route), **_problems(_codes_of(route))},
    }
    if route.body is not type(None):
        is_required = "required" in schemas[_name_of(route.body)] and bool(schemas[_name_of(route.body)]["required"])
        content = {"application/json": {"schema": _schema_of(route.body)}}
        operation["requestBody"] = {"required": is_required, "content": content}
    return operation


def _access(route: Route) -> str:
    scopes = " or ".join(f"`{scope}`" for scope in route.scopes)
    return f" Scope: {scopes}, in a key of the operator." if route.is_operators else f" Scope: {scopes}."


_PATH_PARAMETERS: Mapping[str, Json] = {
    "id": {
        "description": "As an answer or an event gave it",
        "schema": {"type": "string", "pattern": "^[0-9A-Za-z_]+$"},
    },
    "chain": {
        "description": "A chain's slug, or its CAIP-2 name",
        "schema": {"type": "string", "pattern": "^[0-9A-Za-z_:-]+$"},
    },
}


def _path_parameters(route: Route) -> list[Json]:
    return [
        {"name": name, "in": "path", "required": True, **described}
        for name, described in _PATH_PARAMETERS.items()
        if f"{{{name}}}" in route.path
    ]


def _query_parameters(route: Route, schemas: dict[str, Json]) -> list[Json]:
    if route.query is type(None):
        return []
    parameters = []
    query = schemas[_name_of(route.query)]
    for name, schema in query["properties"].items():
        shown = _without_null(schema)
        description = shown.pop("description", None)
        parameter = {"name": name, "in": "query", "required": name in query.get("required", ()), "schema": shown}
        parameters.append({**parameter, "description": description} if description else parameter)
    return parameters


def _without_null(schema: Json) -> Json:
    """A parameter is given or left out: there is no null in a query."""
    shown = {key: value for key, value in schema.items() if not (key == "default" and value is None)}
    choices = [choice for choice in shown.pop("anyOf", []) if choice != {"type": "null"}]
    return {**choices[0], **shown} if len(choices) == 1 else shown


def _header_parameters(route: Route) -> list[Json]:
    if route.method != "POST":
        return []
    described = "Any name of yours for this request: sent again with it, it has no second effect for 24 hours."
    schema = {"type": "string", "pattern": "^[\\x21-\\x7e]+$", "maxLength": 255}
    return [{"name": "Idempotency-Key", "in": "header", "required": False, "description": described, "schema": schema}]


def _success(route: Route) -> Json:
    if route.answer is type(None):
        return {str(route.status): {"description": "Done"}}
    return {
        str(route.status): {
            "description": "The answer",
            "headers": {**_REQUEST_ID, **(_REPLAYED if route.method == "POST" else {})},
            "content": {"application/json": {"schema": _schema_of(route.answer)}},
        }
    }


def _header(description: str, schema: Json) -> Json:
    return {"description": description, "schema": schema}


_RETRY_AFTER = {"Retry-After": _header("Seconds to wait before the next try", {"type": "integer", "minimum": 1})}
_CHALLENGE = {"WWW-Authenticate": _header("The scheme of the key: Bearer", {"type": "string"})}
_HEADERS_OF: Mapping[int, Json] = {401: _CHALLENGE, 429: _RETRY_AFTER, 503: _RETRY_AFTER}
"""What a refusal of that status tells in headers."""

_REPLAYED = {
    "Idempotent-Replayed": _header(
        "There, and true, where this is the stored answer to an earlier request with the same Idempotency-Key",
        {"const": "true"},
    )
}
_REQUEST_ID = {"X-Request-Id": {"description": "Name it when you ask for help", "schema": {"type": "string"}}}


def _codes_of(route: Route) -> list[Code]:
    codes = [*_EVERYWHERE, *route.problems]
    if "cursor" in getattr(route.query, "__struct_fields__", ()):
        codes += _WITH_CURSOR
    if "{" in route.path:
        codes += _WITH_ID
    if route.body is not type(None):
        codes += _WITH_BODY
    if route.method == "POST":
        codes += _WITH_IDEMPOTENCY
    return codes


def _problems(codes: Iterable[Code]) -> Json:
    by_status: dict[int, list[Code]] = {}
    for code in codes:
        by_status.setdefault(KINDS[code].status, []).append(code)
    return {
        str(status): {
            "description": "; ".join(f"`{code}`: {KINDS[code].title}" for code in found),
            "headers": {**_REQUEST_ID, **_headers_of(status, found)},
            "content": {MEDIA_TYPE: {"schema": {"$ref": _REF + "ProblemDocument"}}},
        }
        for status, found in sorted(by_status.items())
    }


def _headers_of(status: int, codes: Sequence[Code]) -> Json:
    return _RETRY_AFTER if Code.IDEMPOTENCY_IN_PROGRESS in codes else _HEADERS_OF.get(status, {})


def _open_operation(route: OpenRoute) -> Json:
    summary, _, description = route.description.partition("\n\n")
    text_or_json = {"type": "string" if route.media_type.startswith("text/") else "object"}
    schema = _schema_of(route.answer) if route.answer is not None else text_or_json
    return {
        "operationId": route.name,
        "summary": summary,
        "description": " ".join(description.split()),
        "tags": ["process"],
        "security": [],
        "responses": {
            "200": {"description": "The answer", "content": {route.media_type: {"schema": schema}}},
            **_problems(_OF_ANY_HEAD),
        },
    }


def _webhook(event_type: str) -> Json:
    content = {"schema": {"$ref": _REF + event_name_of(event_type)}, "example": example_of(event_type)}
    return {
        "post": {
            "operationId": event_name_of(event_type),
            "summary": event_type,
            "description": "Signed as Standard Webhooks describes. Any 2xx within 20 seconds accepts it.",
            "parameters": [
                {"name": name, "in": "header", "required": True, "schema": {"type": "string"}, "description": text}
                for name, text in _WEBHOOK_HEADERS
            ],
            "requestBody": {"required": True, "content": {"application/json": content}},
            "responses": {"2XX": {"description": "Accepted"}},
            "security": [],
        }
    }


_WEBHOOK_HEADERS = (
    ("webhook-id", "The event's id, the same on every attempt"),
    ("webhook-timestamp", "Seconds since 1970 at this attempt"),
    (
        "webhook-signature",
        "Signatures over id, timestamp and body, joined by dots: v1 with base64 HMAC-SHA256, v1a with base64 ed25519",
    ),
)
