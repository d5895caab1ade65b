"""`/v1/chains`: how far each chain is followed, and what holds it up."""

from __future__ import annotations

from api.paging import Page, PageQuery, cursor_at, place_after
from api.routes import Call, Route
from ledger.chains import chain_state_of, list_chains
from ledger.documents import ChainDocument, chain_document

_LIST = "chains"


async def list_all_chains(call: Call[PageQuery, None]) -> Page[ChainDocument]:
    """List chains

    Every chain with the node's head, our tip, the lag between them, and the state of the follower, by name."""
    after = place_after(call, _LIST, call.query.cursor)
    known = sorted(await list_chains(call.connection), key=lambda row: row.slug)
    rows = [row for row in known if after is None or row.slug > str(after[0])]
    page = rows[: call.query.limit]
    following = cursor_at(call, _LIST, (page[-1].slug,)) if len(rows) > len(page) else None
    data = [chain_document(row, state=chain_state_of(row, call.now).value, now=call.now) for row in page]
    return Page(data, following)


ROUTES = (Route("GET", "/v1/chains", "chains:read", list_all_chains),)
