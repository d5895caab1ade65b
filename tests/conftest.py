"""Fixtures that every test may ask for."""

from tests.fixtures.anvil import anvil_node
from tests.fixtures.postgres import (
    database_url,
    empty_database_url,
    migrated_template,
    postgres_admin,
    postgres_url,
)

__all__ = ["anvil_node", "database_url", "empty_database_url", "migrated_template", "postgres_admin", "postgres_url"]
