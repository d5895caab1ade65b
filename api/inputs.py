"""Kinds of input that several resources share, each read by the ledger's own rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from api.problems import Refused, invalid
from ledger.addresses import BadAddress, read_address
from ledger.chains import EVM_SCOPE
from ledger.model import ChainRow

Line = Annotated[str, Meta(max_length=200, pattern=r"^[^\x00]*$")]
"""A short text of the tenant's own: Postgres keeps any character but NUL."""

OneLine = Annotated[str, Meta(max_length=200, pattern=r"^[^\x00-\x1f\x7f\x85\u2028\u2029\u202a-\u202e\u2066-\u2069]*$")]
"""A short text that others read on a terminal or a page: what ends its line, or turns it around, might lie to them."""

ChainName = Annotated[
    str, Meta(max_length=100, description="A chain's slug, or its CAIP-2 name", examples=["ethereum"])
]
AddressText = Annotated[
    str,
    Meta(
        max_length=100,
        description="0x and 40 hexadecimal digits; mixed case is a checksum (EIP-55), and has to fit",
        extra_json_schema={
            "pattern": "^0x[0-9a-fA-F]{40}$"
        },  # described here, enforced by the ledger in a better sentence
    ),
]
HashText = Annotated[
    str,
    Meta(max_length=100, description="Hash of a transaction", extra_json_schema={"pattern": "^0x[0-9a-fA-F]{64}$"}),
]
AssetName = Annotated[
    str,
    Meta(
        max_length=200,
        pattern=r"^[a-zA-Z0-9]{3,8}:[-_a-zA-Z0-9]{1,32}/[a-zA-Z0-9]{3,8}:[-.%a-zA-Z0-9]{1,128}$",
        description="An asset's CAIP-19 name, as entries show it in asset.id; never a symbol",
    ),
]
Height = Annotated[int, Meta(ge=0, le=2**53 - 1)]
"""A block's height, as large as every JSON reader can read it (RFC 8259, section 6)."""
Identifier = Annotated[str, Meta(max_length=100, pattern=r"^[0-9A-Za-z_]+$")]


class NoFields(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Nothing: an empty object, or no body at all."""


def find_chain_named(chains: Sequence[ChainRow], name: str) -> ChainRow | None:
    """The chain of that slug or CAIP-2 name."""
    return next((chain for chain in chains if name in (chain.slug, chain.chain_id)), None)


def chain_named(chains: Sequence[ChainRow], name: str, pointer: str) -> ChainRow:
    """The chain of that name. Raises `Refused` naming the ones that there are."""
    chain = find_chain_named(chains, name)
    if chain is None:
        raise invalid(pointer, unknown_chain(chains, name))
    return chain


def scope_named(chains: Sequence[ChainRow], name: str) -> str | None:
    """The scope that a watch's `chain` means: a chain id or `evm`; None when there is no such chain."""
    if name == EVM_SCOPE:
        return EVM_SCOPE
    chain = find_chain_named(chains, name)
    return chain.chain_id if chain is not None else None


def unknown_chain(chains: Sequence[ChainRow], name: str) -> str:
    """The sentence for a chain that is not there."""
    if name == EVM_SCOPE:
        return f"evm stands for all EVM chains, and for watches only; there are: {_names(chains)}"
    return f"there is no chain {name[:60]!r}; there are: {_names(chains)}"


def _names(chains: Sequence[ChainRow]) -> str:
    return ", ".join(chain.slug for chain in chains) or "none yet"


def address_given(text: str, pointer: str) -> bytes:
    """The bytes of an address. Raises `Refused`."""
    try:
        return read_address(text)
    except BadAddress as error:
        raise invalid(pointer, str(error)) from None


def hash_given(text: str, pointer: str) -> bytes:
    """The 32 bytes of a transaction hash. Raises `Refused`."""
    try:
        value = bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        value = b""
    if len(value) != 32 or not text.startswith("0x"):
        raise invalid(pointer, "a transaction hash is 0x and 64 hexadecimal digits")
    return value


def either(first: str | None, second: str | None, pointer: str) -> str | None:
    """The one of two names of a parameter that was given. Raises `Refused` when both were."""
    if first is not None and second is not None:
        raise _both(pointer)
    return first if first is not None else second


def _both(pointer: str) -> Refused:
    return invalid(pointer, "after and cursor mean the same; send one of them")
