"""Which master keys a database knows."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Empty: the first process that starts with the right key enters it, for a migration does not know it."""
    op.create_table(
        "master_keys",
        sa.Column("key_id", sa.LargeBinary(), nullable=False, comment="names the key and tells nothing of it"),
        sa.Column(
            "sealed_cursor_key",
            sa.LargeBinary(),
            nullable=False,
            comment="what cursors are signed with, the same in each row: it opens with this master key alone",
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("key_id", name=op.f("pk_master_keys")),
        comment="the master keys that secrets may be sealed under: one, or two while they change",
    )
