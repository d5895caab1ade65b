"""How what a node shows relates to our tip. Pure, over block refs alone.

Three comparisons cover every case: does the fetched batch begin where we end, is the batch itself a chain, and is the
node's head below our tip. What each case asks for is in `indexer/follower.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from chains.model import BlockRef, is_linked


class Relation(StrEnum):
    """What a node's head means for us."""

    SAME = "same"
    """Its head is our tip: nothing new."""
    AHEAD = "ahead"
    """Its head is above our tip: fetch what follows."""
    SIBLING = "sibling"
    """Its head is another block at our tip's height: a reorg of the same length."""
    BEHIND = "behind"
    """Its head is below our tip: it lags, or it is on a shorter branch; wait for it, never undo for it."""


class Linkage(StrEnum):
    """How a fetched batch meets our tip."""

    EXTENDS = "extends"
    """Its first block is our tip's child, and each block the child of the one before."""
    REORG = "reorg"
    """It is a chain, but its first block is not our tip's child."""
    BROKEN = "broken"
    """It is not a chain: the node changed its branch while we fetched; fetch again."""


def relate(tip: BlockRef, head: BlockRef) -> Relation:
    """What the node's head means for our tip."""
    if head.height < tip.height:
        return Relation.BEHIND
    if head.height > tip.height:
        return Relation.AHEAD
    return Relation.SAME if head.hash == tip.hash else Relation.SIBLING


def link(tip: BlockRef | None, batch: Sequence[BlockRef]) -> Linkage:
    """How a non-empty batch meets our tip; with no tip yet, any chain extends."""
    if not is_linked(batch):
        return Linkage.BROKEN
    if tip is None or (batch[0].parent_hash == tip.hash and batch[0].height == tip.height + 1):
        return Linkage.EXTENDS
    return Linkage.REORG


def look_back(heights: Sequence[int]) -> list[int]:
    """Of our heights (ascending, not none), those at which to compare branches: the 1st, 2nd, 4th, 8th ... from the top,
    ending at the lowest.

    A deep reorg is found in a logarithmic number of calls to a node."""
    found = []
    place = 1
    while place < len(heights):
        found.append(heights[-place])
        place *= 2
    return [*found, heights[0]]


@dataclass(frozen=True, slots=True)
class Bracket:
    """Between which heights the branches part: they agree at `agreed` (None: nowhere above the bound) and differ at
    `differing`."""

    agreed: int | None
    differing: int


def narrow(ours: Mapping[int, BlockRef], theirs: Mapping[int, BlockRef | None]) -> Bracket:
    """The highest compared height where both branches have one hash, and the lowest above it where they do not.

    `theirs` maps each compared height to the node's block there."""
    compared = sorted(theirs, reverse=True)
    differing = compared[0]
    for height in compared:
        found = theirs[height]
        if found is not None and height in ours and ours[height].hash == found.hash:
            return Bracket(height, differing)
        differing = height
    return Bracket(None, differing)
