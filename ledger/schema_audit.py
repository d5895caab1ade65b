"""The table of what accounts held when the ledger last agreed with them. A part of `ledger/schema.py`."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, CheckConstraint, Column, ForeignKey, LargeBinary, Numeric, Table, Text
from sqlalchemy import PrimaryKeyConstraint as PrimaryKey

from ledger.columns import AMOUNT, TIME, metadata

balances = Table(
    "balances",
    metadata,
    Column("chain_id", Text, ForeignKey("chains.chain_id"), nullable=False),
    Column("address", LargeBinary, nullable=False),
    Column("asset_id", Text, nullable=False),
    Column("height", BigInteger, nullable=False, comment="after this block; it only rises"),
    Column("block_hash", LargeBinary, nullable=False),
    Column("amount_atomic", AMOUNT, nullable=False),
    Column("nonce", Numeric(20, 0), comment="transactions sent; null for tokens"),
    Column("has_code", Boolean, comment="null for tokens"),
    Column("is_proven", Boolean, nullable=False, comment="against the block's state root; else one node's word"),
    Column("audited_at", TIME, nullable=False),
    PrimaryKey("chain_id", "address", "asset_id"),
    CheckConstraint("amount_atomic >= 0", name="amount"),
    comment="what a watched address held when its entries last explained it: the baseline of its next audit",
)
