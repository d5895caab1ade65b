"""The root of an ordered Merkle-Patricia trie (Yellow Paper, appendix D): a list, keyed by the RLP of each index.

The shape of such a trie depends on the number of items only, so it is worked out once for each count and kept; a root is
then one walk over a known shape that encodes and hashes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from chains.evm.keccak import keccak
from chains.evm.rlp import LIST, STRING, encode, header_bytes, string_bytes

EMPTY_ROOT = keccak(encode(b""))
"""The root of an empty list."""

_HASH_HEADER = header_bytes(32, STRING)
_ABSENT = encode(b"")


@dataclass(frozen=True, slots=True)
class _Leaf:
    index: int
    path: bytes
    """The rest of the key, hex-prefix encoded, as RLP."""


@dataclass(frozen=True, slots=True)
class _Extension:
    path: bytes
    child: _Node


@dataclass(frozen=True, slots=True)
class _Branch:
    children: tuple[_Node | None, ...]
    """Sixteen; the seventeenth place of a branch, its value, stays empty: no key of a list is the prefix of another."""


_Node = _Leaf | _Extension | _Branch


def ordered_root(items: Sequence[bytes]) -> bytes:
    """The root over the items in their order. The items are what is stored: RLP, or a typed envelope (EIP-2718)."""
    if not items:
        return EMPTY_ROOT
    return keccak(_encode(_shape(len(items)), items))


def _encode(node: _Node, items: Sequence[bytes]) -> bytes:
    if isinstance(node, _Leaf):
        payload = node.path + string_bytes(items[node.index])
    elif isinstance(node, _Branch):
        payload = b"".join([_ABSENT if c is None else _reference(_encode(c, items)) for c in node.children]) + _ABSENT
    else:
        payload = node.path + _reference(_encode(node.child, items))
    return header_bytes(len(payload), LIST) + payload


def _reference(encoded: bytes) -> bytes:
    """How a parent names a child: by its hash, or by itself when it is shorter than a hash."""
    if len(encoded) < 32:
        return encoded
    return _HASH_HEADER + keccak(encoded)


@lru_cache(maxsize=128)
def _shape(count: int) -> _Node:
    keys = sorted((encode(_index_bytes(index)).hex(), index) for index in range(count))
    return _grow(keys, 0)


def _index_bytes(index: int) -> bytes:
    return index.to_bytes((index.bit_length() + 7) // 8, "big")


def _grow(keys: list[tuple[str, int]], depth: int) -> _Node:
    """The node under which all of `keys` (nibbles as hex digits, sorted) hang, which agree in their first `depth`."""
    first, last = keys[0][0], keys[-1][0]
    if len(keys) == 1:
        return _Leaf(keys[0][1], _path(first[depth:], is_leaf=True))
    shared = depth
    while first[shared] == last[shared]:
        shared += 1
    if shared > depth:
        return _Extension(_path(first[depth:shared], is_leaf=False), _grow(keys, shared))
    groups = [[key for key in keys if key[0][depth] == nibble] for nibble in "0123456789abcdef"]
    return _Branch(tuple(_grow(group, depth + 1) if group else None for group in groups))


def _path(nibbles: str, *, is_leaf: bool) -> bytes:
    """Nibbles, hex-prefix encoded (Yellow Paper, appendix C) and then RLP: the first nibble holds leaf and oddness."""
    flag = 2 if is_leaf else 0
    digits = f"{flag + 1}{nibbles}" if len(nibbles) & 1 else f"{flag}0{nibbles}"
    return string_bytes(bytes.fromhex(digits))
