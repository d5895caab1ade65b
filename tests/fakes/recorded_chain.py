"""A node as it was recorded: what it answered when it was asked for one block after the other.

The blocks that it named are proven by their headers alone; they carry nothing. Its chain at a moment is what leads to the
newest block that it had named by then, through parent hashes, whichever of the competing blocks it named before.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from chains.adapter import NodeHead
from chains.errors import BlockNotFound
from chains.evm.dialect import Dialect
from chains.evm.reading import read_ref
from chains.model import Block, BlockHash, BlockRef, ProofLevel
from tests.fakes.adapter import FakeChain


def read_recording(path: Path) -> Iterator[BlockRef | None]:
    """What each question was answered with: a block, its hash recomputed from its header, or null."""
    for line in gzip.decompress(path.read_bytes()).splitlines():
        header = json.loads(line)["header"]
        yield read_ref(ProofLevel.ROOTS, msgspec.json.encode(header), None, Dialect.POLYGON) if header else None


@dataclass
class RecordedChain(FakeChain):
    """Plays the recording: `advance` to the next answer."""

    answers: Iterator[BlockRef | None] = field(default_factory=lambda: iter(()))
    named: dict[BlockHash, BlockRef] = field(default_factory=dict)
    """Every block of the recording: a node knows the parents of what it names, also where it was asked for them later."""
    branch: dict[int, BlockRef] = field(default_factory=dict)

    def advance(self) -> bool:
        """Hear the next answer; False at the end. A block at or below the head that is in the branch already was asked
        for to look back, and a null is no news."""
        for answer in self.answers:
            if answer is not None and self.named_in_branch(answer) is False:
                self.branch = dict(self.leading_to(answer))
                return True
        return False

    def named_in_branch(self, ref: BlockRef) -> bool:
        """True when the node's chain has this very block, or its rival was asked for by hash to look back."""
        known = self.branch.get(ref.height)
        return known is not None and (known.hash == ref.hash or ref.height < max(self.branch))

    def leading_to(self, ref: BlockRef) -> Iterator[tuple[int, BlockRef]]:
        """The blocks of the recording from this one down, by their parent hashes."""
        found: BlockRef | None = ref
        while found is not None:
            yield found.height, found
            found = self.named.get(found.parent_hash)

    def _ref(self, height: int | None) -> BlockRef | None:
        return self.branch.get(height) if height is not None else None

    async def fetch_head(self) -> NodeHead:
        return NodeHead(self.host, self.host, self.branch[max(self.branch)], None, None)

    async def fetch_block(self, height: int) -> Block:
        ref = self._ref(height)
        if ref is None:
            raise BlockNotFound(f"block {height}")
        self.fetched.append(height)
        return Block(ref, self.start_s + height * 2, (), ProofLevel.ROOTS, 0, self.host, self.host)
