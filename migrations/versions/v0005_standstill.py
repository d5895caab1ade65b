"""Since when a chain stands still."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A standstill is told once, whoever follows the chain by then."""
    op.add_column(
        "chains",
        sa.Column(
            "delayed_since",
            sa.DateTime(timezone=True),
            comment="since when its tip has stood still for too long, as operators were told",
        ),
    )
