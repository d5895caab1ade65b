"""`/v1/deliveries`: what is owed to which endpoint, and each attempt to hand it over."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from api.auditing import audit
from api.inputs import NoFields
from api.paging import Page, PageQuery, cursor_at, place_after
from api.problems import not_found
from api.routes import Call, Route
from ledger.delivery_lists import DeliveryDocument, DeliveryFilter, find_delivery, list_deliveries
from ledger.ids import DeliveryId
from ledger.listing import AttemptDocument, list_attempts
from ledger.redelivery import redeliver
from ledger.states import DeliveryState

_LIST = "deliveries"


# What there is not is like another tenant's, and an empty list; what cannot be is a mistake.
EndpointName = Annotated[str, Meta(max_length=100, pattern=r"^ep_[0-9A-Za-z_]+$")]
EventName = Annotated[str, Meta(max_length=100, pattern=r"^evt_[0-9A-Za-z_]+$")]
EntryName = Annotated[str, Meta(max_length=100, pattern=r"^(dep|wdr)_[0-9A-Za-z_]+$")]


class DeliveryQuery(PageQuery, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which deliveries; all that are given must fit."""

    endpoint: Annotated[EndpointName | None, Meta(description="Id of an endpoint")] = None
    state: DeliveryState | None = None
    event: Annotated[EventName | None, Meta(description="Id of an event")] = None
    entry: Annotated[EntryName | None, Meta(description="Id of a deposit or withdrawal")] = None


async def list_my_deliveries(call: Call[DeliveryQuery, None]) -> Page[DeliveryDocument]:
    """List deliveries

    The newest first. What is no id of an endpoint, event or entry is refused; of another tenant's there is nothing."""
    query = call.query
    wanted = DeliveryFilter(query.endpoint, query.state, query.event, query.entry)
    after = place_after(call, _LIST, query.cursor)
    page = await list_deliveries(call.connection, call.tenant_id, wanted, after=after, limit=query.limit)
    following = None if page.next_place is None else cursor_at(call, _LIST, page.next_place)
    return Page(page.deliveries, following)


async def get_delivery(call: Call[None, None]) -> DeliveryDocument:
    """Get a delivery

    One event owed to one endpoint."""
    return await _find(call.path["id"], call)


async def list_attempts_of_delivery(call: Call[PageQuery, None]) -> Page[AttemptDocument]:
    """List the attempts of a delivery

    One for each HTTP request, the first one first."""
    delivery = await _find(call.path["id"], call)
    list_name = f"attempts by number of {delivery.id}"
    after, limit = place_after(call, list_name, call.query.cursor), call.query.limit
    found = await list_attempts(call.connection, call.tenant_id, DeliveryId(delivery.id), after=after, limit=limit + 1)
    page = found[:limit]
    following = cursor_at(call, list_name, page[-1][0]) if len(found) > limit else None
    return Page([document for _, document in page], following)


async def redeliver_my_delivery(call: Call[None, NoFields]) -> DeliveryDocument:
    """Redeliver

    Sends the event again at once, with its id and bytes, whatever else its deposit waits for: as a delivery of its own,
    which the answer shows. One that is still owed is sent now. A paused endpoint gets it when it is resumed."""
    made = await redeliver(call.connection, call.tenant_id, DeliveryId(call.path["id"]), call.now)
    if made is None:
        raise not_found("delivery")
    await audit(call, "delivery.redelivered", call.path["id"], delivery=made)
    return await _find(made, call)


async def _find(delivery_id: str, call: Call[Any, Any]) -> DeliveryDocument:
    delivery = await find_delivery(call.connection, call.tenant_id, DeliveryId(delivery_id))
    if delivery is None:
        raise not_found("delivery")
    return delivery


ROUTES = (
    Route("GET", "/v1/deliveries", "deliveries:read", list_my_deliveries),
    Route("GET", "/v1/deliveries/{id}", "deliveries:read", get_delivery),
    Route("GET", "/v1/deliveries/{id}/attempts", "deliveries:read", list_attempts_of_delivery),
    Route("POST", "/v1/deliveries/{id}/redeliver", "deliveries:write", redeliver_my_delivery),
)
