"""Row-level security: Postgres itself keeps tenants apart for the API's role."""

from __future__ import annotations

from alembic import op

from migrations.tenants import protect

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

TABLES = (
    *("api_keys", "attempts", "audit_log", "deliveries", "endpoint_secrets", "endpoint_windows"),
    *("endpoints", "entries", "events", "idempotency_keys", "job_coverage", "jobs", "watches"),
)


def upgrade() -> None:
    """Who owns the tables sees them as before. Another role that was granted to read them needs a policy, or BYPASSRLS."""
    for table in TABLES:
        protect(table)
    protect("tenants", "id", also="ten_ops")  # the operator is told of what tenants do, in its own feed
    op.execute(
        """
        CREATE FUNCTION chainbell_find_key(key_id text) RETURNS SETOF api_keys
        LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
        AS 'SELECT * FROM public.api_keys WHERE id = key_id'
        """
    )
    op.execute(
        "COMMENT ON FUNCTION chainbell_find_key IS 'how a request learns whose it is, before it speaks for anybody'"
    )
    op.execute("REVOKE ALL ON FUNCTION chainbell_find_key FROM PUBLIC")
    op.execute("GRANT EXECUTE ON FUNCTION chainbell_find_key TO chainbell_api")
