"""A halt can be lifted through the API: by the operator, and nothing else of a chain."""

from __future__ import annotations

from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A function of the owner's, so that the API's role may lift a halt without being allowed to write a chain's state."""
    op.execute(
        """
        CREATE FUNCTION chainbell_lift_halt(halted_chain text, accepted_height bigint) RETURNS boolean
        LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
        AS $$
            UPDATE public.chains SET state = 'stopped', reason = NULL, accepted_reorg_height = accepted_height
            WHERE chain_id = halted_chain AND state = 'halted'
              AND coalesce(current_setting('chainbell.tenant', true), '') IN ('', 'ten_ops')
            RETURNING true
        $$
        """
    )
    op.execute(
        "COMMENT ON FUNCTION chainbell_lift_halt IS 'how the API''s role resumes a chain, while it speaks for the operator'"
    )
    op.execute("REVOKE ALL ON FUNCTION chainbell_lift_halt FROM PUBLIC")
    op.execute("GRANT EXECUTE ON FUNCTION chainbell_lift_halt TO chainbell_api")
