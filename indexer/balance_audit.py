"""The audit of balances: what watched addresses hold, asked of nodes and compared with what the ledger told of them.

It sees what no reading of blocks can: value that every tracing node hides. Native value is proven against state roots; what
tokens' contracts say is a node's word, so that a difference there needs a second host, where one answers. Where hosts
differ, the one that agrees with the ledger counts.

The baseline is what was held when the ledger last agreed; at first, before the first block that is covered. On a match it
moves up; on a difference it stays, so that the difference is found again until it is mended. It moves up too where nothing
can be told, for keeping it would tell no more next time, and would hide what comes later.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from chains.adapter import ChainAdapter
from chains.model import Address, AssetId, BlockRef, ChainId, Holding, ValuePath, hex_of
from indexer.balances import Judgement, Untold, Verdict, judge, up_to
from indexer.errors import BranchChanged
from ledger.balances import (
    Baseline,
    WatchedAddress,
    find_baselines,
    find_entries_between,
    find_listing_heights,
    store_baselines,
)
from ledger.blocks import find_canonical_at
from ledger.database import Engine, database_now, transaction
from ledger.findings import BALANCE, Finding
from ledger.model import Entry

log = structlog.get_logger()

QUESTIONS_MAX = 40
"""To find the first block in which a difference shows; two to this power is more blocks than any chain has."""

LOCATED_MAX = 10
"""Differences of one audit that are looked for by block."""

Account = tuple[Address, AssetId]


@dataclass(frozen=True, slots=True)
class BalanceDifference:
    """An address holds something else than its entries explain."""

    address: Address
    asset_id: AssetId
    expected: int
    found: int
    kind: Verdict
    from_height: int
    to_height: int
    """Between these two, the first excluded, it came to be."""
    located_height: int | None
    """The first block after which it shows; None where no node has the state that tells."""


@dataclass(slots=True)
class BalanceAudit:
    """What an audit of balances came to."""

    differences: list[BalanceDifference] = field(default_factory=list)
    matched: list[Account] = field(default_factory=list)
    untold: dict[Account, Untold] = field(default_factory=dict)
    set_aside: dict[Account, str] = field(default_factory=dict)
    """Hosts whose word differed from another's that agrees with the ledger."""

    def add(self, other: BalanceAudit) -> BalanceAudit:
        """What other accounts' audit came to, together with this."""
        self.differences += other.differences
        self.matched += other.matched
        self.untold |= other.untold
        self.set_aside |= other.set_aside
        return self


async def audit_balances(
    engine: Engine, adapter: ChainAdapter, chain_id: ChainId, at: BlockRef, addresses: Sequence[WatchedAddress]
) -> BalanceAudit:
    """Audit what the addresses hold of each asset after a block of ours, which should be final. Raises `BranchChanged` where
    it is not our block."""
    return await _Audit(engine, adapter, chain_id, at, addresses).run()


def findings_of_balances(differences: Iterable[BalanceDifference]) -> list[Finding]:
    """What an audit of balances found, as the ledger keeps it."""
    return [
        Finding(
            key=key_of((one.address, one.asset_id)),
            kind=BALANCE,
            is_missed_deposit=one.kind is Verdict.MISSING,
            from_height=one.from_height + 1 if one.located_height is None else one.located_height,
            to_height=one.to_height if one.located_height is None else one.located_height,
            detail={
                "address": hex_of(one.address),
                "asset": one.asset_id,
                "expected_atomic": str(one.expected),
                "found_atomic": str(one.found),
                "reason": "more than was told" if one.kind is Verdict.MISSING else "less than was told",
            },
        )
        for one in differences
    ]


def key_of(account: Account) -> str:
    """How a finding about the account's balance is called."""
    return f"{hex_of(account[0])} {account[1]}"


class _Audit:
    def __init__(
        self,
        engine: Engine,
        adapter: ChainAdapter,
        chain_id: ChainId,
        at: BlockRef,
        addresses: Sequence[WatchedAddress],
    ) -> None:
        self._engine = engine
        self._adapter = adapter
        self._chain_id = chain_id
        self._at = at
        self._covered_from = {one.address: one.covered_from for one in addresses}
        self._assets = {one.id: one for one in adapter.assets if not (one.is_rebasing or one.is_fee_on_transfer)}
        self._are_internals_read = ValuePath.TRACES.value in adapter.value_paths
        self._result = BalanceAudit()
        self._kept: dict[Account, Baseline] = {}
        """Baselines to be stored at the end."""

    async def run(self) -> BalanceAudit:
        """Ask, compare, ask again where it differs, and keep the new baselines."""
        baselines = await self._baselines()
        asked = [account for account, one in baselines.items() if one.height < self._at.height]
        holdings = await self._adapter.fetch_holdings(self._at, asked)
        entries = await self._entries([baselines[account].height for account in asked])
        differing = []
        for account in asked:
            if account not in holdings:
                self._result.untold[account] = Untold.NO_STATE
                continue
            judgement = self._judge(account, baselines[account].holding, holdings[account], entries, baselines)
            if judgement.verdict in (Verdict.MISSING, Verdict.UNEXPLAINED):
                differing.append(account)
            else:
                self._settle(account, judgement, holdings[account])
        await self._confirm(differing, baselines, holdings, entries)
        async with transaction(self._engine) as connection:
            await store_baselines(connection, self._chain_id, self._kept, await database_now(connection))
        return self._result

    async def _baselines(self) -> dict[Account, Baseline]:
        """What each account's entries are added to: kept by the ledger, or taken now."""
        async with transaction(self._engine) as connection:
            known = await find_baselines(connection, self._chain_id, list(self._covered_from))
            listed = await find_listing_heights(connection, self._chain_id)
            ours = await find_canonical_at(connection, self._chain_id, {one.height for one in known.values()})
        found: dict[Account, Baseline] = {}
        wanted: dict[int, list[Account]] = {}
        for address, covered_from in self._covered_from.items():
            for asset_id in self._assets:
                account = (address, asset_id)
                height = max(0, covered_from - 1, listed.get(asset_id, 0) - 1)
                kept = known.get(account)
                if kept is not None and kept.height >= height and _is_ours(kept, ours):
                    found[account] = kept
                elif height < self._at.height:
                    wanted.setdefault(height, []).append(account)
        for height, accounts in wanted.items():
            found |= await self._take(height, accounts)
        return found

    async def _take(self, height: int, accounts: Sequence[Account]) -> dict[Account, Baseline]:
        """Baselines after the block before the first one that is covered. Where no node has its state any more, what is held
        now becomes the baseline of the next audit."""
        ref = await self._ref(height)
        holdings = {} if ref is None else await self._adapter.fetch_holdings(ref, accounts)
        taken = {} if ref is None else {one: Baseline(height, ref.hash, held) for one, held in holdings.items()}
        self._kept |= taken
        late = [account for account in accounts if account not in taken]
        now = await self._adapter.fetch_holdings(self._at, late) if late else {}
        for account in late:
            self._result.untold[account] = Untold.NO_BASELINE if account in now else Untold.NO_STATE
            if account in now:
                self._kept[account] = Baseline(self._at.height, self._at.hash, now[account])
        return taken

    async def _ref(self, height: int) -> BlockRef | None:
        """The block at a height, where the nodes name the same as we do."""
        ref = await self._adapter.fetch_ref(height)
        async with transaction(self._engine) as connection:
            ours = await find_canonical_at(connection, self._chain_id, [height])
        return ref if height not in ours or ours[height] == ref else None

    async def _entries(self, heights: Sequence[int]) -> Mapping[Address, list[Entry]]:
        """All entries that count, as they stand while `at` is our block."""
        async with transaction(self._engine) as connection:
            ours = await find_canonical_at(connection, self._chain_id, [self._at.height])
            if ours.get(self._at.height, self._at).hash != self._at.hash:
                raise BranchChanged(
                    f"{self._chain_id}: block {self._at.height} is not the one that is audited any more"
                )
            lowest = min(heights, default=self._at.height)
            return await find_entries_between(
                connection, self._chain_id, list(self._covered_from), lowest, self._at.height
            )

    def _judge(
        self,
        account: Account,
        baseline: Holding,
        holding: Holding,
        entries: Mapping[Address, list[Entry]],
        baselines: Mapping[Account, Baseline],
        height: int | None = None,
    ) -> Judgement:
        address, asset_id = account
        counted = [
            entry
            for entry in up_to(entries[address], self._at.height if height is None else height)
            if (entry.block_height or 0) > baselines[account].height
        ]
        return judge(
            address,
            self._assets[asset_id],
            baseline,
            holding,
            counted,
            are_internals_read=self._are_internals_read,
        )

    def _settle(self, account: Account, judgement: Judgement, holding: Holding) -> None:
        """Nothing differs, or nothing can be told: from here on the next audit counts."""
        self._kept[account] = Baseline(self._at.height, self._at.hash, holding)
        if judgement.verdict is Verdict.MATCHES:
            self._result.matched.append(account)
            return
        self._result.untold[account] = judgement.reason or Untold.NO_STATE
        log.debug(
            "balance untold",
            chain=self._chain_id,
            address=hex_of(account[0]),
            asset=account[1],
            expected=judgement.expected,
            found=judgement.found,
            reason=judgement.reason,
        )

    async def _confirm(
        self,
        differing: Sequence[Account],
        baselines: Mapping[Account, Baseline],
        holdings: Mapping[Account, Holding],
        entries: Mapping[Address, list[Entry]],
    ) -> None:
        """Ask other hosts about what one host's word alone shows, and tell what remains."""
        for account in differing:
            baseline, holding = baselines[account], holdings[account]
            nows = [holding, *await self._others(account, self._at, holding)]
            befores = [baseline.holding, *await self._others_before(account, baseline)]
            judged = [
                (now, before, self._judge(account, before, now, entries, baselines))
                for now in nows
                for before in befores
            ]
            agreeing = next((row for row in judged if row[2].verdict is Verdict.MATCHES), None)
            if agreeing is not None:
                wrong = baseline.holding.host if agreeing[0] is holding else holding.host
                self._result.set_aside[account] = wrong
                self._settle(account, agreeing[2], agreeing[0])
                self._adapter.set_aside(wrong, f"another host and the ledger contradict it on {key_of(account)}")
            elif len({(now.amount_atomic, before.amount_atomic) for now, before, _ in judged}) > 1:
                self._result.untold[account] = Untold.HOSTS_DIFFER
                self._kept.pop(account, None)
            else:
                await self._tell(account, judged[0][2], baselines, entries)

    async def _others(self, account: Account, ref: BlockRef, holding: Holding) -> list[Holding]:
        """What one other host says, unless it is proven."""
        if holding.is_proven:
            return []
        hosts = [host for host in self._adapter.hosts if host != holding.host]
        found = await self._adapter.fetch_holdings(ref, [account], hosts) if hosts else {}
        return list(found.values())

    async def _others_before(self, account: Account, baseline: Baseline) -> list[Holding]:
        """The same of a baseline that was taken just now; one that is kept agreed with the ledger once."""
        if not baseline.holding.host:
            return []
        ref = await self._ref(baseline.height)
        return [] if ref is None else await self._others(account, ref, baseline.holding)

    async def _tell(
        self,
        account: Account,
        judgement: Judgement,
        baselines: Mapping[Account, Baseline],
        entries: Mapping[Address, list[Entry]],
    ) -> None:
        located = None
        if len(self._result.differences) < LOCATED_MAX:
            located = await self._locate(account, judgement.verdict, baselines, entries)
        self._result.differences.append(
            BalanceDifference(
                *account,
                judgement.expected,
                judgement.found,
                judgement.verdict,
                baselines[account].height,
                self._at.height,
                located,
            )
        )

    async def _locate(
        self,
        account: Account,
        verdict: Verdict,
        baselines: Mapping[Account, Baseline],
        entries: Mapping[Address, list[Entry]],
    ) -> int | None:
        """The first block after which it shows, by halving; None where the state of a block on the way is gone."""
        baseline = baselines[account]
        without, shows = baseline.height, self._at.height
        for _ in range(QUESTIONS_MAX):
            if shows - without == 1:
                return shows
            middle = (without + shows) // 2
            ref = await self._adapter.fetch_ref(middle)
            holding = None if ref is None else (await self._adapter.fetch_holdings(ref, [account])).get(account)
            if holding is None:
                return None
            judgement = self._judge(account, baseline.holding, holding, entries, baselines, middle)
            if judgement.verdict is verdict:
                shows = middle
            else:
                without = middle
        return None


def _is_ours(baseline: Baseline, ours: Mapping[int, BlockRef]) -> bool:
    """False where a reorg took the block after which it was."""
    return baseline.height not in ours or ours[baseline.height].hash == baseline.block_hash
