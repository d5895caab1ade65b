"""What took the place of a transaction that lost its block."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Lost entries wait for their nonce to be spent; what spends it is kept with its block."""
    op.create_table(
        "spent_nonces",
        sa.Column("chain_id", sa.Text, sa.ForeignKey("chains.chain_id"), nullable=False),
        sa.Column("block_hash", sa.LargeBinary, nullable=False),
        sa.Column("block_height", sa.BigInteger, nullable=False),
        sa.Column("sender", sa.LargeBinary, nullable=False),
        sa.Column("nonce", sa.Numeric(20, 0), nullable=False, comment="what a lost entry's transaction would spend"),
        sa.Column(
            "spent_nonce",
            sa.Numeric(20, 0),
            nullable=False,
            comment="the same, or a higher one, which shows it as well",
        ),
        sa.Column("transaction_hash", sa.LargeBinary, nullable=False, comment="what the block has instead"),
        sa.PrimaryKeyConstraint("chain_id", "sender", "nonce", "block_hash"),
        comment="blocks, canonical or orphaned since, after which a transaction that lost its block cannot come back",
    )
    op.alter_column(
        "entries",
        "transaction_nonce",
        comment="null where its hash commits to none: then nothing can replace it",
    )
    op.add_column(
        "entries",
        sa.Column(
            "replaced_by",
            sa.LargeBinary,
            comment="the transaction that spent the nonce of one that will not come back",
        ),
    )
    op.create_check_constraint("replaced_by", "entries", "replaced_by IS NULL OR state IN ('dropped', 'replaced')")
    # Until now 0 stood also for a nonce that nothing commits to. One that is not known waits for nothing.
    op.execute("UPDATE entries SET transaction_nonce = NULL WHERE transaction_nonce = 0")
