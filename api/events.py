"""`/v1/events`: the feed, the second way to get every event; never skips, and gives the bytes that the webhooks have."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from api.inputs import either
from api.paging import Cursor, cursor_at, place_after
from api.problems import invalid, not_found
from api.routes import Call, Route
from ledger.ids import EventId
from ledger.listing import find_event, find_feed_end, find_feed_place, list_events

EventBytes = Annotated[msgspec.Raw, Meta(extra_json_schema={"$ref": "#/components/schemas/Event"})]
"""An event's stored bytes, put into an answer as they are."""

WAIT_S_MAX = 30
LATEST = "latest"
"""What `after` takes in place of a cursor for the feed's end: no cursor looks like it."""

_LIST = "feed"


class FeedQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where to go on in the feed, and how long to wait for news."""

    after: Annotated[
        Cursor | None,
        Meta(description="`next_cursor` of the answer before; `latest`: the end; left out: the beginning"),
    ] = None
    cursor: Annotated[Cursor | None, Meta(description="The same as `after`")] = None
    since: Annotated[
        Annotated[datetime, Meta(tz=True)] | None,
        Meta(description="In place of a cursor: from the first event on that was stored at this time or later"),
    ] = None
    limit: Annotated[int, Meta(ge=1, le=1000, description="Events of a page")] = 100
    wait: Annotated[int, Meta(ge=0, le=WAIT_S_MAX, description="Seconds to wait while there is nothing new")] = 0


class EventPage(msgspec.Struct, frozen=True):
    """The events of one subject, in sequence. `next_cursor` is null on the last page."""

    data: list[EventBytes]
    next_cursor: str | None


class FeedPage(msgspec.Struct, frozen=True):
    """Events in the order of the feed. `next_cursor` is never null: it is where to go on, from an empty page too."""

    data: list[EventBytes]
    next_cursor: str


async def read_feed(call: Call[FeedQuery, None]) -> FeedPage:
    """Read the event feed

    Events in feed order after a cursor, from the oldest kept one without it. A reader that keeps `next_cursor` never
    skips an event. With `wait` an empty answer is held back until there is an event or the time is over."""
    after = await _position(call)
    found = await list_events(call.connection, call.tenant_id, after=after, limit=call.query.limit)
    last = found[-1].feed_position if found else after
    return FeedPage([msgspec.Raw(event.body) for event in found], cursor_at(call, _LIST, (last,)))


async def _position(call: Call[FeedQuery, None]) -> int:
    """The place in the feed after which the page begins."""
    cursor, since = either(call.query.after, call.query.cursor, "/after"), call.query.since
    if cursor is not None and since is not None:
        raise invalid("/since", "a cursor and since both say where to begin; send one of them")
    if cursor == LATEST:
        if call.query.wait:
            raise invalid("/wait", "the end is told at once; ask for it without wait, then wait with its next_cursor")
        return await find_feed_end(call.connection, call.tenant_id)
    if since is not None:
        return await find_feed_place(call.connection, call.tenant_id, since)
    place = place_after(call, _LIST, cursor)
    return int(place[0]) if place else 0


async def get_event(call: Call[None, None]) -> EventBytes:
    """Get an event

    The bytes that were sent and signed."""
    event = await find_event(call.connection, call.tenant_id, EventId(call.path["id"]))
    if event is None:
        raise not_found("event")
    return msgspec.Raw(event.body)


ROUTES = (
    Route("GET", "/v1/events", "events:read", read_feed, is_satisfied=lambda page: bool(page.data)),
    Route("GET", "/v1/events/{id}", "events:read", get_event),
)
