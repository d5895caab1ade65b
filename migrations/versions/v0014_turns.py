"""Claims take their turns over endpoints, and endpoints that fail rest."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """What is pending is found by endpoint, so that one endpoint's backlog is never read to find another's."""
    op.add_column(
        "endpoints",
        sa.Column(
            "rests_until",
            sa.DateTime(timezone=True),
            comment="its breaker is open, and nothing is sent before; null while it is closed",
        ),
    )
    op.add_column(
        "endpoints",
        sa.Column("rests", sa.SmallInteger(), nullable=False, server_default="0", comment="since it last accepted"),
    )
    is_pending = sa.text("state = 'pending'")
    op.create_index(
        "ix_deliveries_turn",
        "deliveries",
        ["tenant_id", "endpoint_id", "priority", "due_at"],
        postgresql_where=is_pending,
    )
    op.drop_index("ix_deliveries_due", table_name="deliveries")
    op.create_index("ix_deliveries_due", "deliveries", ["due_at"], postgresql_where=is_pending)
