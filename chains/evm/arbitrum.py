"""What Arbitrum adds to Ethereum (OffchainLabs/go-ethereum `core/types/arb_types.go`, nitro `arbos/tx_processor.go`).

Seven types of transaction that nobody signed, because they come from L1 or from the chain itself; their bytes hold the
sender. What each does to balances:

- 0x64, **deposit**: mints its value to its sender and hands it on to its recipient.
- 0x65 and 0x66, **unsigned** and **contract**: an ordinary call that was ordered on L1.
- 0x69, **submit retryable**: a ticket for a later call. It mints its deposit to its sender, puts the call's value into an
  escrow account of the ticket, pays fees and refunds what is too much. How much stays where depends on balances that are
  in no block, so it credits nothing here: traces tell of it where they are read.
- 0x68, **retry**: takes the ticket's value out of its escrow and makes the call. The call is paid for by whoever redeemed.
- 0x6a, **internal**: ArbOS keeps house. It uses no gas and moves nothing.
- 0x78 is a transaction from before Nitro (August 2022), whose hash is in no relation to its bytes: refused.

**Fees.** `gasUsed` has a part that pays for L1. The price is the base fee alone: tips are not taken. ArbOS 9 did take them;
ArbOS 60 may, and gives a part of the price back by a rule that no block shows. There the fee is not derived.
"""

from __future__ import annotations

from chains.evm.envelope import (
    DELEGATION,
    Envelope,
    envelope_of,
    missing,
    target_hex,
    type_of,
    typed_bytes,
    unknown_type,
)
from chains.evm.keccak import keccak
from chains.evm.rlp import quantity_hex, string_hex
from chains.evm.wire import ArbitrumTransaction, WireHeader, WireTransaction, bytes_of
from chains.model import Address

DEPOSIT, UNSIGNED, CONTRACT = 0x64, 0x65, 0x66
RETRY, SUBMIT_RETRYABLE, INTERNAL = 0x68, 0x69, 0x6A

UNMETERED = frozenset((DEPOSIT, RETRY, SUBMIT_RETRYABLE, INTERNAL))
"""Types whose receipt may show that no gas was used; a retry's, where its ticket has expired."""
VALUELESS = frozenset((SUBMIT_RETRYABLE, INTERNAL))
"""Types whose bytes hold neither a value nor a recipient."""

ARBOS_ADDRESS: Address = bytes.fromhex("00000000000000000000000000000000000a4b05")
"""The sender of internal transactions (`core/types/arbitrum_signer.go`)."""

_ESCROW_PREFIX = b"retryable escrow"
_VERSION_TIPS = 9
"""The version of ArbOS that took tips, though not of what came from L1 (nitro `CollectTips`)."""
_VERSION_REFUNDS = 60
"""The first version of ArbOS that prices several kinds of gas and gives the difference back (nitro `EndTxHook`)."""


def arbitrum_envelope(transaction: WireTransaction) -> Envelope:
    """The transaction as bytes. Raises `ProofFailure` as `envelope_of` does."""
    kind = type_of(transaction)
    if kind <= DELEGATION:
        return envelope_of(transaction)
    fields_of = _FIELDS.get(kind)
    if fields_of is None or not isinstance(transaction, ArbitrumTransaction):
        raise unknown_type(transaction, kind)
    if transaction.chain_id is None:
        raise missing(transaction, "chainId")
    sender = ARBOS_ADDRESS if kind == INTERNAL else bytes_of(transaction.sender)
    return Envelope(typed_bytes(kind, quantity_hex(transaction.chain_id) + fields_of(transaction)), sender=sender)


def escrow_of(transaction: WireTransaction) -> Address | None:
    """The account out of which a retry takes its value, derived from its ticket (nitro `arbos/retryables/retryable.go`);
    None for another type."""
    if (
        type_of(transaction) != RETRY
        or not isinstance(transaction, ArbitrumTransaction)
        or transaction.ticket_id is None
    ):
        return None
    return keccak(_ESCROW_PREFIX + bytes_of(transaction.ticket_id))[12:]


def is_price_told(header: WireHeader) -> bool:
    """False in blocks of a version of ArbOS in which not everybody paid the base fee."""
    version = int.from_bytes(bytes_of(header.mix_hash)[16:24], "big")
    return version != _VERSION_TIPS and version < _VERSION_REFUNDS


def price_of(transaction: WireTransaction, base_fee: int | None) -> int | None:
    """What a unit of gas cost the sender; None where somebody else paid, or `base_fee` is."""
    kind = type_of(transaction)
    if kind in (DEPOSIT, INTERNAL):
        return 0
    return None if kind in (RETRY, SUBMIT_RETRYABLE) else base_fee


def _deposit_hex(tx: ArbitrumTransaction) -> str:
    if tx.to is None:
        raise missing(tx, "to")
    return _request_hex(tx) + "94" + tx.sender[2:] + "94" + tx.to[2:] + quantity_hex(tx.value)


def _unsigned_hex(tx: ArbitrumTransaction) -> str:
    return "94" + tx.sender[2:] + quantity_hex(tx.nonce) + _call_hex(tx)


def _contract_hex(tx: ArbitrumTransaction) -> str:
    return _request_hex(tx) + "94" + tx.sender[2:] + _call_hex(tx)


def _retry_hex(tx: ArbitrumTransaction) -> str:
    if tx.ticket_id is None or tx.refund_to is None or tx.max_refund is None or tx.submission_fee_refund is None:
        raise missing(tx, "ticketId, refundTo, maxRefund or submissionFeeRefund")
    call = quantity_hex(tx.nonce) + "94" + tx.sender[2:] + _call_hex(tx)
    refund = "94" + tx.refund_to[2:] + quantity_hex(tx.max_refund) + quantity_hex(tx.submission_fee_refund)
    return call + "a0" + tx.ticket_id[2:] + refund


def _submit_hex(tx: ArbitrumTransaction) -> str:
    if tx.l1_base_fee is None or tx.deposit_value is None or tx.retry_value is None or tx.max_submission_fee is None:
        raise missing(tx, "l1BaseFee, depositValue, retryValue or maxSubmissionFee")
    if tx.beneficiary is None or tx.refund_to is None or tx.retry_data is None:
        raise missing(tx, "beneficiary, refundTo or retryData")
    paid = quantity_hex(tx.l1_base_fee) + quantity_hex(tx.deposit_value) + _gas_hex(tx)
    retry = ("80" if tx.retry_to is None else "94" + tx.retry_to[2:]) + quantity_hex(tx.retry_value)
    rest = "94" + tx.beneficiary[2:] + quantity_hex(tx.max_submission_fee) + "94" + tx.refund_to[2:]
    return _request_hex(tx) + "94" + tx.sender[2:] + paid + retry + rest + string_hex(tx.retry_data)


def _internal_hex(tx: ArbitrumTransaction) -> str:
    return string_hex(tx.input)


_FIELDS = {
    DEPOSIT: _deposit_hex,
    UNSIGNED: _unsigned_hex,
    CONTRACT: _contract_hex,
    RETRY: _retry_hex,
    SUBMIT_RETRYABLE: _submit_hex,
    INTERNAL: _internal_hex,
}


def _request_hex(tx: ArbitrumTransaction) -> str:
    if tx.request_id is None:
        raise missing(tx, "requestId")
    return "a0" + tx.request_id[2:]


def _call_hex(tx: ArbitrumTransaction) -> str:
    return _gas_hex(tx) + target_hex(tx)


def _gas_hex(tx: ArbitrumTransaction) -> str:
    """The most that a unit of gas may cost, and the gas. Nodes list the first under either name."""
    price = tx.max_fee_per_gas or tx.gas_price
    if price is None:
        raise missing(tx, "maxFeePerGas")
    return quantity_hex(price) + quantity_hex(tx.gas)
