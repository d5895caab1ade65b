"""Databases that live as long as one module's installation, and directories that a database's own user may enter."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy.engine import Engine

from tests.fixtures.postgres import new_database


@pytest.fixture(scope="module")
def module_database_url(postgres_url: str, postgres_admin: Engine, migrated_template: str) -> Iterator[str]:
    """URL of a new database at the newest migration, for all tests of a module."""
    with new_database(postgres_url, postgres_admin, migrated_template) as url:
        yield url


@pytest.fixture(scope="module")
def module_empty_database_url(postgres_url: str, postgres_admin: Engine) -> Iterator[str]:
    """URL of a new, empty database for all tests of a module."""
    with new_database(postgres_url, postgres_admin, "chainbell") as url:
        yield url
