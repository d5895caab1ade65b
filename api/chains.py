"""`/v1/chains`: how far each chain is followed, and what holds it up."""

from __future__ import annotations

from api.paging import Page
from api.routes import Call, Route
from ledger.chains import chain_state_of, list_chains
from ledger.documents import ChainDocument, chain_document


async def list_all_chains(call: Call[None, None]) -> Page[ChainDocument]:
    """List chains

    Every chain with the node's head, our tip, the lag between them, and the state of the follower."""
    rows = await list_chains(call.connection)
    data = [chain_document(row, state=chain_state_of(row, call.now).value, now=call.now) for row in rows]
    return Page(data, None)


ROUTES = (Route("GET", "/v1/chains", "chains:read", list_all_chains),)
