"""Lists of the API read what they answer and little more, at volume, as the API's role and by its own statements. Those of
entries are in `test_entry_lists.py`."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.event import listen, remove
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ledger.database import connect, connect_api, transaction
from ledger.ids import TenantId, WatchId
from ledger.listing import DeliveryFilter, list_deliveries, list_events
from ledger.states import DeliveryState
from ledger.tenancy import speak_for
from ledger.watches import list_watches

TENANT = TenantId("ten_big")
EVENTS = 20_000
NOW = datetime(2026, 11, 1, tzinfo=UTC)
PAGE = 100
ROWS_MAX = 5 * PAGE
"""Rows that a page may look at."""

_FILL = f"""
INSERT INTO tenants (id, name, created_at) VALUES ('{TENANT}', 'big', now());
INSERT INTO endpoints (tenant_id, id, url, created_at, updated_at) VALUES ('{TENANT}', 'ep_1', 'x', now(), now());
INSERT INTO watches (tenant_id, id, scope, address, reference, covered_from, created_at)
SELECT '{TENANT}', 'wat_' || lpad(n::text, 9, '0'), 'evm', decode(lpad(to_hex(n), 40, '0'), 'hex'), 'order-' || n, '{{}}',
       now() FROM generate_series(0, {EVENTS}) n;
INSERT INTO events (tenant_id, id, feed_position, type, subject, sequence, body, created_at)
SELECT '{TENANT}', 'evt_' || n, n, 'deposit.detected', 'dep_' || n, 1, '', now() FROM generate_series(1, {EVENTS}) n;
INSERT INTO deliveries (tenant_id, id, event_id, event_type, event_created_at, feed_position, endpoint_id, subject, priority,
                        state, due_at, created_at, settled_at)
SELECT '{TENANT}', 'del_' || n, 'evt_' || n, 'deposit.detected', now(), n, 'ep_1', 'dep_' || n, 0, 'delivered', now(),
       '{NOW}'::timestamptz + n * interval '1 second', now() FROM generate_series(1, {EVENTS}) n;
"""


@pytest.fixture
async def api(database_url: str) -> AsyncIterator[AsyncEngine]:
    """The API's engine on a ledger in which one tenant has everything."""
    owner = connect(database_url, application="tests", pool_size=1)
    async with transaction(owner) as connection:
        for statement in _FILL.strip().split(";\n"):
            await connection.execute(text(statement))
        await connection.execute(text("ANALYZE"))
    await owner.dispose()
    engine = connect_api(database_url, pool_size=1)
    yield engine
    await engine.dispose()


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The steps of a plan."""
    yield plan
    for inner in plan.get("Plans", ()):
        yield from nodes(inner)


async def rows_looked_at(engine: AsyncEngine, ask: Callable[[AsyncConnection], Awaitable[Any]]) -> tuple[int, int]:
    """How many rows a list answered, and how many its statement took from tables and indexes for it."""
    said: list[tuple[str, Any]] = []

    def _note(_c: Any, _k: Any, statement: str, parameters: Any, _x: Any, _m: bool) -> None:  # noqa: ANN401
        said.append((statement, parameters))

    async with transaction(engine) as connection:
        await speak_for(connection, TENANT)
        listen(engine.sync_engine, "before_cursor_execute", _note)
        answered = await ask(connection)
        remove(engine.sync_engine, "before_cursor_execute", _note)
        [(statement, parameters)] = said
        explained = await connection.exec_driver_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters)
        found = explained.scalar_one()
    whole = found if isinstance(found, list) else json.loads(found)
    scans = [node for node in nodes(whole[0]["Plan"]) if "Scan" in node["Node Type"]]
    taken = sum((node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"] for node in scans)
    return len(answered), round(taken)


def deliveries_by(**wanted: Any) -> Callable[[AsyncConnection], Awaitable[Any]]:  # noqa: ANN401
    """A page of deliveries."""
    return lambda connection: list_deliveries(connection, TENANT, DeliveryFilter(**wanted), limit=PAGE)


def watches_by(**wanted: Any) -> Callable[[AsyncConnection], Awaitable[Any]]:  # noqa: ANN401
    """A page of watches."""
    nothing = {"scopes": None, "address": None, "reference": None, "after": None}
    return lambda connection: list_watches(connection, TENANT, **{**nothing, **wanted}, limit=PAGE)


LISTS = {
    "feed": (lambda connection: list_events(connection, TENANT, limit=PAGE), PAGE),
    "feed from the middle": (lambda connection: list_events(connection, TENANT, after=EVENTS // 2, limit=PAGE), PAGE),
    "events of one": (lambda connection: list_events(connection, TENANT, subject="dep_77", limit=PAGE), 1),
    "deliveries": (deliveries_by(), PAGE),
    "deliveries of an event": (deliveries_by(event_id="evt_77"), 1),
    "deliveries of an entry": (deliveries_by(subject="dep_77"), 1),
    "deliveries of an endpoint": (deliveries_by(endpoint_id="ep_1"), PAGE),
    "deliveries that are exhausted": (deliveries_by(state=DeliveryState.EXHAUSTED), 0),
    "watches": (watches_by(), PAGE),
    "watches, a later page": (watches_by(after=WatchId(f"wat_{EVENTS // 2:09}")), PAGE),
    "watches of a chain": (watches_by(scopes=["eip155:1", "evm"]), PAGE),
    "watches by address": (watches_by(address=(77).to_bytes(20, "big")), 1),
    "watches by reference": (watches_by(reference="order-77"), 1),
}


async def test_every_list_reads_by_index_what_it_answers_and_little_more(api: AsyncEngine) -> None:
    seen = {name: await rows_looked_at(api, ask) for name, (ask, _) in LISTS.items()}
    assert {name: answered for name, (answered, _) in seen.items()} == {name: n for name, (_, n) in LISTS.items()}
    assert {name: taken for name, (_, taken) in seen.items() if taken > ROWS_MAX} == {}
