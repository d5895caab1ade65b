"""The page to read shows all of the description, leads nowhere but to itself, and repeats no markup of others."""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser
from typing import Any

from api.app import OPEN_ROUTES, ROUTES
from api.openapi import describe
from api.page import PAGE_POLICY, render_page

DOCUMENT = describe(ROUTES, OPEN_ROUTES, "1.2.3")
VOID = {"meta"}


class Read(HTMLParser):
    """What a browser would see: elements that close each other in order, their attributes, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def values(self, attribute: str) -> list[str]:
        return [value for name, value in self.attributes if name == attribute]


PAGE = Read(render_page(DOCUMENT))


def test_every_route_webhook_and_schema_has_its_section_once() -> None:
    operations = [operation for methods in DOCUMENT["paths"].values() for operation in methods.values()]
    webhooks = [webhook["post"] for webhook in DOCUMENT["webhooks"].values()]
    expected = [
        *(operation["operationId"] for operation in operations),
        *(webhook["operationId"] + ".sent" for webhook in webhooks),
        *(f"schema.{name}" for name in DOCUMENT["components"]["schemas"]),
    ]
    assert PAGE.values("id") == expected
    assert len(expected) == len(set(expected))
    text = "".join(PAGE.text)
    for operation in operations:
        assert operation["summary"] in text
        assert all(parameter["name"] in text for parameter in operation.get("parameters", ()))
    for webhook in webhooks:
        assert webhook["requestBody"]["content"]["application/json"]["example"]["type"] in text


def test_every_link_leads_to_a_section_of_the_page_or_to_the_description() -> None:
    sections = {f"#{anchor}" for anchor in PAGE.values("id")}
    assert set(PAGE.values("href")) - sections == {"openapi.json"}


def test_it_runs_and_loads_nothing() -> None:
    assert not PAGE.elements & {"script", "img", "link", "iframe", "form", "object", "svg", "base"}
    assert {name for name, _ in PAGE.attributes} <= {"href", "id", "class", "lang", "charset", "name", "content"}
    style = re.search(r"<style>(.*?)</style>", render_page(DOCUMENT), re.DOTALL)
    assert style is not None
    assert b64encode(sha256(style[1].encode()).digest()).decode() in PAGE_POLICY
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    assert "unsafe" not in PAGE_POLICY


def hostile(value: Any) -> Any:  # noqa: ANN401 (JSON)
    """The same document, in which every text that a page shows could be markup."""
    if isinstance(value, dict):
        return {key: hostile(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [hostile(inner) for inner in value]
    if isinstance(value, str) and not value.startswith("#/"):
        return f"{value}<script>'\"&"
    return value


def test_a_text_of_the_description_is_never_markup() -> None:
    page = render_page(hostile(DOCUMENT))
    assert "<script" not in page
    assert {name for name, _ in Read(page).attributes} <= {"href", "id", "class", "lang", "charset", "name", "content"}
