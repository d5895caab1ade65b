"""What can go wrong in following, split by what the caller does next.

IndexerError
|-- BranchChanged    start the cycle again: the node changed its branch while we read it
`-- DeepReorg        halt the chain: undoing this is a person's decision
"""

from __future__ import annotations

from ledger.model import ChainRow


class IndexerError(Exception):
    """Anything that stops one cycle of a follower."""


class BranchChanged(IndexerError):
    """What was fetched is not one chain; fetch again."""


class DeepReorg(IndexerError):
    """The node's branch leaves out a block that must not be undone."""


def deep_reorg_reason(chain: ChainRow, lowest: int, head_height: int | None) -> str:
    """What operators read of a node's branch that leaves out our final block `lowest`."""
    finalized_hash = "0x" + chain.finalized_hash.hex() if chain.finalized_hash else "none"
    return (
        f"{chain.slug}: the node's branch (head {head_height}) leaves out our block {lowest}"
        f" (finalized {chain.finalized_height}, {finalized_hash}): a reorg deeper than finality."
        " Nothing was undone. Find out which branch is right; to follow the node's, run"
        f" `chainbell resume --chain {chain.slug} --accept-reorg-to HEIGHT` with the last block that both share"
    )
