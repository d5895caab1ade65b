"""Fixtures that every test may ask for."""

from tests.fixtures.anvil import anvil_node
from tests.fixtures.postgres import database_url, postgres_url

__all__ = ["anvil_node", "database_url", "postgres_url"]
