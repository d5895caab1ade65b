"""What the OP Stack (Optimism, Base) adds to Ethereum: transactions that come from L1, which nobody signed.

**Deposits** (type 0x7e, since Bedrock; specs `protocol/deposits.md`, op-geth `core/types/deposit_tx.go`). Their bytes hold
the sender. They may *mint*: value that was locked on L1 is credited to the sender before anything else happens, and it
stays there whatever becomes of the rest. Then the value moves as in any transaction.

**Post-exec transactions** (type 0x7d, with the Lagoon fork; optimism `op-core/types`) end a block of the sequencer's own
metering. They hold gas that is given back, and move nothing. Under the transactions root lies their payload as it is; what
is hashed is the RLP of a list that holds it.

**Before Bedrock** a transaction from L1 was a legacy one with a signature of zeros (op-geth `internal/ethapi/api.go`,
"pre-bedrock relayed tx"). Nothing in the block commits to its sender: the node's word is all there is.
"""

from __future__ import annotations

from chains.evm.envelope import LEGACY, Envelope, envelope_of, legacy_hex, missing, type_of, typed_bytes
from chains.evm.rlp import encode, list_hex, quantity_hex, string_hex
from chains.evm.wire import (
    OpStackReceipt,
    OpStackTransaction,
    WireReceipt,
    WireTransaction,
    bytes_of,
    packed,
    quantity_of,
)

DEPOSIT = 0x7E
"""The type of a transaction that came from L1."""
POST_EXEC = 0x7D
"""The type of the transaction in which a sequencer gives gas back."""
UNMETERED = frozenset((DEPOSIT, POST_EXEC))
"""Types whose receipt may show that no gas was used; of deposits, before Regolith, the chain's own."""


def op_stack_envelope(transaction: WireTransaction) -> Envelope:
    """The transaction as bytes. Raises `ProofFailure` as `envelope_of` does."""
    kind = type_of(transaction)
    if kind == DEPOSIT and isinstance(transaction, OpStackTransaction):
        return _deposit_envelope(transaction)
    if kind == POST_EXEC:
        mark, payload = packed("7d"), bytes_of(transaction.input)
        return Envelope(mark + payload, sender=bytes_of(transaction.sender), hashed=mark + encode([payload]))
    if is_relayed(transaction):
        raw = packed(list_hex(legacy_hex(transaction) + "808080"))
        return Envelope(raw, sender=bytes_of(transaction.sender))
    return envelope_of(transaction)


def is_relayed(transaction: WireTransaction) -> bool:
    """True for a transaction from L1 before Bedrock, whose sender no proof covers."""
    if type_of(transaction) != LEGACY:
        return False
    return not any(map(quantity_of, (transaction.v, transaction.r, transaction.s)))


def mint_of(transaction: WireTransaction) -> int:
    """What the transaction credits to its sender out of nothing, in wei, even when it fails."""
    if type_of(transaction) != DEPOSIT or not isinstance(transaction, OpStackTransaction):
        return 0
    return quantity_of(transaction.mint) if transaction.mint is not None else 0


def deposit_receipt_hex(receipt: WireReceipt) -> str:
    """The RLP digits that the receipt of a deposit has after its logs. Since Canyon they are the sender's nonce and a
    version. Regolith's receipts have the nonce too, but not under the receipts root (op-geth `core/types/receipt.go`,
    `EncodeIndex`)."""
    if not isinstance(receipt, OpStackReceipt) or receipt.deposit_receipt_version is None:
        return ""
    return quantity_hex(receipt.deposit_nonce or "0x0") + quantity_hex(receipt.deposit_receipt_version)


def proven_nonce(receipt: WireReceipt) -> int | None:
    """The nonce with which a deposit creates a contract: in its receipt since Canyon, and nowhere before it."""
    if not isinstance(receipt, OpStackReceipt) or receipt.deposit_receipt_version is None:
        return None
    return quantity_of(receipt.deposit_nonce or "0x0")


def _deposit_envelope(tx: OpStackTransaction) -> Envelope:
    if tx.source_hash is None:
        raise missing(tx, "sourceHash")
    recipient = "80" if tx.to is None else "94" + tx.to[2:]
    fields = (
        "a0" + tx.source_hash[2:] + "94" + tx.sender[2:] + recipient
        + quantity_hex(tx.mint or "0x0") + quantity_hex(tx.value) + quantity_hex(tx.gas)
        + ("01" if tx.is_system_tx else "80") + string_hex(tx.input)
    )  # fmt: skip
    return Envelope(typed_bytes(DEPOSIT, fields), sender=bytes_of(tx.sender))
