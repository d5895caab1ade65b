"""A transaction beside its receipt, and what the two prove together: success, gas, fee. Pure.

**Success before Byzantium.** Those receipts carry a state root and no status (a node may add a status; it means
nothing). Success is then read only from what is committed and leaves no doubt: a transaction that failed has no logs,
and it used all of its gas, since the instruction that reverts and gives gas back (EIP-140) came with Byzantium. So one
with a log, or with gas left, has succeeded. One without either is in doubt: its native value is not credited and it is
not reported as failed. Logs are credited in any case: they would not be in the receipt otherwise.

**Fees** are derived: gas used is the difference of two cumulative sums under the receipts root, the price follows from
the transaction's own fields and the header's base fee (EIP-1559), not from the node's `effectiveGasPrice`. The fee of a
blob transaction (EIP-4844) has a second part that depends on the fork's blob schedule: it is None.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from chains.evm.envelope import ACCESS_LIST, BLOB, type_of
from chains.evm.errors import ProofFailure
from chains.evm.senders import created_address
from chains.evm.wire import WireBlock, WireReceipt, WireTransaction, bytes_of, quantity_of
from chains.model import Address, Transaction


@dataclass(frozen=True, slots=True)
class Carrier:
    """One transaction with what its receipt proves about it."""

    index: int
    wire: WireTransaction
    receipt: WireReceipt
    gas_used: int
    base_fee: int | None

    def has_succeeded(self) -> bool | None:
        """None where nothing committed tells (before Byzantium). Raises `ProofFailure("structure")`."""
        if self.receipt.root is not None:
            return True if self.receipt.logs or self.gas_used < quantity_of(self.wire.gas) else None
        if self.receipt.status is None:
            raise ProofFailure("structure", f"receipt {self.receipt.transaction_index} has neither status nor root")
        return quantity_of(self.receipt.status) == 1

    def recipient(self) -> Address:
        """Whom its value goes to: the contract that it creates, where it names nobody."""
        if self.wire.to is not None:
            return bytes_of(self.wire.to)
        return created_address(bytes_of(self.wire.sender), quantity_of(self.wire.nonce))

    def fee(self) -> int | None:
        """What the sender paid for gas, in wei; None for a blob transaction or where the base fee is unknown."""
        wire, kind = self.wire, type_of(self.wire)
        if kind == BLOB:
            return None
        if kind <= ACCESS_LIST:
            return self.gas_used * quantity_of(wire.gas_price) if wire.gas_price is not None else None
        if self.base_fee is None or wire.max_fee_per_gas is None or wire.max_priority_fee_per_gas is None:
            return None
        offered = self.base_fee + quantity_of(wire.max_priority_fee_per_gas)
        return self.gas_used * min(quantity_of(wire.max_fee_per_gas), offered)

    def to_transaction(self) -> Transaction:
        """The transaction as the ledger knows it."""
        sender, nonce = bytes_of(self.wire.sender), quantity_of(self.wire.nonce)
        return Transaction(bytes_of(self.wire.hash), self.index, sender, nonce, self.fee())


def carriers_of(block: WireBlock, receipts: list[WireReceipt]) -> Iterator[Carrier]:
    """The block's transactions, each with its receipt. Raises `ProofFailure("structure")`."""
    if len(receipts) != len(block.transactions):
        raise ProofFailure("structure", f"{len(receipts)} receipts for {len(block.transactions)} transactions")
    base_fee = quantity_of(block.base_fee_per_gas) if block.base_fee_per_gas is not None else None
    gas_before = 0
    for index, (transaction, receipt) in enumerate(zip(block.transactions, receipts, strict=True)):
        gas_after = quantity_of(receipt.cumulative_gas_used)
        yield Carrier(index, transaction, receipt, gas_after - gas_before, base_fee)
        gas_before = gas_after
