"""What Polygon PoS adds to Ethereum: state syncs, by which tokens that were locked on Ethereum arrive.

At the end of a sprint the chain takes over events from Ethereum, and the contracts that they are for emit logs.

- **Since Madhugiri** (PIP-74) that is a transaction of type 0x7f, the block's last, under all roots. Its bytes hold the
  events, which `eth_getBlockByNumber` does not show: they are asked for by themselves and checked like all others.
- **Before Madhugiri** the block commits to none of it. Nodes list a transaction that does not exist, the last one, with a
  hash derived from the block's (bor `core/types/bor_receipt.go`), and a receipt with the logs. All that can be checked is
  that it is in its place and moves nothing itself. What its logs say is the node's word, and is told at the level
  `structure` in a block that may be proven to its roots.
"""

from __future__ import annotations

from chains.evm.envelope import LEGACY, Envelope, envelope_of, type_of
from chains.evm.errors import ProofFailure
from chains.evm.keccak import keccak
from chains.evm.wire import PolygonBlock, WireBlock, WireTransaction, bytes_of, quantity_of
from chains.model import BlockHash, TransactionHash

STATE_SYNC = 0x7F
"""The type of a state sync since Madhugiri (bor `core/types/transaction.go`)."""
UNMETERED = frozenset((STATE_SYNC,))
"""Types whose receipt shows that no gas was used."""
MADHUGIRI_HEIGHT = 80_084_800
"""Polygon's first block with state syncs under its roots (bor `params/config.go`). A later block that lists one apart is
refused: a node could make it up. Test networks came to it at lower heights."""

_HASH_PREFIX = b"matic-bor-receipt-"


def polygon_envelope(transaction: WireTransaction, state_sync: bytes | None) -> Envelope:
    """The transaction as bytes; `state_sync` are the bytes of the block's state sync, where the node was asked for them.
    Raises `ProofFailure` as `envelope_of` does."""
    if type_of(transaction) != STATE_SYNC:
        return envelope_of(transaction)
    if state_sync is None or state_sync[:1] != STATE_SYNC.to_bytes(1, "big"):
        message = f"the node does not give the bytes of state sync {transaction.hash}"
        raise ProofFailure("transactions_root", message)
    return Envelope(state_sync, sender=bytes_of(transaction.sender))


def has_state_sync_apart(block: WireBlock) -> bool:
    """True when the block's last transaction is a state sync that the block does not commit to."""
    if not isinstance(block, PolygonBlock) or not block.transactions:
        return False
    expected = derived_hash(quantity_of(block.number), bytes_of(block.hash))
    return bytes_of(block.transactions[-1].hash) == expected


def derived_hash(height: int, block_hash: BlockHash) -> TransactionHash:
    """The hash by which nodes list a state sync before Madhugiri."""
    return keccak(_HASH_PREFIX + height.to_bytes(8, "big") + block_hash)


def check_state_sync_apart(block: WireBlock) -> None:
    """The block's last transaction, a state sync that it does not commit to, is what such a one has to be. Raises
    `ProofFailure("structure")`."""
    last = block.transactions[-1]
    if quantity_of(block.number) >= MADHUGIRI_HEIGHT:
        raise ProofFailure("structure", f"state sync {last.hash} is not under the roots, as it is since Madhugiri")
    if type_of(last) != LEGACY or quantity_of(last.value) != 0 or last.to is None or any(bytes_of(last.to)):
        raise ProofFailure("structure", f"state sync {last.hash} is an ordinary transaction")
