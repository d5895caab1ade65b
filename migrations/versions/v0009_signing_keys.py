"""An ed25519 pair beside each signing secret."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

API_ROLE = "chainbell_api"


def upgrade() -> None:
    """Secrets from before have no pair: it is made when an endpoint's public key is first asked for, since until then
    nobody could verify what it signs."""
    op.add_column(
        "endpoint_secrets",
        sa.Column(
            "sealed_signing_key",
            sa.LargeBinary(),
            comment="private ed25519 key, sealed likewise; null until one is asked for",
        ),
    )
    op.add_column("endpoint_secrets", sa.Column("public_key", sa.LargeBinary(), comment="what verifies its signatures"))
    op.create_check_constraint(
        op.f("ck_endpoint_secrets_signing_key"),
        "endpoint_secrets",
        "(sealed_signing_key IS NULL) = (public_key IS NULL)",
    )
    op.execute(f"GRANT UPDATE (sealed_signing_key, public_key) ON endpoint_secrets TO {API_ROLE}")
