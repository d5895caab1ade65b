"""What an address may look like where one is stored or asked for: the rule of each kind of chain, by its own reader."""

from __future__ import annotations

from chains.evm.address import AddressError, parse_address
from chains.model import Address
from ledger.errors import LedgerError


class BadAddress(LedgerError):
    """Refuse the input: the text is no address; the message is a sentence for whoever wrote it."""


def read_address(text: str) -> Address:
    """The bytes of an address of an EVM chain, the only kind so far. Raises `BadAddress`."""
    try:
        return parse_address(text)
    except AddressError as error:
        raise BadAddress(str(error)) from None
