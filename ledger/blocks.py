"""Block rows: which blocks are in our chain, which were, and how many hosts named them.

Far below finality most of them are gone, and ranges tell of their blocks (`ledger/coverage.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from chains.model import Block, BlockHash, BlockRef, ChainId
from ledger.schema import blocks
from ledger.states import BlockState

_READ_AGAIN = ("state", "proof", "agreed_by", "node", "committed_at", "reading", "trace_proof")
"""What a block that comes back is known by from now on."""


@dataclass(frozen=True, slots=True)
class CommittedBlock:
    """A block about to be committed, with what the ledger adds to it."""

    block: Block
    block_at: datetime
    agreed_by: int
    entry_count: int
    reading: int | None = None
    """Version of the reading that it was read with (`ledger.coverage.Reading`)."""


async def insert_blocks(
    connection: AsyncConnection, chain_id: ChainId, committed: Sequence[CommittedBlock], now: datetime
) -> None:
    """Make blocks canonical; one that was orphaned before (a reorg back) becomes canonical again."""
    if not committed:
        return
    rows = [_row_of(chain_id, one, now) for one in committed]
    statement = insert(blocks)
    again = {name: statement.excluded[name] for name in _READ_AGAIN}
    entry_count = func.greatest(blocks.c.entry_count, statement.excluded.entry_count)
    await connection.execute(
        statement.on_conflict_do_update(
            index_elements=[blocks.c.chain_id, blocks.c.hash],
            set_={**again, "entry_count": entry_count, "orphaned_at": None},
        ),
        rows,
    )


def _row_of(chain_id: ChainId, one: CommittedBlock, now: datetime) -> dict[str, Any]:
    block = one.block
    return {
        "chain_id": chain_id,
        "hash": block.ref.hash,
        "height": block.ref.height,
        "parent_hash": block.ref.parent_hash,
        "block_at": one.block_at,
        "state": BlockState.CANONICAL.value,
        "proof": block.proof.value,
        "agreed_by": one.agreed_by,
        "node": block.node,
        "transaction_count": block.transaction_count,
        "entry_count": one.entry_count,
        "committed_at": now,
        "reading": one.reading,
        "trace_proof": block.trace_proof.value if block.trace_proof else None,
    }


async def keep_blocks(
    connection: AsyncConnection, chain_id: ChainId, kept: Sequence[CommittedBlock], now: datetime
) -> None:
    """Keep rows of blocks of ours in which an entry turned up that was not known. Of a row that is there nothing else
    changes: what it says of the block is true for everybody, and this may be known for one alone."""
    if not kept:
        return
    statement = insert(blocks)
    entry_count = func.greatest(blocks.c.entry_count, statement.excluded.entry_count)
    await connection.execute(
        statement.on_conflict_do_update(
            index_elements=[blocks.c.chain_id, blocks.c.hash], set_={"entry_count": entry_count}
        ),
        [_row_of(chain_id, one, now) for one in kept],
    )


async def orphan_blocks(connection: AsyncConnection, chain_id: ChainId, above_height: int, now: datetime) -> int:
    """Take every canonical block above a height out of our chain; returns how many. Nothing is deleted."""
    result = await connection.execute(
        update(blocks)
        .where(
            blocks.c.chain_id == chain_id,
            blocks.c.height > above_height,
            blocks.c.state == BlockState.CANONICAL.value,
        )
        .values(state=BlockState.ORPHANED.value, orphaned_at=now)
    )
    return result.rowcount


async def find_canonical(
    connection: AsyncConnection, chain_id: ChainId, from_height: int, to_height: int
) -> dict[int, BlockRef]:
    """Our canonical blocks in a range of heights, both ends included."""
    return await _find_canonical(connection, chain_id, blocks.c.height.between(from_height, to_height))


async def find_canonical_at(
    connection: AsyncConnection, chain_id: ChainId, heights: Collection[int]
) -> dict[int, BlockRef]:
    """Our canonical blocks at these heights."""
    return await _find_canonical(connection, chain_id, blocks.c.height.in_(heights))


async def _find_canonical(
    connection: AsyncConnection, chain_id: ChainId, condition: ColumnElement[bool]
) -> dict[int, BlockRef]:
    is_ours = (blocks.c.chain_id == chain_id, blocks.c.state == BlockState.CANONICAL.value)
    statement = select(blocks.c.height, blocks.c.hash, blocks.c.parent_hash).where(*is_ours, condition)
    return {row.height: BlockRef(row.height, row.hash, row.parent_hash) for row in await connection.execute(statement)}


async def is_canonical(connection: AsyncConnection, chain_id: ChainId, height: int, block_hash: BlockHash) -> bool:
    """True when this very block is in our chain."""
    found = await find_canonical(connection, chain_id, height, height)
    return height in found and found[height].hash == block_hash


async def raise_agreement(
    connection: AsyncConnection, chain_id: ChainId, from_height: int, to_height: int, agreed_by: int
) -> None:
    """Store that `agreed_by` hosts name the canonical blocks of a range; a block's count never falls."""
    await connection.execute(
        update(blocks)
        .where(
            blocks.c.chain_id == chain_id,
            blocks.c.height.between(from_height, to_height),
            blocks.c.state == BlockState.CANONICAL.value,
            blocks.c.agreed_by < agreed_by,
        )
        .values(agreed_by=agreed_by)
    )
