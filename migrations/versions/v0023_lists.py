"""Lists of deliveries, watches and jobs by everything that they may be asked for, however many there are."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None

_HAS_REFERENCE = sa.text("reference IS NOT NULL")
_IS_RARE = sa.text("state IN ('exhausted', 'refused', 'faulted', 'discarded', 'superseded')")


def upgrade() -> None:
    """Notifiers and followers wait meanwhile: of deliveries for a look at each, of watches while the index is built."""
    columns = ["tenant_id", "state", "created_at", "id"]
    op.create_index("ix_deliveries_state", "deliveries", columns, postgresql_where=_IS_RARE)
    op.drop_index("ix_watches_reference", "watches")
    columns = ["tenant_id", "reference", "id"]
    op.create_index("ix_watches_reference", "watches", columns, postgresql_where=_HAS_REFERENCE)
    op.create_index("ix_jobs_list", "jobs", ["tenant_id", "kind", "state", "id"])
