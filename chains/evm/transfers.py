"""Which value a block moves. Pure: a node's block and receipts in, transfers of known assets out.

- **Native value**: any `value > 0` of a transaction that succeeded, whatever its calldata. A transaction without a
  recipient credits the contract it creates, whose address is derived from sender and nonce.
- **Tokens** (ERC-20): what the logs of allow-listed contracts say (`chains.evm.tokens`).
- **Validator withdrawals** (EIP-4895): Gwei, credited by the protocol, carried by no transaction.
- **A failed transaction** is one transfer with `has_failed`: only its fee was spent.

**Success before Byzantium.** Those receipts carry a state root and no status (a node may add a status; it means
nothing). Success is then read only from what is committed and leaves no doubt: a transaction that failed has no logs,
and it used all of its gas, since the instruction that reverts and gives gas back (EIP-140) came with Byzantium. So one
with a log, or with gas left, has succeeded. One without either is in doubt: its native value is not credited and it is
not reported as failed. Logs are credited in any case: they would not be in the receipt otherwise.

**Fees** are derived: gas used is the difference of two cumulative sums under the receipts root, the price follows from
the transaction's own fields and the header's base fee (EIP-1559), not from the node's `effectiveGasPrice`. The fee of a
blob transaction (EIP-4844) has a second part that depends on the fork's blob schedule: it is None.

Every hex string is read from its third character on, as the proof reads it (see `chains.evm.wire`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from chains.evm.envelope import ACCESS_LIST, BLOB, type_of
from chains.evm.errors import ProofFailure
from chains.evm.senders import created_address
from chains.evm.tokens import token_logs
from chains.evm.wire import WireBlock, WireReceipt, WireTransaction, bytes_of, quantity_of
from chains.model import (
    Address,
    Asset,
    ChainId,
    Locator,
    LocatorKind,
    Movement,
    Transaction,
    Transfer,
    identify_transfers,
)

WEI_PER_GWEI = 10**9

_NATIVE = Locator(LocatorKind.NATIVE)
_FAILED = Locator(LocatorKind.TRANSACTION)


@dataclass(frozen=True, slots=True)
class _Carrier:
    """One transaction with what its receipt proves about it."""

    index: int
    wire: WireTransaction
    receipt: WireReceipt
    gas_used: int
    base_fee: int | None

    def has_succeeded(self) -> bool | None:
        """None where nothing committed tells (before Byzantium)."""
        if self.receipt.root is not None:
            return True if self.receipt.logs or self.gas_used < quantity_of(self.wire.gas) else None
        if self.receipt.status is None:
            raise ProofFailure("structure", f"receipt {self.receipt.transaction_index} has neither status nor root")
        return quantity_of(self.receipt.status) == 1

    def _to_transaction(self) -> Transaction:
        sender, nonce = bytes_of(self.wire.sender), quantity_of(self.wire.nonce)
        return Transaction(bytes_of(self.wire.hash), self.index, sender, nonce, _fee_of(self))


def decode_transfers(
    chain_id: ChainId,
    block: WireBlock,
    receipts: list[WireReceipt],
    assets: Mapping[Address, Asset],
    native: Asset,
) -> tuple[Transfer, ...]:
    """The transfers of `native` and of the tokens in `assets` (by contract), in the block's order: by transaction,
    native value before logs, and validator withdrawals last.

    Raises `ProofFailure("structure")` when the answer is malformed; that it is true is for `prove_block` to say.
    """
    if len(receipts) != len(block.transactions):
        raise ProofFailure("structure", f"{len(receipts)} receipts for {len(block.transactions)} transactions")
    tokens = {address.hex(): asset for address, asset in assets.items()}
    movements: list[Movement] = []
    for carrier in _carriers(block, receipts):
        movements += _movements_of(carrier, tokens, native)
    movements += _withdrawals_of(block, native)
    return identify_transfers(chain_id, movements)


def _carriers(block: WireBlock, receipts: list[WireReceipt]) -> Iterator[_Carrier]:
    base_fee = quantity_of(block.base_fee_per_gas) if block.base_fee_per_gas is not None else None
    gas_before = 0
    for index, (transaction, receipt) in enumerate(zip(block.transactions, receipts, strict=True)):
        gas_after = quantity_of(receipt.cumulative_gas_used)
        yield _Carrier(index, transaction, receipt, gas_after - gas_before, base_fee)
        gas_before = gas_after


def _movements_of(carrier: _Carrier, tokens: Mapping[str, Asset], native: Asset) -> list[Movement]:
    amount = quantity_of(carrier.wire.value)
    has_succeeded = carrier.has_succeeded()
    has_native = has_succeeded is False or (has_succeeded is True and amount > 0)
    logs = [] if has_succeeded is False else token_logs(carrier.receipt.logs, tokens)
    if not has_native and not logs:
        return []
    transaction = carrier._to_transaction()
    movements = []
    if has_native:
        movements.append(_native_movement(carrier, transaction, amount, native, has_failed=not has_succeeded))
    for found in logs:
        locator = Locator(LocatorKind.LOG, str(found.ordinal), quantity_of(found.log.log_index))
        movements.append(
            Movement(found.asset.id, found.sender, found.recipient, found.amount_atomic, locator, transaction)
        )
    return movements


def _native_movement(
    carrier: _Carrier, transaction: Transaction, amount: int, native: Asset, *, has_failed: bool
) -> Movement:
    wire = carrier.wire
    recipient = bytes_of(wire.to) if wire.to is not None else created_address(transaction.sender, transaction.nonce)
    locator = _FAILED if has_failed else _NATIVE
    return Movement(native.id, transaction.sender, recipient, amount, locator, transaction, has_failed)


def _withdrawals_of(block: WireBlock, native: Asset) -> Iterator[Movement]:
    for withdrawal in block.withdrawals or ():
        amount = quantity_of(withdrawal.amount) * WEI_PER_GWEI
        if amount > 0:
            locator = Locator(LocatorKind.VALIDATOR_WITHDRAWAL, str(quantity_of(withdrawal.index)))
            yield Movement(native.id, None, bytes_of(withdrawal.address), amount, locator, None)


def _fee_of(carrier: _Carrier) -> int | None:
    """What the sender paid for gas, in wei; None for a blob transaction or where the base fee is unknown."""
    wire, kind = carrier.wire, type_of(carrier.wire)
    if kind == BLOB:
        return None
    if kind <= ACCESS_LIST:
        return carrier.gas_used * quantity_of(wire.gas_price) if wire.gas_price is not None else None
    if carrier.base_fee is None or wire.max_fee_per_gas is None or wire.max_priority_fee_per_gas is None:
        return None
    offered = carrier.base_fee + quantity_of(wire.max_priority_fee_per_gas)
    return carrier.gas_used * min(quantity_of(wire.max_fee_per_gas), offered)
