"""What an account holds, proven against a block's state root (EIP-1186). Pure.

`eth_getProof` gives the nodes of the state trie (Yellow Paper, appendix D) on the way from the root to the account, whose
key is the hash of its address. The account is read from the last node; what the answer says beside the proof (`balance`
and the like) is not looked at, so the two can never differ. Where the way ends early, the account does not exist: that is
proven too, and its balance is zero.

A proof is accepted only in the one form that it can have: every node hashes to what its parent names, the key is used up
exactly, nothing is left over, and all RLP is in its shortest form.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec
from msgspec import Struct

from chains.evm.dialect import Dialect
from chains.evm.errors import ProofFailure
from chains.evm.header import prove_header
from chains.evm.keccak import keccak
from chains.evm.rlp import LIST, STRING, header_bytes, list_items, number_value, string_value
from chains.evm.trie import EMPTY_ROOT
from chains.evm.wire import Data, bytes_of, decode_header
from chains.model import Address, BlockHash, hex_of

NO_CODE = keccak(b"")
"""The code hash of an account without code."""

_HASH_HEADER = header_bytes(32, STRING)
_ABSENT = header_bytes(0, STRING)
_BRANCH_ITEMS = 17


class WireAccountProof(Struct, rename="camel"):
    """The answer to `eth_getProof`, as far as it is looked at: the trie's nodes, from the root on."""

    account_proof: list[Data]


@dataclass(frozen=True, slots=True)
class Account:
    """An account as it is under a state root."""

    nonce: int
    balance: int
    """In the native coin's smallest unit."""
    storage_hash: bytes
    code_hash: bytes


NO_ACCOUNT = Account(0, 0, EMPTY_ROOT, NO_CODE)
"""What an account is that does not exist."""

_decode_proof = msgspec.json.Decoder(WireAccountProof).decode


def state_root_of(header: bytes | msgspec.Raw, block_hash: BlockHash, dialect: Dialect) -> bytes:
    """The state root in the JSON of the header that has that hash, which is recomputed. Raises `ProofFailure`."""
    decoded = decode_header(header, dialect)
    if decoded is None or bytes_of(decoded.hash) != block_hash:
        raise ProofFailure("place", f"not the header of block {hex_of(block_hash)}")
    prove_header(decoded)
    return bytes_of(decoded.state_root)


def decode_account_proof(answer: bytes | msgspec.Raw) -> WireAccountProof:
    """The proof in the JSON of a `result` of `eth_getProof`. Raises `ProofFailure("state")`."""
    try:
        return _decode_proof(answer)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProofFailure("state", f"the node's account proof is malformed: {error}") from error


def prove_account(state_root: bytes, address: Address, proof: WireAccountProof) -> Account:
    """The account at `address` under `state_root`; `NO_ACCOUNT` where the proof shows that there is none.

    Raises `ProofFailure("state")` for a proof of anything else.
    """
    try:
        value = prove_value(state_root, keccak(address), [bytes_of(node) for node in proof.account_proof])
        return NO_ACCOUNT if value is None else _account_of(value)
    except ProofFailure as failure:
        raise ProofFailure("state", failure.detail) from failure
    except ValueError as error:
        raise ProofFailure("state", f"a node of the account's proof is malformed: {error}") from error


def prove_value(root: bytes, key: bytes, nodes: Sequence[bytes]) -> bytes | None:
    """The value at `key` in the trie of that root, by the trie's nodes on the way to it; None where the trie has no such
    key. Raises `ProofFailure("state")`, or `ValueError` where a node is malformed."""
    if root == EMPTY_ROOT:
        nodes = [node for node in nodes if node != _ABSENT]  # some give the empty trie's one node, some give none
    left = iter(nodes)
    value = None if root == EMPTY_ROOT else _descend(_HASH_HEADER + root, key.hex(), left)
    if next(left, None) is not None:
        raise ProofFailure("state", "the proof has more nodes than the way to the account")
    return value


def _descend(reference: bytes, key: str, nodes: Iterator[bytes]) -> bytes | None:
    """Follow the key's nibbles from the node that `reference` names."""
    while True:
        items = list_items(_resolve(reference, nodes))
        if len(items) == _BRANCH_ITEMS:
            if not key:
                return string_value(items[16]) or None
            reference, key = items[int(key[0], 16)], key[1:]
            if reference == _ABSENT:
                return None
        elif len(items) == 2:
            path, is_leaf = _path_of(string_value(items[0]))
            if not key.startswith(path) or (is_leaf and path != key):
                return None
            if is_leaf:
                return string_value(items[1])
            reference, key = items[1], key[len(path) :]
        else:
            raise ProofFailure("state", f"a node of {len(items)} items is neither branch, extension nor leaf")


def _resolve(reference: bytes, nodes: Iterator[bytes]) -> bytes:
    """The child that a parent names: by its hash, or by itself when it is shorter than a hash."""
    if reference[0] >= LIST:
        if len(reference) >= 32:
            raise ProofFailure("state", "a node is embedded that is long enough to be named by its hash")
        return reference
    if len(reference) != 33:
        raise ProofFailure("state", "a node names a child by something that is no hash")
    node = next(nodes, None)
    if node is None:
        raise ProofFailure("state", "the proof ends before the way to the account does")
    if keccak(node) != reference[1:]:
        raise ProofFailure("state", "a node does not hash to what its parent, or the state root, says")
    return node


def _path_of(encoded: bytes) -> tuple[str, bool]:
    """The nibbles of a leaf or extension, and whether it is a leaf (hex-prefix encoding, Yellow Paper, appendix C)."""
    digits = encoded.hex()
    flag = int(digits[:1] or "f", 16)
    is_odd, is_leaf = flag & 1 == 1, flag & 2 == 2
    if flag > 3 or (not is_odd and digits[1] != "0"):
        raise ProofFailure("state", "a path with an unknown prefix")
    path = digits[1:] if is_odd else digits[2:]
    if not path and not is_leaf:
        raise ProofFailure("state", "an extension of no length")
    return path, is_leaf


def _account_of(value: bytes) -> Account:
    """Four fields; Avalanche's C-Chain has a fifth, a flag that is no part of the balance (ava-labs/coreth,
    `IsMultiCoin`)."""
    fields = list_items(value)
    if len(fields) not in (4, 5) or (len(fields) == 5 and string_value(fields[4]) not in (b"", b"\1")):
        raise ProofFailure("state", "the value at the account's key is no account")
    storage_hash, code_hash = string_value(fields[2]), string_value(fields[3])
    if len(storage_hash) != 32 or len(code_hash) != 32:
        raise ProofFailure("state", "the value at the account's key is no account")
    return Account(number_value(fields[0]), number_value(fields[1]), storage_hash, code_hash)
