"""Audits as they are run: by hand over a range, and by the clock over what has become final since the last one.

An audit finds; it mends nothing. By hand it shows what it found, and a person runs the replay. By the clock nobody looks,
so what was found, whoever found it, is given to a replay as a job; that brings back what is missing, and takes nothing
back. Whoever runs it, what is new is counted in
`chains.missed_deposits`, and told to the operator once. One process at a time audits a chain by the clock, by a session
advisory lock, for economy alone.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, timedelta

import structlog
from apscheduler.schedulers.asyncio import AsyncIOScheduler

from chains.errors import ChainError
from chains.model import ChainId, Slug
from indexer.audit import BlockAudit, BlockAuditor, findings_of, joined
from indexer.balance_audit import BalanceAudit, audit_balances, findings_of_balances, key_of
from indexer.errors import IndexerError
from ledger.balances import find_addresses_with_activity, sample_watched_addresses
from ledger.chains import find_chain, update_chain
from ledger.database import Connection, Engine, database_now, is_alive, leadership, transaction
from ledger.findings import (
    Finding,
    close_balance_findings,
    close_findings,
    find_unreplayed,
    record_findings,
)
from ledger.ids import OPS_TENANT
from ledger.jobs import create_job
from ledger.states import ChainState, JobKind

log = structlog.get_logger()

AUDIT_INTERVAL = timedelta(minutes=10)

SAMPLE_SHARE = 0.05
"""Of the blocks in which nothing was found: so many are read again. Traces that hide a transfer show in one of twenty."""

FIRST_BLOCKS = 10_000
"""How far below finality the first audit by the clock begins, on a chain that was followed for long before it."""

REPLAYED_BLOCKS_MAX = 64
"""A balance tells between which blocks it went wrong. More than these are not read again unasked."""

ADDRESSES_MAX = 10_000
ADDRESSES_MIN = 100
ADDRESSES_AT_ONCE = 50
"""Addresses whose balances one audit asks for: a share of the most, and never fewer than the least, some at a time."""

BEAT_INTERVAL_S = 20.0
"""Far more often than Postgres loses patience with a silent leader (`ledger.database.LEADER_SILENCE_MAX_S`)."""

REPLAYS_MAX = 100
"""Blocks that one audit by the clock gives to replays."""


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What an audit came to."""

    from_height: int
    to_height: int
    blocks: BlockAudit
    balances: BalanceAudit
    findings: Sequence[Finding]
    new: Sequence[Finding]
    """Those that were not known before."""


class Auditor:
    """Audits one chain."""

    def __init__(
        self,
        engine: Engine,
        blocks: BlockAuditor,
        chain_id: ChainId,
        slug: Slug,
        *,
        chance: random.Random | None = None,
    ) -> None:
        """`chance` chooses the samples; a test gives one that it can foretell."""
        self._engine = engine
        self._blocks = blocks
        self._chain_id = chain_id
        self._slug = slug
        self._chance = chance or random.Random()  # noqa: S311 - it chooses samples

    async def audit(
        self,
        from_height: int,
        to_height: int,
        share: float,
        tell: Callable[[int, int], None] = lambda _done, _total: None,
    ) -> AuditReport:
        """Audit the blocks between two heights, both included, those that touched a watch and a share of the others, and
        keep what is found. `tell` is called with how many of how many were looked at. The report's `to_height` is how far it
        came."""
        heights, last = await self._blocks.heights_of(from_height, to_height, share, self._chance)
        audit = await self._blocks.audit(heights, lambda done: tell(done, len(heights)))
        balances = await self._audit_balances(from_height, last, share)
        # What a block shows explains the balance as well: one deposit is missed once.
        explained = {(one.entry.address, one.entry.asset_id) for _, one in audit.differences}
        unexplained = [one for one in balances.differences if (one.address, one.asset_id) not in explained]
        found = [*findings_of(audit), *findings_of_balances(unexplained)]
        async with transaction(self._engine) as connection:
            now = await database_now(connection)
            new = await record_findings(connection, self._chain_id, found, now)
            keys = {one.key for one in found}
            await close_findings(connection, self._chain_id, audit.heights, keys, now)
            await close_balance_findings(connection, self._chain_id, [key_of(one) for one in balances.matched], now)
        return AuditReport(from_height, last, audit, balances, found, new)

    async def _audit_balances(self, from_height: int, to_height: int, share: float) -> BalanceAudit:
        """What watched addresses hold after the last of these blocks: those with entries in them, and a sample of the
        others."""
        adapter = self._blocks.adapter
        ref = await self._blocks.ref_at(to_height)
        pivot = self._chance.randbytes(20)
        limit = max(ADDRESSES_MIN, round(share * ADDRESSES_MAX)) if share > 0 else 0
        async with transaction(self._engine) as connection:
            active = await find_addresses_with_activity(
                connection, self._chain_id, from_height, to_height, ADDRESSES_MAX
            )
            sample = await sample_watched_addresses(connection, self._chain_id, pivot, limit) if limit else []
        addresses = list({one.address: one for one in (*sample, *active)}.values())
        audit = BalanceAudit()
        for first in range(0, len(addresses), ADDRESSES_AT_ONCE):
            some = addresses[first : first + ADDRESSES_AT_ONCE]
            audit.add(await audit_balances(self._engine, adapter, self._chain_id, ref, some))
        return audit

    async def audit_all(
        self,
        from_height: int,
        to_height: int,
        share: float,
        tell: Callable[[int, int], None] = lambda _done, _total: None,
    ) -> AuditReport:
        """The same, to the end of the range, however much it takes."""
        report = await self.audit(from_height, to_height, share, tell)
        while report.to_height < to_height:
            more = await self.audit(report.to_height + 1, to_height, share, tell)
            report = AuditReport(
                report.from_height,
                more.to_height,
                joined(report.blocks, more.blocks),
                report.balances.add(more.balances),
                [*report.findings, *more.findings],
                [*report.new, *more.new],
            )
        return report

    async def audit_final(self) -> AuditReport | None:
        """Audit what has become final since the last time, and have replayed whatever was found; None where nothing has
        become final."""
        async with transaction(self._engine) as connection:
            chain = await find_chain(connection, self._chain_id)
        final = chain.finalized_height
        if final is None or chain.first_height is None or chain.state is ChainState.HALTED:
            return None
        first = (
            max(chain.first_height, final - FIRST_BLOCKS) if chain.audited_height is None else chain.audited_height + 1
        )
        report = await self.audit(first, final, SAMPLE_SHARE) if first <= final else None
        async with transaction(self._engine) as connection:
            if report is not None:
                await update_chain(connection, self._chain_id, {"audited_height": audited_by(report)})
            await self._make_replays(connection)
        return report

    async def _make_replays(self, connection: Connection) -> None:
        """A replay for each open finding that none was made for, or whose replay could not be done: by what is kept, not by
        what this audit found, so that none is forgotten by a kill or a bound."""
        for lowest, highest in await find_unreplayed(connection, self._chain_id, REPLAYED_BLOCKS_MAX, REPLAYS_MAX):
            await create_job(
                connection,
                tenant_id=OPS_TENANT,
                kind=JobKind.REPLAY,
                chain_id=self._chain_id,
                request={"from": lowest, "to": highest, "address": None, "dry_run": False, "takes_back": False},
                total=highest - lowest + 1,
                now=await database_now(connection),
            )

    async def keep(self) -> None:
        """One audit by the clock. It must stop nobody: what fails is said, and the next one is the remedy."""
        try:
            async with leadership(self._engine, "audit", self._chain_id) as leader:
                report = await self._lead(leader) if leader is not None else None
        except asyncio.CancelledError:
            return  # the process ends; what was not audited is, by its successor
        except (ChainError, IndexerError) as error:
            log.warning("audit not possible", chain=self._slug, reason=str(error))
        except Exception as error:  # noqa: BLE001 (nothing else is there to hear it)
            log.error("audit failed", chain=self._slug, error=repr(error).splitlines()[0])
        else:
            if report is not None:
                self._say(report)

    async def _lead(self, leader: Connection) -> AuditReport | None:
        """Audit, and say something on the lock's connection now and then: a silent one is ended."""
        beating = asyncio.create_task(_beat(leader))
        try:
            return await self.audit_final()
        finally:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)

    def _say(self, report: AuditReport) -> None:
        tell = log.error if report.new else log.info
        tell(
            "audited",
            chain=self._slug,
            from_height=report.from_height,
            to_height=report.to_height,
            blocks=len(report.blocks.heights),
            by_same_host=report.blocks.by_same_host,
            unread=len(report.blocks.unread),
            balances=len(report.balances.matched),
            balances_untold=len(report.balances.untold),
            findings=len(report.findings),
            new=len(report.new),
        )


def audited_by(report: AuditReport) -> int:
    """How far an audit by the clock has come: to the first block that nobody could give, which is looked at again. Not for
    ever: what no host has after `FIRST_BLOCKS` more is left, and its audit was said to be not possible."""
    lowest = min((height for height, _ in report.blocks.unread), default=report.to_height + 1)
    return lowest - 1 if report.to_height - lowest < FIRST_BLOCKS else report.to_height


async def _beat(leader: Connection) -> None:
    while True:
        await asyncio.sleep(BEAT_INTERVAL_S)
        await is_alive(leader)


@contextmanager
def audits_by_the_clock(auditor: Auditor) -> Iterator[None]:
    """Audit again and again while the block runs."""
    scheduler = AsyncIOScheduler(timezone=UTC)
    scheduler.add_job(
        auditor.keep,
        "interval",
        seconds=AUDIT_INTERVAL.total_seconds(),
        jitter=60,
        coalesce=True,
        max_instances=1,
        misfire_grace_time=None,
    )
    scheduler.start()
    try:
        yield
    finally:
        scheduler.shutdown(wait=False)
