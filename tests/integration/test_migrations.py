"""Migrations from empty come to what `ledger/schema.py` declares; the API's role may do what it needs and no more."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, create_engine, insert, make_url, select, text
from sqlalchemy.exc import IntegrityError, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ledger.database import async_url, connect, connect_api, transaction
from ledger.errors import MigrationRefused, SchemaBehind
from ledger.ids import OPS_TENANT
from ledger.migrate import current_revision, head_revision, migrate, prepare, require_head
from ledger.schema import API_ROLE, PARTITIONED, endpoints, metadata, tenants

IS_OURS = """
    relname <> 'alembic_version' AND NOT relispartition AND relnamespace = 'public'::regnamespace
    AND relkind IN ('r', 'p')
"""

COMMENTS = f"""
    SELECT relname, attname, coalesce(col_description(c.oid, attnum), '') FROM pg_class c
    JOIN pg_attribute ON attrelid = c.oid WHERE attnum > 0 AND NOT attisdropped AND {IS_OURS}
    UNION SELECT relname, '', coalesce(obj_description(oid, 'pg_class'), '') FROM pg_class WHERE {IS_OURS}
"""
CONSTRAINTS = f"""
    SELECT relname, conname, pg_get_constraintdef(k.oid) FROM pg_constraint k JOIN pg_class c ON c.oid = conrelid
    WHERE {IS_OURS}
"""
INDEXES = f"""
    SELECT c.relname, i.relname, pg_get_indexdef(indexrelid) FROM pg_index JOIN pg_class c ON c.oid = indrelid
    JOIN (SELECT oid, relname FROM pg_class) i ON i.oid = indexrelid WHERE {IS_OURS.replace("rel", "c.rel")}
"""
STORAGE = f"""
    SELECT relname, coalesce(array_to_string(reloptions, ','), ''), coalesce(pg_get_partkeydef(oid), '') FROM pg_class
    WHERE {IS_OURS}
"""


@contextmanager
def opened(url: str) -> Iterator[Connection]:
    """A connection without a pool behind it."""
    engine = create_engine(async_url(url))
    with engine.begin() as connection:
        yield connection
    engine.dispose()


def facts(url: str, query: str) -> set[tuple[Any, ...]]:
    """Rows of the catalogue."""
    with opened(url) as connection:
        return {tuple(row) for row in connection.execute(text(query))}


def is_ours(thing: object, name: str | None, kind: str, reflected: bool, compare_to: object) -> bool:
    """Leave out daily partitions and Alembic's own table."""
    return kind != "table" or name in metadata.tables


def test_migrations_from_empty_come_to_the_declared_schema(empty_database_url: str) -> None:
    migrate(empty_database_url)
    options = {"compare_type": True, "compare_server_default": True, "include_object": is_ours}
    with opened(empty_database_url) as connection:
        assert compare_metadata(MigrationContext.configure(connection, opts=options), metadata) == []


@pytest.fixture
def declared_url(database_url: str, postgres_url: str) -> Iterator[str]:
    """A database made from the declaration alone, without migrations."""
    with opened(database_url) as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
        metadata.create_all(connection)
    yield database_url


@pytest.mark.parametrize(
    "query", [COMMENTS, CONSTRAINTS, INDEXES, STORAGE], ids=["comments", "checks", "indexes", "storage"]
)
def test_what_autogenerate_does_not_compare_is_the_same_too(
    empty_database_url: str, declared_url: str, query: str
) -> None:
    migrate(empty_database_url)
    migrated, declared = facts(empty_database_url, query), facts(declared_url, query)
    assert migrated == declared
    assert {row[0] for row in declared} >= {"entries", "deliveries", "events"}


def test_every_table_is_commented(empty_database_url: str) -> None:
    migrate(empty_database_url)
    uncommented = [row for row in facts(empty_database_url, COMMENTS) if row[1:] == ("", "")]
    assert uncommented == []


def test_migrating_twice_and_at_one_moment_is_harmless(empty_database_url: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        revisions = list(pool.map(migrate, [empty_database_url] * 4))
    assert revisions == [head_revision()] * 4
    assert migrate(empty_database_url) == head_revision()
    with opened(empty_database_url) as connection:
        assert connection.execute(select(tenants.c.id)).scalars().all() == [OPS_TENANT]


async def test_an_empty_database_is_refused_with_what_to_do(empty_database_url: str) -> None:
    engine = connect(empty_database_url, application="tests")
    async with transaction(engine) as connection:
        assert await current_revision(connection) is None
        with pytest.raises(SchemaBehind, match=r"at revision none, this release needs .*; run: chainbell migrate"):
            await require_head(connection)
    assert await prepare(engine, empty_database_url) == head_revision()
    async with transaction(engine) as connection:
        await require_head(connection)
    await engine.dispose()


async def test_a_database_ahead_of_the_release_is_refused(database_url: str) -> None:
    engine = connect(database_url, application="tests")
    async with transaction(engine) as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        with pytest.raises(SchemaBehind, match="at revision 9999"):
            await require_head(connection)
    await engine.dispose()


def test_a_user_without_rights_is_told_what_to_ask_for(empty_database_url: str) -> None:
    with opened(empty_database_url) as connection:
        connection.execute(text("DROP ROLE IF EXISTS powerless"))
        connection.execute(text("CREATE ROLE powerless LOGIN"))
        connection.execute(text("GRANT CREATE, USAGE ON SCHEMA public TO powerless"))
    url = make_url(empty_database_url).set(username="powerless").render_as_string(hide_password=False)
    with pytest.raises(MigrationRefused, match=f"let a superuser run once: CREATE ROLE {API_ROLE} NOLOGIN"):
        migrate(url)
    assert facts(empty_database_url, f"SELECT relname FROM pg_class WHERE {IS_OURS}") == set()


@pytest.fixture
async def api(database_url: str) -> AsyncIterator[AsyncEngine]:
    """The API's engine on a migrated database."""
    engine = connect_api(database_url, pool_size=1)
    yield engine
    await engine.dispose()


async def attempt(engine: AsyncEngine, statement: str) -> None:
    """Run one statement in a transaction that is rolled back."""
    async with engine.connect() as connection:
        await connection.execute(text(statement))


async def test_the_apis_role_owns_nothing(database_url: str, api: AsyncEngine) -> None:
    async with transaction(api) as connection:
        assert (await connection.execute(text("SELECT current_user"))).scalar_one() == API_ROLE
        owned = await connection.execute(
            text("SELECT relname FROM pg_class WHERE pg_get_userbyid(relowner) = current_user")
        )
        assert owned.all() == []
        role = await connection.execute(
            text("SELECT rolsuper, rolcreatedb, rolcreaterole, rolbypassrls FROM pg_roles WHERE rolname = current_user")
        )
        assert tuple(role.one()) == (False, False, False, False)


DENIED = (
    "UPDATE entries SET amount_atomic = 1",
    "DELETE FROM entries",
    "INSERT INTO entries (tenant_id, id) VALUES ('ten_ops', 'dep_1')",
    "UPDATE events SET body = ''",
    "DELETE FROM events",
    "TRUNCATE events",
    "UPDATE attempts SET outcome = 'accepted'",
    "DELETE FROM deliveries",
    "UPDATE blocks SET state = 'orphaned'",
    "UPDATE chains SET tip_height = 1",
    "UPDATE tenants SET name = 'x'",
    "DELETE FROM watches",
    "UPDATE audit_log SET actor = 'nobody'",
    "DELETE FROM audit_log",
    "INSERT INTO api_keys (tenant_id, id, secret_sha256, scopes, created_at) VALUES ('ten_ops', 'k', '', '{}', now())",
    "UPDATE api_keys SET scopes = '{}'",
    "UPDATE alembic_version SET version_num = '0'",
    "CREATE TABLE mine (id int)",
    "DROP TABLE entries",
    "ALTER TABLE entries ADD COLUMN mine int",
)


@pytest.mark.parametrize("statement", DENIED)
async def test_the_apis_role_can_change_neither_schema_nor_story(api: AsyncEngine, statement: str) -> None:
    with pytest.raises(ProgrammingError, match=r"permission denied|must be owner"):
        await attempt(api, statement)


@pytest.mark.parametrize(
    "statement", ["UPDATE audit_log SET actor = 'x'", "DELETE FROM audit_log", "TRUNCATE audit_log"]
)
async def test_the_audit_log_is_append_only_for_its_owner_too(database_url: str, statement: str) -> None:
    engine = connect(database_url, application="tests", pool_size=1)
    with pytest.raises(IntegrityError, match="audit_log is append-only"):
        await attempt(engine, statement)
    await engine.dispose()


async def test_the_apis_role_reaches_no_partition_by_itself(api: AsyncEngine, database_url: str) -> None:
    today = datetime.now(UTC)
    for table in PARTITIONED:
        with pytest.raises(ProgrammingError, match="permission denied"):
            await attempt(api, f"SELECT 1 FROM {table}_{today:%Y%m%d}")


async def test_a_reset_connection_still_speaks_as_the_apis_role(api: AsyncEngine) -> None:
    async with api.connect() as connection:
        await connection.execute(text("RESET ROLE"))
        assert await current_user(connection) == API_ROLE


async def current_user(connection: AsyncConnection) -> str:
    """Who the connection speaks as."""
    user: str = (await connection.execute(text("SELECT current_user"))).scalar_one()
    return user


async def test_checks_mirror_the_states(database_url: str) -> None:
    engine = connect(database_url, application="tests")
    now = datetime.now(UTC)
    with pytest.raises(IntegrityError, match="ck_endpoints_state"):
        async with transaction(engine) as connection:
            await connection.execute(
                insert(endpoints).values(
                    tenant_id=OPS_TENANT, id="ep", url="x", state="tired", created_at=now, updated_at=now
                )
            )
    await engine.dispose()
