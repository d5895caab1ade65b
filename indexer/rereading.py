"""Reading blocks of ours again, far below the tip, so that nobody has to believe that they are ours.

It goes downwards. The hash of the highest block of a run is known: from its row, from an end of a coverage range, or from
the run above it, whose lowest block names its parent. So what comes is bound to our chain by hashes at each step, also
below the first block that we ever followed, and of a node with another history nothing is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from chains.adapter import ChainAdapter
from chains.errors import BlockNotFound
from chains.model import Asset, Block, BlockHash, BlockRef, ChainId, Slug
from indexer.errors import BranchChanged
from indexer.history import Stretch
from indexer.prefetch import Bounds, prefetch
from ledger.chains import find_chain, remember_tracers
from ledger.database import Engine, transaction
from ledger.rereading import find_known_above

BESIDE_HEAD = Bounds(in_flight=2, in_flight_bytes=32 * 1024 * 1024)
"""A quarter of what a follower that catches up has under way: the head asks the same nodes, and wants a core for itself."""

OUTLINES_AT_ONCE = 250
"""Headers that are asked for together; a node that takes fewer calls in a batch is sent several."""


class Rereader:
    """Reads one chain's past."""

    def __init__(
        self, engine: Engine, adapter: ChainAdapter, chain_id: ChainId, slug: Slug, bounds: Bounds = BESIDE_HEAD
    ) -> None:
        """`adapter` is of its own: what nodes fail at in the past must not cost them their place at the head."""
        self._bounds = bounds
        self._engine = engine
        self.adapter = adapter
        self._chain_id = chain_id
        self._slug = slug
        self._remembered: dict[str, str] = {}

    async def recall(self) -> None:
        """Learn from the ledger who traces: history is read with no less than the head."""
        async with transaction(self._engine) as connection:
            chain = await find_chain(connection, self._chain_id)
        self.adapter.recall_tracers(chain.tracers)
        self._remembered = dict(chain.tracers)

    async def remember(self) -> None:
        """Write down who was found to trace since `recall`: a process that goes on with the work must not begin with less,
        and take the past by fewer tracing hosts, or without traces."""
        found = dict(self.adapter.tracers)
        if not found.items() <= self._remembered.items():
            async with transaction(self._engine) as connection:
                await remember_tracers(connection, self._chain_id, found, self.adapter.value_paths)
            self._remembered |= found

    async def hash_at(self, height: int) -> BlockHash:
        """The hash of our block at a height, led down from the nearest one above it that the ledger knows. Raises
        `BranchChanged` where the nodes have another history, and what the adapter raises."""
        async with transaction(self._engine) as connection:
            known = await find_known_above(connection, self._chain_id, height)
        if known is None:
            raise BlockNotFound(f"{self._slug}: block {height} is above our tip")
        while known.height > height:
            lowest = max(height, known.height - OUTLINES_AT_ONCE + 1)
            refs = [one.ref for one in await self.adapter.fetch_outlines(lowest, known.height)]
            self._require_linked(refs, known.hash)
            at_height = refs[0].height == height
            known = BlockRef(height, refs[0].hash, b"") if at_height else BlockRef(lowest - 1, refs[0].parent_hash, b"")
        return known.hash

    async def read(self, lowest: int, highest: int, top_hash: BlockHash) -> Stretch:
        """Every block from one height to another, both included; `top_hash` is that of the highest. Raises
        `BranchChanged` where they are not ours, and what the adapter raises."""
        async with prefetch(self.adapter.fetch_block_ahead, lowest, highest, self._bounds) as coming:
            blocks = [block async for block in coming]
        if coming.failure is not None:
            raise coming.failure
        refs = [block.ref for block in blocks]
        self._require_linked(refs, top_hash)
        return Stretch(refs, blocks)

    async def read_for(self, asset: Asset, lowest: int, highest: int, top_hash: BlockHash) -> Stretch:
        """The places of all these blocks, and those of them whole that may have moved the asset. Raises as `read` does."""
        refs: list[BlockRef] = []
        blocks: list[Block] = []
        for first in range(lowest, highest + 1, OUTLINES_AT_ONCE):
            outlines = await self.adapter.fetch_outlines(first, min(highest, first + OUTLINES_AT_ONCE - 1), asset)
            refs += [one.ref for one in outlines]
            for one in outlines:
                if one.may_move:
                    blocks.append(await self._fetch_same(one.ref))
        self._require_linked(refs, top_hash)
        return Stretch(refs, blocks)

    async def probe(self, heights: Sequence[int]) -> None:
        """Raise what the adapter raises unless these blocks can still be read whole and proven, traces included."""
        for height in heights:
            await self.adapter.fetch_block_ahead(height)

    async def _fetch_same(self, ref: BlockRef) -> Block:
        block = await self.adapter.fetch_block_ahead(ref.height)
        if block.ref != ref:
            raise BranchChanged(f"{self._slug}: block {ref.height} is not the one whose header was read")
        return block

    def _require_linked(self, refs: Sequence[BlockRef], top_hash: BlockHash) -> None:
        is_linked = all(later.parent_hash == earlier.hash for earlier, later in pairwise(refs))
        if not refs or not is_linked or refs[-1].hash != top_hash:
            place = refs[-1].height if refs else "none"
            raise BranchChanged(f"{self._slug}: the nodes' blocks up to {place} do not lead to ours")
