"""What can go wrong between us and a chain, split by what the caller does next.

    ChainError
    |-- NodeUnavailable          retry later: no node answered
    |   `-- BlockNotFound        retry later: the node has no such block (yet)
    |-- ChainHolds               hold the chain, say so, retry by itself: nodes answer, nothing can be proven
    |-- WrongChain               refuse to start: the node speaks of another chain
    `-- ProfileError             refuse to start: a chain without a full profile, or contradictory facts

Inside the room, one node's failings (a subtree of `chains/node/errors.py`) and failed checks (`ProofFailure`) are
handled by trying the next node; they leave it only as one of the above.
"""

from __future__ import annotations


class ChainError(Exception):
    """Anything that a chain or its nodes did wrong."""


class NodeUnavailable(ChainError):
    """No node answered; try again later."""


class BlockNotFound(NodeUnavailable):
    """No node has the block that was asked for (yet)."""


class ChainHolds(ChainError):
    """Nodes answer, but no answer can be proven; the chain holds and says so, and tries again by itself."""


class WrongChain(ChainError):
    """A node serves another chain than the one configured."""


class ProfileError(ChainError):
    """A chain has no complete profile, or its facts contradict each other."""
