"""The rows of `POST /v1/watches`: how each is formed, and what it has to mean. All that is wrong is told at once."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from api.inputs import AddressText, Height, Line, address_given, scope_named, unknown_chain
from api.problems import ERRORS_MAX, Faults, FieldProblem, Misformed, Refused, invalid, refusal_of
from ledger.chains import EVM_SCOPE, list_chains
from ledger.database import Connection
from ledger.model import ChainRow
from ledger.watches import NewWatch

ROWS_MAX = 10_000
"""Rows of one call."""

METADATA_BYTES_MAX = 4096
METADATA_DEPTH_MAX = 16

START_AHEAD_MAX = 10_000
"""So far above the newest block that we know a start height may lie: what the fastest chain, Arbitrum, makes in forty
minutes in which it is not followed. What lies further up is no height of this chain, but a time, or another's height."""

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


def read_rows(rows: Sequence[WatchInput], chains: Sequence[ChainRow]) -> list[NewWatch]:
    """What the rows ask for. Raises `Refused`, which tells of everything that is wrong with any."""
    try:
        return [
            NewWatch(
                _scope(row, chains), _address(row, chains), row.reference, _metadata(row, chains), _start(row, chains)
            )
            for row in rows
        ]
    except Refused:
        found = list(_faults_of(enumerate(rows), chains))
        raise _refusal_of(found, len(found)) from None


async def review_rows(connection: Connection, misformed: Misformed) -> Refused:
    """The refusal of a body that is not formed as described, with what is wrong with the meaning of the rows that are."""
    chains = await list_chains(connection)
    more = await asyncio.to_thread(lambda: list(_faults_of(_formed_rows(misformed.given), chains)))
    found = sorted([*misformed.errors, *more], key=_row_of)
    return _refusal_of(found, misformed.errors_total + len(more))


def _refusal_of(found: Sequence[FieldProblem], total: int) -> Refused:
    return refusal_of(Faults(found[:ERRORS_MAX], total), "no watch was made")


def _formed_rows(given: Any) -> Iterator[tuple[int, WatchInput]]:  # noqa: ANN401 (JSON of whatever form)
    rows = given.get("watches") if isinstance(given, dict) else None
    if not isinstance(rows, list) or len(rows) > ROWS_MAX:
        return
    for index, row in enumerate(rows):
        try:
            formed = msgspec.convert(row, WatchInput)
        except msgspec.ValidationError:
            continue  # the refusal that is reviewed tells of it
        yield index, formed


def _row_of(problem: FieldProblem) -> int:
    """The index of the row that a pointer leads into; what is about all of the body comes before."""
    steps = problem.pointer.split("/")
    return int(steps[2]) if len(steps) > 2 and steps[1] == "watches" else -1


def _faults_of(rows: Iterable[tuple[int, WatchInput]], chains: Sequence[ChainRow]) -> Iterator[FieldProblem]:
    for index, row in rows:
        for read in _PARTS:
            try:
                read(row, chains)
            except Refused as refused:
                for one in refused.errors:
                    yield FieldProblem(f"/watches/{index}{one.pointer}", one.detail)


def _scope(row: WatchInput, chains: Sequence[ChainRow]) -> str:
    scope = scope_named(chains, row.chain)
    if scope is None:
        raise invalid("/chain", f"{unknown_chain(chains, row.chain)}; or evm for all EVM chains")
    return scope


def _address(row: WatchInput, _chains: Sequence[ChainRow]) -> bytes:
    return address_given(row.address, "/address")


def _start(row: WatchInput, chains: Sequence[ChainRow]) -> int | None:
    """Refuses a height that the chain is not near: the watch would tell of nothing, and say so nowhere. A chain of which no
    block is known covers its watches from its first block on, whatever their start."""
    start_height, scope = row.start_height, scope_named(chains, row.chain)
    if start_height is None or scope is None:
        return start_height
    if scope == EVM_SCOPE:
        raise invalid("/start_height", "heights differ between chains; name one chain, or leave it out")
    chain = next(chain for chain in chains if chain.chain_id == scope)
    newest = max((height for height in (chain.tip_height, chain.head_height) if height is not None), default=None)
    if newest is not None and start_height > newest + START_AHEAD_MAX:
        raise invalid(
            "/start_height",
            f"{start_height} is more than {START_AHEAD_MAX} above the newest known block of {chain.slug}, {newest}; give a"
            " height of this chain, not a time, or leave it out to watch from the next block on",
        )
    return start_height


def _metadata(row: WatchInput, _chains: Sequence[ChainRow]) -> dict[str, Any]:
    metadata = row.metadata or {}
    _check_metadata(metadata, "/metadata")
    return metadata


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


_PARTS: Sequence[Callable[[WatchInput, Sequence[ChainRow]], object]] = (_scope, _address, _metadata, _start)
