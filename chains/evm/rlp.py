"""RLP, the encoding that Ethereum hashes (Yellow Paper, appendix B). Only the writing half: we never parse it.

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


def quantity_hex(text: str) -> str:
    """The RLP digits of the number that a `0x` hex string names: big-endian, without leading zeros."""
    digits = text[2:].lstrip("0")
    size = (len(digits) + 1) >> 1
    if size == 1:
        return digits.zfill(2) if len(digits) == 1 or digits < "80" else "81" + digits
    if len(digits) & 1:
        return f"{STRING + size:02x}0{digits}"
    return f"{STRING + size:02x}{digits}"


def list_hex(payload: str) -> str:
    """The RLP digits of a list, given the digits of its items one after the other."""
    return header_hex(len(payload) >> 1, LIST) + payload
