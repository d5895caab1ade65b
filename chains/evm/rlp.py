"""RLP, the encoding that Ethereum hashes (Yellow Paper, appendix B). Mostly the writing half: what nodes give us as RLP is
only the nodes of a trie, and those are read one list at a time.

Nodes speak hex, so most of what is encoded here arrives as hex digits. The `*_hex` functions write RLP *as hex digits*
and leave it to the caller to turn a whole receipt or transaction into bytes at once (`chains.evm.wire.packed`): one
conversion for each item that is hashed, instead of one for each field.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from chains.evm.errors import ProofFailure

Item = bytes | Sequence["Item"]
"""What RLP knows: a byte string, or a list of items."""

STRING = 0x80
LIST = 0xC0
_SHORT_MAX = 55
"""The longest payload, in bytes, whose length is part of the first byte."""


def encode(item: Item) -> bytes:
    """The RLP of a byte string or of a list, to any depth."""
    if isinstance(item, bytes):
        return string_bytes(item)
    payload = b"".join(map(encode, item))
    return header_bytes(len(payload), LIST) + payload


def string_bytes(value: bytes) -> bytes:
    """The RLP of a byte string."""
    if len(value) == 1 and value[0] < STRING:
        return value
    return header_bytes(len(value), STRING) + value


@lru_cache(maxsize=8192)
def header_hex(size: int, offset: int) -> str:
    """The digits that stand before a payload of `size` bytes; `offset` is `STRING` or `LIST`."""
    if size <= _SHORT_MAX:
        return f"{offset + size:02x}"
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return f"{offset + _SHORT_MAX + len(length):02x}{length.hex()}"


@lru_cache(maxsize=8192)
def header_bytes(size: int, offset: int) -> bytes:
    """The bytes that stand before a payload of `size` bytes; `offset` is `STRING` or `LIST`."""
    return bytes.fromhex(header_hex(size, offset))


def string_hex(text: str) -> str:
    """The RLP digits of the bytes that a `0x` hex string names. Raises `ProofFailure("structure")` for half a byte."""
    digits = text[2:]
    if len(digits) & 1:
        raise ProofFailure("structure", f"half a byte in {text[:80]!r}")
    if len(digits) == 2 and digits < "80":
        return digits
    return header_hex(len(digits) >> 1, STRING) + digits


_QUANTITY_HEADS = [f"{STRING + ((count + 1) >> 1):02x}{'0' * (count & 1)}" for count in range(65)]
"""What stands before the digits of a number, by how many there are: its length in bytes, and the half of one."""


def quantity_hex(text: str) -> str:
    """The RLP digits of the number that a `0x` hex string names, of up to 256 bits: big-endian, without leading zeros."""
    digits = text[2:].lstrip("0")
    count = len(digits)
    if count > 2:
        return _QUANTITY_HEADS[count] + digits
    if count == 1:
        return "0" + digits
    return digits if count == 2 and digits < "80" else _QUANTITY_HEADS[count] + digits


def list_hex(payload: str) -> str:
    """The RLP digits of a list, given the digits of its items one after the other."""
    return header_hex(len(payload) >> 1, LIST) + payload


def list_items(raw: bytes) -> list[bytes]:
    """The items of a list, each still in RLP. Raises `ValueError` for all but the one proper encoding of a list."""
    is_list, at, end = _extent(raw, 0)
    if not is_list or end != len(raw):
        raise ValueError("not the RLP of one list")
    items = []
    while at < end:
        _, _, item_end = _extent(raw, at)
        items.append(raw[at:item_end])
        at = item_end
    if at != end:
        raise ValueError("an item runs over the end of its list")
    return items


def string_value(raw: bytes) -> bytes:
    """The bytes of a string. Raises `ValueError` for all but the one proper encoding of a string."""
    is_list, start, end = _extent(raw, 0)
    if is_list or end != len(raw):
        raise ValueError("not the RLP of one string")
    return raw[start:end]


def number_value(raw: bytes) -> int:
    """The number that a string holds. Raises `ValueError` where it is no string, or has leading zeros."""
    value = string_value(raw)
    if value[:1] == b"\0":
        raise ValueError("a number with a leading zero")
    return int.from_bytes(value, "big")


def _extent(raw: bytes, at: int) -> tuple[bool, int, int]:
    """Whether the item that begins at `at` is a list, and where its payload begins and ends."""
    if at >= len(raw):
        raise ValueError("an item is missing")
    first = raw[at]
    if first < STRING:
        return False, at, at + 1
    offset = LIST if first >= LIST else STRING
    size, start = first - offset, at + 1
    if size > _SHORT_MAX:
        length = raw[start : start + size - _SHORT_MAX]
        start += size - _SHORT_MAX
        size = int.from_bytes(length, "big")
        if length[:1] == b"\0" or size <= _SHORT_MAX:
            raise ValueError("a length that is not written as short as it can be")
    end = start + size
    if end > len(raw):
        raise ValueError("an item is longer than what is there")
    if offset == STRING and size == 1 and raw[start] < STRING:
        raise ValueError("a single byte that does not stand for itself")
    return offset == LIST, start, end
