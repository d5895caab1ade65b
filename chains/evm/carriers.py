"""A block's transactions beside their receipts, each as its chain's dialect has it. Pure.

**What is told is proven.** A transaction that nobody signed has fields that its bytes do not hold: a node may write anything
into them, so they are never read here. A retryable's submission and a chain's own transactions have no value, and a nonce
is told only where the block commits to it.

**Fees.** On the OP Stack the larger part of a signed transaction's fee pays for L1. It is under no root: the fee is None.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from chains.evm import arbitrum, op_stack, polygon
from chains.evm.carrier import Carrier, Mint
from chains.evm.dialect import Dialect
from chains.evm.envelope import DELEGATION, type_of
from chains.evm.errors import ProofFailure
from chains.evm.wire import WireBlock, WireReceipt, quantity_of
from chains.model import Address, ProofLevel


@dataclass(frozen=True, slots=True)
class OpStackCarrier(Carrier):
    """A transaction of an OP Stack chain: signed, a deposit, or relayed before Bedrock."""

    def nonce(self) -> int | None:
        """A deposit's is in its receipt, since Canyon."""
        if type_of(self.wire) == op_stack.DEPOSIT:
            return op_stack.proven_nonce(self.receipt)
        return quantity_of(self.wire.nonce)

    def bound_nonce(self) -> int | None:
        """A deposit comes from L1, at whatever nonce its sender has by then."""
        return None if type_of(self.wire) == op_stack.DEPOSIT else self.nonce()

    def mint(self) -> Mint | None:
        """It stays even when the transaction fails."""
        minted = op_stack.mint_of(self.wire)
        return Mint(None, minted) if minted > 0 else None

    def proof(self) -> ProofLevel | None:
        """Nothing commits to the sender of what was relayed before Bedrock."""
        return ProofLevel.STRUCTURE if op_stack.is_relayed(self.wire) else None

    def fee(self) -> int | None:
        """Deposits are paid for on L1."""
        return 0 if type_of(self.wire) == op_stack.DEPOSIT else None


@dataclass(frozen=True, slots=True)
class ArbitrumCarrier(Carrier):
    """A transaction of an Arbitrum chain: signed, from L1, or the chain's own."""

    def nonce(self) -> int | None:
        """Of the unsigned ones, one type alone has its sender's."""
        kind = type_of(self.wire)
        return quantity_of(self.wire.nonce) if kind <= DELEGATION or kind == arbitrum.UNSIGNED else None

    def recipient(self) -> Address | None:
        """None where its bytes hold none."""
        if type_of(self.wire) in arbitrum.VALUELESS:
            return None
        return Carrier.recipient(self)

    def amount(self) -> int:
        """None is moved where its bytes hold no value."""
        return 0 if type_of(self.wire) in arbitrum.VALUELESS else quantity_of(self.wire.value)

    def mint(self) -> Mint | None:
        """A deposit's value comes from L1, a retry's out of escrow; that of a failed one never leaves there."""
        kind = type_of(self.wire)
        if kind not in (arbitrum.DEPOSIT, arbitrum.RETRY) or self.amount() == 0 or not self.has_succeeded():
            return None
        return Mint(arbitrum.escrow_of(self.wire), self.amount())

    def price(self) -> int | None:
        """The base fee, where the sender paid at all."""
        return arbitrum.price_of(self.wire, self.base_fee)


@dataclass(frozen=True, slots=True)
class EmptyCarrier(Carrier):
    """A transaction that nobody sent, and of which nothing but its logs says anything: Polygon's state sync, the OP Stack's
    post-exec transaction."""

    is_apart: bool = False
    """The block does not commit to it."""

    def is_traced(self) -> bool:
        """Nodes differ."""
        return False

    def sender(self) -> Address:
        """Nobody."""
        return NOBODY

    def nonce(self) -> int | None:
        """Nobody has none."""
        return None

    def recipient(self) -> Address | None:
        """Nobody in particular."""
        return None

    def amount(self) -> int:
        """It moves nothing itself."""
        return 0

    def proof(self) -> ProofLevel | None:
        """Its place alone is checked where the block does not commit to it."""
        return ProofLevel.STRUCTURE if self.is_apart else None

    def fee(self) -> int | None:
        """Nobody paid."""
        return 0


_CARRIERS: dict[Dialect, type[Carrier]] = {Dialect.OP_STACK: OpStackCarrier, Dialect.ARBITRUM: ArbitrumCarrier}

_EMPTY: dict[Dialect, int] = {Dialect.POLYGON: polygon.STATE_SYNC, Dialect.OP_STACK: op_stack.POST_EXEC}
"""The type of the transactions of each dialect that nobody sent."""
NOBODY: Address = bytes(20)
"""Their sender, whomever a node names: nodes differ, and no bytes hold one."""


def carriers_of(block: WireBlock, receipts: Sequence[WireReceipt]) -> Iterator[Carrier]:
    """The block's transactions, each with its receipt. Raises `ProofFailure("structure")`."""
    if len(receipts) != len(block.transactions):
        raise ProofFailure("structure", f"{len(receipts)} receipts for {len(block.transactions)} transactions")
    base_fee = _base_fee_of(block)
    make, empty = _CARRIERS.get(block.dialect, Carrier), _EMPTY.get(block.dialect)
    apart = len(receipts) - 1 if polygon.has_state_sync_apart(block) else len(receipts)
    gas_before = 0
    for index, (transaction, receipt) in enumerate(zip(block.transactions, receipts, strict=True)):
        gas_after = quantity_of(receipt.cumulative_gas_used)
        used = gas_after - gas_before
        if index >= apart or (empty is not None and type_of(transaction) == empty):
            yield EmptyCarrier(index, transaction, receipt, used, base_fee, index >= apart)
        else:
            yield make(index, transaction, receipt, used, base_fee)
        gas_before = gas_after


def _base_fee_of(block: WireBlock) -> int | None:
    """None where there is none, and where it is not what everybody paid."""
    if block.base_fee_per_gas is None or (block.dialect is Dialect.ARBITRUM and not arbitrum.is_price_told(block)):
        return None
    return quantity_of(block.base_fee_per_gas)
