"""`/v1/watches`: which addresses a tenant wants to be told of."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from api.auditing import audit
from api.inputs import AddressText, ChainName, Height, Line, address_given, scope_named, unknown_chain
from api.paging import Page, PageQuery, cursor_at, place_after
from api.problems import Code, FieldProblem, Refused, invalid, not_found
from api.routes import Call, Route
from ledger.addresses import BadAddress, read_address
from ledger.chains import EVM_SCOPE, list_chains
from ledger.ids import WatchId
from ledger.model import ChainRow
from ledger.watches import (
    NewWatch,
    WatchDocument,
    delete_watch,
    find_watch,
    insert_watches,
    list_watches,
    scopes_for,
    watch_document,
)

METADATA_BYTES_MAX = 4096
METADATA_DEPTH_MAX = 16
ERRORS_MAX = 50
"""Bad rows that one answer names; the rest are found with the next try."""

START_AHEAD_MAX = 10_000
"""So far above the newest block that we know a start height may lie: what the fastest chain, Arbitrum, makes in forty
minutes in which it is not followed. What lies further up is no height of this chain, but a time, or another's height."""

_LIST = "watches"
_EXPONENT = re.compile(rb"\de[-+]?\d")
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


class WatchInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One address to watch."""

    chain: Annotated[
        str,
        Meta(
            max_length=100,
            description="A chain's slug or CAIP-2 name, or evm for all EVM chains",
            examples=["ethereum", "evm"],
        ),
    ]
    address: AddressText
    reference: Annotated[Line | None, Meta(description="Your own name for it, e.g. an order")] = None
    metadata: Annotated[dict[str, Any] | None, Meta(description="Kept and repeated in events; at most 4 KiB")] = None
    start_height: Annotated[
        Height | None,
        Meta(
            description="First block wanted: of the past, which a backfill reads, or at most"
            f" {START_AHEAD_MAX} above the newest block that is known; null: the next one. Not with chain evm"
        ),
    ] = None


class NewWatches(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Addresses to watch."""

    watches: Annotated[list[WatchInput], Meta(min_length=1, max_length=10_000)]


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
    asked = await asyncio.to_thread(_read_rows, call.body.watches, chains)
    inserted, chains = await insert_watches(call.connection, call.tenant_id, asked, call.now)
    created = [one.row.id for one in inserted if one.is_new]
    if created:
        await audit(call, "watches.created", created[0], count=len(created))
    return WatchAnswers([watch_document(one.row, chains, is_known=not one.is_new) for one in inserted])


def _read_rows(rows: Sequence[WatchInput], chains: Sequence[ChainRow]) -> list[NewWatch]:
    asked: list[NewWatch] = []
    errors: list[FieldProblem] = []
    for index, row in enumerate(rows):
        try:
            asked.append(_read_row(row, chains, f"/watches/{index}"))
        except Refused as refused:
            errors.extend(refused.errors)
    if errors:
        detail = f"{errors[0].pointer}: {errors[0].detail}; no watch was made"
        raise Refused(Code.INVALID_REQUEST, detail, errors=errors[:ERRORS_MAX])
    return asked


def _read_row(row: WatchInput, chains: Sequence[ChainRow], pointer: str) -> NewWatch:
    scope = scope_named(chains, row.chain)
    if scope is None:
        raise invalid(f"{pointer}/chain", f"{unknown_chain(chains, row.chain)}; or evm for all EVM chains")
    if row.start_height is not None:
        _check_start(row.start_height, scope, chains, f"{pointer}/start_height")
    try:
        address = read_address(row.address)
    except BadAddress as error:
        raise invalid(f"{pointer}/address", str(error)) from None
    metadata = row.metadata or {}
    _check_metadata(metadata, f"{pointer}/metadata")
    return NewWatch(scope, address, row.reference, metadata, row.start_height)


def _check_start(start_height: int, scope: str, chains: Sequence[ChainRow], pointer: str) -> None:
    """Refuse a height that the chain is not near: the watch would tell of nothing, and say so nowhere. A chain of which no
    block is known covers its watches from its first block on, whatever their start."""
    if scope == EVM_SCOPE:
        raise invalid(pointer, "heights differ between chains; name one chain, or leave it out")
    chain = next(chain for chain in chains if chain.chain_id == scope)
    newest = max((height for height in (chain.tip_height, chain.head_height) if height is not None), default=None)
    if newest is not None and start_height > newest + START_AHEAD_MAX:
        raise invalid(
            pointer,
            f"{start_height} is more than {START_AHEAD_MAX} above the newest known block of {chain.slug}, {newest}; give a"
            " height of this chain, not a time, or leave it out to watch from the next block on",
        )


def _check_metadata(metadata: dict[str, Any], pointer: str) -> None:
    if not metadata:
        return
    encoded = msgspec.json.encode(metadata)
    # No deeper than it has brackets: most need no closer look.
    if encoded.count(b"{") + encoded.count(b"[") > METADATA_DEPTH_MAX and _depth(metadata) > METADATA_DEPTH_MAX:
        raise invalid(pointer, f"the metadata is nested deeper than {METADATA_DEPTH_MAX} levels")
    kept = len(encoded) + _growth(metadata, encoded)
    if kept > METADATA_BYTES_MAX:
        raise invalid(pointer, f"the metadata has {kept} bytes as JSON; at most {METADATA_BYTES_MAX} are kept")
    if _NUL.search(encoded):
        raise invalid(pointer, "the metadata holds a NUL character, which cannot be kept")


def _growth(metadata: dict[str, Any], encoded: bytes) -> int:
    """Bytes that come to it where it is kept: Postgres writes 1e300 with three hundred zeros, and so does each event."""
    if not _EXPONENT.search(encoded):
        return 0
    numbers: list[float] = []
    level: list[Any] = [metadata]
    while level:
        inner = [part for one in level for part in (one.values() if isinstance(one, dict) else one)]
        numbers += [part for part in inner if isinstance(part, float)]
        level = [part for part in inner if isinstance(part, dict | list)]
    return sum(len(f"{Decimal(repr(number)):f}") - len(msgspec.json.encode(number)) for number in numbers)


def _depth(value: object) -> int:
    """How many levels of containers there are, without recursion: the depth of input is the sender's choice."""
    depth, level = 0, [value]
    while level:
        containers = [v for v in level if isinstance(v, dict | list)]
        level = [inner for v in containers for inner in (v.values() if isinstance(v, dict) else v)]
        depth += bool(containers)
    return depth


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
    rows = await list_watches(
        call.connection,
        call.tenant_id,
        scopes=scopes_for(scope) if scope is not None else None,
        address=address_given(query.address, "/address") if query.address is not None else None,
        reference=query.reference,
        after=WatchId(str(after[0])) if after else None,
        limit=query.limit + 1,
    )
    page = rows[: query.limit]
    following = cursor_at(call, _LIST, (page[-1].id,)) if len(rows) > query.limit else None
    return Page([watch_document(row, chains) for row in page], following)


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
    Route("POST", "/v1/watches", "watches:write", create_watches),
    Route("GET", "/v1/watches", "watches:read", list_my_watches),
    Route("GET", "/v1/watches/{id}", "watches:read", get_watch),
    Route("DELETE", "/v1/watches/{id}", "watches:write", remove_watch, status=204),
)
