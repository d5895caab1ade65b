"""`/v1/endpoints`: where a tenant wants its webhooks sent."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from api.auditing import audit
from api.inputs import OneLine
from api.paging import Page, PageQuery, cursor_at, place_after
from api.problems import Code, Refused, invalid, not_found
from api.routes import Call, Route
from api.samples import previous_state_of, sample_data, scene_of_test, sequence_of
from ledger.deleting import delete_endpoint
from ledger.delivery_lists import DeliveryDocument, DeliveryFilter, list_deliveries
from ledger.documents import time_of
from ledger.endpoint_health import glance_at
from ledger.endpoint_pace import MAX_PER_S_LARGEST
from ledger.endpoints import (
    EndpointDocument,
    EndpointRow,
    change_endpoint,
    create_endpoint,
    endpoint_document,
    find_endpoint,
    list_endpoints,
)
from ledger.errors import HoldUnfinished
from ledger.events import record_event
from ledger.holding import Held, Only, Task, pause_endpoint, resume_endpoint, start_task
from ledger.ids import TEST_PREFIX, DeliveryId, EndpointId, new_id
from ledger.jobs import JobDocument, job_document
from ledger.redelivery import let_go_first
from ledger.states import EVENT_TYPES
from ledger.urls import UnsafeUrl, parse_endpoint_url

TEST_EVENT_TYPE = "test.ping"
"""What a test sends where nothing else is asked for."""

_LIST = "endpoints"
_FAMILIES = sorted({event_type.split(".")[0] + ".*" for event_type in EVENT_TYPES})

Url = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=2048,
        description="https URL that events are POSTed to",
        examples=["https://merchant.example/webhooks"],
    ),
]
EventTypes = Annotated[
    list[Annotated[str, Meta(max_length=60, examples=["deposit.*"])]],
    Meta(min_length=1, max_length=50, description="Types such as deposit.confirmed, families such as deposit.*, or *"),
]
Moment = Annotated[datetime, Meta(extra_json_schema={"format": "date-time"})]
MaxPerS = Annotated[
    int,
    Meta(
        ge=1, le=MAX_PER_S_LARGEST, description="Deliveries a second that it is sent at most, by all notifiers together"
    ),
]
Description = Annotated[str, Meta(max_length=500, pattern=r"^[^\x00]*$")]


class NewEndpoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An endpoint to be made; `event_types` null means all, and `max_per_s` null as many deliveries as it takes."""

    url: Url
    event_types: EventTypes | None = None
    description: Description | None = None
    max_per_s: MaxPerS | None = None


class EndpointChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to change of an endpoint; what is left out stays."""

    url: Url | UnsetType = UNSET
    event_types: EventTypes | UnsetType | None = UNSET
    description: Description | UnsetType | None = UNSET
    max_per_s: MaxPerS | UnsetType | None = UNSET


class CreatedEndpointDocument(EndpointDocument, frozen=True, tag="endpoint"):
    """An endpoint with its signing secret, which is shown only here."""

    secret: str


class TestOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which event to send."""

    event_type: Annotated[str, Meta(max_length=60, extra_json_schema={"enum": list(EVENT_TYPES)})] = TEST_EVENT_TYPE


class PauseOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why it is paused, for those who read it later."""

    reason: Annotated[OneLine, Meta(min_length=1)] = "paused by its owner"


class ResumeOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What becomes of what was held: all of it is sent (what is exhausted too), which is what happens where nothing is said;
    the newest of each subject; or nothing."""

    held: Held = Held.ALL


class RecoverOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which events to deliver once more: those stored from `since` to `until` (null: now); what failed, what the endpoint
    never had a delivery of, or all."""

    since: Moment
    until: Moment | None = None
    only: Only = Only.FAILED


class ResumedEndpointDocument(EndpointDocument, frozen=True, tag="endpoint"):
    """An endpoint that was resumed. `job_id` is the job that works on what was held; null where it was active."""

    job_id: str | None


class TestAnswer(msgspec.Struct, frozen=True):
    """The event that was made, and its delivery: ask for the delivery to see how it went."""

    event_id: str
    delivery: DeliveryDocument


async def create_my_endpoint(call: Call[None, NewEndpoint]) -> CreatedEndpointDocument:
    """Create an endpoint

    The answer holds the signing secret (`whsec_...`), which is shown only here."""
    body = call.body
    url = _read_url(call, body.url)
    _check_types(body.event_types)
    row, secret = await create_endpoint(
        call.connection,
        call.services.secret_box,
        tenant_id=call.tenant_id,
        url=url,
        event_types=body.event_types,
        description=body.description,
        max_per_s=body.max_per_s,
        now=call.now,
    )
    await audit(call, "endpoint.created", row.id, url=url)
    return CreatedEndpointDocument(**msgspec.structs.asdict(await _described(call, row)), secret=secret)


async def list_my_endpoints(call: Call[PageQuery, None]) -> Page[EndpointDocument]:
    """List endpoints

    The newest first."""
    after = place_after(call, _LIST, call.query.cursor)
    rows, place = await list_endpoints(
        call.connection,
        call.tenant_id,
        after=EndpointId(str(after[0])) if after else None,
        limit=call.query.limit,
    )
    following = None if place is None else cursor_at(call, _LIST, (place,))
    return Page([endpoint_document(row, call.now) for row in rows], following)


async def get_endpoint(call: Call[None, None]) -> EndpointDocument:
    """Get an endpoint

    With how its deliveries went lately, without its secret."""
    return await _described(call, await _find(call))


async def update_endpoint(call: Call[None, EndpointChange]) -> EndpointDocument:
    """Change an endpoint

    Deliveries that are owed already go to the new URL; a new filter holds for events from now on."""
    changes: dict[str, Any] = {
        name: value for name, value in msgspec.structs.asdict(call.body).items() if value is not UNSET
    }
    if "url" in changes:
        changes["url"] = _read_url(call, changes["url"])
    _check_types(changes.get("event_types"))
    row = await change_endpoint(call.connection, call.tenant_id, EndpointId(call.path["id"]), changes, call.now)
    if row is None:
        raise not_found("endpoint")
    await audit(call, "endpoint.changed", row.id, **changes)
    return await _described(call, row)


async def remove_endpoint(call: Call[None, None]) -> None:
    """Delete an endpoint

    Nothing more is sent to it. What it is still owed is discarded, the first 500 at once and more by a job; its settled
    deliveries and their attempts stay."""
    done = await delete_endpoint(call.connection, call.tenant_id, EndpointId(call.path["id"]), call.now)
    if done is None:
        raise not_found("endpoint")
    job_id = done.job.id if done.job else None
    await audit(call, "endpoint.deleted", call.path["id"], discarded=done.discarded, job=job_id)


async def send_test(call: Call[None, TestOrder]) -> TestAnswer:
    """Send a test event

    Makes an event of any type for this endpoint alone, whatever its filter, and sends it the ordinary way. It is exactly
    like a real one, but that `livemode` is false and that it tells of a deposit, say, that there is not. A paused endpoint
    gets it when it is resumed."""
    endpoint = await _find(call)
    event_type = call.body.event_type
    if event_type not in EVENT_TYPES:
        raise invalid("/event_type", f"no event has the type {event_type!r}; there are: {', '.join(EVENT_TYPES)}")
    event_id = await record_event(
        call.connection,
        tenant_id=call.tenant_id,
        event_type=event_type,
        subject=new_id(TEST_PREFIX, call.now),
        data=sample_data(event_type, scene_of_test(endpoint.id, call.now)),
        livemode=False,
        now=call.now,
        sequence=sequence_of(event_type),
        previous_state=previous_state_of(event_type),
        endpoint_id=endpoint.id,
    )
    wanted = DeliveryFilter(event_id=event_id)
    [delivery] = (await list_deliveries(call.connection, call.tenant_id, wanted, limit=1)).deliveries
    await let_go_first(call.connection, call.tenant_id, endpoint.id, DeliveryId(delivery.id))
    await audit(call, "endpoint.tested", endpoint.id, event_id=event_id, event_type=event_type)
    return TestAnswer(event_id, delivery)


async def pause_my_endpoint(call: Call[None, PauseOrder]) -> EndpointDocument:
    """Pause an endpoint

    What it is owed is held and burns no attempts; what is in flight settles. One that is not active stays as it is."""
    reason = call.body.reason
    found = await pause_endpoint(call.connection, call.tenant_id, EndpointId(call.path["id"]), call.now, reason=reason)
    if found is None:
        raise not_found("endpoint")
    row, is_changed = found
    if is_changed:
        await audit(call, "endpoint.paused", row.id, reason=reason)
    return await _described(call, row)


async def resume_my_endpoint(call: Call[None, ResumeOrder]) -> ResumedEndpointDocument:
    """Resume an endpoint

    `held` says what becomes of what was held, by the job that the answer names; where nothing is said all of it is sent.
    One that is active stays as it is, also while it rests: to discard what it is owed, pause it first."""
    held = call.body.held
    try:
        found = await resume_endpoint(call.connection, call.tenant_id, EndpointId(call.path["id"]), held, call.now)
    except HoldUnfinished as error:
        raise Refused(Code.HOLD_UNFINISHED, str(error), headers={"Retry-After": "1"}) from None
    if found is None:
        raise not_found("endpoint")
    row, job = found
    if job is not None:
        await audit(call, "endpoint.resumed", row.id, held=held.value, job=job.id)
    described = msgspec.structs.asdict(await _described(call, row))
    return ResumedEndpointDocument(**described, job_id=job.id if job else None)


async def recover_my_endpoint(call: Call[None, RecoverOrder]) -> JobDocument:
    """Deliver events once more

    As a job: each event keeps its id and bytes. An event that is still owed to the endpoint is left alone."""
    endpoint = await _find(call)
    since, until = _utc("/since", call.body.since), call.body.until
    last = None if until is None else _utc("/until", until)
    if since > (last or call.now):
        raise invalid("/since", "it is after the end of the range; name an earlier time")
    asked = {"since": time_of(since), "until": time_of(last) if last else None, "only": call.body.only.value}
    job = await start_task(call.connection, call.tenant_id, endpoint.id, Task.RECOVER, asked, call.now)
    await audit(call, "endpoint.recovered", endpoint.id, job=job.id, **asked)
    return job_document(job, None)


def _utc(pointer: str, moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise invalid(pointer, "a time needs its zone, such as 2026-11-01T00:00:00Z")
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise invalid(pointer, "in UTC it is not within the years 1 to 9999") from None


async def _described(call: Call[Any, Any], row: EndpointRow) -> EndpointDocument:
    """An endpoint with its health, which lists do without: each takes a few milliseconds to read."""
    return endpoint_document(row, call.now, await glance_at(call.connection, call.tenant_id, row.id, call.now))


async def _find(call: Call[Any, Any]) -> EndpointRow:
    row = await find_endpoint(call.connection, call.tenant_id, EndpointId(call.path["id"]))
    if row is None:
        raise not_found("endpoint")
    return row


def _read_url(call: Call[Any, Any], text: str) -> str:
    try:
        return parse_endpoint_url(text, call.services.endpoint_policy).text
    except UnsafeUrl as error:
        raise invalid("/url", str(error)) from None


def _check_types(patterns: list[str] | None) -> None:
    for index, pattern in enumerate(patterns or []):
        if pattern not in (*EVENT_TYPES, *_FAMILIES, "*"):
            known = ", ".join(("*", *_FAMILIES, *EVENT_TYPES))
            raise invalid(f"/event_types/{index}", f"no event has the type {pattern!r}; there are: {known}")


ROUTES = (
    Route("POST", "/v1/endpoints", "endpoints:write", create_my_endpoint, status=201),
    Route("GET", "/v1/endpoints", "endpoints:read", list_my_endpoints),
    Route("GET", "/v1/endpoints/{id}", "endpoints:read", get_endpoint),
    Route("PATCH", "/v1/endpoints/{id}", "endpoints:write", update_endpoint),
    Route("DELETE", "/v1/endpoints/{id}", "endpoints:write", remove_endpoint, status=204),
    Route("POST", "/v1/endpoints/{id}/test", "endpoints:write", send_test),
    Route("POST", "/v1/endpoints/{id}/pause", "endpoints:write", pause_my_endpoint),
    Route(
        "POST",
        "/v1/endpoints/{id}/resume",
        "endpoints:write",
        resume_my_endpoint,
        problems=(Code.HOLD_UNFINISHED,),
    ),
    Route("POST", "/v1/endpoints/{id}/recover", "endpoints:write", recover_my_endpoint, status=202),
)
