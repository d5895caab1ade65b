"""Turning rows into the ledger's frozen values, in one place."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from sqlalchemy import Row

from chains.model import AssetKind, LocatorKind
from ledger.ids import Side
from ledger.model import AssetRow, ChainRow, Entry
from ledger.states import ChainState, Disposition, EntryState, Origin

_ENTRY = tuple(field.name for field in fields(Entry))


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
    values = {name: row._mapping[name] for name in _ENTRY}
    values["side"] = Side(values["side"])
    values["state"] = EntryState(values["state"])
    values["disposition"] = Disposition(values["disposition"])
    values["origin"] = Origin(values["origin"])
    values["locator_kind"] = LocatorKind(values["locator_kind"])
    values["reasons"] = tuple(values["reasons"])
    for name in ("amount_atomic", "fee_atomic", "transaction_nonce"):
        values[name] = int(values[name]) if values[name] is not None else None
    return Entry(**values)
