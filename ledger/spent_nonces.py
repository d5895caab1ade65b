"""Spent nonces: which transaction, in which block, took the place of one that lost its block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import and_, bindparam, select
from sqlalchemy.dialects.postgresql import distinct_on, insert
from sqlalchemy.ext.asyncio import AsyncConnection

from chains.model import Address, BlockHash, ChainId, TransactionHash
from ledger.model import ChainRow, Entry
from ledger.rows import entry_from
from ledger.schema import blocks, entries, spent_nonces
from ledger.states import LOST_STATES, BlockState


@dataclass(frozen=True, slots=True)
class AwaitedNonce:
    """A nonce of which a lost entry's transaction would be the spender."""

    sender: Address
    nonce: int


@dataclass(frozen=True, slots=True)
class SpentNonce:
    """A block shows that an awaited nonce is spent: by the transaction of that nonce, or by one of a higher nonce."""

    height: int
    block_hash: BlockHash
    sender: Address
    nonce: int
    spent_nonce: int
    transaction_hash: TransactionHash


async def insert_spent_nonces(connection: AsyncConnection, chain_id: ChainId, spent: Sequence[SpentNonce]) -> None:
    """Write down what blocks show; a block that is read again shows the same."""
    if not spent:
        return
    rows = [
        {
            "chain_id": chain_id,
            "block_hash": one.block_hash,
            "block_height": one.height,
            "sender": one.sender,
            "nonce": one.nonce,
            "spent_nonce": one.spent_nonce,
            "transaction_hash": one.transaction_hash,
        }
        for one in spent
    ]
    await connection.execute(insert(spent_nonces).on_conflict_do_nothing(), rows)


_lost_states = tuple(state.value for state in LOST_STATES)

_final_spends = (
    select(
        entries,
        spent_nonces.c.block_hash.label("spent_block_hash"),
        spent_nonces.c.block_height.label("spent_block_height"),
        spent_nonces.c.spent_nonce,
        spent_nonces.c.transaction_hash.label("spent_by"),
    )
    .join(
        spent_nonces,
        and_(
            spent_nonces.c.chain_id == entries.c.chain_id,
            spent_nonces.c.sender == entries.c.transaction_sender,
            spent_nonces.c.nonce == entries.c.transaction_nonce,
        ),
    )
    .join(
        blocks,
        and_(blocks.c.chain_id == spent_nonces.c.chain_id, blocks.c.hash == spent_nonces.c.block_hash),
    )
    .where(
        entries.c.chain_id == bindparam("chain_id"),
        entries.c.state.in_(_lost_states),
        spent_nonces.c.block_height <= bindparam("finalized_height"),
        blocks.c.state == BlockState.CANONICAL.value,
    )
    .ext(distinct_on(entries.c.tenant_id, entries.c.id))
    .order_by(entries.c.tenant_id, entries.c.id, spent_nonces.c.spent_nonce)
    .limit(bindparam("limit"))
)


async def find_spent_entries(
    connection: AsyncConnection, chain: ChainRow, limit: int
) -> list[tuple[Entry, SpentNonce]]:
    """Lost entries whose nonce a final block of our chain shows to be spent, each with what spent it.

    One of the statements that cross tenants."""
    if chain.finalized_height is None:
        return []
    parameters = {"chain_id": chain.chain_id, "finalized_height": chain.finalized_height, "limit": limit}
    found = []
    for row in await connection.execute(_final_spends, parameters):
        entry = entry_from(row)
        place = (row.spent_block_height, row.spent_block_hash)
        nonces = (int(row.transaction_nonce), int(row.spent_nonce))
        found.append((entry, SpentNonce(*place, row.transaction_sender, *nonces, row.spent_by)))
    return found
