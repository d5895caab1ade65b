"""What will not come back: an entry that lost its block, and whose transaction's nonce is spent otherwise. Pure.

A transaction that a reorg left out may be included again at any time, as long as its sender's nonce is not spent. Once
another transaction of that nonce is in a block, it cannot be, in that branch; once that block is final, it never will
be. So two steps: while an entry is lost, every committed block is searched for what spends its nonce, and that is
written down with the block; when finality covers a canonical block of these, the entry is given up and the story ends.

A *higher* nonce of the sender tells the same, since nonces are spent in order: the one that we wait for was spent by
what we did not see, a block before the entry was lost in this ledger's time or an authorization (EIP-7702). And the
transaction itself may have spent it: included again, it failed, or moved something else than before.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from chains.model import Address, Block
from chains.spends import Spend, unpack_spends
from indexer.story import Change
from ledger.ids import Side
from ledger.model import Entry
from ledger.spent_nonces import AwaitedNonce, SpentNonce
from ledger.states import ENTRY_TRANSITIONS, LOST_STATES, EntryState


def awaited_after(awaited: Iterable[AwaitedNonce], changes: Iterable[Change]) -> set[AwaitedNonce]:
    """The nonces that lost entries wait for: those known, and those of entries that are lost just now."""
    lost = (change.after for change in changes if change.after.state in LOST_STATES)
    return {*awaited, *(nonce for entry in lost if (nonce := awaited_by(entry)) is not None)}


def awaited_by(entry: Entry) -> AwaitedNonce | None:
    """The nonce whose spending ends an entry's hope; None where its transaction is bound to none."""
    if entry.transaction_sender is None or entry.transaction_nonce is None:
        return None
    return AwaitedNonce(entry.transaction_sender, entry.transaction_nonce)


def spent_in(blocks: Sequence[Block], awaited: Collection[AwaitedNonce]) -> list[SpentNonce]:
    """In each block, for each awaited nonce the lowest nonce of its sender that spends it, or shows that it is spent."""
    nonces: dict[Address, list[int]] = defaultdict(list)
    for one in awaited:
        nonces[one.sender].append(one.nonce)
    return [row for block in blocks for row in _spent_in_block(block, nonces)] if nonces else []


def _spent_in_block(block: Block, awaited: Mapping[Address, Sequence[int]]) -> Iterator[SpentNonce]:
    by_sender: dict[Address, dict[int, Spend]] = defaultdict(dict)
    for spend in unpack_spends(block.spends, awaited):
        by_sender[spend.sender][spend.nonce] = spend
    for sender, spends in by_sender.items():
        for nonce in awaited[sender]:
            lowest = min((spent for spent in spends if spent >= nonce), default=None)
            if lowest is not None:
                by = spends[lowest].transaction_hash
                yield SpentNonce(block.ref.height, block.ref.hash, sender, nonce, lowest, by)


def give_up(entry: Entry, spent: SpentNonce, now: datetime) -> Change:
    """The last step of a lost entry whose nonce a final block shows to be spent: `replaced` for a withdrawal whose own
    address sent the other transaction, else `dropped`. Raises `ValueError` when the entry is not lost."""
    is_other = spent.spent_nonce == spent.nonce and spent.transaction_hash != entry.transaction_hash
    is_own = entry.side is Side.WITHDRAWAL and entry.address == entry.transaction_sender
    state = EntryState.REPLACED if is_other and is_own else EntryState.DROPPED
    if state not in ENTRY_TRANSITIONS[entry.state]:
        raise ValueError(f"{entry.id}: no step leads from {entry.state} to {state}")
    after = replace(
        entry,
        state=state,
        sequence=entry.sequence + 1,
        replaced_by=spent.transaction_hash if is_other else None,
        updated_at=now,
    )
    return Change(entry, after, f"{entry.side}.{state}")
