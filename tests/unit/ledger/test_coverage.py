"""Ranges of coverage: what may become one, what hosts agree on, and where the gaps are."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.coverage import CoverageRange, Gap, gaps_of, is_unbroken, join_all, lacking, with_agreement


def hash_at(height: int) -> bytes:
    return height.to_bytes(32, "big", signed=True)


def one(from_height: int, to_height: int | None = None, *, agreed_by: int = 2, node: str = "a") -> CoverageRange:
    """A range of the one chain that there is here."""
    to_height = from_height if to_height is None else to_height
    return CoverageRange(
        from_height, to_height, hash_at(from_height - 1), hash_at(to_height), 1, "roots", "agreed", agreed_by, (node,)
    )


def test_what_says_the_same_becomes_one_range() -> None:
    assert join_all([one(1, 4, node="b"), one(5, 9, node="a")]) == [replace(one(1, 9), nodes=("a", "b"))]


@pytest.mark.parametrize(
    "later",
    [
        one(6, 9),
        replace(one(5, 9), parent_hash=hash_at(99)),
        replace(one(5, 9), reading=2),
        replace(one(5, 9), reading=None),
        replace(one(5, 9), proof="structure"),
        replace(one(5, 9), trace_proof="trace"),
        one(5, 9, agreed_by=1),
    ],
    ids=["a hole", "another branch", "another reading", "no reading", "less proof", "less of traces", "fewer hosts"],
)
def test_what_says_something_else_stays_apart(later: CoverageRange) -> None:
    assert join_all([one(1, 4), later]) == [one(1, 4), later]


def test_blocks_with_nothing_to_trace_go_with_either_side() -> None:
    bare = replace(one(2), trace_proof=None)
    assert join_all([one(1), bare, one(3)]) == [one(1, 3)]
    assert join_all([replace(one(1), trace_proof=None), bare]) == [replace(one(1, 2), trace_proof=None)]
    told = replace(one(3), trace_proof="trace")
    assert join_all([one(1), bare, told]) == [one(1, 2), told]
    assert join_all([bare, told, replace(one(4), trace_proof=None)]) == [replace(one(2, 4), trace_proof="trace")]


def test_who_names_a_later_block_has_named_the_earlier_ones() -> None:
    assert join_all([one(1, 4, agreed_by=1), one(5, agreed_by=2)]) == [one(1, 5, agreed_by=2)]
    rows = [one(1, agreed_by=1), one(2, agreed_by=3), one(3, agreed_by=1)]
    assert [row.agreed_by for row in with_agreement(rows, 2)] == [3, 3, 2]


def test_a_chain_that_does_not_link_is_seen() -> None:
    assert is_unbroken([one(1, 3), one(4), one(5, 6)])
    assert not is_unbroken([one(1, 3), one(5)])
    assert not is_unbroken([one(1, 3), replace(one(4), parent_hash=hash_at(1))])


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(0, 45), st.integers(0, 45))
def test_ranges_and_gaps_tell_of_each_height_once(covered: list[bool], from_height: int, to_height: int) -> None:
    ranges = join_all(one(height) for height, is_covered in enumerate(covered) if is_covered)
    told = [height for each in ranges for height in range(each.from_height, each.to_height + 1)]
    assert told == [height for height, is_covered in enumerate(covered) if is_covered]
    gaps = gaps_of(ranges, from_height, to_height)
    missing = [height for gap in gaps for height in range(gap.from_height, gap.to_height + 1)]
    asked = range(from_height, to_height + 1)
    assert missing == [height for height in asked if height >= len(covered) or not covered[height]]


def test_gaps_beside_ranges_that_reach_beyond() -> None:
    assert gaps_of([one(0, 5), one(9, 20)], 3, 12) == [Gap(6, 8)]
    assert gaps_of([], 3, 12) == [Gap(3, 12)]


def test_ranges_that_were_read_for_less_are_a_gap_between_the_heights_that_were_asked_for() -> None:
    ranges = [
        replace(one(0, 9), reading=None),
        replace(one(10, 19), reading=1),
        one(20, 29),
        replace(one(30, 39), reading=2),
    ]
    assert lacking(ranges, [2], 5, 34) == [Gap(5, 29)]
    assert lacking(ranges, [1], 5, 34) == [Gap(5, 9), Gap(30, 34)]
    assert lacking(ranges, [1, 2], 12, 34) == []
