"""How a node's chain relates to ours."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from chains.model import BlockRef
from indexer.reconcile import Linkage, Relation, link, look_back, narrow, relate


def chain(length: int, branch: str = "a", fork: int | None = None) -> list[BlockRef]:
    """Blocks 0 to length - 1; above `fork` they belong to `branch`, below to the trunk."""
    refs: list[BlockRef] = []
    parent = b"root"
    for height in range(length):
        name = branch if fork is not None and height > fork else "trunk"
        block_hash = f"{name}{height}".encode()
        refs.append(BlockRef(height, block_hash, parent))
        parent = block_hash
    return refs


def test_a_head_is_the_same_ahead_a_sibling_or_behind() -> None:
    trunk, other = chain(5), chain(5, "b", fork=3)
    assert relate(trunk[4], trunk[4]) is Relation.SAME
    assert relate(trunk[3], trunk[4]) is Relation.AHEAD
    assert relate(trunk[4], other[4]) is Relation.SIBLING
    assert relate(trunk[4], trunk[2]) is Relation.BEHIND


def test_a_batch_extends_reorganises_or_is_no_chain() -> None:
    trunk, other = chain(6), chain(6, "b", fork=2)
    assert link(trunk[2], trunk[3:]) is Linkage.EXTENDS
    assert link(None, trunk) is Linkage.EXTENDS
    assert link(trunk[4], [other[5]]) is Linkage.REORG
    assert link(trunk[2], [trunk[3], other[4]]) is Linkage.BROKEN
    assert link(trunk[2], [trunk[3], trunk[5]]) is Linkage.BROKEN
    assert link(trunk[2], [trunk[4]]) is Linkage.REORG


@given(st.integers(0, 500), st.integers(0, 500))
def test_looking_back_begins_at_the_tip_ends_at_the_bound_and_takes_few_steps(tip: int, lowest: int) -> None:
    lowest = min(lowest, tip)
    heights = look_back(range(lowest, tip + 1))
    assert heights[0] == tip
    assert heights[-1] == lowest
    assert heights == sorted(set(heights), reverse=True)
    assert len(heights) <= (tip - lowest + 1).bit_length() + 2


@given(st.integers(1, 60), st.data())
def test_the_bracket_holds_the_ancestor(tip: int, data: st.DataObject) -> None:
    fork = data.draw(st.integers(0, tip - 1))
    ours = {ref.height: ref for ref in chain(tip + 1)}
    theirs = {ref.height: ref for ref in chain(tip + 1, "b", fork)}
    compared: dict[int, BlockRef | None] = {height: theirs[height] for height in look_back(range(tip + 1))}
    bracket = narrow(ours, compared)
    assert bracket.agreed is not None
    assert bracket.agreed <= fork < bracket.differing


def test_branches_that_share_nothing_have_no_agreed_block() -> None:
    ours = {ref.height: ref for ref in chain(4)}
    theirs: dict[int, BlockRef | None] = {3: BlockRef(3, b"x", b"y"), 2: None}
    assert narrow(ours, theirs).agreed is None
