"""Who sent a transaction, from its signature, and which address a created contract has.

Nothing in a block commits to the field `from`: a node that changes it away from a watched address would hide a
withdrawal. The signature commits to the sender; where nobody signs, the transaction's bytes hold the sender.
"""

from __future__ import annotations

from coincurve import PublicKey

from chains.evm.envelope import Envelope, envelope_of
from chains.evm.errors import ProofFailure
from chains.evm.keccak import keccak
from chains.evm.rlp import encode
from chains.evm.wire import WireTransaction, packed
from chains.model import Address


def recover_sender(transaction: WireTransaction) -> Address:
    """The address whose key signed the transaction, of any type we can encode. Raises `ProofFailure`."""
    return sender_of(transaction, envelope_of(transaction))


def sender_of(transaction: WireTransaction, envelope: Envelope) -> Address:
    """The same, for a transaction that is encoded already. Raises `ProofFailure("sender")` when no key fits.

    A high `s` is accepted, as the chain did before Homestead (EIP-2): the block's hash already says that the network
    took this signature, and its malleable twin recovers the same address.
    """
    if envelope.sender is not None:
        return envelope.sender
    r = transaction.r[2:].zfill(64)
    s = transaction.s[2:].zfill(64)
    signature = packed(r + s) + envelope.parity.to_bytes(1, "big")
    try:
        key = PublicKey.from_signature_and_message(signature, envelope.signing_hash, hasher=None)
    except ValueError as error:
        raise ProofFailure("sender", f"no key fits the signature of transaction {transaction.hash}") from error
    return keccak(key.format(compressed=False)[1:])[12:]


def created_address(sender: Address, nonce: int) -> Address:
    """The address of the contract that a transaction without a recipient creates (Yellow Paper, equation 85)."""
    counter = nonce.to_bytes((nonce.bit_length() + 7) // 8, "big")
    return keccak(encode([sender, counter]))[12:]
