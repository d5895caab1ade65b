"""What a migration does to a table of tenants' rows that it makes."""

from __future__ import annotations

from alembic import op


def protect(table: str, column: str = "tenant_id", also: str = "") -> None:
    """Show the API's role the rows of the tenant that its transaction speaks for and no others (`ledger/tenancy.py`). `also`
    is a tenant whose rows it may have in any case."""
    current = f"{column} = current_setting('chainbell.tenant', true)"
    condition = f"{current} OR {column} = '{also}'" if also else current
    op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    op.execute(f"CREATE POLICY tenant ON {table} TO chainbell_api USING ({condition})")
