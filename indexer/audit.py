"""The audit of blocks: what is final is read once more, from another host, and compared with the ledger.

What a block's proof covers cannot differ, unless the fault is ours: a bug, or a hand in the database. What it does not
cover, traces above all, is told by other nodes than before. So an audit is a replay that writes nothing, over the blocks
in which an entry sits or once sat, and over a sample of the others, where something may have been missed altogether.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from chains.errors import ChainError
from chains.model import Block, BlockRef
from indexer.commit import Followed
from indexer.errors import BranchChanged
from indexer.history import Difference, DifferenceKind, Scope, Stretch, compare, require_ours
from indexer.rereading import Rereader
from ledger.chains import find_chain
from ledger.coverage import find_gaps_for_asset
from ledger.database import Connection, Engine, database_now, transaction
from ledger.documents import difference_document
from ledger.findings import Finding, find_suppliers, find_touched
from ledger.ids import Side
from ledger.states import Origin

TOUCHED_MAX = 2_000
"""Blocks with entries that one look takes from the ledger."""


SAMPLE_MAX = 1_000
"""Other blocks that are looked at in one audit at most."""


@dataclass(slots=True)
class BlockAudit:
    """What an audit of blocks came to."""

    heights: list[int] = field(default_factory=list)
    """The blocks that were compared."""
    by_same_host: int = 0
    """Of these, how many were read from the host that had supplied them, for want of another."""
    differences: list[tuple[int, Difference]] = field(default_factory=list)
    """Each with the block in which it shows."""
    branches: list[tuple[int, str]] = field(default_factory=list)
    """Final blocks of ours in whose place a host names another, with the sentence."""
    unread: list[tuple[int, str]] = field(default_factory=list)
    """Blocks that nobody could give, with the reason."""


def joined(first: BlockAudit, then: BlockAudit) -> BlockAudit:
    """What two audits came to together."""
    return BlockAudit(
        [*first.heights, *then.heights],
        first.by_same_host + then.by_same_host,
        [*first.differences, *then.differences],
        [*first.branches, *then.branches],
        [*first.unread, *then.unread],
    )


class BlockAuditor:
    """Compares one chain's blocks with its ledger."""

    def __init__(self, engine: Engine, rereader: Rereader, followed: Followed) -> None:
        self._engine = engine
        self._rereader = rereader
        self._followed = followed
        self.adapter = rereader.adapter
        self._scope = Scope(Origin.REPLAY, frozenset(asset.id for asset in self.adapter.assets))

    async def ref_at(self, height: int) -> BlockRef:
        """Our block at a height, as a node names it too. Raises `BranchChanged` where none does, and what the adapter
        raises."""
        ours = await self._rereader.hash_at(height)
        ref = await self.adapter.fetch_ref(height)
        if ref is None or ref.hash != ours:
            raise BranchChanged(f"block {height}: no node names the one that is ours")
        return ref

    async def heights_of(
        self, from_height: int, to_height: int, share: float, chance: random.Random
    ) -> tuple[list[int], int]:
        """The blocks to look at between two heights, both included, and the last height that they stand for: all that
        touched a watch, as far as they go into one look, and a share of the others."""
        async with transaction(self._engine) as connection:
            touched = await find_touched(connection, self._followed.chain_id, from_height, to_height, TOUCHED_MAX)
        last = max(touched) if len(touched) == TOUCHED_MAX else to_height
        return sorted({*touched, *sampled(from_height, last, share, chance)}), last

    async def audit(self, heights: Sequence[int], tell: Callable[[int], None] = lambda _done: None) -> BlockAudit:
        """Compare these blocks; `tell` is called with how many were looked at so far."""
        async with transaction(self._engine) as connection:
            suppliers = await find_suppliers(connection, self._followed.chain_id, heights)
            chain = await find_chain(connection, self._followed.chain_id)
        final_height = -1 if chain.finalized_height is None else chain.finalized_height
        audit = BlockAudit()
        for done, height in enumerate(heights, 1):
            await self._audit_block(audit, height, suppliers, final_height)
            tell(done)
        return audit

    async def _audit_block(
        self, audit: BlockAudit, height: int, suppliers: Mapping[int, str], final_height: int
    ) -> None:
        try:
            ours = await self._rereader.hash_at(height)
            block, is_other = await self._second_opinion(height, suppliers.get(height))
            differences = await self._compare(block) if block.ref.hash == ours else []
        except (ChainError, BranchChanged) as error:
            audit.unread.append((height, str(error)))
            return
        if block.ref.hash != ours:
            said = f"{block.node} names another block {height} than ours: 0x{block.ref.hash.hex()}, not 0x{ours.hex()}"
            (audit.branches if height <= final_height else audit.unread).append((height, said))
            return
        audit.heights.append(height)
        audit.by_same_host += not is_other
        audit.differences += [(height, one) for one in differences]

    async def _second_opinion(self, height: int, supplier: str | None) -> tuple[Block, bool]:
        """The block, and whether it is from another host than the one that had supplied it."""
        others = [status.host for status in self.adapter.node_statuses() if status.name != supplier]
        same = {status.host for status in self.adapter.node_statuses() if status.name == supplier}
        if hosts := [host for host in dict.fromkeys(others) if host not in same]:
            return await self.adapter.fetch_block_from(hosts, height), supplier is not None
        return await self.adapter.fetch_block(height), False

    async def _compare(self, block: Block) -> Sequence[Difference]:
        async with transaction(self._engine) as connection:
            chain = await find_chain(connection, self._followed.chain_id)
            now = await database_now(connection)
            stretch = Stretch([block.ref], [block])
            await require_ours(connection, chain, stretch)
            found = (await compare(connection, self._followed, chain, stretch, self._scope, now)).differences
            return [one for one in found if not await self._is_gap(connection, block.ref.height, one)]

    async def _is_gap(self, connection: Connection, height: int, difference: Difference) -> bool:
        """An entry is missing of an asset that the block was not read for: coverage shows that, and a backfill mends it."""
        if difference.kind is not DifferenceKind.MISSING:
            return False
        chain_id, asset_id = self._followed.chain_id, difference.entry.asset_id
        return bool(await find_gaps_for_asset(connection, chain_id, height, height, asset_id))


def sampled(from_height: int, to_height: int, share: float, chance: random.Random) -> Collection[int]:
    """A share of the heights between two, both included, at random; at least one where any is wanted, and no more than
    `SAMPLE_MAX`."""
    count = to_height - from_height + 1
    if share <= 0 or count <= 0:
        return ()
    wanted = min(count, SAMPLE_MAX, max(1, round(count * share)))
    return chance.sample(range(from_height, to_height + 1), wanted)


def findings_of(audit: BlockAudit) -> list[Finding]:
    """What an audit of blocks found, as the ledger keeps it."""
    found = [
        Finding(
            key=one.entry.id,
            kind=one.kind.value,
            is_missed_deposit=one.kind is DifferenceKind.MISSING and one.entry.side is Side.DEPOSIT,
            from_height=height,
            to_height=height,
            detail=_detail_of(one),
        )
        for height, one in audit.differences
    ]
    branches = [
        Finding(
            f"block {height}",
            "branch",
            is_missed_deposit=False,
            from_height=height,
            to_height=height,
            detail={"reason": said},
        )
        for height, said in audit.branches
    ]
    return [*found, *branches]


def _detail_of(difference: Difference) -> Mapping[str, object]:
    document = difference_document(difference.kind.value, difference.entry, is_mended=difference.is_mended)
    return {name: getattr(document, name) for name in document.__struct_fields__}
