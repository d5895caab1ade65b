"""Lists of entries by everything that they may be asked for, in both orders, however many entries there are."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

_NOT_FINAL = sa.text("state <> 'finalized'")


def upgrade() -> None:
    """Followers wait while the indexes are built."""
    for name in ("ix_entries_address", "ix_entries_watch"):
        op.drop_index(name, "entries")
    # With the side, for an address that pays out a thousand times for each time that it is paid.
    op.create_index("ix_entries_address", "entries", ["tenant_id", "address", "side", "detected_at"])
    op.create_index("ix_entries_watch", "entries", ["tenant_id", "watch_id", "side", "detected_at"])
    op.create_index("ix_entries_chain", "entries", ["tenant_id", "side", "chain_id", "detected_at", "id"])
    for name, column in (("asset", "asset_id"), ("chain", "chain_id")):
        op.create_index(f"ix_entries_{name}_updated", "entries", ["tenant_id", "side", column, "updated_at", "id"])
        columns = ["tenant_id", "side", "state", column, "detected_at", "id"]
        op.create_index(f"ix_entries_state_{name}", "entries", columns, postgresql_where=_NOT_FINAL)
    columns = ["tenant_id", "side", "state", "updated_at", "id"]
    op.create_index("ix_entries_state_updated", "entries", columns, postgresql_where=_NOT_FINAL)
