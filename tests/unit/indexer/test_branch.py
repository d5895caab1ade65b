"""The story of entries over random branches: every step is on the map, sequences have no gap, nothing counts twice."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from chains.model import BlockRef, Slug
from indexer.branch import Branch, tell_branch
from indexer.policy import CreditRule, Policy
from indexer.story import Change, Inclusion
from ledger.ids import Side, TenantId, WatchId
from ledger.matching import MatchedWatch
from ledger.model import ChainRow, Entry, WatchLabel
from ledger.states import ENTRY_TRANSITIONS, LOST_STATES, ChainState, Disposition, EntryState, Reason
from tests.fakes.adapter import CHAIN_ID, COIN, TOKEN, FakeChain, address, payment

NOW = datetime(2026, 11, 1, tzinfo=UTC)
WINDOW = timedelta(days=36500)
POLICY = Policy(Slug("local"), 1, (CreditRule("default", "2"),))
ALICE, BOB = address(1), address(2)
WATCHES = {
    who: [MatchedWatch(TenantId("ten_a"), WatchLabel(WatchId("wat_1"), None, {}), who, True, None)]
    for who in (ALICE, BOB)
}


def chain_row(tip: BlockRef, finalized: int | None) -> ChainRow:
    """The chain's row as a commit of that tip would leave it."""
    return ChainRow(
        CHAIN_ID, Slug("local"), "anvil", False, COIN.id, ChainState.FOLLOWING, None, 0, tip.height, tip.hash, NOW,
        tip.height, None, finalized, b"f" if finalized is not None else None, tip.height, None, 1, "roots", True, (), {}, (),
        NOW, None,
    )  # fmt: skip


# A block is a set of payments, each by name; `!` marks one that fails there.
blocks = st.lists(st.frozensets(st.sampled_from(["p", "q", "r", "p!", "q!"]), max_size=3), min_size=1, max_size=4)
steps = st.lists(st.tuples(st.integers(0, 3), blocks), min_size=1, max_size=8)


def mine(chain: FakeChain, names: frozenset[str], included: set[str], salt: str) -> None:
    """A transaction is in a chain once: what is included already is left out."""
    movements = []
    for name in sorted(names):
        bare = name.rstrip("!")
        if bare not in included:
            included.add(bare)
            movements.append(payment(bare, BOB, sender=ALICE, has_failed=name.endswith("!")))
    chain.mine(*movements, salt=salt)


class Replay:
    """Runs branches through `tell_branch` and keeps entries as the ledger would."""

    def __init__(self) -> None:
        self.chain = FakeChain()
        self.chain.mine()
        self.entries: dict[str, Entry] = {}
        self.changes: list[Change] = []

    def included_below(self, height: int) -> set[str]:
        names = {payment(name, BOB, sender=ALICE).transaction: name for name in "pqr"}
        return {
            names[transfer.transaction]
            for block in self.chain.blocks[: height + 1]
            for transfer in block.transfers
            if transfer.transaction in names
        }

    def step(self, depth: int, branch: list[frozenset[str]], salt: str) -> None:
        """Drop `depth` blocks and mine a branch at least as long, as a reorg does."""
        old_tip = len(self.chain.blocks) - 1
        ancestor = max(0, old_tip - depth)
        self.chain.drop_to(ancestor)
        included = self.included_below(ancestor)
        for names in [*branch, *([frozenset()] * max(0, depth - len(branch)))]:
            mine(self.chain, names, included, salt)
        new = self.chain.blocks[ancestor + 1 :]
        unseated = [e for e in self.entries.values() if e.block_height is not None and e.block_height > ancestor]
        known = [e for e in self.entries.values() if e.state in LOST_STATES]
        inclusions = [Inclusion(transfer, block, 1) for block in new for transfer in block.transfers]
        row = chain_row(new[-1].ref, None)
        told = tell_branch(Branch(inclusions, unseated, known, WATCHES), row, POLICY, now=NOW, live_window=WINDOW)
        for change in told:
            self.entries[change.after.id] = change.after
        self.changes += told


@settings(max_examples=300, deadline=None)
@given(steps)
def test_whatever_branches_come_the_story_is_consistent(script: list[tuple[int, list[frozenset[str]]]]) -> None:
    replay = Replay()
    for number, (depth, branch) in enumerate(script):
        replay.step(depth, branch, salt=str(number))
    _check_steps(replay.changes)
    _check_against_the_final_chain(replay)


def _check_steps(changes: list[Change]) -> None:
    standing: dict[str, Entry] = {}
    for change in changes:
        before = standing.get(change.after.id)
        assert change.before == before
        if before is None:
            assert change.after.sequence == 1
        else:
            assert change.after.sequence == before.sequence + 1
            is_moved = change.event_type.endswith(".moved")
            assert is_moved or change.after.state in ENTRY_TRANSITIONS[before.state]
            assert not is_moved or change.after.state is before.state
        standing[change.after.id] = change.after


def _check_against_the_final_chain(replay: Replay) -> None:
    """Entries that count equal what a fresh reading of the final chain finds."""
    expected = set()
    for block in replay.chain.blocks:
        for transfer in block.transfers:
            if transfer.has_failed:
                expected.add((Side.WITHDRAWAL, transfer.id, block.ref.hash, True))
            else:
                expected |= {(side, transfer.id, block.ref.hash, False) for side in Side}
    found = {
        (entry.side, entry.transfer_id, entry.block_hash, entry.state is EntryState.FAILED)
        for entry in replay.entries.values()
        if entry.state not in LOST_STATES
    }
    assert found == expected
    assert all(entry.block_hash is None for entry in replay.entries.values() if entry.state in LOST_STATES)


def test_an_asset_whose_amounts_are_not_to_be_believed_is_told_and_not_credited() -> None:
    """The reasons are decided at detection and stay with the entry, whatever the chain and the settings do later."""
    chain = FakeChain()
    chain.mine(payment("one", BOB, sender=ALICE, asset=TOKEN), payment("two", BOB, sender=ALICE))
    inclusions = [Inclusion(transfer, block, 1) for block in chain.blocks for transfer in block.transfers]
    reasons = {TOKEN.id: (Reason.FEE_ON_TRANSFER, Reason.REBASING)}
    row = replace(chain_row(chain.mine(), finalized=1), tip_height=1)
    changes = tell_branch(Branch(inclusions, [], [], WATCHES, reasons), row, POLICY, now=NOW, live_window=WINDOW)
    told = {(c.after.asset_id, c.after.side, c.after.state, c.after.disposition, c.after.reasons) for c in changes}
    assert told == {
        (asset_id, side, state, disposition, why)
        for asset_id, disposition, why in (
            (TOKEN.id, Disposition.IGNORE, reasons[TOKEN.id]),
            (COIN.id, Disposition.CREDIT, ()),
        )
        for side in Side
        for state in (EntryState.DETECTED, EntryState.CONFIRMED, EntryState.FINALIZED)
    }
    ignored = next(c.after for c in changes if c.after.asset_id == TOKEN.id)
    chain.drop_to(0)
    chain.blocks.pop()
    chain.mine(payment("one", BOB, sender=ALICE, asset=TOKEN), salt="b")
    (again,) = [Inclusion(transfer, block, 1) for block in chain.blocks for transfer in block.transfers]
    changes = tell_branch(Branch([again], [ignored], [], WATCHES), row, POLICY, now=NOW, live_window=WINDOW)
    moved = next(c.after for c in changes if c.after.id == ignored.id)
    assert (moved.disposition, moved.reasons) == (Disposition.IGNORE, reasons[TOKEN.id])


def test_an_entry_that_sits_in_the_block_already_is_left_alone() -> None:
    replay = Replay()
    replay.step(0, [frozenset({"p"})], "a")
    row = chain_row(replay.chain.blocks[-1].ref, None)
    inclusions = [Inclusion(transfer, block, 1) for block in replay.chain.blocks for transfer in block.transfers]
    branch = Branch(inclusions, [], list(replay.entries.values()), WATCHES)
    assert tell_branch(branch, replace(row), POLICY, now=NOW, live_window=WINDOW) == []
