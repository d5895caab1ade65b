"""`chainbell doctor`: is everything there that Chainbell needs, and what can each node do?"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum

import msgspec
import typer
from rich.console import Console
from sqlalchemy.ext.asyncio import AsyncConnection

from chainbell.cli.context import context_of
from chainbell.configured import ConfiguredChain, configure_chains
from chainbell.errors import ChainbellError
from chainbell.master_key import find_secret_box
from chainbell.opening import open_database, open_engine
from chainbell.settings_model import Settings
from chains.adapter import Internal
from chains.errors import ChainError
from chains.evm.adapter import EvmAdapter
from chains.evm.probe import NodeProbe
from chains.profile import load_profile
from ledger.database import database_now, transaction
from ledger.errors import LedgerError
from ledger.master_keys import check_master_key
from ledger.rewrapping import count_old_rows
from notifier.clock import SKEW_MAX_S

CLOCK_SKEW_MAX_S = 5.0
"""More between our clock and the database's is worth a warning: receivers refuse signatures that are minutes off."""

LAG_MAX_BLOCKS = 5
"""A node further behind the newest head than this is worth a warning."""


class Verdict(StrEnum):
    """How one finding is to be taken."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    subject: str
    verdict: Verdict
    detail: str


def doctor(context: typer.Context) -> None:
    """Check settings, database, clock and every node. Exit status 1 when something cannot work."""
    ours = context_of(context)
    settings = ours.settings()
    findings, probes = asyncio.run(_examine(settings))
    if ours.wants_json:
        typer.echo(msgspec.json.encode({"findings": findings, "nodes": probes}).decode())
    else:
        _print(findings)
    if any(finding.verdict is Verdict.FAILED for finding in findings):
        raise typer.Exit(1)


async def _examine(settings: Settings) -> tuple[list[Finding], dict[str, list[dict[str, object]]]]:
    findings = [Finding("settings", Verdict.OK, "read and free of contradictions"), _examine_key(settings)]
    findings += await _examine_database(settings)
    probes: dict[str, list[dict[str, object]]] = {}
    for chain in configure_chains(settings):
        found, nodes = await _examine_chain(chain)
        findings += [*found, *tell_proof(chain)]
        probes[chain.slug] = [asdict(node) for node in nodes]
    return findings, probes


def _examine_key(settings: Settings) -> Finding:
    try:
        find_secret_box(settings)
    except ChainbellError as error:
        return Finding("master key", Verdict.FAILED, str(error))
    return Finding("master key", Verdict.OK, "found, 32 bytes")


async def _examine_secrets(connection: AsyncConnection, settings: Settings) -> list[Finding]:
    """Whether the master key is this database's; nothing where there is no usable key, which is told of apart."""
    try:
        box = find_secret_box(settings)
    except ChainbellError:
        return []
    try:
        await check_master_key(connection, box)
    except LedgerError as error:
        return [Finding("secrets", Verdict.FAILED, str(error))]
    old = await count_old_rows(connection, box)
    if old:
        said = f"{old} rows are sealed under an earlier master key; run: chainbell secrets rewrap"
        return [Finding("secrets", Verdict.WARNING, said)]
    return [Finding("secrets", Verdict.OK, "all sealed under the master key")]


async def _examine_database(settings: Settings) -> list[Finding]:
    try:
        with open_database(settings) as url:
            opened = open_engine(settings, url, application="chainbell doctor", pool_size=1)
            async with opened as engine, transaction(engine) as connection:
                skew_s = abs((await database_now(connection) - datetime.now(UTC)).total_seconds())
                secrets = await _examine_secrets(connection, settings)
    except ChainbellError as error:
        return [Finding("database", Verdict.FAILED, str(error))]
    return [Finding("database", Verdict.OK, "answers, every migration is in"), judge_clock(skew_s), *secrets]


def judge_clock(skew_s: float) -> Finding:
    """What this machine's clock is good for, so many seconds from the database's."""
    said = f"{skew_s:.1f} s from the database's"
    if skew_s > SKEW_MAX_S:
        return Finding("clock", Verdict.FAILED, f"{said}: a notifier here would sign nothing; set this machine's clock")
    return Finding("clock", Verdict.OK if skew_s <= CLOCK_SKEW_MAX_S else Verdict.WARNING, said)


async def _examine_chain(chain: ConfiguredChain) -> tuple[list[Finding], Sequence[NodeProbe]]:
    adapter = EvmAdapter(chain.profile, chain.nodes)
    try:
        probes = await adapter.probe()
        announcements = await adapter.check_announcements()
    except ChainError as error:
        return [Finding(chain.slug, Verdict.FAILED, str(error))], ()
    finally:
        await adapter.close()
    findings = [_judge_node(chain, probe) for probe in probes]
    findings += [_judge_announcements(chain, name, refusal) for name, refusal in announcements.items()]
    if chain.quorum < 2:
        text = "one host's word is enough for credit: a node that lies consistently is believed; configure two hosts"
        findings.append(Finding(f"{chain.slug} quorum", Verdict.WARNING, text))
    findings.append(_judge_value_paths(chain, probes))
    return findings, probes


def _judge_node(chain: ConfiguredChain, probe: NodeProbe) -> Finding:
    subject = f"{chain.slug} node {probe.name}"
    if probe.chain_id is not None and probe.chain_id != chain.profile.chain_id:
        text = f"serves {probe.chain_id}, not {chain.profile.chain_id}; correct its url or the chain's profile"
        return Finding(subject, Verdict.FAILED, text)
    if probe.reason is not None:
        return Finding(subject, Verdict.FAILED, probe.reason)
    abilities = [
        f"{probe.client}, head {probe.head}, {probe.latency_ms:.0f} ms" if probe.latency_ms is not None else "",
        "batches" if probe.has_batches else "no batches: several calls a block",
        "receipts by block" if probe.has_block_receipts else "no receipts by block: one call a transaction",
        "traces: " + (", ".join(probe.trace_methods) or "none"),
        "account proofs" if probe.has_state_proofs else "no account proofs",
        "history from block 1" if probe.has_old_blocks and probe.has_old_receipts else "recent history only",
        "old state" if probe.has_old_state else "recent state only",
        f"log ranges to {probe.log_range_max}" if probe.log_range_max else "no log ranges",
    ]
    is_behind = (probe.lag_blocks or 0) > LAG_MAX_BLOCKS
    if is_behind:
        abilities.append(f"{probe.lag_blocks} blocks behind the newest head")
    return Finding(subject, Verdict.WARNING if is_behind else Verdict.OK, "; ".join(a for a in abilities if a))


def _judge_announcements(chain: ConfiguredChain, name: str, refusal: str | None) -> Finding:
    """A warning at most: without announcements blocks are found by polling."""
    subject = f"{chain.slug} ws of {name}"
    if refusal is None:
        return Finding(subject, Verdict.OK, "takes a subscription to new heads")
    return Finding(subject, Verdict.WARNING, f"{refusal}; correct the node's ws or leave it out")


def _judge_value_paths(chain: ConfiguredChain, probes: Sequence[NodeProbe]) -> Finding:
    """What is read of the chain, and how far contract-sent value is proven with these nodes."""
    verdict, internal = judge_traces(chain, probes)
    text = f"native, logs ({len(chain.profile.tokens)} tokens), validator withdrawals; {internal}"
    return Finding(f"{chain.slug} value paths", verdict, text)


def judge_traces(chain: ConfiguredChain, probes: Sequence[NodeProbe]) -> tuple[Verdict, str]:
    """Whether contract-sent value is read with these nodes, by whom, and how far it is proven then."""
    if chain.internal is Internal.OFF:
        return Verdict.OK, "contract-sent value is not read: internal is off"
    tracing = [probe for probe in probes if probe.trace_methods]
    if not tracing:
        if chain.internal is Internal.REQUIRED:
            return Verdict.FAILED, "contract-sent value is required, and no node traces: the chain will hold"
        return Verdict.WARNING, "contract-sent value is not read: no node traces"
    names = ", ".join(f"{probe.name} ({probe.trace_methods[0]})" for probe in tracing)
    if min(chain.quorum, len({probe.host for probe in tracing})) > 1:
        return Verdict.OK, f"contract-sent value, traced by {names}: two hosts are compared (`agreed`)"
    text = f"contract-sent value, traced by {names}: one host's word (`trace`)"
    if any(probe.has_state_proofs for probe in probes):
        return Verdict.WARNING, f"{text}, raised to `state` where account proofs bear it out"
    return Verdict.WARNING, f"{text}, and no node has account proofs"


def tell_proof(chain: ConfiguredChain) -> list[Finding]:
    """How far blocks of the chain prove themselves, and each thing that no proof covers or that is not read."""
    level, shipped = chain.profile.proof, load_profile(chain.profile_name).proof
    warnings = []
    if level.rank < shipped.rank:
        warnings.append(f'{level}: below "{shipped}", as the profile has it, a node can hide or alter a deposit')
    if not chain.profile.is_proof_enforced:
        warnings.append(
            f"{level}, only observed: a block that fails is told of and taken all the same; remove proof_enforced = false"
        )
    findings = [Finding(f"{chain.slug} proof", Verdict.WARNING, warning) for warning in warnings]
    return [
        *(findings or [Finding(f"{chain.slug} proof", Verdict.OK, level.value)]),
        *(Finding(f"{chain.slug} not proven", Verdict.OK, sentence) for sentence in chain.profile.unproven),
    ]


def _print(findings: Sequence[Finding]) -> None:
    console = Console()
    marks = {Verdict.OK: "[green]ok[/]     ", Verdict.WARNING: "[yellow]warning[/]", Verdict.FAILED: "[red]failed[/] "}
    for finding in findings:
        console.print(f"{marks[finding.verdict]}  [bold]{finding.subject}[/bold]  {finding.detail}", highlight=False)
