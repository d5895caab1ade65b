"""Who sent a transaction, from its signature, and which address a created contract has.

Nothing in a block commits to the field `from`: a node that changes it away from a watched address would hide a
withdrawal. The signature commits to the sender; where nobody signs, the transaction's bytes hold the sender.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from coincurve._libsecp256k1 import ffi, lib  # type: ignore[import-not-found]  # compiled
from coincurve.context import GLOBAL_CONTEXT
from coincurve.flags import EC_UNCOMPRESSED

from chains.evm.envelope import Envelope, envelope_of
from chains.evm.errors import ProofFailure
from chains.evm.keccak import keccak
from chains.evm.rlp import encode
from chains.evm.wire import WireTransaction, packed
from chains.model import Address


def recover_sender(transaction: WireTransaction) -> Address:
    """The address whose key signed the transaction, of any type we can encode. Raises `ProofFailure`."""
    return next(senders_of([transaction], [envelope_of(transaction)]))


def senders_of(transactions: Sequence[WireTransaction], envelopes: Sequence[Envelope]) -> Iterator[Address]:
    """The same for a block's transactions, which are encoded already. Raises `ProofFailure("sender")` when no key fits.

    A high `s` is accepted, as the chain did before Homestead (EIP-2): the block's hash already says that the network
    took this signature, and its malleable twin recovers the same address.

    The library is called at its lower face: the upper one makes six objects for each signature, a seventh of the time.
    """
    context = GLOBAL_CONTEXT.ctx
    signature = ffi.new("secp256k1_ecdsa_recoverable_signature *")
    key = ffi.new("secp256k1_pubkey *")
    point = ffi.new("unsigned char [65]")
    size = ffi.new("size_t *", 65)
    coordinates = ffi.buffer(point)
    for transaction, envelope in zip(transactions, envelopes, strict=True):
        if envelope.sender is not None:
            yield envelope.sender
            continue
        compact = packed(transaction.r[2:].zfill(64) + transaction.s[2:].zfill(64))
        # The library ends the process when it is given another length or parity.
        if not (
            len(compact) == 64
            and 0 <= envelope.parity <= 3
            and lib.secp256k1_ecdsa_recoverable_signature_parse_compact(context, signature, compact, envelope.parity)
            and lib.secp256k1_ecdsa_recover(context, key, signature, envelope.signing_hash)
        ):
            raise ProofFailure("sender", f"no key fits the signature of transaction {transaction.hash}")
        lib.secp256k1_ec_pubkey_serialize(context, point, size, key, EC_UNCOMPRESSED)
        yield keccak(coordinates[1:])[12:]


def created_address(sender: Address, nonce: int) -> Address:
    """The address of the contract that a transaction without a recipient creates (Yellow Paper, equation 85)."""
    counter = nonce.to_bytes((nonce.bit_length() + 7) // 8, "big")
    return keccak(encode([sender, counter]))[12:]
