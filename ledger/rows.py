"""Turning rows into the ledger's frozen values, in one place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from sqlalchemy import Row

from chains.model import AssetKind, LocatorKind
from ledger.ids import Side
from ledger.model import AssetRow, ChainRow, Entry
from ledger.states import ChainState, Disposition, EntryState, Origin

ENTRY_COLUMNS = tuple(field.name for field in fields(Entry))
"""Of `entries`, in the order of `Entry`."""


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
    found = dict(zip(ENTRY_COLUMNS, values, strict=True))
    found["side"] = Side(found["side"])
    found["state"] = EntryState(found["state"])
    found["disposition"] = Disposition(found["disposition"])
    found["origin"] = Origin(found["origin"])
    found["locator_kind"] = LocatorKind(found["locator_kind"])
    found["reasons"] = tuple(found["reasons"])
    for name in ("amount_atomic", "fee_atomic", "transaction_nonce"):
        found[name] = int(found[name]) if found[name] is not None else None
    return Entry(**found)
