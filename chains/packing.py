"""The transfers of a block as they travel between processes: plain rows, made into values one by one. Pure.

Of a full block's transfers few concern anybody, and building them all again cost as much as committing the block. So they
stay rows until somebody looks; whom each of them concerns can be read without that.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import fields
from operator import attrgetter, itemgetter
from typing import Any, overload

from chains.model import Address, Locator, LocatorKind, Transaction, Transfer

Row = tuple[Any, ...]

_NAMES = tuple(field.name for field in fields(Transfer))
_LOCATOR, _CARRIER = _NAMES.index("locator"), _NAMES.index("transaction")
_values_of = attrgetter(*_NAMES)
_locator_of = attrgetter(*(field.name for field in fields(Locator)))
_carrier_of = attrgetter(*(field.name for field in fields(Transaction)))
_parties_of_row = itemgetter(_NAMES.index("sender"), _NAMES.index("recipient"))
_parties_of_transfer = attrgetter("sender", "recipient")

Parties = tuple[Address | None, Address | None]
"""Sender and recipient of a transfer."""


class PackedTransfers(Sequence[Transfer]):
    """A block's transfers in their order. `rows` are what `pack` made of them."""

    __slots__ = ("_rows",)

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def __reduce__(self) -> tuple[type[PackedTransfers], tuple[Sequence[Row]]]:
        return (PackedTransfers, (self._rows,))

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Transfer: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Transfer, ...]: ...
    def __getitem__(self, index: int | slice) -> Transfer | tuple[Transfer, ...]:
        if isinstance(index, slice):
            return tuple(_unpacked(row) for row in self._rows[index])
        return _unpacked(self._rows[index])

    def parties(self) -> Iterator[Parties]:
        """Sender and recipient of each transfer, in their order."""
        return map(_parties_of_row, self._rows)

    def located(self) -> Iterator[tuple[LocatorKind, Parties]]:
        """How each transfer was seen, and its sender and recipient."""
        return ((row[_LOCATOR][0], _parties_of_row(row)) for row in self._rows)


def pack(transfers: Sequence[Transfer]) -> PackedTransfers:
    """The transfers as rows of plain values."""
    return PackedTransfers([_packed(transfer) for transfer in transfers])


def parties_of(transfers: Sequence[Transfer]) -> Iterator[Parties]:
    """Sender and recipient of each transfer, packed or not, in their order."""
    if isinstance(transfers, PackedTransfers):
        return transfers.parties()
    return map(_parties_of_transfer, transfers)


def traced_parties_of(transfers: Sequence[Transfer]) -> set[Address]:
    """Whom transfers concern of which only a trace tells. Nothing is unpacked."""
    if isinstance(transfers, PackedTransfers):
        rows = transfers.located()
    else:
        rows = ((transfer.locator.kind, (transfer.sender, transfer.recipient)) for transfer in transfers)
    found = {party for kind, parties in rows if kind is LocatorKind.TRACE for party in parties}
    return {party for party in found if party is not None}


def transfers_of(transfers: Sequence[Transfer], addresses: Collection[Address]) -> Iterator[Transfer]:
    """The transfers whose sender or recipient is one of `addresses`, in their order. Only those are unpacked."""
    for index, (sender, recipient) in enumerate(parties_of(transfers)):
        if sender in addresses or recipient in addresses:
            yield transfers[index]


def _packed(transfer: Transfer) -> Row:
    values = list(_values_of(transfer))
    values[_LOCATOR] = _locator_of(transfer.locator)
    values[_CARRIER] = None if transfer.transaction is None else _carrier_of(transfer.transaction)
    return tuple(values)


def _unpacked(row: Row) -> Transfer:
    values = list(row)
    values[_LOCATOR] = Locator(*row[_LOCATOR])
    values[_CARRIER] = None if row[_CARRIER] is None else Transaction(*row[_CARRIER])
    return Transfer(*values)
