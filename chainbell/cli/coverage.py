"""`chainbell coverage`: which heights of a chain were read, for what and how well, and what was not; or of an address."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from sqlalchemy.ext.asyncio import AsyncConnection

from chainbell.cli.access import in_transaction
from chainbell.cli.context import address_given, context_of
from chainbell.cli.status import find_row
from chainbell.errors import UsageError
from ledger.chains import list_chains
from ledger.documents import CoverageDocument, CoverageGapDocument, CoverageRangeDocument
from ledger.errors import NoSuchHeights
from ledger.watch_coverage import (
    AddressCoverageDocument,
    WatchCoverageDocument,
    WatchGapDocument,
    describe_address_coverage,
    describe_coverage,
)


def coverage(
    context: typer.Context,
    chain: Annotated[str, typer.Option(help="Slug of the chain.")],
    address: Annotated[
        str | None, typer.Option(help="Tell it of this address, for each live watch on it, whosever it is.")
    ] = None,
    from_height: Annotated[
        int | None, typer.Option("--from", min=0, help="First height; by default the first that is covered.")
    ] = None,
    to_height: Annotated[int | None, typer.Option("--to", min=0, help="Last height; by default our tip.")] = None,
) -> None:
    """Show which heights of a chain are covered, by which sources and at which proof, and the gaps."""
    if from_height is not None and to_height is not None and from_height > to_height:
        raise UsageError(f"--from {from_height} is above --to {to_height}; swap them")
    asked = None if address is None else address_given(address)

    async def _read(connection: AsyncConnection) -> CoverageDocument | AddressCoverageDocument:
        row = find_row(await list_chains(connection), chain)
        try:
            if asked is None:
                return await describe_coverage(connection, row, from_height, to_height)
            found = await describe_address_coverage(connection, row, asked, None, from_height, to_height)
        except NoSuchHeights as error:
            given = {"chain": chain, "from": from_height, "to": to_height}[error.part]
            raise UsageError(f"--{error.part} {given}: {error}") from None
        if found is None:
            raise UsageError(f"--address {address}: nobody watches it on {chain}")
        return found

    ours = context_of(context)
    document = in_transaction(ours, _read)
    if ours.wants_json:
        typer.echo(msgspec.json.encode(document).decode())
        return
    if isinstance(document, CoverageDocument):
        _print_coverage(chain, document, document.ranges, document.gaps)
        return
    for watch in document.watches:
        _print_watch(document, watch)


def _print_watch(document: AddressCoverageDocument, watch: WatchCoverageDocument) -> None:
    covered = "nothing yet" if watch.covered_from_height is None else f"from {watch.covered_from_height} on"
    asked = "" if watch.start_height is None else f", asked for from {watch.start_height} on"
    Console().print(f"{watch.id} of {watch.tenant}: covers {document.address} {covered}{asked}", highlight=False)
    _print_coverage(watch.id, document, watch.ranges, watch.gaps)


def _print_coverage(
    name: str,
    document: CoverageDocument | AddressCoverageDocument,
    ranges: Sequence[CoverageRangeDocument],
    gaps: Sequence[CoverageGapDocument | WatchGapDocument],
) -> None:
    console = Console()
    console.print(_table_of(ranges))
    if not gaps:
        console.print(f"{name}: no gaps from {document.from_height} to {document.to_height}", highlight=False)
    for gap in gaps:
        what = "not covered" if gap.missing is None else f"not read for {gap.missing}"
        if isinstance(gap, WatchGapDocument) and gap.job_id is not None:
            what += f" yet: {gap.job_id} is to read it"
        console.print(f"[yellow]{name}: {gap.from_height} to {gap.to_height} {what}[/yellow]", highlight=False)


def _table_of(ranges: Sequence[CoverageRangeDocument]) -> Table:
    table = Table("from", "to", "proof", "traces", "hosts", "sources", "assets", "decoder")
    for one in ranges:
        assets = None if one.assets is None else len(one.assets)
        sources = "not recorded" if one.value_paths is None else ", ".join(one.value_paths)
        cells = (
            one.from_height,
            one.to_height,
            one.proof,
            one.trace_proof,
            one.agreed_by,
            sources,
            assets,
            one.decoder,
        )
        table.add_row(*("-" if cell is None else str(cell) for cell in cells))
    return table
