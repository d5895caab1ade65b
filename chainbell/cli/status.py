"""`chainbell status` and `chainbell resume`: how chains and deliveries stand, and lifting a halt."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from sqlalchemy.ext.asyncio import AsyncConnection

from chainbell.cli.access import in_transaction
from chainbell.cli.context import context_of
from chainbell.errors import UsageError
from ledger.audit import COMMAND_LINE
from ledger.chains import chain_state_of, list_chains, lock_chain
from ledger.database import database_now
from ledger.deliveries import count_deliveries
from ledger.documents import ChainDocument, chain_document
from ledger.errors import NoSuchBranch, NotHalted
from ledger.halts import resume_chain
from ledger.model import ChainRow

_COLOURS = {"following": "green", "catching_up": "yellow", "holding": "yellow", "halted": "red", "stopped": "dim"}


async def read_status(connection: AsyncConnection) -> tuple[list[ChainDocument], dict[str, int]]:
    """Every chain as it stands, and how many deliveries are due, held, exhausted, refused and faulted."""
    now = await database_now(connection)
    chains = [
        chain_document(row, state=chain_state_of(row, now).value, now=now) for row in await list_chains(connection)
    ]
    return chains, dict(await count_deliveries(connection))


def status(context: typer.Context) -> None:
    """Show each chain's head, tip, lag, finality and state, and what the notifier has to do."""
    ours = context_of(context)
    chains, deliveries = in_transaction(ours, read_status)
    if ours.wants_json:
        typer.echo(msgspec.json.encode({"chains": chains, "deliveries": deliveries}).decode())
        return
    console = Console()
    console.print(_table_of(chains))
    for chain in chains:
        if chain.reason is not None:
            console.print(f"[bold]{chain.chain}[/bold]: {chain.reason}", highlight=False)
        if not chain.proof_enforced:
            console.print(
                f"[yellow]{chain.chain}: proofs are only observed: a block that fails one is taken all the same[/yellow]",
                highlight=False,
            )
        if chain.quorum < 2 and chain.proof != "off":
            console.print(
                f"[yellow]{chain.chain}: one host's word is enough for credit; configure nodes on two hosts[/yellow]",
                highlight=False,
            )
    console.print("deliveries: " + ", ".join(f"{count} {name}" for name, count in deliveries.items()), highlight=False)


def _table_of(chains: list[ChainDocument]) -> Table:
    table = Table("chain", "state", "head", "tip", "lag", "safe", "finalized", "proof", "nodes")
    for chain in chains:
        nodes = ", ".join(f"{node.name} {node.state}" for node in chain.nodes)
        lag = "-" if chain.lag_blocks is None else f"{chain.lag_blocks} blocks, {chain.lag_seconds} s"
        proof = chain.proof if chain.proof_enforced else f"{chain.proof} (observed)"
        cells: list[Any] = [chain.head, chain.tip, lag, chain.safe, chain.finalized, proof, nodes]
        state = f"[{_COLOURS[chain.state]}]{chain.state}[/]"
        table.add_row(chain.chain, state, *("-" if cell is None else str(cell) for cell in cells))
    return table


def resume(
    context: typer.Context,
    chain: Annotated[str, typer.Option(help="Slug of the halted chain.")],
    accept_reorg_to: Annotated[
        int | None,
        typer.Option(
            help="Allow, once, undoing finalized blocks above this height: the last that both branches share."
        ),
    ] = None,
) -> None:
    """Lift a halt. Recorded in the audit log; the follower tries again at once."""

    async def _work(connection: AsyncConnection) -> None:
        row = find_row(await list_chains(connection), chain)
        locked, now = await lock_chain(connection, row.chain_id)
        try:
            await resume_chain(connection, locked, accept_reorg_to, COMMAND_LINE, now)
        except NotHalted as error:
            raise UsageError(str(error)) from None
        except NoSuchBranch as error:
            raise UsageError(f"--accept-reorg-to {accept_reorg_to}: {error}") from None

    ours = context_of(context)
    in_transaction(ours, _work)
    row = {"chain": chain, "resumed": True, "accept_reorg_to": accept_reorg_to}
    ours.print_object(row, f"{chain} is resumed")


def find_row(chains: list[ChainRow], slug: str) -> ChainRow:
    """The chain of that slug. Raises `UsageError` naming those that there are."""
    for row in chains:
        if row.slug == slug:
            return row
    known = ", ".join(row.slug for row in chains) or "none yet"
    raise UsageError(f"--chain {slug}: no such chain was ever followed; there are: {known}")
