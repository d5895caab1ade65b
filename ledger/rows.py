"""Turning rows into the ledger's frozen values, in one place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from sqlalchemy import Row

from chains.model import AssetKind, LocatorKind
from ledger.ids import Side
from ledger.model import AssetRow, ChainRow, Entry
from ledger.states import ChainState, Disposition, EntryState, Origin

ENTRY_COLUMNS = tuple(field.name for field in fields(Entry))
"""Of `entries`, in the order of `Entry`."""

_CONVERSIONS: tuple[tuple[int, Callable[[Any], Any]], ...] = tuple(
    (ENTRY_COLUMNS.index(name), convert)
    for name, convert in {
        "side": Side,
        "state": EntryState,
        "disposition": Disposition,
        "origin": Origin,
        "locator_kind": LocatorKind,
        "reasons": tuple,
        "amount_atomic": int,
        "fee_atomic": int,
        "transaction_nonce": int,
    }.items()
)


def chain_from(row: Row[Any]) -> ChainRow:
    """A row of `chains`."""
    values = dict(row._mapping)
    values["state"] = ChainState(values["state"])
    values["value_paths"] = tuple(values["value_paths"])
    values["nodes"] = tuple(values["nodes"])
    return ChainRow(**values)


def asset_from(row: Row[Any]) -> AssetRow:
    """A row of `assets`, its six columns."""
    return AssetRow(row.asset_id, row.chain_id, row.symbol, row.decimals, AssetKind(row.kind), row.contract)


def entry_from(row: Row[Any]) -> Entry:
    """A row that has all columns of `entries`, and perhaps others."""
    return entry_of([row._mapping[name] for name in ENTRY_COLUMNS])


def entry_of(values: Sequence[Any]) -> Entry:
    """The values of `ENTRY_COLUMNS`."""
    found = list(values)
    for at, convert in _CONVERSIONS:
        if found[at] is not None:
            found[at] = convert(found[at])
    return Entry(*found)
