"""How often in a row a delivery was taken over from a worker that fell silent, so that what kills workers is found out."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Nothing that is owed now is a suspect. The column is told to Postgres and written to no row; the index is empty."""
    op.add_column(
        "deliveries",
        sa.Column(
            "takeovers",
            sa.SmallInteger(),
            nullable=False,
            server_default="0",
            comment="in a row, from workers that fell silent",
        ),
    )
    op.create_index(
        "ix_deliveries_suspects",
        "deliveries",
        ["takeovers", "due_at"],
        postgresql_where=sa.text("state = 'pending' AND takeovers > 0"),
    )
