"""What can go wrong in following, split by what the caller does next.

IndexerError
|-- BranchChanged    start the cycle again: the node changed its branch while we read it
`-- DeepReorg        halt the chain: undoing this is a person's decision
"""

from __future__ import annotations


class IndexerError(Exception):
    """Anything that stops one cycle of a follower."""


class BranchChanged(IndexerError):
    """What was fetched is not one chain; fetch again."""


class DeepReorg(IndexerError):
    """The node's branch leaves out a block that must not be undone."""
