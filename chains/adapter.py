"""What a follower asks of any chain. An adapter hides nodes, wire formats and proofs; it returns proven blocks."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from chains.model import Address, Asset, AssetId, Block, BlockHash, BlockRef, Holding, Outline


class Internal(StrEnum):
    """What the operator wants of value that contracts send on, which only traces show."""

    AUTO = "auto"
    """Read where a node traces. The first one that is seen to trace binds the chain: from then on a block without traces
    is not taken."""
    REQUIRED = "required"
    """No block is taken without traces."""
    OFF = "off"
    """Not read, whoever traces."""


@dataclass(frozen=True, slots=True)
class NodeHead:
    """What one node says of its own chain at one moment: newest block, and where its finality tags point.

    `safe` and `finalized` are None where the node has no such tag. They are claims: the follower counts them only once
    their hash is in its own canonical chain.
    """

    node: str
    host: str
    head: BlockRef
    safe: BlockRef | None
    finalized: BlockRef | None


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """One node as operators see it: `state` is `ok`, `failing` or `unknown`; `reason` has no credentials in it."""

    name: str
    host: str
    state: str
    head: int | None
    reason: str | None
    latency_ms: int | None = None
    """How long it usually takes to answer."""


@dataclass(frozen=True, slots=True)
class HeadHint:
    """What a node announced as its newest block. Nothing of it is proven, and nothing is built on it: it only wakes."""

    height: int
    hash: BlockHash


class HeadHints(Protocol):
    """Announcements of the nodes that make any."""

    async def next_hint(self) -> HeadHint:
        """The highest head announced since the last call, as soon as there is one; waits for ever where nobody
        announces anything. Raises what the listening itself raised, which is a fault of ours."""


class ChainAdapter(Protocol):
    """One configured chain with its nodes. Every method may raise `chains.errors.NodeUnavailable` (try again later) or
    `chains.errors.ChainHolds` (no node's answer can be proven); none opens a database connection."""

    async def fetch_head(self) -> NodeHead:
        """Head and finality tags of the first node that answers, in order of preference."""

    async def fetch_heads(self, hosts: Sequence[str]) -> Mapping[str, NodeHead]:
        """Head and finality tags of one node of each host; absent where none answers."""

    async def fetch_block(self, height: int) -> Block:
        """The block at `height` on the node's current branch, proven and decoded. Raises `BlockNotFound` when no node
        has it yet."""

    async def fetch_block_ahead(self, height: int) -> Block:
        """The same block far below the head, proven and decoded where that keeps nobody else waiting. Its transfers may be
        a `chains.packing.PackedTransfers`."""

    async def fetch_block_by_hash(self, block_hash: BlockHash) -> Block:
        """One block by hash, proven and decoded: used when looking back over a reorg."""

    async def fetch_block_from(self, hosts: Collection[str], height: int) -> Block:
        """The same block from one of these hosts: a second opinion."""

    async def fetch_outlines(self, from_height: int, to_height: int, asset: Asset | None = None) -> Sequence[Outline]:
        """The places of the blocks from one height to another, both included, in their order, all of one node; with `asset`,
        whether each may have moved it. Each continues the one before it. Raises `BlockNotFound` when no node has them."""

    async def fetch_ref(self, height: int) -> BlockRef | None:
        """Place and hash of the block at `height` on the node's current branch; None when the node has none."""

    async def fetch_agreements(self, ref: BlockRef, hosts: Sequence[str]) -> Mapping[str, bool]:
        """Ask one node of each host for its header at `ref.height`: True where it names the same hash, False where it
        names another, absent where it does not know or does not answer."""

    def set_aside(self, host: str, reason: str) -> None:
        """Ask this host's nodes after all others for a while, and show them as failing: more hosts contradict it."""

    def listen(self) -> AbstractAsyncContextManager[HeadHints]:
        """Hear announcements of new heads for as long as the block lasts. A hint saves waiting for the next question;
        who listens has to go on asking, for a node may fall silent without a word."""

    @property
    def hosts(self) -> tuple[str, ...]:
        """The distinct hosts of the configured nodes, in order."""

    @property
    def assets(self) -> tuple[Asset, ...]:
        """Native coin first, then the allow-listed tokens."""

    async def prove_balances(self, blocks: Sequence[Block], watched: Collection[Address]) -> Sequence[Block]:
        """The blocks, with what traces alone tell of the watched addresses raised to `state` where the accounts' proven
        balances bear it out. Raises `ChainHolds` where they contradict it: then none of the blocks may be committed."""

    async def fetch_holdings(
        self, ref: BlockRef, asked: Sequence[tuple[Address, AssetId]], hosts: Sequence[str] | None = None
    ) -> Mapping[tuple[Address, AssetId], Holding]:
        """What accounts hold of assets after the block, which is on the nodes' current branch; absent where no node can
        tell, for example since it has no state of that block any more. Nodes of `hosts` alone are asked where it is given.
        Raises nothing where no node answers: nothing is told then."""

    def recall_tracers(self, tracers: Mapping[str, str]) -> None:
        """What the ledger remembers: by host, the method by which it was once seen to trace."""

    @property
    def tracers(self) -> Mapping[str, str]:
        """The configured hosts that are known to trace, each with its method: what the ledger must remember before a
        block is committed. Empty where no traces are wanted."""

    @property
    def value_paths(self) -> tuple[str, ...]:
        """Which paths of value are read (`chains.model.ValuePath`)."""

    @property
    def is_tracing_open(self) -> bool:
        """True as long as traces are wanted and no block had anything to trace: so nobody had to say whether they trace, and
        what was read lacks nothing that a trace would tell."""

    @property
    def decoder_version(self) -> int:
        """Which transfers are found in a block; another number finds others."""

    def node_statuses(self) -> tuple[NodeStatus, ...]:
        """Each configured node as last seen."""

    async def close(self) -> None:
        """Close connections to nodes."""
