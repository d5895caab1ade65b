"""`/v1/deposits` and `/v1/withdrawals`: what was found, and how it stands."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, cast

import msgspec
from msgspec import Meta

from api.events import EventPage
from api.inputs import AddressText, AssetName, ChainName, HashText, Line, address_given, chain_named, hash_given
from api.paging import Page, PageQuery, cursor_at, place_after
from api.problems import not_found
from api.routes import ByReference, Call, Route, StatusCall
from ledger.chains import list_chains
from ledger.documents import DepositDocument, WithdrawalDocument
from ledger.entry_lists import EntryFilter, list_entries
from ledger.ids import EntryId, Side
from ledger.listing import describe_entries, find_entry, list_events
from ledger.states import EntryState

AnyEntry = DepositDocument | WithdrawalDocument


class EntryQuery(PageQuery, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which deposits or withdrawals; all that are given must fit."""

    chain: ChainName | None = None
    address: Annotated[AddressText | None, Meta(description="The watched address")] = None
    reference: Annotated[Line | None, Meta(description="Of the watch")] = None
    state: EntryState | None = None
    asset: AssetName | None = None
    tx: HashText | None = None
    updated_since: Annotated[
        Annotated[datetime, Meta(tz=True)] | None,
        Meta(description="Only what changed since; the list is then in order of change, the oldest first"),
    ] = None


async def list_deposits(call: Call[EntryQuery, None]) -> Page[DepositDocument]:
    """List deposits

    The newest first, by the time of their detection."""
    page = await _list(call, Side.DEPOSIT)
    return Page(cast(list[DepositDocument], page.data), page.next_cursor)


async def list_withdrawals(call: Call[EntryQuery, None]) -> Page[WithdrawalDocument]:
    """List withdrawals

    The newest first, by the time of their detection."""
    page = await _list(call, Side.WITHDRAWAL)
    return Page(cast(list[WithdrawalDocument], page.data), page.next_cursor)


async def get_deposit(call: StatusCall[None, None]) -> DepositDocument:
    """Get a deposit

    As it stands now, with the confirmations that it has at our tip."""
    return cast(DepositDocument, _standing(call, Side.DEPOSIT))


async def get_withdrawal(call: StatusCall[None, None]) -> WithdrawalDocument:
    """Get a withdrawal

    As it stands now, with the confirmations that it has at our tip."""
    return cast(WithdrawalDocument, _standing(call, Side.WITHDRAWAL))


async def list_events_of_deposit(call: Call[PageQuery, None]) -> EventPage:
    """List the events of a deposit

    Its story in sequence, each event as it was sent."""
    return await _story(call, Side.DEPOSIT)


async def list_events_of_withdrawal(call: Call[PageQuery, None]) -> EventPage:
    """List the events of a withdrawal

    Its story in sequence, each event as it was sent."""
    return await _story(call, Side.WITHDRAWAL)


async def _list(call: Call[EntryQuery, None], side: Side) -> Page[AnyEntry]:
    wanted = await _filter_of(call, side)
    list_name = f"{side}s by {'detection' if wanted.updated_since is None else 'change'}"
    after = place_after(call, list_name, call.query.cursor)
    page = await list_entries(call.connection, call.tenant_id, wanted, after=after, limit=call.query.limit)
    following = None if page.next_place is None else cursor_at(call, list_name, page.next_place)
    return Page(await describe_entries(call.connection, page.entries), following)


async def _filter_of(call: Call[EntryQuery, None], side: Side) -> EntryFilter:
    query = call.query
    chain_id = None
    if query.chain is not None:
        chain_id = chain_named(await list_chains(call.connection), query.chain, "/chain").chain_id
    return EntryFilter(
        side=side,
        chain_id=chain_id,
        address=address_given(query.address, "/address") if query.address is not None else None,
        reference=query.reference,
        state=query.state,
        asset_id=query.asset.lower() if query.asset is not None else None,
        transaction_hash=hash_given(query.tx, "/tx") if query.tx is not None else None,
        updated_since=query.updated_since,
    )


_PLAIN = EntryQuery()


def _reference_alone(query: EntryQuery) -> str | None:
    is_alone = msgspec.structs.replace(query, reference=None, limit=_PLAIN.limit) == _PLAIN
    return query.reference if is_alone else None


def _by_reference(side: Side) -> ByReference:
    def _page(call: StatusCall[EntryQuery, None]) -> Page[AnyEntry] | None:
        stored = call.read.entries(side)
        if not call.read.is_whole or len(stored) > call.query.limit:
            return None
        return Page([one.document() for one in stored], None)

    return ByReference(_reference_alone, _page)


def _standing(call: StatusCall[None, None], side: Side) -> AnyEntry:
    stored = call.read.entries(side)
    if not stored:
        raise not_found(side.value)
    return stored[0].document()


async def _story(call: Call[PageQuery, None], side: Side) -> EventPage:
    entry_id = EntryId(call.path["id"])
    if await find_entry(call.connection, call.tenant_id, side, entry_id) is None:
        raise not_found(side.value)
    list_name = f"events of {entry_id}"
    place = place_after(call, list_name, call.query.cursor)
    after = int(place[0]) if place else 0
    limit = call.query.limit
    found = await list_events(call.connection, call.tenant_id, after=after, subject=entry_id, limit=limit + 1)
    page = found[:limit]
    following = cursor_at(call, list_name, (page[-1].feed_position,)) if len(found) > limit else None
    return EventPage([msgspec.Raw(event.body) for event in page], following)


ROUTES = (
    Route("GET", "/v1/deposits", "entries:read", list_deposits, by_reference=_by_reference(Side.DEPOSIT)),
    Route("GET", "/v1/deposits/{id}", "entries:read", get_deposit, is_status=True),
    Route("GET", "/v1/deposits/{id}/events", "entries:read", list_events_of_deposit),
    Route("GET", "/v1/withdrawals", "entries:read", list_withdrawals, by_reference=_by_reference(Side.WITHDRAWAL)),
    Route("GET", "/v1/withdrawals/{id}", "entries:read", get_withdrawal, is_status=True),
    Route("GET", "/v1/withdrawals/{id}/events", "entries:read", list_events_of_withdrawal),
)
