"""Indexes by which the API lists what may be very many rows: entries in order of detection and in order of change
(`ledger/entry_lists.py`), deliveries (`ledger/delivery_lists.py`) and watches (`ledger/watch_lists.py`) by their age."""

from __future__ import annotations

from sqlalchemy import Index, text

_NOT_FINAL = text("state <> 'finalized'")
"""Nearly all entries are finalized: the lists themselves find those."""

_BY_DETECTION, _BY_CHANGE = ("detected_at", "id"), ("updated_at", "id")
ENTRY_LISTS = [
    Index("ix_entries_list", "tenant_id", "side", *_BY_DETECTION),
    Index("ix_entries_updated", "tenant_id", "side", *_BY_CHANGE),
    Index("ix_entries_asset", "tenant_id", "side", "asset_id", *_BY_DETECTION),
    Index("ix_entries_asset_updated", "tenant_id", "side", "asset_id", *_BY_CHANGE),
    Index("ix_entries_chain", "tenant_id", "side", "chain_id", *_BY_DETECTION),
    Index("ix_entries_chain_updated", "tenant_id", "side", "chain_id", *_BY_CHANGE),
    Index("ix_entries_state", "tenant_id", "side", "state", *_BY_DETECTION, postgresql_where=_NOT_FINAL),
    Index("ix_entries_state_updated", "tenant_id", "side", "state", *_BY_CHANGE, postgresql_where=_NOT_FINAL),
    Index(
        "ix_entries_state_asset", "tenant_id", "side", "state", "asset_id", *_BY_DETECTION, postgresql_where=_NOT_FINAL
    ),
    Index(
        "ix_entries_state_chain", "tenant_id", "side", "state", "chain_id", *_BY_DETECTION, postgresql_where=_NOT_FINAL
    ),
    Index("ix_entries_address", "tenant_id", "address", "side", "detected_at"),
    Index("ix_entries_watch", "tenant_id", "watch_id", "side", "detected_at"),
    Index("ix_entries_hash", "tenant_id", "transaction_hash"),
]
"""Of the table `entries`. Only what orders a list whole has the id too: an address has few entries of one moment."""

DELIVERY_LISTS = [
    Index("ix_deliveries_list", "tenant_id", "created_at", "id"),
    Index("ix_deliveries_endpoint", "tenant_id", "endpoint_id", "created_at", "id"),
    Index(
        "ix_deliveries_state",
        "tenant_id",
        "state",
        "created_at",
        "id",
        postgresql_where=text("state IN ('exhausted', 'refused', 'faulted', 'discarded', 'superseded')"),
    ),
]
"""Of the table `deliveries`. What is owed or was delivered is in no index by state: each delivery would go in and out."""

WATCH_LISTS = [
    Index("ix_watches_reference", "tenant_id", "reference", "id", postgresql_where=text("reference IS NOT NULL")),
]
"""Of the table `watches`, beside its keys."""
