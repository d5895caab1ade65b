"""The description as a page to read: one HTML document without scripts, written by our own hand from the same JSON.

Pure. Every text of the description is escaped where it is put in; nothing is loaded from anywhere, so the page's policy
(`PAGE_POLICY`) allows its own style sheet, by its hash, and nothing else.

Why no viewer of others: each is a megabyte of script, served from the origin whose keys a reader holds, and wants inline
styles and its own network calls allowed. What such a page offers beyond reading, `curl` and `docs/api.md` do.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from html import escape
from typing import Any

Json = Mapping[str, Any]

_STYLE = """
:root{color-scheme:light dark;--line:#8884;--soft:#8881}
body{margin:0;font:16px/1.5 system-ui,sans-serif;display:grid;grid-template-columns:17rem minmax(0,60rem);gap:2rem}
nav{position:sticky;top:0;height:100vh;overflow:auto;padding:1rem;box-sizing:border-box;border-right:1px solid var(--line)}
nav ul{list-style:none;margin:0 0 1rem;padding:0;font-size:.85rem}nav h2{font-size:.9rem;margin:.5rem 0}
main{padding:1rem 1rem 6rem}a{color:LinkText;text-decoration:none}a:hover{text-decoration:underline}
section{border-top:1px solid var(--line);padding:.5rem 0 1rem}section>h3{margin:.5rem 0}
code,pre,b{font-family:ui-monospace,monospace;font-size:.88em}pre{background:var(--soft);padding:.8rem;overflow:auto}
table{border-collapse:collapse;width:100%;font-size:.9rem;margin:.5rem 0}td,th{text-align:left;vertical-align:top;
padding:.25rem .6rem .25rem 0;border-bottom:1px solid var(--line);overflow-wrap:anywhere}
.must{font-size:.8rem;opacity:.7}:target{background:var(--soft)}
@media(max-width:50rem){body{display:block}nav{position:static;height:auto;border:0}}
"""

PAGE_POLICY = (
    f"default-src 'none'; style-src 'sha256-{b64encode(sha256(_STYLE.encode()).digest()).decode()}';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The page's Content-Security-Policy: no script, no image, no frame, no form, and no style but its own."""

_LIMITS = {
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {}",
    "maxItems": "at most {}",
    "minimum": "from {}",
    "maximum": "to {}",
    "pattern": "matches {}",
    "default": "{} when left out",
    "examples": "such as {}",
}


def render_page(document: Json) -> str:
    """The whole page, from what `describe` made."""
    info = document["info"]
    operations = list(_operations_of(document))
    schemas = document["components"]["schemas"]
    return "".join(
        (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width,initial-scale=1">',
            f"<title>{escape(info['title'])} API {escape(info['version'])}</title><style>{_STYLE}</style></head><body>",
            _contents(operations, document["webhooks"], schemas),
            f"<main><h1>{escape(info['title'])} API</h1><p>Version {escape(info['version'])}. ",
            f'<a href="openapi.json">openapi.json</a> is the same for programs.</p>{_prose(info["description"])}',
            "<h2>Routes</h2>",
            *(_operation(path, method, operation) for path, method, operation in operations),
            "<h2>Webhooks</h2>",
            *(_webhook(name, webhook["post"]) for name, webhook in document["webhooks"].items()),
            "<h2>Schemas</h2>",
            *(_schema(name, schema) for name, schema in schemas.items()),
            "</main></body></html>",
        )
    )


def _operations_of(document: Json) -> Iterator[tuple[str, str, Json]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method.upper(), operation


def _contents(operations: Iterable[tuple[str, str, Json]], webhooks: Json, schemas: Json) -> str:
    by_tag: dict[str, list[str]] = {}
    for path, method, operation in operations:
        link = _link(operation["operationId"], f"{method} {path.removeprefix('/v1')}")
        by_tag.setdefault(operation["tags"][0], []).append(link)
    by_tag["webhooks"] = [_link(webhook["post"]["operationId"] + ".sent", name) for name, webhook in webhooks.items()]
    by_tag["schemas"] = [_link(f"schema.{name}", name) for name in schemas]
    parts = (
        f"<h2>{escape(tag)}</h2><ul>{''.join(f'<li>{link}</li>' for link in links)}</ul>"
        for tag, links in by_tag.items()
    )
    return f"<nav>{''.join(parts)}</nav>"


def _operation(path: str, method: str, operation: Json) -> str:
    body = operation.get("requestBody")
    sent = f"<p>Body: {_content(body)}</p>" if body else ""
    return _section(
        operation["operationId"],
        f"<b>{method} {escape(path)}</b> {escape(operation['summary'])}",
        _prose(operation["description"]) + _parameters(operation.get("parameters", ())) + sent + _answers(operation),
    )


def _webhook(name: str, webhook: Json) -> str:
    content = webhook["requestBody"]["content"]["application/json"]
    example = escape(json.dumps(content["example"], indent=2, ensure_ascii=False))
    return _section(
        webhook["operationId"] + ".sent",
        f"<b>{escape(name)}</b>",
        f"{_prose(webhook['description'])}<p>Body: {_type(content['schema'])}</p>"
        f"{_parameters(webhook['parameters'])}<pre>{example}</pre>",
    )


def _schema(name: str, schema: Json) -> str:
    required = schema.get("required", ())
    rows = [
        (
            f"<code>{escape(field)}</code>{_must(field in required)}",
            f"{_type(inner)} {_limits(inner)}",
            _inline(inner.get("description", "")),
        )
        for field, inner in schema.get("properties", {}).items()
    ]
    whole = _table(("field", "type", ""), rows) if rows else f"<p>{_type(schema)}</p>"
    return _section(f"schema.{name}", f"<b>{escape(name)}</b>", _prose(schema.get("description", "")) + whole)


def _parameters(parameters: Iterable[Json]) -> str:
    rows = [
        (
            f"<code>{escape(parameter['name'])}</code>{_must(parameter['required'])}",
            f"{escape(parameter['in'])}: {_type(parameter['schema'])} {_limits(parameter['schema'])}",
            _inline(parameter.get("description", "")),
        )
        for parameter in parameters
    ]
    return _table(("parameter", "type", ""), rows) if rows else ""


def _answers(operation: Json) -> str:
    rows = [
        (f"<code>{escape(status)}</code>", _content(answer), _inline(answer["description"]))
        for status, answer in operation["responses"].items()
    ]
    return _table(("status", "body", ""), rows)


def _content(carrier: Json) -> str:
    return "; ".join(
        f"{_type(content['schema'])} as <code>{escape(media_type)}</code>"
        for media_type, content in carrier.get("content", {}).items()
    )


def _type(schema: Json) -> str:
    """What a schema allows, in a few words, with links to the schemas that it names."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return _link(f"schema.{name}", name)
    if "const" in schema:
        return _value(schema["const"])
    if "enum" in schema:
        return " | ".join(_value(value) for value in schema["enum"])
    for choice in ("anyOf", "oneOf"):
        if choice in schema:
            return " or ".join(_type(inner) for inner in schema[choice])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    if isinstance(schema.get("additionalProperties"), Mapping):
        return f"object of {_type(schema['additionalProperties'])}"
    form = f" ({escape(schema['format'])})" if "format" in schema else ""
    return escape(str(schema.get("type", "anything"))) + form


def _limits(schema: Json) -> str:
    limits = {**schema, **({"examples": schema["examples"][0]} if "examples" in schema else {})}
    said = [words.format(_value(limits[key])) for key, words in _LIMITS.items() if key in limits]
    return f'<span class="must">{", ".join(said)}</span>' if said else ""


def _must(is_required: bool) -> str:
    return ' <span class="must">required</span>' if is_required else ""


def _value(value: object) -> str:
    return f"<code>{escape(json.dumps(value, ensure_ascii=False))}</code>"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    titles = "".join(f"<th>{title}</th>" for title in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>"


def _section(anchor: str, title: str, content: str) -> str:
    return f'<section id="{escape(anchor)}"><h3>{title}</h3>{content}</section>'


def _link(anchor: str, text: str) -> str:
    return f'<a href="#{escape(anchor)}">{escape(text)}</a>'


def _prose(text: str) -> str:
    return "".join(f"<p>{_inline(paragraph)}</p>" for paragraph in text.split("\n\n") if paragraph.strip())


def _inline(text: str) -> str:
    """Escaped text, in which what stands between backticks is code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))
