"""Tables of who may do what: keys, answers that were given before, and who changed what. A part of `ledger/schema.py`."""

from __future__ import annotations

from sqlalchemy import (
    Column,
    ForeignKey,
    Index,
    LargeBinary,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from ledger.columns import TIME, metadata

api_keys = Table(
    "api_keys",
    metadata,
    Column("tenant_id", Text, ForeignKey("tenants.id"), nullable=False),
    Column("id", Text, nullable=False, unique=True, comment="the public part inside the key"),
    Column("secret_sha256", LargeBinary, nullable=False, comment="of the secret part, which is 256 random bits"),
    Column("scopes", ARRAY(Text), nullable=False),
    Column("created_at", TIME, nullable=False),
    Column("expires_at", TIME),
    Column("revoked_at", TIME),
    Column("last_used_at", TIME),
    Column("networks", ARRAY(Text), comment="CIDRs that it may be used from; null: from anywhere"),
    PrimaryKeyConstraint("tenant_id", "id"),
    comment="bearer keys: shown once, stored hashed",
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("tenant_id", Text, ForeignKey("tenants.id"), nullable=False),
    Column("key", Text, nullable=False),
    Column("fingerprint", LargeBinary, nullable=False, comment="SHA-256 of method, path and body"),
    Column("status_code", SmallInteger, nullable=False),
    Column("sealed_body", LargeBinary, nullable=False, comment="the stored answer, encrypted: it may hold a secret"),
    Column("created_at", TIME, nullable=False),
    PrimaryKeyConstraint("tenant_id", "key"),
    Index("ix_idempotency_keys_created", "created_at"),
    comment="answers to POSTs, written in the transaction of their effect, kept for a day",
)

master_keys = Table(
    "master_keys",
    metadata,
    Column("key_id", LargeBinary, nullable=False, comment="names the key and tells nothing of it"),
    Column(
        "sealed_cursor_key",
        LargeBinary,
        nullable=False,
        comment="what cursors are signed with, the same in each row: it opens with this master key alone",
    ),
    Column("created_at", TIME, nullable=False),
    PrimaryKeyConstraint("key_id"),
    comment="the master keys that secrets may be sealed under: one, or two while they change",
)

audit_log = Table(
    "audit_log",
    metadata,
    Column("tenant_id", Text, nullable=False),
    Column("id", Text, nullable=False),
    Column("actor", Text, nullable=False, comment="a key's id, or command line"),
    Column("action", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("detail", JSONB, nullable=False, server_default="{}"),
    Column("created_at", TIME, nullable=False),
    PrimaryKeyConstraint("tenant_id", "id"),
    comment="who changed what; append-only, in the transaction of the change",
)
