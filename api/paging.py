"""Pages: their query, their answer, and the cursor that leads from one to the next."""

from __future__ import annotations

from typing import Annotated, Any, Generic, TypeVar

import msgspec
from msgspec import Meta

from api.routes import Call
from ledger.cursors import CURSOR_LENGTH_MAX, Place, decode_cursor, encode_cursor

Item = TypeVar("Item")

Cursor = Annotated[
    str,
    Meta(
        max_length=CURSOR_LENGTH_MAX,
        description="`next_cursor` of the page before",
        extra_json_schema={"pattern": "^[0-9A-Za-z_-]+$"},
    ),
]


class PageQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every list takes."""

    limit: Annotated[int, Meta(ge=1, le=1000, description="Rows of a page")] = 100
    cursor: Cursor | None = None


class Page(msgspec.Struct, Generic[Item], frozen=True):
    """A page of a list. `next_cursor` is null on the last page."""

    data: list[Item]
    next_cursor: str | None


def place_after(call: Call[Any, Any], list_name: str, cursor: str | None) -> Place | None:
    """Where a page begins: after the place that the cursor names. Raises `InvalidCursor`."""
    if cursor is None:
        return None
    return decode_cursor(call.services.cursor_key, call.tenant_id, list_name, cursor)


def cursor_at(call: Call[Any, Any], list_name: str, place: Place) -> str:
    """The cursor that goes on after `place`."""
    return encode_cursor(call.services.cursor_key, call.tenant_id, list_name, place)
