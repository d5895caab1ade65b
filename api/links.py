"""Where an answer leads: OpenAPI links from whatever shows a thing with an id to the operations that take that id.

Pure. A reader sees what can be done with an answer; a tool that tests the API calls its operations with ids that exist.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Json = dict[str, Any]


def add_links(paths: Mapping[str, Json], schemas: Mapping[str, Json]) -> None:
    """Put `links` into the successful answers of a description's paths."""
    takers = dict(_takers(paths, schemas))
    for operation in _operations(paths):
        found = _answer_of(operation)
        if found is None:
            continue
        response, schema = found
        links = {
            name: {"operationId": name, "parameters": {"id": f"$response.body#{place}/id"}}
            for place, object_ in _shown(schema, schemas)
            for name in takers.get(object_, ())
            if name != operation["operationId"]
        }
        if links:
            response["links"] = links


def _takers(paths: Mapping[str, Json], schemas: Mapping[str, Json]) -> Iterator[tuple[str, list[str]]]:
    """For each kind of object that can be asked for by its id, the operations that take it."""
    for home, methods in paths.items():
        found = _answer_of(methods["get"]) if home.endswith("/{id}") and "get" in methods else None
        for place, object_ in _shown(found[1], schemas) if found else ():
            if place == "":
                below = {path: operations for path, operations in paths.items() if path.startswith(home)}
                yield object_, [operation["operationId"] for operation in _operations(below)]


def _operations(paths: Mapping[str, Json]) -> Iterator[Json]:
    for methods in paths.values():
        yield from methods.values()


def _answer_of(operation: Json) -> tuple[Json, Json] | None:
    """The successful answer of an operation and the schema of its body, where it has one."""
    for status, response in operation["responses"].items():
        content = response.get("content", {}).get("application/json")
        if status.startswith("2") and content is not None:
            return response, content["schema"]
    return None


def _shown(schema: Json, schemas: Mapping[str, Json]) -> Iterator[tuple[str, str]]:
    """The objects with an id in an answer: where each stands, the first of a list for all of it, and what it is."""
    whole = _resolved(schema, schemas)
    if _object_of(whole):
        yield "", _object_of(whole)
        return
    for name, inner in whole.get("properties", {}).items():
        place, item = (f"/{name}/0", inner["items"]) if "items" in inner else (f"/{name}", inner)
        object_ = _object_of(_resolved(item, schemas))
        if object_:
            yield place, object_


def _object_of(schema: Json) -> str:
    properties = schema.get("properties", {})
    return str(properties["object"]["const"]) if "id" in properties and "object" in properties else ""


def _resolved(schema: Json, schemas: Mapping[str, Json]) -> Json:
    return schemas[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
