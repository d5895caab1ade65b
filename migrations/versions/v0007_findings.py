"""How far audits at finality have come, and what they found."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Nothing was audited before."""
    op.add_column(
        "chains",
        sa.Column("audited_height", sa.BigInteger(), comment="highest block that the audit at finality has come to"),
    )
    op.create_table(
        "findings",
        sa.Column("chain_id", sa.Text(), nullable=False),
        sa.Column(
            "key",
            sa.Text(),
            nullable=False,
            comment="an entry's id, an address with an asset, or a block",
        ),
        sa.Column("kind", sa.Text(), nullable=False, comment="missing, extra, changed, balance or branch"),
        sa.Column("is_missed_deposit", sa.Boolean(), nullable=False),
        sa.Column("from_height", sa.BigInteger(), nullable=False),
        sa.Column("to_height", sa.BigInteger(), nullable=False, comment="included: where it is"),
        sa.Column("detail", JSONB(), nullable=False),
        sa.Column("found_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column(
            "mended_at",
            sa.DateTime(timezone=True),
            comment="when an audit of the same heights found it no more",
        ),
        sa.PrimaryKeyConstraint("chain_id", "key", name=op.f("pk_findings")),
        sa.ForeignKeyConstraint(["chain_id"], ["chains.chain_id"], name=op.f("fk_findings_chain_id")),
        comment="what audits found the ledger and the chain to differ in: each once",
    )
    op.create_index(
        "ix_findings_open",
        "findings",
        ["chain_id", "from_height"],
        postgresql_where=sa.text("mended_at IS NULL"),
    )
