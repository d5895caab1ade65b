"""Redeliveries by hand are found among themselves."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Every claim asks whether there are any."""
    op.create_index(
        "ix_deliveries_by_hand",
        "deliveries",
        ["due_at"],
        postgresql_where=sa.text("feed_position = 0 AND state = 'pending'"),
    )
    op.alter_column(
        "deliveries",
        "feed_position",
        existing_type=sa.BigInteger(),
        existing_nullable=False,
        comment="order within a lane; 0: by hand, in no order",
    )
