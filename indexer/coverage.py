"""What blocks are read for, and old block rows turned into coverage ranges, between a follower's cycles.

Why here and not in the commit. A block's row is what reorgs, agreement and finality work with, and its range can only be
written when all of these are done with it: both at once would be two truths, and a statement more for each block. So a row
carries what its range will need, and one transaction now and then moves a run of rows over, under the chain's lock and with
a bound on how long. A crash leaves the rows or the range, never both and never neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import structlog

from chains.adapter import ChainAdapter
from chains.model import AssetId, Block, ChainId, Slug, ValuePath
from indexer.finality import compressible_height
from ledger.chains import lock_chain
from ledger.coverage import (
    Reading,
    delete_compressed,
    ensure_reading,
    extend_coverage,
    find_agreed_above,
    find_last_range,
    find_uncompressed,
    is_unbroken,
    join_all,
    with_agreement,
)
from ledger.database import Connection, Engine, transaction
from ledger.model import ChainRow
from ledger.states import ChainState

log = structlog.get_logger()

KEPT_BLOCKS_MIN = 1000
"""Rows below the tip that are kept at least, whatever is final."""

STEP_BLOCKS = 1024
"""Rows that one transaction compresses: as many as a cycle of catch-up commits, few enough to keep the lock short."""

PAUSE_BLOCKS = 256
"""At the head rows are compressed once in so many blocks."""


class Readings:
    """What a chain's blocks are read for, as versions that their rows can name."""

    def __init__(self, engine: Engine, chain_id: ChainId, adapter: ChainAdapter) -> None:
        """Nothing is read or written before `versions`."""
        self._engine = engine
        self._chain_id = chain_id
        self._adapter = adapter
        self._versions: Mapping[bool, int] = {}
        self._asset_ids: tuple[AssetId, ...] = tuple(sorted(asset.id for asset in adapter.assets))
        self._known: tuple[str, ...] | None = None

    async def of(self, blocks: Sequence[Block]) -> list[int]:
        """The version for each block: with traces only where they were read, or where there was nothing to trace."""
        paths = tuple(self._adapter.value_paths)
        if self._adapter.is_tracing_open:
            paths = (*paths, ValuePath.TRACES.value)
        if paths != self._known:
            self._versions = await self._register(paths)
            self._known = paths
        return [self._versions[block.untraced_count == 0] for block in blocks]

    async def _register(self, paths: tuple[str, ...]) -> Mapping[bool, int]:
        untraced = tuple(path for path in paths if path != ValuePath.TRACES.value)
        async with transaction(self._engine) as connection:
            _, now = await lock_chain(connection, self._chain_id)
            return {
                is_whole: await ensure_reading(connection, self._chain_id, self._reading(found), now)
                for is_whole, found in ((True, paths), (False, untraced))
            }

    def _reading(self, paths: tuple[str, ...]) -> Reading:
        return Reading(paths, self._asset_ids, self._adapter.decoder_version)


def kept_blocks_of(finality_depth: int) -> int:
    """How many rows below the tip are kept where a block is final `finality_depth` below it."""
    return max(2 * finality_depth, KEPT_BLOCKS_MIN)


class Compression:
    """Turns one chain's old block rows into ranges, a bounded step at a time. Only the chain's leader calls it; two would
    wait for each other, and the second find nothing to do."""

    def __init__(self, engine: Engine, chain_id: ChainId, slug: Slug, kept_blocks: int) -> None:
        """`kept_blocks` below the tip keep their rows, whatever is final (`kept_blocks_of`)."""
        self._engine = engine
        self._chain_id = chain_id
        self._slug = slug
        self._kept_blocks = kept_blocks
        self._pending = PAUSE_BLOCKS
        """Blocks since the last step found nothing more to do; the first cycle looks."""
        self._broken_at: int | None = None

    async def after(self, committed_blocks: int) -> None:
        """To be called after each cycle with the blocks that it committed: does one step, when enough has come together."""
        self._pending += committed_blocks
        if self._pending >= PAUSE_BLOCKS and await self.step() < STEP_BLOCKS:
            self._pending = 0

    async def step(self) -> int:
        """Compress up to `STEP_BLOCKS` blocks in one transaction; returns how many."""
        async with transaction(self._engine) as connection:
            chain, _ = await lock_chain(connection, self._chain_id)
            count, deleted = await self._compress(connection, chain)
        if count:
            log.info("block rows compressed", chain=self._slug, blocks=count, deleted=deleted)
        return count

    async def _compress(self, connection: Connection, chain: ChainRow) -> tuple[int, int]:
        limit = self._limit(chain)
        if limit is None:
            return 0, 0
        last = await find_last_range(connection, self._chain_id)
        lowest = (chain.first_height or 0) if last is None else last.to_height + 1
        highest = min(limit, lowest + STEP_BLOCKS - 1)
        if highest < lowest:
            return 0, 0
        rows = await find_uncompressed(connection, self._chain_id, lowest, highest)
        if len(rows) != highest - lowest + 1 or not is_unbroken([*([last] if last else []), *rows]):
            self._complain(lowest, highest)
            return 0, 0
        agreed_by = await find_agreed_above(connection, self._chain_id, highest, STEP_BLOCKS)
        await extend_coverage(connection, self._chain_id, join_all(with_agreement(rows, agreed_by)))
        return len(rows), await delete_compressed(connection, self._chain_id, lowest, highest)

    def _limit(self, chain: ChainRow) -> int | None:
        """None too while a person's decision is awaited or has not been acted on: a reorg below finality may need rows."""
        if chain.tip_height is None or chain.state is ChainState.HALTED or chain.accepted_reorg_height is not None:
            return None
        return compressible_height(
            tip_height=chain.tip_height,
            finalized_height=chain.finalized_height,
            agreed_height=chain.agreed_height,
            kept_blocks=self._kept_blocks,
        )

    def _complain(self, lowest: int, highest: int) -> None:
        """Rows with a hole, or that do not link: nothing may be said of them as a whole, so they stay as they are."""
        if self._broken_at != lowest:
            log.error("block rows do not form a chain", chain=self._slug, from_height=lowest, to_height=highest)
        self._broken_at = lowest
