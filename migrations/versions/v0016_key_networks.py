"""Keys that may be used from some addresses only."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Keys that are there may be used from anywhere, as before."""
    op.add_column(
        "api_keys",
        sa.Column("networks", ARRAY(sa.Text()), comment="CIDRs that it may be used from; null: from anywhere"),
    )
