"""How endpoints do, at a glance; deliveries that fail by a fault of ours, apart from those that a receiver did not take."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

API_ROLE = "chainbell_api"

SETTLED = "'delivered', 'exhausted', 'refused', 'faulted', 'discarded', 'superseded'"
STATES = "'pending', 'delivered', 'held', 'exhausted', 'refused', 'faulted', 'discarded', 'superseded'"
FAULTS = "'secret_unopened', 'unsignable', 'bad_header', 'workers_died'"


def upgrade() -> None:
    """Since when an endpoint fails is not known for those that fail already: it counts from their next failure."""
    _add_health()
    _make_windows()
    _add_faults()


def _add_health() -> None:
    for column in (
        sa.Column(
            "failing_since",
            sa.DateTime(timezone=True),
            comment="first failure since it last accepted; a change by its owner starts it anew",
        ),
        sa.Column("last_failed_at", sa.DateTime(timezone=True)),
        sa.Column("last_status_code", sa.SmallInteger(), comment="of the last attempt; null where no answer came"),
        sa.Column("last_error", sa.Text(), comment="of the last attempt; null where its status says it all"),
        sa.Column(
            "gone_answers",
            sa.Integer(),
            nullable=False,
            server_default="0",
            comment="answers of 410 since it last accepted",
        ),
    ):
        op.add_column("endpoints", column)


def _make_windows() -> None:
    op.create_table(
        "endpoint_windows",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("endpoint_id", sa.Text(), nullable=False),
        sa.Column("began_at", sa.DateTime(timezone=True), nullable=False, comment="a full ten minutes, such as 12:30"),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("accepted", sa.Integer(), nullable=False),
        sa.Column(
            "durations", ARRAY(sa.Integer()), nullable=False, comment="how many attempts took up to each bound of time"
        ),
        sa.CheckConstraint("accepted BETWEEN 0 AND attempts", name=op.f("ck_endpoint_windows_accepted")),
        sa.ForeignKeyConstraint(
            ["tenant_id", "endpoint_id"],
            ["endpoints.tenant_id", "endpoints.id"],
            name=op.f("fk_endpoint_windows_tenant_id_endpoint_id"),
        ),
        sa.PrimaryKeyConstraint("tenant_id", "endpoint_id", "began_at", name=op.f("pk_endpoint_windows")),
        comment="attempts at an endpoint, counted in memory and added up every few seconds: health at a glance, no truth",
        postgresql_with={"fillfactor": 50},
    )
    op.create_index("ix_endpoint_windows_began", "endpoint_windows", ["began_at"])
    op.execute(f"GRANT SELECT ON endpoint_windows TO {API_ROLE}")


def _add_faults() -> None:
    op.add_column(
        "deliveries",
        sa.Column("fault", sa.Text(), comment="why it could not be sent the last time, where that is a fault of ours"),
    )
    op.create_check_constraint(op.f("ck_deliveries_fault"), "deliveries", f"fault IN ({FAULTS})")
    for name, condition in (
        ("ck_deliveries_state", f"state IN ({STATES})"),
        ("ck_deliveries_settled_at", f"(settled_at IS NOT NULL) = (state IN ({SETTLED}))"),
    ):
        op.drop_constraint(op.f(name), "deliveries")
        op.create_check_constraint(op.f(name), "deliveries", condition)
    op.drop_index("ix_deliveries_kept", table_name="deliveries")
    op.create_index(
        "ix_deliveries_kept",
        "deliveries",
        ["state", "tenant_id", "endpoint_id", "created_at", "id"],
        postgresql_where=sa.text("state IN ('held', 'exhausted', 'refused', 'faulted')"),
    )
