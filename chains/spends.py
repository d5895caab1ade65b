"""Which nonces a block's transactions spend, as plain bytes. Pure.

A transaction spends one nonce of its sender, and in that chain no other can spend it again: so what spends the nonce of
a transaction that lost its block tells that this one will not come back (`indexer/replacement.py`). Of a block's hundreds
of transactions hardly one is ever asked about, so they stay the bytes in which they travel between processes.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from chains.model import Address, TransactionHash

_ROW = struct.Struct(">20sQ32s")
"""Sender, nonce (below 2^64 - 1, EIP-2681), hash of the transaction."""


class Spend(NamedTuple):
    """A transaction spends a nonce of its sender."""

    sender: Address
    nonce: int
    transaction_hash: TransactionHash


def pack_spends(spends: Iterable[Spend]) -> bytes:
    """The bytes of a block's spends. Raises `ValueError` for a nonce that no transaction can have."""
    try:
        return b"".join(_ROW.pack(*spend) for spend in spends)
    except struct.error as error:
        raise ValueError(f"a nonce that no transaction can have: {error}") from error


def unpack_spends(packed: bytes, senders: Collection[Address]) -> Iterator[Spend]:
    """What these senders spend, in the order of the block."""
    return (Spend(*row) for row in _ROW.iter_unpack(packed) if row[0] in senders)
