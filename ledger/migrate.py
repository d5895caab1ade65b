"""Bringing the schema to head, and refusing to work on one that is behind."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from psycopg.errors import InsufficientPrivilege
from sqlalchemy import Connection, create_engine, func, select
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

import migrations
from ledger.database import async_url, lock_number, transaction
from ledger.errors import MigrationRefused, SchemaBehind
from ledger.partitions import ensure_partitions
from ledger.schema import API_ROLE


def _config() -> Config:
    configuration = Config()
    configuration.set_main_option("script_location", str(Path(migrations.__file__).parent))
    return configuration


def head_revision() -> str:
    """The newest migration that this release ships."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    if head is None:
        raise RuntimeError("the migrations directory is empty")
    return head


def migrate(url: str) -> str:
    """Bring the database at `url` to head in one transaction; a second process waits for the first. Returns the
    revision."""
    engine = create_engine(async_url(url))
    try:
        with engine.begin() as connection:
            connection.execute(select(func.pg_advisory_xact_lock(lock_number("migrate"))))
            configuration = _config()
            configuration.attributes["connection"] = connection
            command.upgrade(configuration, "head")
    except ProgrammingError as error:
        if isinstance(error.orig, InsufficientPrivilege):
            raise MigrationRefused(
                f"the database user may not migrate: {str(error.orig).splitlines()[0]}; let a superuser run once:"
                f" CREATE ROLE {API_ROLE} NOLOGIN; GRANT {API_ROLE} TO <user>; and make <user> the database's owner"
            ) from error
        raise
    finally:
        engine.dispose()
    return head_revision()


def _current(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


async def current_revision(connection: AsyncConnection) -> str | None:
    """The revision that the database is at; None when it is empty."""
    return await connection.run_sync(_current)


async def require_head(connection: AsyncConnection) -> None:
    """Raise `SchemaBehind` unless the database has seen every migration of this release."""
    found = await current_revision(connection)
    if found != head_revision():
        raise SchemaBehind(
            f"the database is at revision {found or 'none'}, this release needs {head_revision()}; run: chainbell migrate"
        )


async def prepare(engine: AsyncEngine, url: str) -> str:
    """Migrate and make the partitions of the coming days; returns the revision."""
    revision = await asyncio.to_thread(migrate, url)
    async with transaction(engine) as connection:
        await ensure_partitions(connection, datetime.now(UTC))
    return revision
