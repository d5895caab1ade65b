"""Jobs on the past, what backfills cover, and deposits that audits miss."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from ledger.schema import API_ROLE

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Watches that are there were refused a past, so none has a job."""
    op.add_column(
        "chains",
        sa.Column(
            "missed_deposits",
            sa.BigInteger(),
            server_default="0",
            nullable=False,
            comment="deposits that an audit found missing",
        ),
    )
    _create_jobs()
    _create_job_coverage()
    op.add_column(
        "watches",
        sa.Column(
            "backfill_job_id", sa.Text(), comment="the job that covers, or covered, the past from start_height on"
        ),
    )
    op.create_index(
        "ix_watches_backfill",
        "watches",
        ["tenant_id", "backfill_job_id"],
        postgresql_where=sa.text("backfill_job_id IS NOT NULL"),
    )
    op.execute(f"GRANT SELECT, INSERT, UPDATE ON jobs TO {API_ROLE}")
    op.execute(f"GRANT SELECT ON job_coverage TO {API_ROLE}")


def _create_jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("chain_id", sa.Text(), comment="null where it is not about a chain"),
        sa.Column("request", JSONB(), nullable=False, comment="what was asked for"),
        sa.Column("cursor", JSONB(), server_default="{}", nullable=False, comment="where it stands: enough to go on"),
        sa.Column(
            "done",
            sa.BigInteger(),
            server_default="0",
            nullable=False,
            comment="in the unit of `total`: blocks, deliveries",
        ),
        sa.Column("total", sa.BigInteger(), comment="null until it is known"),
        sa.Column(
            "covered_from",
            sa.BigInteger(),
            comment="backfills: first height that its watches are covered from by now; null until it has read a block",
        ),
        sa.Column("result", JSONB(), server_default="{}", nullable=False, comment="what it has come to so far"),
        sa.Column("reason", sa.Text(), comment="why it failed, or what it waits for"),
        sa.Column("lease_token", sa.Text(), comment="which process works on it; progress compares it"),
        sa.Column("leased_until", sa.DateTime(timezone=True)),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column(
            "turn_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="when it was last worked on: those that waited longest have their turn",
        ),
        sa.Column("started_at", sa.DateTime(timezone=True)),
        sa.Column("ended_at", sa.DateTime(timezone=True)),
        sa.CheckConstraint("kind IN ('backfill', 'replay', 'recover')", name=op.f("ck_jobs_kind")),
        sa.CheckConstraint("state IN ('queued', 'running', 'done', 'failed', 'cancelled')", name=op.f("ck_jobs_state")),
        sa.CheckConstraint(
            "(ended_at IS NOT NULL) = (state IN ('done', 'failed', 'cancelled'))", name=op.f("ck_jobs_ended_at")
        ),
        sa.CheckConstraint("(lease_token IS NULL) = (leased_until IS NULL)", name=op.f("ck_jobs_lease")),
        sa.CheckConstraint("state <> 'failed' OR reason IS NOT NULL", name=op.f("ck_jobs_reason")),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_jobs")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_jobs_tenant_id")),
        sa.ForeignKeyConstraint(["chain_id"], ["chains.chain_id"], name=op.f("fk_jobs_chain_id")),
        comment="long work that outlives a process: its progress is written with its effect, so that it resumes where it stood",
    )
    op.create_index(
        "ix_jobs_open",
        "jobs",
        ["chain_id", "turn_at"],
        postgresql_where=sa.text("state IN ('queued', 'running')"),
    )


def _create_job_coverage() -> None:
    op.create_table(
        "job_coverage",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("chain_id", sa.Text(), nullable=False),
        sa.Column("from_height", sa.BigInteger(), nullable=False),
        sa.Column("to_height", sa.BigInteger(), nullable=False, comment="included"),
        sa.Column(
            "parent_hash",
            sa.LargeBinary(),
            nullable=False,
            comment="of its first block: the hash of the block before it",
        ),
        sa.Column(
            "hash",
            sa.LargeBinary(),
            nullable=False,
            comment="of its last block: by parent hashes it fixes all the others",
        ),
        sa.Column(
            "reading", sa.Integer(), nullable=False, comment="version of readings that its blocks were read with"
        ),
        sa.Column("proof", sa.Text(), nullable=False, comment="level that each of its blocks proved itself to"),
        sa.Column(
            "trace_proof", sa.Text(), comment="how far its traces are proven; null where there was nothing to trace"
        ),
        sa.Column(
            "agreed_by", sa.SmallInteger(), nullable=False, comment="hosts, at least, that name each of its blocks"
        ),
        sa.Column("nodes", ARRAY(sa.Text()), nullable=False, comment="nodes that supplied its blocks"),
        sa.CheckConstraint("from_height <= to_height", name=op.f("ck_job_coverage_heights")),
        sa.PrimaryKeyConstraint("tenant_id", "job_id", "from_height", name=op.f("pk_job_coverage")),
        sa.ForeignKeyConstraint(
            ["tenant_id", "job_id"], ["jobs.tenant_id", "jobs.id"], name=op.f("fk_job_coverage_tenant_id_job_id")
        ),
        sa.ForeignKeyConstraint(
            ["chain_id", "reading"],
            ["readings.chain_id", "readings.version"],
            name=op.f("fk_job_coverage_chain_id_reading"),
        ),
        comment="what a backfill has read for its watches: for them it tells of a height before `coverage` does, and below the"
        " chain's first block it alone does",
    )
    op.create_index("ix_job_coverage_chain", "job_coverage", ["chain_id", "from_height"])
