"""Which hosts trace, remembered."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A chain that was seen to trace may not go on without traces after a restart, so the ledger remembers."""
    op.add_column(
        "chains",
        sa.Column(
            "tracers",
            JSONB,
            nullable=False,
            server_default="{}",
            comment="by host, the method by which it was seen to trace: from then on a missing trace holds the chain",
        ),
    )
