"""`/v1/coverage`: which heights were read, for what and how well, and which were not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from api.inputs import AddressText, ChainName, Height, address_given, chain_named
from api.problems import Code, invalid, not_found
from api.routes import Call, Route
from api.withholding import ANOTHER, told_names
from ledger.chains import list_chains
from ledger.documents import CoverageDocument, CoverageRangeDocument
from ledger.errors import NoSuchHeights
from ledger.model import ChainRow
from ledger.watch_coverage import (
    AddressCoverageDocument,
    describe_address_coverage,
    describe_coverage,
)


class CoverageQuery(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    rename={"from_height": "from", "to_height": "to"},
):
    """Of which chain, which address and which heights."""

    chain: ChainName
    address: Annotated[AddressText | None, Meta(description="One that you watch; left out: the chain's coverage")] = (
        None
    )
    from_height: Annotated[Height | None, Meta(description="First height; left out: the first that is covered")] = None
    to_height: Annotated[Height | None, Meta(description="Last height; left out: our tip")] = None


async def get_coverage(call: Call[CoverageQuery, None]) -> CoverageDocument | AddressCoverageDocument:
    """Tell what is covered

    The ranges of heights that were read, by which sources, for which assets, at which proof and agreed on by how many hosts;
    and the gaps. With `address` it is told for each of your live watches on it, from the height that it covers on."""
    query = call.query
    chain = chain_named(await list_chains(call.connection), query.chain, "/chain")
    heights = (query.from_height, query.to_height)
    try:
        if query.address is None:
            told = await describe_coverage(call.connection, chain, *heights)
            return msgspec.structs.replace(told, ranges=_shown(call, chain, told.ranges))
        address = address_given(query.address, "/address")
        found = await describe_address_coverage(call.connection, chain, address, call.tenant_id, *heights)
    except NoSuchHeights as error:
        raise invalid(f"/{error.part}", str(error)) from None
    if found is None:
        raise not_found("watch: you have no live one on that address and chain")
    watches = [msgspec.structs.replace(watch, ranges=_shown(call, chain, watch.ranges)) for watch in found.watches]
    return msgspec.structs.replace(found, watches=watches)


def _shown(
    call: Call[Any, Any], chain: ChainRow, ranges: Sequence[CoverageRangeDocument]
) -> list[CoverageRangeDocument]:
    """The ranges with their nodes as the tenant knows them."""
    if call.may_see_nodes:
        return list(ranges)
    names = told_names(chain.nodes)
    return [
        msgspec.structs.replace(one, nodes=sorted({names.get(node, ANOTHER) for node in one.nodes})) for one in ranges
    ]


ROUTES = (Route("GET", "/v1/coverage", "chains:read", get_coverage, problems=(Code.NOT_FOUND,)),)
