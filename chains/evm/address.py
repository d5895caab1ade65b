"""Reading an address that a person or a program wrote (EIP-55)."""

from __future__ import annotations

import re

from chains.evm.keccak import keccak
from chains.model import Address

_ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}\Z")

_CASE_BIT = 0x20
_LETTERS = bytes(_CASE_BIT if chr(code) in "abcdef" else 0 for code in range(256))
_HIGH_DIGITS = bytes(_CASE_BIT if chr(code) in "89abcdef" else 0 for code in range(256))
"""Tables for `bytes.translate`: the bit that tells upper from lower case where a byte is such a character, else nothing."""


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
    digits = address.hex().encode()
    # All 40 at once, as one number: a letter differs from its capital by one bit.
    capitals = _number(digits.translate(_LETTERS)) & _number(keccak(digits).hex()[:40].encode().translate(_HIGH_DIGITS))
    return "0x" + (_number(digits) ^ capitals).to_bytes(40, "big").decode()


def _number(text: bytes) -> int:
    return int.from_bytes(text, "big")
