"""Telling again by what it is about: one event, or the story of a deposit or withdrawal; to one endpoint, or to all."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from api.auditing import audit
from api.inputs import Identifier
from api.problems import invalid, not_found
from api.routes import Call, Route
from ledger.endpoints import find_endpoint
from ledger.holding import Only, Task, start_task
from ledger.ids import EndpointId, EntryId, EventId, Side
from ledger.jobs import JobDocument, job_document
from ledger.listing import find_entry, find_event


class RetellOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """To which endpoint (null: to each), and which events: what failed, what the endpoint never had a delivery of, or all
    that its filter admits or that it had."""

    endpoint: Annotated[Identifier, Meta(description="Id of an endpoint")] | None = None
    only: Only = Only.ALL


async def recover_event(call: Call[None, RetellOrder]) -> JobDocument:
    """Deliver one event once more

    As a job, with its id and bytes, after what is new. Where the event is still owed it is left alone."""
    event_id = EventId(call.path["id"])
    if await find_event(call.connection, call.tenant_id, event_id) is None:
        raise not_found("event")
    return await _retell(call, "event", event_id)


async def recover_deposit(call: Call[None, RetellOrder]) -> JobDocument:
    """Deliver a deposit's events once more

    As a job: each event with its id and bytes, in their sequence. What is still owed is left alone."""
    return await _retell_entry(call, Side.DEPOSIT)


async def recover_withdrawal(call: Call[None, RetellOrder]) -> JobDocument:
    """Deliver a withdrawal's events once more

    As a job: each event with its id and bytes, in their sequence. What is still owed is left alone."""
    return await _retell_entry(call, Side.WITHDRAWAL)


async def _retell_entry(call: Call[None, RetellOrder], side: Side) -> JobDocument:
    entry_id = EntryId(call.path["id"])
    if await find_entry(call.connection, call.tenant_id, side, entry_id) is None:
        raise not_found(side.value)
    return await _retell(call, "entry", entry_id)


async def _retell(call: Call[None, RetellOrder], what: str, told_id: str) -> JobDocument:
    endpoint_id = EndpointId(call.body.endpoint) if call.body.endpoint is not None else None
    if endpoint_id is not None and await find_endpoint(call.connection, call.tenant_id, endpoint_id) is None:
        raise invalid("/endpoint", f"there is no endpoint {endpoint_id}")
    asked = {f"{what}_id": told_id, "only": call.body.only.value}
    job = await start_task(call.connection, call.tenant_id, endpoint_id, Task.RECOVER, asked, call.now)
    await audit(call, f"{what}.recovered", told_id, job=job.id, endpoint=endpoint_id, only=call.body.only.value)
    return job_document(job, None)


ROUTES = (
    Route("POST", "/v1/events/{id}/recover", "endpoints:write", recover_event, status=202),
    Route("POST", "/v1/deposits/{id}/recover", "endpoints:write", recover_deposit, status=202),
    Route("POST", "/v1/withdrawals/{id}/recover", "endpoints:write", recover_withdrawal, status=202),
)
