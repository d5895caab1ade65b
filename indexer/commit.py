"""One transaction from blocks to webhooks: check, compute, compare, only then commit.

Why everything is in one transaction, and in this order. The chain's row is locked first: no watch can be inserted
between the match and the commit, so a watch is covered from exactly the height that its insert was told. Then the tip is
compared with the one that the blocks were fetched for; another follower may have been faster, and then nothing here may
happen. Then entries, events and deliveries are written, and last the checkpoint moves by compare-and-set. A crash at any
point leaves the old checkpoint with the old data: the same blocks are read again and come to the same result. No node is
called in here: blocks come in complete.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import repeat
from typing import Any

from chains.model import Address, AssetId, Block, BlockHash, BlockRef, ChainId, hex_of
from indexer.branch import Branch, addresses_of, inclusions_of, tell_branch
from indexer.errors import BranchChanged, DeepReorg
from indexer.finality import Agreement, is_claim_ours, lowest_reorg_height, raised_height
from indexer.policy import Policy
from indexer.replacement import awaited_after, give_up, spent_in
from indexer.story import Change, advance
from ledger.blocks import CommittedBlock, find_canonical, insert_blocks, orphan_blocks, raise_agreement
from ledger.chains import Checkpoint, list_assets, lock_chain, move_checkpoint, update_chain
from ledger.coverage import orphan_coverage
from ledger.database import Connection, Engine, transaction
from ledger.documents import ChainReorgDocument, TipDocument, entry_document
from ledger.entries import (
    find_due_entries,
    find_entries_above,
    find_entries_of,
    find_labels,
    find_lost,
    write_entries,
)
from ledger.errors import CheckpointMoved
from ledger.events import EVENTS_AT_ONCE, LATE_PRIORITY, LIVE_PRIORITY, NewEvent, record_events
from ledger.ids import OPS_TENANT, TenantId, WatchId
from ledger.matching import match_watches
from ledger.model import ChainRow, Entry
from ledger.rereading import cut_job_coverage
from ledger.spent_nonces import find_spent_entries, insert_spent_nonces
from ledger.states import Origin, Reason

DUE_ENTRIES_MAX = 5_000
"""Entries that one transaction moves to confirmed or finalized: bounds its memory and how long the chain is locked."""


@dataclass(frozen=True, slots=True)
class Followed:
    """What a follower knows of its chain besides the ledger's row."""

    chain_id: ChainId
    policy: Policy
    live_window: timedelta
    """An entry in a block older than this when we commit it was found late: its origin is `catch_up`."""
    finality_depth: int
    """Blocks below the tip that are final, or beyond any reorg that we follow, where no tag says more."""
    reasons: Mapping[AssetId, tuple[Reason, ...]] = field(default_factory=dict)
    """Why entries of these assets do not count as money."""


@dataclass(frozen=True, slots=True)
class Committed:
    """What one commit did."""

    chain: ChainRow
    entry_count: int
    event_counts: Mapping[str, int]
    """Events written, by type."""
    has_more_due: bool
    """More entries wait for the same heights than one transaction moves."""


async def commit_blocks(
    engine: Engine,
    followed: Followed,
    *,
    expected: BlockRef | None,
    blocks: Sequence[Block],
    agreement: Agreement,
    ancestor_height: int | None = None,
    readings: Sequence[int] | None = None,
) -> Committed:
    """Commit a contiguous run of blocks on top of `expected`, or, with `ancestor_height`, in place of our blocks above
    it. `readings` says for each block what it was read for (`indexer.coverage.Readings`). Raises `CheckpointMoved` when our
    tip is not `expected`, `DeepReorg` when the ancestor is too deep."""
    async with transaction(engine) as connection:
        chain, now = await lock_chain(connection, followed.chain_id)
        _require_tip(chain, expected)
        unseated: list[Entry] = []
        before = chain
        if ancestor_height is not None:
            await _require_ancestor(connection, chain, followed, ancestor_height, blocks[0].ref)
            unseated = await find_entries_above(connection, chain.chain_id, ancestor_height)
            await orphan_blocks(connection, chain.chain_id, ancestor_height, now)
            await orphan_coverage(connection, chain.chain_id, ancestor_height, blocks[0].ref.parent_hash, now)
            await cut_job_coverage(connection, chain.chain_id, ancestor_height, blocks[0].ref.parent_hash)
            chain = _chain_cut(chain, ancestor_height, blocks[0].ref.parent_hash)
        after = _chain_after(chain, blocks, agreement)
        lost = await find_lost(connection, chain.chain_id, is_below_finality=_is_cut(before, chain))
        branch = await _read_branch(connection, followed, blocks, agreement, unseated, lost.addresses)
        changes = tell_branch(branch, after, followed.policy, now=now, live_window=followed.live_window)
        spent = spent_in(blocks, awaited_after(lost.nonces, changes))
        await insert_spent_nonces(connection, chain.chain_id, spent)
        committed = await write_changes(connection, after, agreement, changes, now)
        await insert_blocks(connection, chain.chain_id, _committed_blocks(blocks, changes, agreement, readings), now)
        if ancestor_height is not None and expected is not None:
            await _tell_reorg(connection, after, expected, blocks[-1].ref, ancestor_height, now)
        await move_checkpoint(
            connection,
            chain.chain_id,
            expected=Checkpoint(expected.height, expected.hash) if expected else None,
            new=Checkpoint(blocks[-1].ref.height, blocks[-1].ref.hash),
            new_at=time_of_block(blocks[-1]),
            extra=_heights(after),
        )
    return committed


async def settle_heights(
    engine: Engine,
    followed: Followed,
    *,
    safe: BlockRef | None,
    finalized: BlockRef | None,
    agreement: Agreement,
) -> Committed:
    """Raise the chain's safe, finalized and agreed heights by what nodes claim of blocks that are ours, and move the
    entries that were waiting for them."""
    async with transaction(engine) as connection:
        chain, now = await lock_chain(connection, followed.chain_id)
        after = await _raise_heights(connection, chain, safe, finalized, agreement)
        await update_chain(connection, chain.chain_id, _heights(after))
        given_up: list[Change] = []
        if after.finalized_height != chain.finalized_height:
            spent = await find_spent_entries(connection, after, DUE_ENTRIES_MAX)
            given_up = [give_up(entry, by, now) for entry, by in spent]
        if after.agreed_height is not None and after.agreed_height != chain.agreed_height:
            lowest = chain.agreed_height if chain.agreed_height is not None else (after.first_height or 0)
            count = agreement.agreed_by(after.agreed_height)
            await raise_agreement(connection, chain.chain_id, lowest, after.agreed_height, count)
        return await write_changes(connection, after, agreement, given_up, now)


def _require_tip(chain: ChainRow, expected: BlockRef | None) -> None:
    if chain.tip_hash != (expected.hash if expected else None):
        raise CheckpointMoved(f"{chain.slug}: the tip is {chain.tip_height}, not the one that was built on")


async def _require_ancestor(
    connection: Connection, chain: ChainRow, followed: Followed, ancestor_height: int, first: BlockRef
) -> None:
    """The branch must grow out of a block of ours that may be the last one kept."""
    first_height = chain.first_height or 0
    lowest = lowest_reorg_height(
        first_height=first_height,
        finalized_height=chain.finalized_height,
        accepted_reorg_height=chain.accepted_reorg_height,
        lowest_by_depth=(chain.tip_height or 0) - followed.finality_depth,
    )
    if ancestor_height < lowest:
        raise DeepReorg(f"{chain.slug}: a reorg to {ancestor_height} is deeper than {lowest}")
    ours = await find_canonical(connection, chain.chain_id, ancestor_height, ancestor_height)
    is_ours = ancestor_height in ours and ours[ancestor_height].hash == first.parent_hash
    if not is_ours and ancestor_height >= first_height:
        raise BranchChanged(f"{chain.slug}: block {first.height} does not follow our block {ancestor_height}")


def _chain_after(chain: ChainRow, blocks: Sequence[Block], agreement: Agreement) -> ChainRow:
    """The chain's row as the commit will leave it."""
    first, tip = blocks[0].ref, blocks[-1].ref
    return replace(
        chain,
        first_height=chain.first_height if chain.first_height is not None else first.height,
        tip_height=tip.height,
        tip_hash=tip.hash,
        tip_at=time_of_block(blocks[-1]),
        agreed_height=raised_height(chain.agreed_height, agreement.quorum_height(chain.quorum)),
    )


def _chain_cut(chain: ChainRow, ancestor_height: int, ancestor_hash: BlockHash) -> ChainRow:
    """Heights may not point above the ancestor. `finalized` would only by an operator's leave, which is then spent."""
    is_kept = ancestor_height >= (chain.first_height or 0)

    def _cut(height: int | None) -> int | None:
        return min(height, ancestor_height) if height is not None and is_kept else None

    chain = replace(
        chain,
        safe_height=_cut(chain.safe_height),
        agreed_height=_cut(chain.agreed_height),
        audited_height=_cut(chain.audited_height),
        accepted_reorg_height=None,
    )
    if chain.finalized_height is None or ancestor_height >= chain.finalized_height:
        return chain
    return replace(
        chain, finalized_height=_cut(chain.finalized_height), finalized_hash=ancestor_hash if is_kept else None
    )


async def _raise_heights(
    connection: Connection,
    chain: ChainRow,
    safe: BlockRef | None,
    finalized: BlockRef | None,
    agreement: Agreement,
) -> ChainRow:
    """Count the claims that are about blocks of ours, and only upwards."""
    if await _is_news(connection, chain, chain.safe_height, safe) and safe is not None:
        chain = replace(chain, safe_height=safe.height)
    if await _is_news(connection, chain, chain.finalized_height, finalized) and finalized is not None:
        chain = replace(chain, finalized_height=finalized.height, finalized_hash=finalized.hash)
    return replace(chain, agreed_height=raised_height(chain.agreed_height, agreement.quorum_height(chain.quorum)))


async def _is_news(connection: Connection, chain: ChainRow, known_height: int | None, claim: BlockRef | None) -> bool:
    if claim is None or (known_height is not None and claim.height <= known_height):
        return False
    ours = await find_canonical(connection, chain.chain_id, claim.height, claim.height)
    return is_claim_ours(claim, ours.get(claim.height))


def _is_cut(before: ChainRow, after: ChainRow) -> bool:
    """True when blocks that were final are being undone."""
    return before.finalized_height != after.finalized_height


def _heights(chain: ChainRow) -> Mapping[str, Any]:
    return {
        "first_height": chain.first_height,
        "safe_height": chain.safe_height,
        "finalized_height": chain.finalized_height,
        "finalized_hash": chain.finalized_hash,
        "agreed_height": chain.agreed_height,
        "audited_height": chain.audited_height,
        "accepted_reorg_height": chain.accepted_reorg_height,
    }


async def _read_branch(
    connection: Connection,
    followed: Followed,
    blocks: Sequence[Block],
    agreement: Agreement,
    unseated: Sequence[Entry],
    lost: Collection[Address] | None,
) -> Branch:
    """What the blocks may change, and what the ledger knows of it: who watches, and entries that they may bring back.

    Only transfers with a concerned party are looked at: one of a watch, of an entry whose block is being orphaned, or of an
    entry that lost its block. No other transfer can change anything, since an entry's address is a party of its transfer
    in whatever block that lands. `lost` are the addresses of the last kind, None when they are too many.
    """
    chain_id = followed.chain_id
    matches = await match_watches(connection, chain_id, addresses_of(blocks))
    concerned = None if lost is None else {*matches, *lost, *(entry.address for entry in unseated)}
    inclusions = inclusions_of(blocks, concerned, agreement.agreed_by)
    transfer_ids = {inclusion.transfer.id for inclusion in inclusions}
    known = {(e.tenant_id, e.id): e for e in await find_entries_of(connection, chain_id, transfer_ids)}
    for entry in unseated:
        known.pop((entry.tenant_id, entry.id), None)
    return Branch(inclusions, unseated, list(known.values()), matches, followed.reasons)


async def write_changes(
    connection: Connection, chain: ChainRow, agreement: Agreement, changes: list[Change], now: datetime
) -> Committed:
    """Write what changed, then what the chain's heights make due besides, and tell all of it. The caller holds the chain's
    lock."""
    await write_entries(connection, *_new_and_changed(changes))
    due = await find_due_entries(connection, chain, DUE_ENTRIES_MAX)
    promoted: list[Change] = []
    for entry in due:
        agreed_by = max(entry.agreed_by, agreement.agreed_by(entry.block_height or 0))
        promoted.extend(_with_agreement(step, agreed_by) for step in advance(entry, chain, now))
    await write_entries(connection, *_new_and_changed(promoted))
    events = await _new_events(connection, chain, [*changes, *promoted])
    await record_events(connection, events, now)
    return Committed(
        chain=chain,
        entry_count=sum(1 for change in changes if change.before is None),
        event_counts=Counter(event.type for event in events),
        has_more_due=len(due) == DUE_ENTRIES_MAX,
    )


def _with_agreement(change: Change, agreed_by: int) -> Change:
    return replace(change, after=replace(change.after, agreed_by=agreed_by))


def _new_and_changed(changes: Sequence[Change]) -> tuple[list[Entry], list[tuple[Entry, Entry]]]:
    """Each touched entry once: as it stands at the end, with how it was before if it was there."""
    first: dict[tuple[str, str], Entry | None] = {}
    last: dict[tuple[str, str], Entry] = {}
    for change in changes:
        key = (change.after.tenant_id, change.after.id)
        first.setdefault(key, change.before)
        last[key] = change.after
    new = [last[key] for key, before in first.items() if before is None]
    changed = [(before, last[key]) for key, before in first.items() if before is not None]
    return new, changed


async def _new_events(connection: Connection, chain: ChainRow, changes: Sequence[Change]) -> list[NewEvent]:
    if not changes:
        return []
    keys = {(TenantId(c.after.tenant_id), WatchId(c.after.watch_id)) for c in changes}
    labels = await find_labels(connection, keys)
    assets = await list_assets(connection, list({c.after.asset_id for c in changes}))
    events = []
    for number, change in enumerate(changes, 1):
        if number % EVENTS_AT_ONCE == 0:
            await asyncio.sleep(0)
        after = change.after
        label = labels[(after.tenant_id, after.watch_id)]
        events.append(
            NewEvent(
                tenant_id=after.tenant_id,
                type=change.event_type,
                subject=after.id,
                livemode=chain.livemode,
                data=entry_document(after, chain, assets[after.asset_id], label),
                sequence=after.sequence,
                previous_state=change.before.state.value if change.before else None,
                priority=_priority_of(after),
            )
        )
    return events


def _priority_of(entry: Entry) -> int:
    """What was found late is told behind live news, in the commit that found it. Whatever happens to it afterwards, a
    reversal above all, is news of today."""
    is_late = entry.origin is not Origin.LIVE and entry.updated_at == entry.detected_at
    return LATE_PRIORITY if is_late else LIVE_PRIORITY


def _committed_blocks(
    blocks: Sequence[Block], changes: Sequence[Change], agreement: Agreement, readings: Sequence[int] | None
) -> list[CommittedBlock]:
    counts: dict[bytes | None, int] = {}
    for _, after in {(c.after.tenant_id, c.after.id): c.after for c in changes}.items():
        counts[after.block_hash] = counts.get(after.block_hash, 0) + 1
    return [
        CommittedBlock(
            block, time_of_block(block), agreement.agreed_by(block.ref.height), counts.get(block.ref.hash, 0), reading
        )
        for block, reading in zip(blocks, readings or repeat(None, len(blocks)), strict=True)
    ]


async def _tell_reorg(
    connection: Connection,
    chain: ChainRow,
    old_tip: BlockRef,
    new_tip: BlockRef,
    ancestor_height: int,
    now: datetime,
) -> None:
    data = ChainReorgDocument(
        chain=chain.slug,
        chain_id=chain.chain_id,
        depth=old_tip.height - ancestor_height,
        ancestor_height=ancestor_height,
        old_tip=TipDocument(old_tip.height, hex_of(old_tip.hash)),
        new_tip=TipDocument(new_tip.height, hex_of(new_tip.hash)),
    )
    event = NewEvent(OPS_TENANT, "chain.reorged", chain.chain_id, chain.livemode, data)
    await record_events(connection, [event], now)


def time_of_block(block: Block) -> datetime:
    """Time in the block's header."""
    return datetime.fromtimestamp(block.timestamp_s, UTC)
