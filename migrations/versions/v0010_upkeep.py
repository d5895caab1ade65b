"""Storage of tables whose rows change all the time: vacuumed early, with room on their pages."""

from __future__ import annotations

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

CHURNING = ("chains", "tenants", "endpoints", "jobs")


def upgrade() -> None:
    """Pages that there are fill as they are rewritten; nothing is rewritten here."""
    for table in CHURNING:
        op.execute(
            f"ALTER TABLE {table} SET (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_cost_delay = 0)"
        )
    op.execute("ALTER TABLE entries SET (autovacuum_vacuum_scale_factor = 0.02)")
