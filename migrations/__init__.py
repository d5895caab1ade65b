"""Alembic migrations: the schema's history, from empty to what `ledger/schema.py` declares."""
