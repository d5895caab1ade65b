"""Receipts and withdrawals as bytes: what lies under the receipts root and the withdrawals root of a block."""

from __future__ import annotations

from chains.evm.envelope import type_of
from chains.evm.errors import ProofFailure
from chains.evm.op_stack import DEPOSIT, deposit_receipt_hex
from chains.evm.rlp import list_hex, quantity_hex, string_hex
from chains.evm.wire import WireLog, WireReceipt, WireTransaction, WireWithdrawal, packed


def receipt_bytes(transaction: WireTransaction, receipt: WireReceipt, bloom: str) -> bytes:
    """The receipt as it lies under the receipts root: outcome, gas, bloom, logs, after the transaction's type.

    `bloom` is the 512 digits of the receipt's bloom. Raises `ProofFailure("structure")`.
    """
    logs = "".join([_log_hex(log) for log in receipt.logs])
    payload = _outcome_hex(receipt) + quantity_hex(receipt.cumulative_gas_used) + "b90100" + bloom + list_hex(logs)
    kind = type_of(transaction)
    if kind == DEPOSIT:
        payload += deposit_receipt_hex(receipt)
    return packed(f"{kind:02x}" * (kind > 0) + list_hex(payload))


def _outcome_hex(receipt: WireReceipt) -> str:
    """The status (EIP-658), or before Byzantium the state root, beside which a status means nothing."""
    if receipt.root is not None:
        return string_hex(receipt.root)
    if receipt.status is None:
        raise ProofFailure("structure", f"receipt {receipt.transaction_index} has neither status nor root")
    return quantity_hex(receipt.status)


def _log_hex(log: WireLog) -> str:
    topics = "".join(["a0" + topic[2:] for topic in log.topics])
    return list_hex("94" + log.address[2:] + list_hex(topics) + string_hex(log.data))


def withdrawal_bytes(withdrawal: WireWithdrawal) -> bytes:
    """The withdrawal as it lies under the withdrawals root (EIP-4895)."""
    fields = quantity_hex(withdrawal.index) + quantity_hex(withdrawal.validator_index)
    return packed(list_hex(fields + "94" + withdrawal.address[2:] + quantity_hex(withdrawal.amount)))
