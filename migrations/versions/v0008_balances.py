"""What watched addresses held when their entries last explained it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """No balance was audited before."""
    op.create_table(
        "balances",
        sa.Column("chain_id", sa.Text(), nullable=False),
        sa.Column("address", sa.LargeBinary(), nullable=False),
        sa.Column("asset_id", sa.Text(), nullable=False),
        sa.Column("height", sa.BigInteger(), nullable=False, comment="after this block; it only rises"),
        sa.Column("block_hash", sa.LargeBinary(), nullable=False),
        sa.Column("amount_atomic", sa.Numeric(78, 0), nullable=False),
        sa.Column("nonce", sa.Numeric(20, 0), comment="transactions sent; null for tokens"),
        sa.Column("has_code", sa.Boolean(), comment="null for tokens"),
        sa.Column(
            "is_proven", sa.Boolean(), nullable=False, comment="against the block's state root; else one node's word"
        ),
        sa.Column("audited_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("amount_atomic >= 0", name=op.f("ck_balances_amount")),
        sa.PrimaryKeyConstraint("chain_id", "address", "asset_id", name=op.f("pk_balances")),
        sa.ForeignKeyConstraint(["chain_id"], ["chains.chain_id"], name=op.f("fk_balances_chain_id")),
        comment="what a watched address held when its entries last explained it: the baseline of its next audit",
    )
