"""`chainbell audit`: check the ledger against the chain, by other nodes than before."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from chainbell.cli.context import Context, context_of
from chainbell.cli.replay import DIFFERENT, past_of
from chainbell.configured import ConfiguredChain
from chainbell.errors import ChainbellError, UsageError
from chainbell.opening import open_database
from chainbell.roles import auditor_of, chosen_chains
from chains.model import hex_of
from indexer.auditing import SAMPLE_SHARE, AuditReport
from ledger.chains import find_chain
from ledger.database import Engine, transaction
from ledger.findings import Finding

UNREAD_SHOWN_MAX = 20


class AuditDocument(msgspec.Struct, frozen=True):
    """What an audit came to. `by_same_host` counts blocks that no other host could confirm; `unread` names blocks that
    nobody could give. `balances` counts those that agree with the entries; `balances_untold` names those that nobody could
    judge, with the reason."""

    chain: str
    from_height: int
    to_height: int
    blocks: int
    by_same_host: int
    unread: list[dict[str, Any]]
    balances: int
    balances_untold: list[dict[str, Any]]
    findings: list[dict[str, Any]]


def audit(
    context: typer.Context,
    chain: Annotated[str, typer.Option(help="Slug of the chain.")],
    sample: Annotated[
        float,
        typer.Option(
            help="Share of what shows no entry that is looked at: 0.05 or 5 for five per cent, 1 for everything."
        ),
    ] = SAMPLE_SHARE,
    from_height: Annotated[
        int | None, typer.Option("--from", min=0, help="First height; by default the first that was followed.")
    ] = None,
    to_height: Annotated[int | None, typer.Option("--to", min=0, help="Last height; by default our tip.")] = None,
) -> None:
    """Check the ledger against the chain: blocks again from other hosts, and balances of watched addresses. Exit status 3
    where they differ."""
    ours = context_of(context)
    (configured,) = chosen_chains(ours.settings(), (chain,))
    share = share_of(sample)
    with open_database(ours.settings()) as url:
        report = asyncio.run(_audit(ours, configured, url, (from_height, to_height), share))
    _show(ours, chain, report)
    if report.findings:
        raise typer.Exit(DIFFERENT)
    if report.blocks.unread and not report.blocks.heights:
        raise ChainbellError(f"--chain {chain}: no block could be compared, so nothing was shown to be right")


def share_of(sample: float) -> float:
    """A share between 0 and 1; numbers above 1 are per cent. Raises `UsageError`."""
    share = sample / 100 if sample > 1 else sample
    if not 0 <= share <= 1:
        raise UsageError(f"--sample {sample:g}: give a share from 0 to 1, or a percentage up to 100")
    return share


async def _audit(
    ours: Context, chain: ConfiguredChain, url: str, heights: tuple[int | None, int | None], share: float
) -> AuditReport:
    async with past_of(ours, chain, url) as access:
        first, last = await _range(access.engine, chain, *heights)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), disable=ours.wants_json) as progress:
            task = progress.add_task(f"auditing {chain.slug}", total=None)
            auditor = auditor_of(access.engine, access.past, chain)
            return await auditor.audit_all(
                first, last, share, lambda done, total: progress.update(task, completed=done, total=total)
            )


async def _range(engine: Engine, chain: ConfiguredChain, first: int | None, last: int | None) -> tuple[int, int]:
    async with transaction(engine) as connection:
        row = await find_chain(connection, chain.profile.chain_id)
    if row.first_height is None or row.tip_height is None:
        raise UsageError(f"--chain {chain.slug}: no block of it was committed yet; start its follower")
    first = row.first_height if first is None else first
    last = row.tip_height if last is None else last
    if last > row.tip_height:
        raise UsageError(f"--to {last} is above our tip {row.tip_height}: the follower has not come that far")
    if first < row.first_height or first > last:
        raise UsageError(
            f"--from {first} is not between {row.first_height}, the first block that was followed, and {last}"
        )
    return first, last


def _show(ours: Context, chain: str, report: AuditReport) -> None:
    findings = [_row(one) for one in report.findings]
    unread = [{"height": height, "reason": reason} for height, reason in report.blocks.unread]
    blocks = report.blocks
    document = AuditDocument(
        chain,
        report.from_height,
        report.to_height,
        len(blocks.heights),
        blocks.by_same_host,
        unread,
        len(report.balances.matched),
        [
            {"address": hex_of(address), "asset": asset_id, "reason": reason.value}
            for (address, asset_id), reason in report.balances.untold.items()
        ],
        findings,
    )
    if ours.wants_json:
        typer.echo(msgspec.json.encode(document).decode())
        return
    console = Console()
    if findings:
        console.print(_table_of(findings))
        lowest, highest = (
            edge(h for f in report.findings for h in (f.from_height, f.to_height)) for edge in (min, max)
        )
        console.print(
            f"[yellow]see what would be changed: chainbell replay --chain {chain} --from {lowest} --to {highest}"
            " --dry-run[/yellow]",
            highlight=False,
        )
    for one in unread[:UNREAD_SHOWN_MAX]:
        console.print(f"[yellow]block {one['height']} could not be audited: {one['reason']}[/yellow]", highlight=False)
    console.print(
        f"{chain}: blocks {report.from_height} to {report.to_height}: {len(blocks.heights)} compared"
        f" ({blocks.by_same_host} with the host that had supplied them), {len(unread)} could not be;"
        f" balances: {len(report.balances.matched)} agree, {len(report.balances.untold)} could not be judged;"
        f" {len(findings)} differences",
        highlight=False,
    )


def _row(one: Finding) -> dict[str, Any]:
    return {
        **one.detail,
        "key": one.key,
        "kind": one.kind,
        "from": one.from_height,
        "to": one.to_height,
    }


def _table_of(rows: list[dict[str, Any]]) -> Table:
    names = (
        "kind",
        "from",
        "to",
        "key",
        "address",
        "asset",
        "amount_atomic",
        "expected_atomic",
        "found_atomic",
        "reason",
    )
    table = Table(*names)
    for row in rows:
        table.add_row(*("-" if row.get(name) is None else str(row[name]) for name in names))
    return table
