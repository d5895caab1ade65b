"""The statements on the way of every block read by index at volume, whatever is in the tables."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Executable, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from chains.model import ChainId
from ledger import entries, matching
from ledger.chains import find_chain, lock_chain
from ledger.database import connect, transaction
from ledger.matching import match_watches

WATCHES = 100_000
ENTRIES = 50_000

_FILL = f"""
INSERT INTO chains (chain_id, slug, profile, livemode, native_asset_id, proof, tip_height, tip_hash, agreed_height)
VALUES ('eip155:1', 'one', 'ethereum', true, 'coin', 'roots', 100000, '\\x01', 100000);
INSERT INTO assets (asset_id, chain_id, symbol, decimals, kind) VALUES ('coin', 'eip155:1', 'ETH', 18, 'native');
INSERT INTO tenants (id, name, created_at) SELECT 'ten_' || n, 'tenant ' || n, now() FROM generate_series(1, 20) n;
INSERT INTO watches (tenant_id, id, scope, address, covered_from, created_at)
SELECT 'ten_' || (n % 20 + 1), 'wat_' || n, CASE n % 2 WHEN 0 THEN 'evm' ELSE 'eip155:1' END,
       decode(lpad(to_hex(n), 40, '0'), 'hex'), '{{}}', now() FROM generate_series(1, {WATCHES}) n;
INSERT INTO entries (tenant_id, id, side, state, sequence, origin, chain_id, asset_id, amount_atomic, address, transfer_id,
                     locator_kind, locator_path, block_height, block_hash, block_at, proof, agreed_by, policy, credit_at,
                     confirm_height, watch_id, detected_at, confirmed_at, finalized_at, updated_at)
SELECT 'ten_' || (n % 20 + 1), 'dep_' || n, 'deposit', CASE WHEN n % 100 = 0 THEN 'detected' ELSE 'finalized' END, 1, 'live',
       'eip155:1', 'coin', 1, '\\x00', 'tr_' || n, 'native', '', n, '\\x01', now(), 'roots', 1, 'p', '12', n + 11,
       'wat_' || n, now(), now(), CASE WHEN n % 100 = 0 THEN NULL ELSE now() END, now()
FROM generate_series(1, {ENTRIES}) n;
"""


@pytest.fixture
async def full(database_url: str) -> AsyncIterator[AsyncEngine]:
    """A ledger with many watches and entries, and statistics that know it."""
    engine = connect(database_url, application="tests")
    async with transaction(engine) as connection:
        for statement in _FILL.strip().split(";\n"):
            await connection.execute(text(statement))
        await connection.execute(text("ANALYZE"))
    yield engine
    await engine.dispose()


async def plan_of(connection: AsyncConnection, statement: Executable, parameters: Mapping[str, Any]) -> str:
    """The plan that Postgres chooses for a statement with these parameters, as text."""
    dialect = postgresql.psycopg.dialect()  # type: ignore[no-untyped-call]
    compiled = statement.compile(dialect=dialect)  # type: ignore[attr-defined]
    rows = await connection.exec_driver_sql("EXPLAIN " + str(compiled), {**compiled.params, **parameters})
    return "\n".join(row[0] for row in rows)


async def test_a_block_meets_watches_by_index(full: AsyncEngine) -> None:
    addresses = [number.to_bytes(20, "big") for number in range(1, 400)]
    async with transaction(full) as connection:
        plan = await plan_of(connection, matching._match, {"all_address": addresses, "chain_id": "eip155:1"})
    assert "ix_watches_match" in plan
    assert "Seq Scan on watches" not in plan


@pytest.fixture
async def follower(database_url: str) -> AsyncIterator[AsyncEngine]:
    """One connection to an empty ledger, so that what is prepared is used again."""
    engine = connect(database_url, application="tests", pool_size=1)
    yield engine
    await engine.dispose()


async def test_a_block_meets_watches_by_index_before_the_planner_has_heard_of_them(follower: AsyncEngine) -> None:
    """A plan made while there were no watches at all is kept, and a load of many is not in the statistics yet."""
    addresses = [number.to_bytes(20, "big") for number in range(1, 400)]
    fill = _FILL.strip().split(";\n")
    async with transaction(follower) as connection:
        await connection.execute(text("ALTER TABLE watches SET (autovacuum_enabled = false)"))
        for statement in fill[:3]:
            await connection.execute(text(statement))
        await connection.execute(text("ANALYZE watches"))
    for _ in range(12):  # five until the driver prepares it, five more until Postgres keeps a plan for any addresses
        async with transaction(follower) as connection:
            await lock_chain(connection, ChainId("eip155:1"))
            assert await match_watches(connection, ChainId("eip155:1"), addresses) == {}
    async with transaction(follower) as connection:
        await connection.execute(text(fill[3]))
    async with transaction(follower) as connection:
        await lock_chain(connection, ChainId("eip155:1"))
        before = await rows_read(connection)
        found = await match_watches(connection, ChainId("eip155:1"), addresses)
        assert len(found) == len(addresses)
        assert await rows_read(connection) - before < 10 * len(addresses)


async def rows_read(connection: AsyncConnection) -> int:
    """How many rows of `watches` this transaction has looked at, by whatever way."""
    counted = await connection.execute(
        text(
            "SELECT coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0) "
            "FROM pg_stat_xact_all_tables WHERE relname = 'watches'"
        )
    )
    return int(counted.scalar_one())


async def test_entries_of_a_branch_are_found_by_index(full: AsyncEngine) -> None:
    ids = [f"tr_{number}" for number in range(300)]
    async with transaction(full) as connection:
        plan = await plan_of(connection, entries._by_transfer, {"all_id": ids, "chain_id": "eip155:1"})
    assert "ix_entries_transfer" in plan
    assert "Seq Scan on entries" not in plan


async def test_due_entries_are_found_among_unfinished_ones_only(full: AsyncEngine) -> None:
    async with transaction(full) as connection:
        chain = replace(await find_chain(connection, ChainId("eip155:1")), finalized_height=40_000, safe_height=40_000)
        plan = await plan_of(connection, entries._due_statement(chain, 100), {})
    assert "ix_entries_confirm" in plan or "ix_entries_open" in plan
    assert "Seq Scan on entries" not in plan
