"""`chainbell replay`: read blocks again, show what the ledger would have to change, and change it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from sqlalchemy.ext.asyncio import AsyncEngine

from chainbell.cli.context import Context, address_given, context_of
from chainbell.configured import ConfiguredChain
from chainbell.errors import ChainbellError, UsageError
from chainbell.opening import open_database, open_engine, register_chains
from chainbell.roles import chosen_chains, open_past
from chains.errors import ChainError
from chains.evm.adapter import EvmAdapter
from chains.evm.workers import Workers
from chains.model import Address
from indexer.errors import IndexerError
from indexer.historian import refusal_of
from indexer.past import Past
from ledger.audit import COMMAND_LINE, record_audit
from ledger.chains import find_chain
from ledger.database import database_now, transaction
from ledger.errors import NoSuchHeights
from ledger.jobs import JobDocument, JobRow, cancel_job, end_job, job_document
from ledger.replays import NewReplay, create_replay
from ledger.states import ENDED_STATES, JobState

DIFFERENT = 3
"""Exit status: done, and there are differences."""


@dataclass(frozen=True, slots=True)
class PastAccess:
    """What a command works on a chain's past with."""

    engine: AsyncEngine
    past: Past
    adapter: EvmAdapter


@asynccontextmanager
async def past_of(ours: Context, chain: ConfiguredChain, url: str) -> AsyncIterator[PastAccess]:
    """The past of a configured chain: its ledger, and its nodes at the pace that they are configured with."""
    workers = Workers()
    try:
        async with open_engine(ours.settings(), url, application="chainbell", pool_size=3) as engine:
            versions = await register_chains(engine, [chain])
            async with open_past(engine, chain, versions[chain.slug], workers, share=1.0) as (past, adapter):
                yield PastAccess(engine, past, adapter)
    finally:
        await workers.close()


def replay(
    context: typer.Context,
    chain: Annotated[str, typer.Option(help="Slug of the chain.")],
    from_height: Annotated[int, typer.Option("--from", min=0, help="First height.")],
    to_height: Annotated[int, typer.Option("--to", min=0, help="Last height, included.")],
    address: Annotated[str | None, typer.Option(help="Only what concerns this address.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show the difference; exit status 3 where there is one.")
    ] = False,
) -> None:
    """Read a range of blocks again, prove them, and bring the ledger to what they say. The checkpoint never moves."""
    ours = context_of(context)
    (configured,) = chosen_chains(ours.settings(), (chain,))
    party = None if address is None else address_given(address)
    if from_height > to_height:
        raise UsageError(f"--from {from_height} is above --to {to_height}; swap them")
    with open_database(ours.settings()) as url:
        document = asyncio.run(_replay(ours, configured, url, (from_height, to_height), party, dry_run=dry_run))
    _show(ours, document, dry_run=dry_run)
    if dry_run and document.result["differences"]:
        raise typer.Exit(DIFFERENT)


async def _replay(
    ours: Context,
    chain: ConfiguredChain,
    url: str,
    heights: tuple[int, int],
    address: Address | None,
    *,
    dry_run: bool,
) -> JobDocument:
    async with past_of(ours, chain, url) as access:
        job = await _create(access.engine, chain, heights, address, dry_run=dry_run)
        try:
            with _progress(ours) as progress:
                task = progress.add_task(f"{'comparing' if dry_run else 'replaying'} {chain.slug}", total=job.total)
                while job.state not in ENDED_STATES:
                    job = await access.past.step(job)
                    progress.update(task, completed=job.done, total=job.total)
        except (ChainError, IndexerError) as error:
            async with transaction(access.engine) as connection:
                await end_job(connection, job, JobState.FAILED, await database_now(connection), refusal_of(error))
            raise ChainbellError(refusal_of(error)) from error
        except asyncio.CancelledError:
            async with transaction(access.engine) as connection:
                await cancel_job(connection, job.tenant_id, job.id, await database_now(connection))
            raise
    return job_document(job, chain.slug)


async def _create(
    engine: AsyncEngine, chain: ConfiguredChain, heights: tuple[int, int], address: Address | None, *, dry_run: bool
) -> JobRow:
    """The job, ours from the start. Raises `UsageError` for a range that we have not read."""
    asked = NewReplay(*heights, address, dry_run)
    async with transaction(engine) as connection:
        row = await find_chain(connection, chain.profile.chain_id)
        now = await database_now(connection)
        try:
            job = await create_replay(connection, row, asked, now, is_taken=True)
        except NoSuchHeights as error:
            given = {"chain": chain.slug, "from": asked.from_height, "to": asked.to_height}[error.part]
            raise UsageError(f"--{error.part} {given}: {error}") from None
        await record_audit(
            connection,
            tenant_id=job.tenant_id,
            actor=COMMAND_LINE,
            action="replay.created",
            subject=job.id,
            now=now,
            detail=job.request,
        )
        return job


def _progress(ours: Context) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), disable=ours.wants_json)


def _show(ours: Context, job: JobDocument, *, dry_run: bool) -> None:
    if ours.wants_json:
        typer.echo(msgspec.json.encode(job).decode())
        return
    console = Console()
    result = job.result
    if result["differences"]:
        console.print(differences_table(result["differences"]))
    counts = ", ".join(f"{result[kind]} {kind}" for kind in ("missing", "extra", "changed"))
    done = "would be changed; nothing was written" if dry_run else f"{result['events']} events told"
    console.print(f"{job.done} blocks: {counts}; {done}", highlight=False)


def differences_table(rows: list[dict[str, object]]) -> Table:
    """Differences for people."""
    table = Table("", "height", "entry", "state", "address", "amount (atomic)", "asset", "transaction")
    for row in rows:
        kind = row["kind"] if row["mended"] else f"{row['kind']} (left: not proven as well)"
        names = ("height", "id", "state", "address", "amount_atomic", "asset", "transaction")
        table.add_row(*("-" if cell is None else str(cell) for cell in (kind, *(row[name] for name in names))))
    return table
