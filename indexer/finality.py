"""How far the chain is final and how far hosts agree: pure rules over heights.

A node's tag is a claim about *its* branch: it counts only once its hash is in our chain, and it never takes us back.
Agreement is counted over hosts. A host that names our block at some height has, through the parent hashes, named every
block below it too; so one height for each host is all there is to remember.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from chains.model import BlockRef


@dataclass(frozen=True, slots=True)
class Agreement:
    """Up to which height each host is known to share our chain."""

    heights: Mapping[str, int]

    def raised(self, host: str, height: int) -> Agreement:
        """The host was seen to name our block at `height`."""
        return Agreement({**self.heights, host: max(height, self.heights.get(host, height))})

    def capped(self, height: int) -> Agreement:
        """A reorg took our blocks above `height` away, and with them what hosts had said of those."""
        return Agreement({host: min(agreed, height) for host, agreed in self.heights.items()})

    def agreed_by(self, height: int) -> int:
        """How many hosts name our block at `height`."""
        return sum(1 for agreed in self.heights.values() if agreed >= height)

    def quorum_height(self, quorum: int) -> int | None:
        """The highest block of ours that at least `quorum` hosts name; None when there are too few hosts."""
        ordered = sorted(self.heights.values(), reverse=True)
        return ordered[quorum - 1] if len(ordered) >= quorum else None


def raised_height(ours: int | None, claimed: int | None) -> int | None:
    """The higher of what we know and what is newly proven: finality only moves up."""
    if claimed is None:
        return ours
    return claimed if ours is None else max(ours, claimed)


def finalized_by_depth(tip_height: int, first_height: int, depth: int) -> int | None:
    """The block that is final by depth alone, where a chain has no tag: `depth` blocks below the tip, never below the
    first block that we followed."""
    height = tip_height - depth
    return height if height >= first_height else None


def lowest_reorg_height(
    *, first_height: int, finalized_height: int | None, accepted_reorg_height: int | None, lowest_by_depth: int
) -> int:
    """The lowest block that a reorg may leave as the common ancestor.

    Nothing below `finalized` is ever undone, unless an operator accepted it, down to the height that they named. Before
    any finality is known the profile's depth below the tip bounds it; a follower that has not come that far may replace
    all that it followed: then the ancestor is the block before its first."""
    if accepted_reorg_height is not None:
        return max(first_height - 1, min(accepted_reorg_height, finalized_height or accepted_reorg_height))
    if finalized_height is not None:
        return finalized_height
    return max(first_height - 1, lowest_by_depth)


def is_claim_ours(claim: BlockRef | None, ours: BlockRef | None) -> bool:
    """True when a tag's block is in our chain."""
    return claim is not None and ours is not None and claim.hash == ours.hash


def quorum_claim(claims: Sequence[BlockRef | None], ours: Mapping[int, BlockRef], quorum: int) -> BlockRef | None:
    """The highest block of ours that at least `quorum` of the tags cover; None when there are too few such tags.

    One claim for each host. A tag on a block covers all blocks below it, so the `quorum`-th highest is what so many hosts
    say; a tag on a block that is not ours says nothing of our chain."""
    about_ours = [claim for claim in claims if claim is not None and is_claim_ours(claim, ours.get(claim.height))]
    ordered = sorted(about_ours, key=lambda claim: claim.height, reverse=True)
    return ordered[quorum - 1] if len(ordered) >= quorum else None


def compressible_height(
    *, tip_height: int, finalized_height: int | None, agreed_height: int | None, kept_blocks: int
) -> int | None:
    """The highest block whose row nothing can ask for any more; None where there is none yet. The finalized block's own is
    kept: it is where the deepest reorg that we follow grows out of. What fewer hosts name than have to is not settled."""
    if finalized_height is None or agreed_height is None:
        return None
    height = min(finalized_height - 1, agreed_height, tip_height - kept_blocks)
    return height if height >= 0 else None
