"""Blocks of ours that are read again: what the ledger says of them against what they say, and bringing it to that.

This is the follower's own path with two differences. The tip does not move, and what is compared sits in the ledger
already, so most of the time there is nothing to do. A block's transfers meet the watches that cover its height; an entry
that is not there is told as any other, all of its story at once. A block that was read before, and is read again, changes
nothing.

    missing    a covered transfer has no entry
    extra      an entry sits in the block, and its transfer is not there
    changed    an entry sits elsewhere, or its row says something else than the transfer that it is named by

Three rules keep this harmless.

- *Only blocks of ours.* The blocks come as a run in which each continues the one before, and the last one's hash is known
  to be in our chain. Under the chain's lock they are compared with what the ledger has there once more: a reorg may have
  come between.
- *A story goes on, it does not begin again.* An entry's row can be lost while its events are there: then its tenant knows
  it. Such an entry is put back as it was last told, silently, and only what has happened since is told.
- *Nothing is taken back on less than it was given.* An extra entry loses its block only by a proof as strong as its own.
  What only a trace tells, another trace cannot contradict where the accounts' balances had borne it out, nor one tracer
  another. And no clock takes anything back: a person asks for that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from chains.model import Address, AssetId, Block, BlockRef, LocatorKind, ProofLevel, TraceProof, Transfer
from indexer.branch import Branch, addresses_of, covering, inclusions_of, keeps_its_place, sides_of, tell_branch
from indexer.commit import Followed, time_of_block, write_changes
from indexer.errors import BranchChanged
from indexer.finality import Agreement
from indexer.story import Change, Inclusion, move, restore
from ledger.blocks import CommittedBlock, find_canonical, keep_blocks
from ledger.coverage import find_agreed_above
from ledger.database import Connection
from ledger.entries import find_entries_in, find_entries_of, find_lost, mend_entries, write_entries
from ledger.ids import EntryId, JobId, TenantId, entry_id_of
from ledger.matching import MatchedWatch, match_watches
from ledger.model import ChainRow, Entry
from ledger.states import Origin
from ledger.told import find_last_told

AGREED_WITHIN_BLOCKS = 2048
"""So far above a block its successors are asked how many hosts name them: more than there is between two kept rows."""


class DifferenceKind(StrEnum):
    """How an entry differs from its block."""

    MISSING = "missing"
    EXTRA = "extra"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True)
class Difference:
    """One entry that is not as its block says. `entry` is as it will be, or for an extra one as it is."""

    kind: DifferenceKind
    entry: Entry
    is_mended: bool = True
    """False where what was read is not proven well enough to take the entry back."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """A run of blocks of ours: the place of each, the lowest first, and those of them that were read."""

    refs: Sequence[BlockRef]
    blocks: Sequence[Block]


@dataclass(frozen=True, slots=True)
class Scope:
    """What is looked at in a stretch."""

    origin: Origin
    assets: frozenset[AssetId]
    """What the blocks were read for: of other assets they say nothing."""
    address: Address | None = None
    """Only what concerns this address; None: everybody."""
    job_id: JobId | None = None
    """Only the watches of this backfill, which cover what is being read; None: all watches, as far as each covers."""
    is_whole: bool = True
    """Whether entries that are not in the blocks are looked for, and not only what is missing."""
    takes_back: bool = True
    """Whether such entries lose their block: only where a person asked for it."""

    def takes(self, transfer: Transfer) -> bool:
        """True when the transfer is looked at."""
        is_asked = self.address is None or self.address in (transfer.sender, transfer.recipient)
        return is_asked and transfer.asset_id in self.assets


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a stretch would change."""

    differences: Sequence[Difference]
    restored: Sequence[Entry]
    """Entries whose rows are gone, as they were last told."""
    mended: Sequence[Entry]
    """Entries whose rows were altered, with what their transfers say."""
    changes: Sequence[Change]


@dataclass(frozen=True, slots=True)
class _Known:
    """What the ledger has about a stretch."""

    matches: Mapping[Address, Sequence[MatchedWatch]]
    standing: Sequence[Entry]
    entries: Mapping[tuple[TenantId, EntryId], Entry]


async def require_ours(connection: Connection, chain: ChainRow, stretch: Stretch) -> None:
    """Raise `BranchChanged` unless each of the blocks, as far as the ledger has its row, is in our chain still."""
    lowest, highest = stretch.refs[0].height, stretch.refs[-1].height
    ours = await find_canonical(connection, chain.chain_id, lowest, highest)
    theirs = {ref.height: ref.hash for ref in stretch.refs}
    differing = [height for height, ref in ours.items() if theirs[height] != ref.hash]
    if differing or chain.tip_height is None or highest > chain.tip_height:
        raise BranchChanged(f"{chain.slug}: block {min(differing, default=highest)} that was read is not ours any more")


async def compare(
    connection: Connection, followed: Followed, chain: ChainRow, stretch: Stretch, scope: Scope, now: datetime
) -> Comparison:
    """What the blocks of a stretch say against what the ledger has. Nothing is written."""
    inclusions, known = await _read(connection, chain, stretch, scope)
    restored = await _lost_rows(connection, followed, chain, inclusions, known, now)
    altered = {(e.tenant_id, e.id): (e, i) for e, i in _seated(inclusions, known) if _is_altered(e, i)}
    mended = [_mended(entry, inclusion) for entry, inclusion in altered.values()]
    at_hand = {**known.entries, **{(e.tenant_id, e.id): e for e in (*restored, *mended)}}
    extra = _extra(inclusions, known.standing, stretch.blocks, takes_back=scope.takes_back)
    unseated = [entry for entry, may_go in extra if may_go]
    branch = Branch(
        inclusions,
        unseated,
        [entry for key, entry in at_hand.items() if key not in {(e.tenant_id, e.id) for e in unseated}],
        known.matches,
        followed.reasons,
    )
    changes = [
        *(move(entry, i, now) for entry, (_, i) in zip(mended, altered.values(), strict=True)),
        *tell_branch(branch, chain, followed.policy, now=now, live_window=followed.live_window, origin=scope.origin),
    ]
    differences = [*_differences(restored, changes, unseated), *_disputed(extra)]
    return Comparison(differences, restored, mended, changes)


async def apply(
    connection: Connection,
    chain: ChainRow,
    stretch: Stretch,
    comparison: Comparison,
    readings: Sequence[int],
    now: datetime,
) -> Mapping[str, int]:
    """Bring the ledger to what the blocks say; returns how many events of each type were told. `readings` names for each
    block what it was read for. The caller holds the chain's lock."""
    await write_entries(connection, comparison.restored, [])
    await mend_entries(connection, comparison.mended)
    committed = await write_changes(connection, chain, Agreement({}), list(comparison.changes), now)
    await _keep_rows(connection, chain, stretch, comparison, readings, now)
    return committed.event_counts


async def _read(
    connection: Connection, chain: ChainRow, stretch: Stretch, scope: Scope
) -> tuple[list[Inclusion], _Known]:
    """The transfers that could concern anybody, and what the ledger has of them."""
    blocks = stretch.blocks
    parties = addresses_of(blocks) if scope.address is None else {scope.address}
    matches = _watching(await match_watches(connection, chain.chain_id, parties), scope, chain, stretch)
    standing: list[Entry] = []
    concerned: set[Address] | None = set(matches)
    if scope.is_whole:
        heights = [block.ref.height for block in blocks]
        standing = [e for e in await find_entries_in(connection, chain.chain_id, heights) if _is_asked(e, scope)]
        lost = await find_lost(connection, chain.chain_id)
        concerned = None if lost.addresses is None else {*matches, *lost.addresses, *(e.address for e in standing)}
    agreed_by = await agreed_by_of(connection, chain, stretch.refs[-1].height)
    found = inclusions_of(blocks, concerned, lambda _height: agreed_by)
    inclusions = [inclusion for inclusion in found if scope.takes(inclusion.transfer)]
    transfer_ids = {inclusion.transfer.id for inclusion in inclusions}
    entries = await find_entries_of(connection, chain.chain_id, transfer_ids)
    return inclusions, _Known(matches, standing, {(e.tenant_id, e.id): e for e in entries})


async def agreed_by_of(connection: Connection, chain: ChainRow, height: int) -> int:
    """How many hosts, at least, name our block at a height: those that name one above it."""
    known = await find_agreed_above(connection, chain.chain_id, height - 1, AGREED_WITHIN_BLOCKS)
    by_quorum = chain.quorum if chain.agreed_height is not None and height <= chain.agreed_height else 1
    return max(known, by_quorum)


def _watching(
    matches: Mapping[Address, Sequence[MatchedWatch]], scope: Scope, chain: ChainRow, stretch: Stretch
) -> dict[Address, list[MatchedWatch]]:
    """The watches that count, each with the first height that it covers once the stretch is in the ledger."""
    lowest = stretch.refs[0].height
    found: dict[Address, list[MatchedWatch]] = {}
    for address, watches in matches.items():
        if scope.job_id is not None:
            watches = [watch for watch in watches if watch.backfill_job_id == scope.job_id]
        kept = [replace(watch, covered_from_height=_first_of(watch, scope, chain, lowest)) for watch in watches]
        if kept:
            found[address] = kept
    return found


def _first_of(watch: MatchedWatch, scope: Scope, chain: ChainRow, lowest: int) -> int:
    if scope.job_id is not None and watch.start_height is not None:
        return max(watch.start_height, lowest)
    first = (chain.first_height or 0) if watch.covered_from_height is None else watch.covered_from_height
    return first if watch.backfilled_from is None else min(first, watch.backfilled_from)


def _is_asked(entry: Entry, scope: Scope) -> bool:
    return entry.asset_id in scope.assets and scope.address in (None, entry.sender, entry.recipient)


# --- rows that are gone, or were altered ------------------------------------------------------------------------------


async def _lost_rows(
    connection: Connection,
    followed: Followed,
    chain: ChainRow,
    inclusions: Sequence[Inclusion],
    known: _Known,
    now: datetime,
) -> list[Entry]:
    """Entries that ought to be there, are not, and were told of: as they were last told."""
    wanted = {
        (watch.tenant_id, entry_id_of(watch.tenant_id, side, inclusion.transfer.id)): (inclusion, side, watch)
        for inclusion in inclusions
        for side, address in sides_of(inclusion.transfer)
        for watch in covering(known.matches.get(address, ()), inclusion.block.ref.height)
    }
    absent = [key for key in wanted if key not in known.entries]
    told = await find_last_told(connection, absent)
    return [
        restore(told[key], inclusion, side, watch, chain_id=chain.chain_id, now=now)
        for key, (inclusion, side, watch) in wanted.items()
        if key in told
    ]


def _seated(inclusions: Iterable[Inclusion], known: _Known) -> Iterator[tuple[Entry, Inclusion]]:
    """Entries that sit in the block that has their transfer, with that."""
    by_transfer = {inclusion.transfer.id: inclusion for inclusion in inclusions}
    for entry in known.entries.values():
        inclusion = by_transfer.get(entry.transfer_id)
        if inclusion is not None and entry.block_hash == inclusion.block.ref.hash:
            yield entry, inclusion


def _is_altered(entry: Entry, inclusion: Inclusion) -> bool:
    return entry != _mended(entry, inclusion)


def _mended(entry: Entry, inclusion: Inclusion) -> Entry:
    """The entry with what its transfer's identity commits to."""
    transfer = inclusion.transfer
    return replace(
        entry,
        amount_atomic=transfer.amount_atomic,
        asset_id=transfer.asset_id,
        sender=transfer.sender,
        recipient=transfer.recipient,
        transaction_hash=transfer.transaction.hash if transfer.transaction else None,
    )


# --- entries without their transfer -----------------------------------------------------------------------------------


def _extra(
    inclusions: Sequence[Inclusion], standing: Sequence[Entry], blocks: Sequence[Block], *, takes_back: bool
) -> list[tuple[Entry, bool]]:
    """Entries in the blocks whose transfer is not there, and whether what was read may take them back."""
    by_height = {block.ref.height: block for block in blocks}
    included = {inclusion.transfer.id: inclusion for inclusion in inclusions}
    found = []
    for entry in standing:
        block = by_height[entry.block_height or 0]
        if not keeps_its_place(entry, included.get(entry.transfer_id)) and _was_read(entry, block):
            found.append((entry, takes_back and _is_outweighed(entry, block)))
    return found


def _was_read(entry: Entry, block: Block) -> bool:
    """True when reading the block would have found the entry's transfer."""
    return entry.locator_kind is not LocatorKind.TRACE or block.untraced_count == 0


def _is_outweighed(entry: Entry, block: Block) -> bool:
    if entry.locator_kind is LocatorKind.TRACE:
        order = list(TraceProof)
        had, has = TraceProof(entry.proof), block.trace_proof
        # One tracer's word against one tracer's word decides nothing.
        return has is not None and (order.index(has) > order.index(had) or has is had is not TraceProof.TRACE)
    is_level = entry.proof in ProofLevel.__members__.values()
    return block.proof.rank >= (ProofLevel(entry.proof).rank if is_level else ProofLevel.ROOTS.rank)


# --- the difference ---------------------------------------------------------------------------------------------------


def _differences(restored: Iterable[Entry], changes: Iterable[Change], unseated: Iterable[Entry]) -> list[Difference]:
    """Each entry once, by the first thing that happens to it."""
    taken = {(entry.tenant_id, entry.id) for entry in unseated}
    found = {(entry.tenant_id, entry.id): Difference(DifferenceKind.MISSING, entry) for entry in restored}
    for change in changes:
        key = (change.after.tenant_id, change.after.id)
        if key in taken:
            found.setdefault(key, Difference(DifferenceKind.EXTRA, change.before or change.after))
        else:
            kind = DifferenceKind.MISSING if change.before is None else DifferenceKind.CHANGED
            found.setdefault(key, Difference(kind, change.after))
    return list(found.values())


def _disputed(extra: Iterable[tuple[Entry, bool]]) -> Iterator[Difference]:
    return (Difference(DifferenceKind.EXTRA, entry, is_mended=False) for entry, may_go in extra if not may_go)


async def _keep_rows(
    connection: Connection,
    chain: ChainRow,
    stretch: Stretch,
    comparison: Comparison,
    readings: Sequence[int],
    now: datetime,
) -> None:
    """Blocks in which an entry sits keep their rows, as far as our own chain goes back."""
    touched = [*comparison.restored, *(change.after for change in comparison.changes)]
    counts: dict[bytes | None, set[EntryId]] = {}
    for entry in touched:
        counts.setdefault(entry.block_hash, set()).add(entry.id)
    agreed_by = await agreed_by_of(connection, chain, stretch.refs[-1].height)
    kept = [
        CommittedBlock(block, time_of_block(block), agreed_by, len(counts[block.ref.hash]), reading)
        for block, reading in zip(stretch.blocks, readings, strict=True)
        if block.ref.hash in counts and block.ref.height >= (chain.first_height or 0)
    ]
    await keep_blocks(connection, chain.chain_id, kept, now)
