"""`chainbell coverage`: which heights of a chain were read, for what and how well, and what was not."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from sqlalchemy.ext.asyncio import AsyncConnection

from chainbell.cli.access import in_transaction
from chainbell.cli.context import context_of
from chainbell.cli.status import find_row
from chainbell.errors import UsageError
from ledger.chains import list_chains
from ledger.coverage import find_coverage, list_listed_assets, list_readings
from ledger.documents import CoverageDocument, coverage_document


def coverage(
    context: typer.Context,
    chain: Annotated[str, typer.Option(help="Slug of the chain.")],
    from_height: Annotated[
        int | None, typer.Option("--from", min=0, help="First height; by default the first that was followed.")
    ] = None,
    to_height: Annotated[int | None, typer.Option("--to", min=0, help="Last height; by default our tip.")] = None,
) -> None:
    """Show which heights of a chain are covered, by which sources and at which proof, and the gaps."""

    async def _read(connection: AsyncConnection) -> CoverageDocument:
        row = find_row(await list_chains(connection), chain)
        if row.first_height is None or row.tip_height is None:
            raise UsageError(f"--chain {chain}: no block of it was committed yet; start its follower")
        first = row.first_height if from_height is None else from_height
        last = row.tip_height if to_height is None else to_height
        if first > last:
            raise UsageError(f"--from {first} is above --to {last}; swap them")
        ranges = await find_coverage(connection, row.chain_id, first, last)
        readings = await list_readings(connection, row.chain_id)
        return coverage_document(row, first, last, ranges, readings, await list_listed_assets(connection, row.chain_id))

    ours = context_of(context)
    document = in_transaction(ours, _read)
    if ours.wants_json:
        typer.echo(msgspec.json.encode(document).decode())
        return
    console = Console()
    console.print(_table_of(document))
    if not document.gaps:
        console.print(f"{chain}: no gaps from {document.from_height} to {document.to_height}", highlight=False)
    for gap in document.gaps:
        what = "not covered" if gap.missing is None else f"not read for {gap.missing}"
        console.print(f"[yellow]{chain}: {gap.from_height} to {gap.to_height} {what}[/yellow]", highlight=False)


def _table_of(document: CoverageDocument) -> Table:
    table = Table("from", "to", "proof", "traces", "hosts", "sources", "assets", "decoder")
    for one in document.ranges:
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
