"""Finality only rises; agreement is counted over hosts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from chains.model import BlockRef
from indexer.finality import (
    Agreement,
    finalized_by_depth,
    is_claim_ours,
    lowest_reorg_height,
    quorum_claim,
    raised_height,
)

heights = st.integers(0, 1000)


@given(st.dictionaries(st.sampled_from("abcdef"), heights, max_size=6), st.integers(1, 6))
def test_the_quorum_height_is_named_by_a_quorum_and_no_higher_one_is(known: dict[str, int], quorum: int) -> None:
    agreement = Agreement(known)
    height = agreement.quorum_height(quorum)
    if height is None:
        assert len(known) < quorum
    else:
        assert agreement.agreed_by(height) >= quorum
        assert agreement.agreed_by(height + 1) < quorum


@given(st.dictionaries(st.sampled_from("abc"), heights), heights)
def test_a_reorg_takes_back_what_hosts_said_above_the_ancestor(known: dict[str, int], ancestor: int) -> None:
    capped = Agreement(known).capped(ancestor)
    assert all(height <= ancestor for height in capped.heights.values())
    assert capped.agreed_by(ancestor + 1) == 0


def test_what_a_host_named_never_falls_by_hearing_of_a_lower_block() -> None:
    assert Agreement({"a": 9}).raised("a", 5).heights == {"a": 9}
    assert Agreement({}).raised("a", 5).heights == {"a": 5}


@given(st.none() | heights, st.none() | heights)
def test_finality_only_moves_up(ours: int | None, claimed: int | None) -> None:
    raised = raised_height(ours, claimed)
    assert raised == max((height for height in (ours, claimed) if height is not None), default=None)


def test_depth_finalizes_nothing_below_the_first_block() -> None:
    assert finalized_by_depth(tip_height=100, first_height=90, depth=5) == 95
    assert finalized_by_depth(tip_height=100, first_height=98, depth=5) is None


def test_a_reorg_stops_at_finality_unless_an_operator_accepted_it() -> None:
    def lowest(finalized: int | None, accepted: int | None = None) -> int:
        return lowest_reorg_height(
            first_height=10, finalized_height=finalized, accepted_reorg_height=accepted, lowest_by_depth=40
        )

    assert lowest(50) == 50
    assert lowest(50, accepted=30) == 30
    assert lowest(50, accepted=60) == 50
    assert lowest(50, accepted=0) == 9
    assert lowest(None) == 40


def test_a_tag_counts_only_for_a_block_of_ours() -> None:
    ours = BlockRef(5, b"ours", b"p")
    assert is_claim_ours(BlockRef(5, b"ours", b"p"), ours)
    assert not is_claim_ours(BlockRef(5, b"theirs", b"p"), ours)
    assert not is_claim_ours(ours, None)
    assert not is_claim_ours(None, ours)


@given(st.lists(st.integers(0, 9), max_size=5), st.integers(1, 3), st.sets(st.integers(0, 9)))
def test_a_tag_counts_as_far_as_so_many_hosts_go_on_our_chain(
    heights: list[int], quorum: int, foreign: set[int]
) -> None:
    ours = {height: BlockRef(height, bytes([height]), b"") for height in range(10)}
    claims = [BlockRef(h, b"other" if h in foreign else ours[h].hash, b"") for h in heights]
    claim = quorum_claim(claims, ours, quorum)
    covering = [h for h in range(10) if sum(1 for c in claims if c.hash != b"other" and c.height >= h) >= quorum]
    assert (claim.height if claim else None) == (max(covering) if covering else None)
