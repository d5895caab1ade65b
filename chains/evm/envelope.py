"""Transactions as bytes: what is hashed, what is signed, what lies under the transactions root.

A transaction's hash is the hash of its envelope: the RLP of a legacy transaction, or one type byte and RLP (EIP-2718).
What its sender signed is the same without the signature. Both come from the fields that the node listed, so a field
that the node changed changes the hash.

Here are the types of Ethereum, which every chain has. What a dialect adds is in a module of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from chains.evm.errors import ProofFailure
from chains.evm.keccak import keccak
from chains.evm.rlp import LIST, header_bytes, list_hex, quantity_hex, string_hex
from chains.evm.wire import WireAccess, WireAuthorization, WireTransaction, packed, quantity_of
from chains.model import Address

LEGACY, ACCESS_LIST, DYNAMIC_FEE, BLOB, DELEGATION = range(5)
"""Transaction types: before EIP-2718, and by EIP-2930, EIP-1559, EIP-4844, EIP-7702."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """One transaction as bytes. `parity` says which of two public keys made the signature (0 or 1).

    Nobody signs a transaction of some types that dialects add: `sender` is then what its bytes, or its type, say.
    """

    raw: bytes
    signed: bytes = b""
    parity: int = 0
    sender: Address | None = None
    hashed: bytes | None = None
    """What is hashed, where it is not what lies under the transactions root."""

    @property
    def hash(self) -> bytes:
        """The transaction's hash."""
        return keccak(self.raw if self.hashed is None else self.hashed)

    @property
    def signing_hash(self) -> bytes:
        """What the sender signed."""
        return keccak(self.signed)


def type_of(transaction: WireTransaction) -> int:
    """The transaction's type; one without a type is legacy."""
    return quantity_of(transaction.type) if transaction.type is not None else LEGACY


def envelope_of(transaction: WireTransaction) -> Envelope:
    """The transaction as bytes. Raises `ProofFailure`: `structure` when a field of its type is missing,
    `transactions_root` when we cannot encode its type."""
    kind = type_of(transaction)
    if kind == LEGACY:
        return _legacy_envelope(transaction)
    if kind > DELEGATION:
        raise unknown_type(transaction, kind)
    return _typed_envelope(transaction, kind)


def _legacy_envelope(tx: WireTransaction) -> Envelope:
    """Signed over six fields, and since EIP-155 over the chain's number too, which `v` then carries."""
    body = packed(legacy_hex(tx))
    signature = packed(quantity_hex(tx.v) + quantity_hex(tx.r) + quantity_hex(tx.s))
    raw = _list_bytes(body + signature)
    v = quantity_of(tx.v)
    if v in (27, 28):
        return Envelope(raw, _list_bytes(body), v - 27)
    if v < 35:
        raise ProofFailure("sender", f"transaction {tx.hash} has v {v}, which is no signature's (EIP-155)")
    chain = packed(quantity_hex(hex((v - 35) >> 1)) + "8080")
    return Envelope(raw, _list_bytes(body + chain), (v - 35) & 1)


def _typed_envelope(tx: WireTransaction, kind: int) -> Envelope:
    mark = kind.to_bytes(1, "big")
    body = packed(_typed_body_hex(tx, kind))
    parity = _parity_of(tx)
    signature = packed(f"{parity or 0x80:02x}" + quantity_hex(tx.r) + quantity_hex(tx.s))
    return Envelope(mark + _list_bytes(body + signature), mark + _list_bytes(body), parity)


def _typed_body_hex(tx: WireTransaction, kind: int) -> str:
    """The digits of all fields but the signature, by type."""
    if tx.chain_id is None:
        raise missing(tx, "chainId")
    head = quantity_hex(tx.chain_id) + quantity_hex(tx.nonce)
    tail = quantity_hex(tx.gas) + target_hex(tx) + _access_list_hex(tx.access_list or [])
    if kind == ACCESS_LIST:
        if tx.gas_price is None:
            raise missing(tx, "gasPrice")
        return head + quantity_hex(tx.gas_price) + tail
    if tx.max_priority_fee_per_gas is None or tx.max_fee_per_gas is None:
        raise missing(tx, "maxFeePerGas or maxPriorityFeePerGas")
    head += quantity_hex(tx.max_priority_fee_per_gas) + quantity_hex(tx.max_fee_per_gas)
    if kind == DYNAMIC_FEE:
        return head + tail
    return head + tail + (_blob_hex(tx) if kind == BLOB else _authorization_list_hex(tx))


def _access_list_hex(rows: list[WireAccess]) -> str:
    return list_hex("".join([_access_hex(row) for row in rows])) if rows else "c0"


def _access_hex(row: WireAccess) -> str:
    keys = "".join(["a0" + key[2:] for key in row.storage_keys])
    return list_hex("94" + row.address[2:] + list_hex(keys))


def _blob_hex(tx: WireTransaction) -> str:
    if tx.max_fee_per_blob_gas is None or tx.blob_versioned_hashes is None:
        raise missing(tx, "maxFeePerBlobGas or blobVersionedHashes")
    hashes = "".join(["a0" + value[2:] for value in tx.blob_versioned_hashes])
    return quantity_hex(tx.max_fee_per_blob_gas) + list_hex(hashes)


def _authorization_list_hex(tx: WireTransaction) -> str:
    if tx.authorization_list is None:
        raise missing(tx, "authorizationList")
    return list_hex("".join([_authorization_hex(row) for row in tx.authorization_list]))


def _authorization_hex(row: WireAuthorization) -> str:
    fields = quantity_hex(row.chain_id) + "94" + row.address[2:] + quantity_hex(row.nonce)
    return list_hex(fields + quantity_hex(row.y_parity) + quantity_hex(row.r) + quantity_hex(row.s))


def _parity_of(tx: WireTransaction) -> int:
    """0 or 1. Nodes before `yParity` gave it as `v`; those that give both must give the same."""
    parity = quantity_of(tx.v)
    if parity not in (0, 1) or (tx.y_parity is not None and quantity_of(tx.y_parity) != parity):
        raise ProofFailure("structure", f"transaction {tx.hash}: v {tx.v} and yParity {tx.y_parity} are no parity")
    return parity


def typed_bytes(kind: int, fields: str) -> bytes:
    """The type's byte and the list of the fields, given as RLP digits one after the other."""
    return packed(f"{kind:02x}" + list_hex(fields))


def legacy_hex(tx: WireTransaction) -> str:
    """The RLP digits of a legacy transaction's fields but its signature."""
    if tx.gas_price is None:
        raise missing(tx, "gasPrice")
    return quantity_hex(tx.nonce) + quantity_hex(tx.gas_price) + quantity_hex(tx.gas) + target_hex(tx)


def target_hex(tx: WireTransaction) -> str:
    """Recipient (empty for a contract creation), value and calldata: the same three in most types."""
    recipient = "80" if tx.to is None else "94" + tx.to[2:]
    return recipient + quantity_hex(tx.value) + string_hex(tx.input)


def missing(tx: WireTransaction, name: str) -> ProofFailure:
    """The failure of a node that left out a field which the transaction's type needs."""
    return ProofFailure("structure", f"transaction {tx.hash} of type {tx.type} has no {name}")


def unknown_type(tx: WireTransaction, kind: int) -> ProofFailure:
    """The failure that stands for our own ignorance: all nodes will fail alike, and the chain holds."""
    return ProofFailure("transactions_root", f"transaction {tx.hash} is of type {kind:#x}, which we cannot encode")


def _list_bytes(payload: bytes) -> bytes:
    return header_bytes(len(payload), LIST) + payload
