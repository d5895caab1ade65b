"""A transaction beside its receipt, and what the two prove together: success, gas, fee. Pure.

**Success before Byzantium.** Those receipts carry a state root and no status (a node may add a status; it means
nothing). Success is then read only from what is committed and leaves no doubt: a transaction that failed has no logs,
and it used all of its gas, since the instruction that reverts and gives gas back (EIP-140) came with Byzantium. So one
with a log, or with gas left, has succeeded. One without either is in doubt: its native value is not credited and it is
not reported as failed. Logs are credited in any case: they would not be in the receipt otherwise.

**Fees** are derived: gas used is the difference of two cumulative sums under the receipts root, the price follows from
the transaction's own fields and the header's base fee (EIP-1559), not from the node's `effectiveGasPrice`. The fee of a
blob transaction (EIP-4844) has a second part that depends on the fork's blob schedule: it is None.

This is how Ethereum has it. What other dialects do differently is in `chains.evm.carriers`.
"""

from __future__ import annotations

from dataclasses import dataclass

from chains.evm.envelope import ACCESS_LIST, BLOB, type_of
from chains.evm.errors import ProofFailure
from chains.evm.senders import created_address
from chains.evm.wire import WireReceipt, WireTransaction, bytes_of, quantity_of
from chains.model import Address, ProofLevel, Transaction


@dataclass(frozen=True, slots=True)
class Mint:
    """Native value that a transaction brings to its sender before it is run; `source` is None where it comes from L1."""

    source: Address | None
    amount_atomic: int


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

    def is_traced(self) -> bool:
        """False for a transaction that some nodes trace and others do not."""
        return True

    def sender(self) -> Address:
        """Who sent it."""
        return bytes_of(self.wire.sender)

    def nonce(self) -> int | None:
        """Its sender's nonce; None where the block does not commit to it."""
        return quantity_of(self.wire.nonce)

    def bound_nonce(self) -> int | None:
        """The nonce that its hash commits to: once another transaction has spent that, this one cannot come any more. None
        where its hash does not depend on one."""
        return self.nonce()

    def recipient(self) -> Address | None:
        """Whom its value goes to: the contract that it creates, where it names nobody; None where the block does not tell
        which."""
        if self.wire.to is not None:
            return bytes_of(self.wire.to)
        nonce = self.nonce()
        return created_address(self.sender(), nonce) if nonce is not None else None

    def amount(self) -> int:
        """The native value that it moves from its sender to its recipient."""
        return quantity_of(self.wire.value)

    def mint(self) -> Mint | None:
        """What it credits to its sender beforehand."""
        return None

    def proof(self) -> ProofLevel | None:
        """How far it is proven, where that is less far than its block."""
        return None

    def fee(self) -> int | None:
        """What the sender paid for gas, in wei; None where the block does not tell."""
        price = self.price()
        return None if price is None else self.gas_used * price

    def price(self) -> int | None:
        """What a unit of gas cost; None for a blob transaction or where the base fee is unknown."""
        wire, kind = self.wire, type_of(self.wire)
        if kind == BLOB:
            return None
        if kind <= ACCESS_LIST:
            return quantity_of(wire.gas_price) if wire.gas_price is not None else None
        if self.base_fee is None or wire.max_fee_per_gas is None or wire.max_priority_fee_per_gas is None:
            return None
        return min(quantity_of(wire.max_fee_per_gas), self.base_fee + quantity_of(wire.max_priority_fee_per_gas))

    def to_transaction(self) -> Transaction:
        """The transaction as the ledger knows it."""
        return Transaction(bytes_of(self.wire.hash), self.index, self.sender(), self.bound_nonce(), self.fee())
