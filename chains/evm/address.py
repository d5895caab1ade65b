"""Reading an address that a person or a program wrote (EIP-55)."""

from __future__ import annotations

import re

from chains.evm.keccak import keccak
from chains.model import Address

_ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}\Z")


class AddressError(ValueError):
    """The text is no address, or its checksum is wrong; the message is a sentence for the one who wrote it."""


def parse_address(text: str) -> Address:
    """The 20 bytes of an address: `0x` and 40 hex digits.

    All-lower and all-upper digits carry no checksum and are accepted; mixed case must be the EIP-55 checksum, since
    the likeliest reason for a wrong one is a mistyped digit. Raises `AddressError`.
    """
    if not _ADDRESS.match(text):
        raise AddressError(f"{text[:80]!r} is not an address: 0x and 40 hexadecimal digits are wanted")
    address = bytes.fromhex(text[2:])
    digits = text[2:]
    if digits not in (digits.lower(), digits.upper()) and text != checksum_of(address):
        raise AddressError(
            f"{text} has a wrong checksum (EIP-55): a digit may be mistyped; if you are sure, write it in lower case"
        )
    return address


def checksum_of(address: Address) -> str:
    """The EIP-55 spelling: a letter is upper case where the same digit of the hash of the lower-case text is 8 or more."""
    digits = address.hex()
    marks = keccak(digits.encode()).hex()
    return "0x" + "".join(d.upper() if int(m, 16) >= 8 else d for d, m in zip(digits, marks, strict=False))
