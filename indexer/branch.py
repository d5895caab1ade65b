"""What a branch of blocks does to the ledger's entries: one pure function, `tell_branch`.

Whether an entry moved, was lost or came back is decided by its transfer's identity in the new branch, never by today's
watches: a watch deleted or re-created in between must not change a story that was told. Only new entries ask watches,
and only those whose coverage includes the block's height.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from chains.model import Address, AssetId, Block, Transfer, TransferId
from chains.packing import parties_of, transfers_of
from indexer.policy import Policy, reasons_against_transfer
from indexer.story import Change, Inclusion, advance, detect, include_again, lose, move
from ledger.ids import EntryId, Side, TenantId, entry_id_of
from ledger.matching import MatchedWatch
from ledger.model import ChainRow, Entry
from ledger.states import LOST_STATES, SPENT_STATES, EntryState, Origin, Reason

Key = tuple[TenantId, EntryId]


@dataclass(frozen=True, slots=True)
class Branch:
    """What a contiguous run of proven blocks may change, and what the ledger knows of it."""

    inclusions: Sequence[Inclusion]
    """The transfers that could concern a watch or an entry, in the order of the chain."""
    unseated: Sequence[Entry]
    """Entries whose block is being orphaned; empty when the branch only extends."""
    known: Sequence[Entry]
    """Other entries of the branch's transfers: lost ones, and ones that are there already."""
    matches: Mapping[Address, Sequence[MatchedWatch]]
    reasons: Mapping[AssetId, tuple[Reason, ...]] = field(default_factory=dict)
    """Why new entries of these assets do not count as money."""


def tell_branch(
    branch: Branch,
    chain: ChainRow,
    policy: Policy,
    *,
    now: datetime,
    live_window: timedelta,
    origin: Origin | None = None,
) -> list[Change]:
    """Every change that a branch makes, in the order in which it is told: losses, then block by block what moved, came
    back or is new, each followed by what the chain's heights (`chain` is the row as it will be) allow at once. `origin` is
    that of new entries; None: by the age of their block."""
    story = _Story(branch, chain, policy, now, live_window, origin)
    included = {inclusion.transfer.id: inclusion for inclusion in branch.inclusions}
    for entry in branch.unseated:
        if not keeps_its_place(entry, included.get(entry.transfer_id)):
            story.tell(lose(entry, now))
    for inclusion in branch.inclusions:
        story.include(inclusion)
    return story.changes


def keeps_its_place(entry: Entry, inclusion: Inclusion | None) -> bool:
    """True when the new branch includes the transfer, and it did not come to fail there."""
    if inclusion is None:
        return False
    return entry.state is EntryState.FAILED or not inclusion.transfer.has_failed


class _Story:
    """The changes told so far, and each touched entry as it stands after them."""

    def __init__(
        self,
        branch: Branch,
        chain: ChainRow,
        policy: Policy,
        now: datetime,
        live_window: timedelta,
        origin: Origin | None,
    ) -> None:
        self.origin = origin
        self.branch = branch
        self.chain = chain
        self.policy = policy
        self.now = now
        self.live_window = live_window
        self.changes: list[Change] = []
        self.standing: dict[Key, Entry] = {}
        self.of_transfer: dict[TransferId, list[Key]] = defaultdict(list)
        for entry in (*branch.unseated, *branch.known):
            self._put(entry)

    def _put(self, entry: Entry) -> None:
        key = (entry.tenant_id, entry.id)
        if key not in self.standing:
            self.of_transfer[entry.transfer_id].append(key)
        self.standing[key] = entry

    def tell(self, change: Change) -> None:
        """Add a change; its entry stands as it says from now on."""
        self.changes.append(change)
        self._put(change.after)

    def include(self, inclusion: Inclusion) -> None:
        """What one transfer in its block does: to entries that are known, and for watches that cover it."""
        for key in list(self.of_transfer[inclusion.transfer.id]):
            self._seat(self.standing[key], inclusion)
        for side, address in sides_of(inclusion.transfer):
            for watch in covering(self.branch.matches.get(address, ()), inclusion.block.ref.height):
                if (watch.tenant_id, entry_id_of(watch.tenant_id, side, inclusion.transfer.id)) not in self.standing:
                    self._tell_and_advance(self._detect(inclusion, side, watch))

    def _seat(self, entry: Entry, inclusion: Inclusion) -> None:
        """Put a known entry into the block that now includes its transfer; nothing when it sits there already."""
        has_failed = inclusion.transfer.has_failed
        if entry.state in (*LOST_STATES, *SPENT_STATES) or (entry.state is EntryState.FAILED and not has_failed):
            if entry.side is Side.WITHDRAWAL or not has_failed:
                self._tell_and_advance(include_again(entry, inclusion, self.now))
        elif entry.block_hash is not None and entry.block_hash != inclusion.block.ref.hash:
            self._tell_and_advance(move(entry, inclusion, self.now))

    def _detect(self, inclusion: Inclusion, side: Side, watch: MatchedWatch) -> Change:
        transfer = inclusion.transfer
        is_late = self.now - inclusion.block_at > self.live_window
        by_age = Origin.CATCH_UP if is_late else Origin.LIVE
        return detect(
            inclusion,
            side,
            watch,
            chain_id=self.chain.chain_id,
            credit_point=self.policy.credit_point(transfer.asset_id, transfer.amount_atomic),
            origin=self.origin or by_age,
            now=self.now,
            reasons=(*self.branch.reasons.get(transfer.asset_id, ()), *reasons_against_transfer(transfer)),
        )

    def _tell_and_advance(self, change: Change) -> None:
        self.tell(change)
        for step in advance(change.after, self.chain, self.now):
            self.tell(step)


def covering(watches: Sequence[MatchedWatch], height: int) -> Iterator[MatchedWatch]:
    """For each tenant the most specific of an address's watches that covers the height (they come in that order)."""
    told: set[TenantId] = set()
    for watch in watches:
        if watch.tenant_id not in told and watch.covers(height):
            told.add(watch.tenant_id)
            yield watch


def sides_of(transfer: Transfer) -> Iterator[tuple[Side, Address]]:
    """Whom a transfer concerns: its recipient and its sender; a failed transaction only its sender, who paid for it."""
    if transfer.recipient is not None and not transfer.has_failed:
        yield Side.DEPOSIT, transfer.recipient
    if transfer.sender is not None:
        yield Side.WITHDRAWAL, transfer.sender


def addresses_of(blocks: Sequence[Block]) -> set[Address]:
    """Every address that could be watched: the parties of all transfers."""
    found = {party for block in blocks for parties in parties_of(block.transfers) for party in parties}
    found.discard(None)
    return found  # type: ignore[return-value]  # None is gone


def inclusions_of(
    blocks: Sequence[Block], concerned: Collection[Address] | None, agreed_by: Callable[[int], int]
) -> list[Inclusion]:
    """The transfers that have a party among `concerned` (None: all transfers), in their order. `agreed_by` says how many
    hosts name the block at a height."""
    found = []
    for block in blocks:
        transfers = block.transfers if concerned is None else transfers_of(block.transfers, concerned)
        hosts = agreed_by(block.ref.height)
        found += [Inclusion(transfer, block, hosts) for transfer in transfers]
    return found
