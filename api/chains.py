"""`/v1/chains`: how far each chain is followed, and what holds it up."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from api.inputs import Height, find_chain_named
from api.paging import Page, PageQuery, cursor_at, place_after
from api.problems import Code, Refused, invalid, not_found
from api.routes import Call, Route
from api.withholding import without_hosts
from ledger.chains import chain_state_of, find_chain, list_chains, lock_chain
from ledger.documents import ChainDocument, chain_document
from ledger.errors import NoSuchBranch, NotHalted
from ledger.halts import resume_chain

_LIST = "chains"


class ResumeChainOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to go on after a halt."""

    accept_reorg_to: Annotated[
        Height | None,
        Meta(
            description="Allow, once, undoing finalized blocks above this height: the last that both branches share."
            " Null: nothing final is undone"
        ),
    ] = None


async def list_all_chains(call: Call[PageQuery, None]) -> Page[ChainDocument]:
    """List chains

    Every chain with the node's head, our tip, the lag between them, and the state of the follower, by name. Where tenants
    have an address of their own, where nodes are and what they say when they fail is for the operator's keys."""
    after = place_after(call, _LIST, call.query.cursor)
    known = sorted(await list_chains(call.connection), key=lambda row: row.slug)
    rows = [row for row in known if after is None or row.slug > str(after[0])]
    page = rows[: call.query.limit]
    following = cursor_at(call, _LIST, (page[-1].slug,)) if len(rows) > len(page) else None
    page = page if call.may_see_nodes else [without_hosts(row) for row in page]
    data = [chain_document(row, state=chain_state_of(row, call.now).value, now=call.now) for row in page]
    return Page(data, following)


async def resume_halted_chain(call: Call[None, ResumeChainOrder]) -> ChainDocument:
    """Resume a halted chain

    Lifts a halt, once a person has decided; the follower tries again at once. Recorded in the audit log, and told by
    `chain.resumed`."""
    named = find_chain_named(await list_chains(call.connection), call.path["chain"])
    if named is None:
        raise not_found("chain")
    locked, now = await lock_chain(call.connection, named.chain_id)
    try:
        await resume_chain(call.connection, locked, call.body.accept_reorg_to, call.key.id, now)
    except NotHalted as error:
        raise Refused(Code.NOT_HALTED, str(error)) from None
    except NoSuchBranch as error:
        raise invalid("/accept_reorg_to", str(error)) from None
    row = await find_chain(call.connection, named.chain_id)
    return chain_document(row, state=chain_state_of(row, now).value, now=now)


ROUTES = (
    Route("GET", "/v1/chains", "chains:read", list_all_chains),
    Route(
        "POST",
        "/v1/chains/{chain}/resume",
        "chains:write",
        resume_halted_chain,
        problems=(Code.NOT_HALTED,),
        is_operators=True,
    ),
)
