"""`/v1/watches`: which addresses a tenant wants to be told of."""

from __future__ import annotations

import asyncio
from typing import Annotated

import msgspec
from msgspec import Meta

from api.auditing import audit
from api.inputs import AddressText, ChainName, Line, address_given, scope_named, unknown_chain
from api.paging import Page, PageQuery, cursor_at, place_after
from api.problems import invalid, not_found
from api.routes import Call, Route
from api.watch_rows import ROWS_MAX, WatchInput, read_rows, review_rows
from ledger.chains import list_chains
from ledger.ids import WatchId
from ledger.watch_lists import WatchFilter, list_watches
from ledger.watches import (
    WatchDocument,
    delete_watch,
    find_watch,
    insert_watches,
    scopes_for,
    watch_document,
)

_LIST = "watches"


class NewWatches(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Addresses to watch."""

    watches: Annotated[list[WatchInput], Meta(min_length=1, max_length=ROWS_MAX)]


class WatchAnswers(msgspec.Struct, frozen=True):
    """A row for each asked watch, in the same order."""

    data: list[WatchDocument]


class WatchQuery(PageQuery, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which watches."""

    chain: ChainName | None = None
    address: AddressText | None = None
    reference: Line | None = None


async def create_watches(call: Call[None, NewWatches]) -> WatchAnswers:
    """Watch addresses

    Watches 1 to 10,000 addresses: all of them, or none when one row is not valid. Each answered row says from which
    block it is covered. With a `start_height` in the past a backfill reads those blocks; `watch.activated` tells when it is
    complete. An address that you watch already on that chain is answered as it is, with status `exists`. Of a watch for
    one chain and one for `evm` on the same address the first has the entries of that chain: each transfer is told once."""
    chains = await list_chains(call.connection)
    # In a thread: ten thousand checksums would keep every other request, and the locks it holds, waiting.
    asked = await asyncio.to_thread(read_rows, call.body.watches, chains)
    inserted, chains = await insert_watches(call.connection, call.tenant_id, asked, call.now)
    created = [one.row.id for one in inserted if one.is_new]
    if created:
        await audit(call, "watches.created", created[0], count=len(created))
    return WatchAnswers([watch_document(one.row, chains, is_known=not one.is_new) for one in inserted])


async def list_my_watches(call: Call[WatchQuery, None]) -> Page[WatchDocument]:
    """List watches

    Live watches, the newest first. With `chain` the ones that are for that chain: its own, and those for all EVM chains,
    which `chain=evm` lists alone."""
    chains = await list_chains(call.connection)
    query = call.query
    scope = scope_named(chains, query.chain) if query.chain is not None else None
    if query.chain is not None and scope is None:
        raise invalid("/chain", unknown_chain(chains, query.chain))
    after = place_after(call, _LIST, query.cursor)
    wanted = WatchFilter(
        scopes_for(scope) if scope is not None else None,
        address_given(query.address, "/address") if query.address is not None else None,
        query.reference,
    )
    page = await list_watches(
        call.connection, call.tenant_id, wanted, after=WatchId(str(after[0])) if after else None, limit=query.limit
    )
    following = None if page.next_place is None else cursor_at(call, _LIST, (page.next_place,))
    return Page([watch_document(row, chains) for row in page.watches], following)


async def get_watch(call: Call[None, None]) -> WatchDocument:
    """Get a watch

    A deleted one too, with status `deleted`."""
    row = await find_watch(call.connection, call.tenant_id, WatchId(call.path["id"]))
    if row is None:
        raise not_found("watch")
    return watch_document(row, await list_chains(call.connection))


async def remove_watch(call: Call[None, None]) -> None:
    """Delete a watch

    Stops new deposits and withdrawals from the next block on; what was found stays and is still told to its end."""
    if not await delete_watch(call.connection, call.tenant_id, WatchId(call.path["id"]), call.now):
        raise not_found("watch")
    await audit(call, "watch.deleted", call.path["id"])


ROUTES = (
    Route("POST", "/v1/watches", "watches:write", create_watches, review=review_rows),
    Route("GET", "/v1/watches", "watches:read", list_my_watches),
    Route("GET", "/v1/watches/{id}", "watches:read", get_watch),
    Route("DELETE", "/v1/watches/{id}", "watches:write", remove_watch, status=204),
)
