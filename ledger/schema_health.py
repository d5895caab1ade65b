"""The tables of how deliveries went lately, and of how fast they may go. A part of `ledger/schema.py`."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, Column, ForeignKeyConstraint, Index, Integer, PrimaryKeyConstraint, Table, Text
from sqlalchemy.dialects.postgresql import ARRAY

from ledger.columns import CHURNING, TIME, metadata

endpoint_windows = Table(
    "endpoint_windows",
    metadata,
    Column("tenant_id", Text, nullable=False),
    Column("endpoint_id", Text, nullable=False),
    Column("began_at", TIME, nullable=False, comment="a full ten minutes, such as 12:30"),
    Column("attempts", Integer, nullable=False),
    Column("accepted", Integer, nullable=False),
    Column("durations", ARRAY(Integer), nullable=False, comment="how many attempts took up to each bound of time"),
    PrimaryKeyConstraint("tenant_id", "endpoint_id", "began_at"),
    ForeignKeyConstraint(["tenant_id", "endpoint_id"], ["endpoints.tenant_id", "endpoints.id"]),
    Index("ix_endpoint_windows_began", "began_at"),
    CheckConstraint("accepted BETWEEN 0 AND attempts", name="accepted"),
    comment="attempts at an endpoint, counted in memory and added up every few seconds: health at a glance, no truth",
    postgresql_with={"fillfactor": 50},
)

endpoint_paces = Table(
    "endpoint_paces",
    metadata,
    Column("tenant_id", Text, nullable=False),
    Column("endpoint_id", Text, nullable=False),
    Column("paced_until", TIME, nullable=False, comment="until when what was claimed has used the rate up"),
    PrimaryKeyConstraint("tenant_id", "endpoint_id"),
    ForeignKeyConstraint(["tenant_id", "endpoint_id"], ["endpoints.tenant_id", "endpoints.id"]),
    comment="of each endpoint that has or had a limit; apart from its row, because every claim locks and writes it",
    postgresql_with=CHURNING,
)
