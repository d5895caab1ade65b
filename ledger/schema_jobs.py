"""Tables of work on the past: jobs, what backfills have covered, what audits found. A part of `ledger/schema.py`."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from ledger.columns import CHURNING, TIME, iff, metadata, one_of
from ledger.states import ENDED_STATES, JobKind, JobState

jobs = Table(
    "jobs",
    metadata,
    Column("tenant_id", Text, ForeignKey("tenants.id"), nullable=False),
    Column("id", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("chain_id", Text, ForeignKey("chains.chain_id"), comment="null where it is not about a chain"),
    Column("request", JSONB, nullable=False, comment="what was asked for"),
    Column("cursor", JSONB, nullable=False, server_default="{}", comment="where it stands: enough to go on"),
    Column(
        "done", BigInteger, nullable=False, server_default="0", comment="in the unit of `total`: blocks, deliveries"
    ),
    Column("total", BigInteger, comment="null until it is known"),
    Column(
        "covered_from",
        BigInteger,
        comment="backfills: first height that its watches are covered from by now; null until it has read a block",
    ),
    Column("result", JSONB, nullable=False, server_default="{}", comment="what it has come to so far"),
    Column("reason", Text, comment="why it failed, or what it waits for"),
    Column("lease_token", Text, comment="which process works on it; progress compares it"),
    Column("leased_until", TIME),
    Column("created_at", TIME, nullable=False),
    Column(
        "turn_at", TIME, nullable=False, comment="when it was last worked on: those that waited longest have their turn"
    ),
    Column("started_at", TIME),
    Column("ended_at", TIME),
    PrimaryKeyConstraint("tenant_id", "id"),
    Index("ix_jobs_list", "tenant_id", "kind", "state", "id"),
    Index("ix_jobs_open", "chain_id", "turn_at", postgresql_where=text("state IN ('queued', 'running')")),
    one_of("kind", JobKind),
    one_of("state", JobState),
    iff("ended_at", "state", ENDED_STATES),
    CheckConstraint("(lease_token IS NULL) = (leased_until IS NULL)", name="lease"),
    CheckConstraint("state <> 'failed' OR reason IS NOT NULL", name="reason"),
    comment="long work that outlives a process: its progress is written with its effect, so that it resumes where it stood",
    postgresql_with=CHURNING,
)

job_coverage = Table(
    "job_coverage",
    metadata,
    Column("tenant_id", Text, nullable=False),
    Column("job_id", Text, nullable=False),
    Column("chain_id", Text, nullable=False),
    Column("from_height", BigInteger, nullable=False),
    Column("to_height", BigInteger, nullable=False, comment="included"),
    Column("parent_hash", LargeBinary, nullable=False, comment="of its first block: the hash of the block before it"),
    Column("hash", LargeBinary, nullable=False, comment="of its last block: by parent hashes it fixes all the others"),
    Column("reading", Integer, nullable=False, comment="version of readings that its blocks were read with"),
    Column("proof", Text, nullable=False, comment="level that each of its blocks proved itself to"),
    Column("trace_proof", Text, comment="how far its traces are proven; null where there was nothing to trace"),
    Column("agreed_by", SmallInteger, nullable=False, comment="hosts, at least, that name each of its blocks"),
    Column("nodes", ARRAY(Text), nullable=False, comment="nodes that supplied its blocks"),
    PrimaryKeyConstraint("tenant_id", "job_id", "from_height"),
    ForeignKeyConstraint(["tenant_id", "job_id"], ["jobs.tenant_id", "jobs.id"]),
    ForeignKeyConstraint(["chain_id", "reading"], ["readings.chain_id", "readings.version"]),
    Index("ix_job_coverage_chain", "chain_id", "from_height"),
    CheckConstraint("from_height <= to_height", name="heights"),
    comment="what a backfill has read for its watches: for them it tells of a height before `coverage` does, and below the"
    " chain's first block it alone does",
)

findings = Table(
    "findings",
    metadata,
    Column("chain_id", Text, ForeignKey("chains.chain_id"), nullable=False),
    Column(
        "key",
        Text,
        nullable=False,
        comment="an entry's id, an address with an asset, or a block",
    ),
    Column("kind", Text, nullable=False, comment="missing, extra, changed, balance or branch"),
    Column("is_missed_deposit", Boolean, nullable=False),
    Column("from_height", BigInteger, nullable=False),
    Column("to_height", BigInteger, nullable=False, comment="included: where it is"),
    Column("detail", JSONB, nullable=False),
    Column("found_at", TIME, nullable=False),
    Column("mended_at", TIME, comment="when an audit of the same heights found it no more"),
    PrimaryKeyConstraint("chain_id", "key"),
    Index("ix_findings_open", "chain_id", "from_height", postgresql_where=text("mended_at IS NULL")),
    comment="what audits found the ledger and the chain to differ in: each once",
)
