"""Endpoints may have a limit of deliveries a second."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from migrations.tenants import protect

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Endpoints that there are have none. Until when the rate is used up is in a row apart: claims lock it, settling does not."""
    op.add_column(
        "endpoints",
        sa.Column("max_per_s", sa.Integer(), comment="deliveries a second that it wants at most; null for any number"),
    )
    op.create_check_constraint(op.f("ck_endpoints_max_per_s"), "endpoints", "max_per_s BETWEEN 1 AND 10000")
    op.create_table(
        "endpoint_paces",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("endpoint_id", sa.Text(), nullable=False),
        sa.Column(
            "paced_until",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="until when what was claimed has used the rate up",
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id", "endpoint_id"],
            ["endpoints.tenant_id", "endpoints.id"],
            name=op.f("fk_endpoint_paces_tenant_id_endpoint_id"),
        ),
        sa.PrimaryKeyConstraint("tenant_id", "endpoint_id", name=op.f("pk_endpoint_paces")),
        comment="of each endpoint that has or had a limit; apart from its row, because every claim locks and writes it",
        postgresql_with={"fillfactor": 70, "autovacuum_vacuum_scale_factor": 0.01, "autovacuum_vacuum_cost_delay": 0},
    )
    op.execute("GRANT SELECT, INSERT ON endpoint_paces TO chainbell_api")
    protect("endpoint_paces")
