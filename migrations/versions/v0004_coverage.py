"""What blocks were read for, ranges in place of old block rows, and whether proofs are enforced."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

from ledger.schema import API_ROLE

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Blocks that are there were read for what nobody wrote down: their `reading` stays null, and so does that of the
    ranges which they become."""
    op.add_column(
        "chains",
        sa.Column(
            "proof_enforced",
            sa.Boolean(),
            server_default=sa.true(),
            nullable=False,
            comment="false: a block that fails its proof is taken at the level that it reached",
        ),
    )
    _create_readings()
    _extend_blocks()
    _create_coverage()
    for table in ("readings", "coverage"):
        op.execute(f"GRANT SELECT ON {table} TO {API_ROLE}")


def _create_readings() -> None:
    op.create_table(
        "readings",
        sa.Column("chain_id", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column(
            "value_paths",
            ARRAY(sa.Text()),
            nullable=False,
            comment="what was read: native, logs, validator_withdrawals, traces",
        ),
        sa.Column("asset_ids", ARRAY(sa.Text()), nullable=False, comment="the assets that were listed, sorted"),
        sa.Column("decoder", sa.Integer(), nullable=False, comment="version of the code that read transfers"),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("chain_id", "version", name=op.f("pk_readings")),
        sa.ForeignKeyConstraint(["chain_id"], ["chains.chain_id"], name=op.f("fk_readings_chain_id")),
        comment="what blocks were read for: a block read for other assets or value paths may hold transfers that nobody saw",
    )


def _extend_blocks() -> None:
    op.add_column(
        "blocks",
        sa.Column(
            "reading", sa.Integer(), comment="version of readings that it was read with; null before they were recorded"
        ),
    )
    op.add_column(
        "blocks",
        sa.Column(
            "trace_proof", sa.Text(), comment="how far its traces are proven; null where there was nothing to trace"
        ),
    )
    op.create_table_comment(
        "blocks",
        "a row for every block that we committed, the empty ones too: a reorg can move a deposit into an empty height;"
        " far below finality only those with entries, every 1,024th, and orphaned ones, and the rest is told by coverage",
    )


def _create_coverage() -> None:
    op.create_table(
        "coverage",
        sa.Column("chain_id", sa.Text(), nullable=False),
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
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
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column(
            "reading",
            sa.Integer(),
            comment="version of readings that its blocks were read with; null: not recorded",
        ),
        sa.Column("proof", sa.Text(), nullable=False, comment="level that each of its blocks proved itself to"),
        sa.Column(
            "trace_proof", sa.Text(), comment="how far its traces are proven; null where there was nothing to trace"
        ),
        sa.Column(
            "agreed_by", sa.SmallInteger(), nullable=False, comment="hosts, at least, that name each of its blocks"
        ),
        sa.Column("nodes", ARRAY(sa.Text()), nullable=False, comment="nodes that supplied its blocks"),
        sa.Column("orphaned_at", sa.DateTime(timezone=True)),
        sa.CheckConstraint("state IN ('canonical', 'orphaned')", name=op.f("ck_coverage_state")),
        sa.CheckConstraint("(orphaned_at IS NOT NULL) = (state IN ('orphaned'))", name=op.f("ck_coverage_orphaned_at")),
        sa.CheckConstraint("from_height <= to_height", name=op.f("ck_coverage_heights")),
        sa.PrimaryKeyConstraint("chain_id", "id", name=op.f("pk_coverage")),
        sa.ForeignKeyConstraint(["chain_id"], ["chains.chain_id"], name=op.f("fk_coverage_chain_id")),
        sa.ForeignKeyConstraint(
            ["chain_id", "reading"],
            ["readings.chain_id", "readings.version"],
            name=op.f("fk_coverage_chain_id_reading"),
        ),
        comment="runs of committed blocks whose rows are gone: canonical ranges follow each other without a hole or an overlap,"
        " from the chain's first block on; block rows tell of every height above them",
    )
    op.create_index(
        "uq_coverage_canonical",
        "coverage",
        ["chain_id", "to_height"],
        unique=True,
        postgresql_where=sa.text("state = 'canonical'"),
    )
