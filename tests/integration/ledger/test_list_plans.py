"""Lists of the API look at what they answer and little more, at volume, as the API's role and by its own statements: by
plans for these parameters and by plans for all. Those of entries are in `test_entry_lists.py`."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from bench.looking import Ask, Look, look_at
from ledger import walks
from ledger.database import connect, connect_api, transaction
from ledger.delivery_lists import DeliveryFilter, list_deliveries
from ledger.endpoints import list_endpoints
from ledger.ids import EndpointId, JobId, TenantId, WatchId
from ledger.jobs import list_jobs
from ledger.listing import find_feed_place, list_events
from ledger.states import DeliveryState, JobKind, JobState
from ledger.watch_lists import WatchFilter, list_watches

TENANT = TenantId("ten_big")
ROWS = int(os.environ.get("CHAINBELL_LIST_ROWS", "20000"))
"""`CHAINBELL_LIST_ROWS=1000000` for a million of each, by hand."""

NOW = datetime(2026, 11, 1, tzinfo=UTC)
PAGE = 100
TIGHT = 3 * PAGE
"""Rows for a page of what an index holds."""

LOOKED_MAX = walks.LOOKED_MAX if ROWS >= 1_000_000 else 400
"""What a page may look at, small enough to be a small part of the tables."""

BOUND = 6 * LOOKED_MAX + TIGHT
"""For a page of what no index holds: a walk, its end, and sets that are looked at."""

MADE_AT = f"now() + n * interval '{3 * 86_400 / ROWS:.3f} seconds'"
"""When an event was stored: over some three days, beginning today."""

_FILL = f"""
INSERT INTO tenants (id, name, created_at) VALUES ('{TENANT}', 'big', now()), ('ten_small', 'small', now());
INSERT INTO endpoints (tenant_id, id, url, created_at, updated_at, deleted_at)
SELECT '{TENANT}', 'ep_' || lpad(n::text, 6, '0'), 'x', now(), now(), CASE WHEN n > 50 THEN now() END
FROM generate_series(1, {ROWS // 4}) n;
UPDATE endpoints SET rests_until = now() WHERE id = 'ep_000003';
INSERT INTO watches (tenant_id, id, scope, address, reference, covered_from, created_at, deleted_at)
SELECT '{TENANT}', 'wat_' || lpad(n::text, 9, '0'), CASE WHEN n < 5 THEN 'eip155:10' ELSE 'evm' END,
       decode(lpad(to_hex(n), 40, '0'), 'hex'), CASE WHEN n % 10 = 7 THEN 'till' ELSE 'order-' || n END, '{{}}', now(),
       CASE WHEN n BETWEEN {ROWS // 2} AND {ROWS - 200} THEN now() END FROM generate_series(0, {ROWS}) n;
INSERT INTO events (tenant_id, id, feed_position, type, subject, sequence, body, created_at)
SELECT '{TENANT}', 'evt_' || n, n, 'deposit.detected', 'dep_' || n, 1, '', {MADE_AT} FROM generate_series(1, {ROWS}) n;
INSERT INTO deliveries (tenant_id, id, event_id, event_type, event_created_at, feed_position, endpoint_id, subject, priority,
                        state, due_at, created_at, settled_at)
SELECT '{TENANT}', 'del_' || n, CASE WHEN n % 3 = 0 THEN 'evt_many' ELSE 'evt_' || n END, 'deposit.detected', now(), n,
       CASE WHEN n < 4 THEN 'ep_000002' WHEN n < 8 THEN 'ep_000003' ELSE 'ep_000001' END, 'dep_' || n, 0, state, now(),
       '{NOW}'::timestamptz + n * interval '1 second', CASE WHEN state NOT IN ('held', 'pending') THEN now() END
FROM (SELECT n, CASE WHEN n IN (1, 9) THEN 'exhausted' WHEN n IN (2, 10) THEN 'discarded' WHEN n = 3 THEN 'superseded'
                     WHEN n IN (4, 11) THEN 'pending' WHEN n IN (5, 12) THEN 'held'
                     WHEN n % 2 = 1 AND n < {ROWS // 2} THEN 'refused' ELSE 'delivered' END AS state
      FROM generate_series(1, {ROWS}) n) drawn;
INSERT INTO jobs (tenant_id, id, kind, state, request, created_at, turn_at, ended_at)
SELECT '{TENANT}', 'job_' || lpad(n::text, 9, '0'), CASE WHEN n < 5 THEN 'recover' ELSE 'backfill' END,
       CASE WHEN n = 7 THEN 'cancelled' WHEN n % 2 = 1 THEN 'done' ELSE 'queued' END, '{{}}', now(), now(),
       CASE WHEN n % 2 = 1 THEN now() END FROM generate_series(1, {ROWS}) n;
INSERT INTO watches (tenant_id, id, scope, address, covered_from, created_at)
SELECT 'ten_small', 'wat_' || n, 'eip155:10', decode(lpad(to_hex(n), 40, '0'), 'hex'), '{{}}', now()
FROM generate_series(1, {ROWS}) n
"""
"""What is rare is the oldest: a walk from the newest on comes by it last. Of the other tenant there is much of what this one
has little of, so that Postgres believes it to be frequent."""


async def execute(engine: AsyncEngine, *statements: str) -> None:
    """In one transaction."""
    async with transaction(engine) as connection:
        for statement in statements:
            await connection.execute(text(statement))


@pytest.fixture
async def owner(database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AsyncEngine]:
    """A ledger in which one tenant has everything, and statistics that know it."""
    monkeypatch.setattr(walks, "LOOKED_MAX", LOOKED_MAX)
    engine = connect(database_url, application="tests", pool_size=1)
    await execute(engine, *_FILL.strip().split(";\n"), "ANALYZE")
    yield engine
    await engine.dispose()


@pytest.fixture
async def api(database_url: str, owner: AsyncEngine) -> AsyncIterator[AsyncEngine]:
    """The API's engine on it."""
    engine = connect_api(database_url, pool_size=1)
    yield engine
    await engine.dispose()


def counted(ask: Callable[[AsyncConnection], Any], *path: str) -> Ask:
    """How many rows what `ask` answers has, itself or where the path leads."""

    async def _ask(connection: AsyncConnection) -> int:
        found = await ask(connection)
        for name in path:
            found = getattr(found, name)
        return len(found)

    return _ask


MIDDLE = ((int(NOW.timestamp()) + ROWS // 2) * 1_000_000, "del_5")


def deliveries_by(after: Any = None, **wanted: Any) -> Ask:  # noqa: ANN401
    """A page of deliveries."""
    asked = DeliveryFilter(**wanted)
    return counted(lambda connection: list_deliveries(connection, TENANT, asked, after=after, limit=PAGE), "deliveries")


def watches_by(after: str | None = None, **wanted: Any) -> Ask:  # noqa: ANN401
    """A page of watches."""
    place, asked = WatchId(after) if after else None, WatchFilter(**wanted)
    return counted(lambda connection: list_watches(connection, TENANT, asked, after=place, limit=PAGE), "watches")


def jobs_by(after: str | None = None, **wanted: Any) -> Ask:  # noqa: ANN401
    """A page of jobs."""
    place = JobId(after) if after else None
    return counted(lambda connection: list_jobs(connection, TENANT, **wanted, after=place, limit=PAGE))


async def endpoints_there(connection: AsyncConnection) -> int:
    """A page of endpoints, from behind the deleted ones on."""
    rows, _ = await list_endpoints(connection, TENANT, after=EndpointId("ep_000060"), limit=PAGE)
    return len(rows)


async def endpoints_behind_deleted_ones(connection: AsyncConnection) -> int:
    """The first page of endpoints: the newest are deleted."""
    rows, place = await list_endpoints(connection, TENANT, limit=PAGE)
    assert place is not None
    return len(rows)


async def place_of_a_time(connection: AsyncConnection) -> int:
    """One row: where the feed goes on from a time in its middle."""
    moment = (await connection.execute(text(f"SELECT {MADE_AT} FROM (VALUES ({ROWS // 2})) v (n)"))).scalar_one()
    place = await find_feed_place(connection, TENANT, moment + timedelta(hours=1))
    assert place > ROWS // 2
    return 1


EXHAUSTED, DISCARDED, DELIVERED = DeliveryState.EXHAUSTED, DeliveryState.DISCARDED, DeliveryState.DELIVERED
PENDING, HELD, REFUSED = DeliveryState.PENDING, DeliveryState.HELD, DeliveryState.REFUSED
FIRST, OLD, RESTING = "ep_000001", "ep_000002", "ep_000003"

TIGHT_LISTS: dict[str, tuple[Ask, int]] = {
    "feed": (counted(lambda connection: list_events(connection, TENANT, limit=PAGE)), PAGE),
    "feed from the middle": (
        counted(lambda connection: list_events(connection, TENANT, after=ROWS // 2, limit=PAGE)),
        PAGE,
    ),
    "events of one": (counted(lambda connection: list_events(connection, TENANT, subject="dep_77", limit=PAGE)), 1),
    "deliveries": (deliveries_by(), PAGE),
    "deliveries from the middle": (deliveries_by(MIDDLE), PAGE),
    "deliveries of an event": (deliveries_by(event_id="evt_77"), 1),
    "deliveries of an entry": (deliveries_by(subject="dep_77"), 1),
    "deliveries of an entry in a state": (deliveries_by(subject="dep_77", state=DELIVERED), 0),
    "deliveries of an endpoint": (deliveries_by(endpoint_id=FIRST), PAGE),
    "deliveries of an endpoint from the middle": (deliveries_by(MIDDLE, endpoint_id=FIRST), PAGE),
    "deliveries of an endpoint with few": (deliveries_by(endpoint_id=OLD), 3),
    "exhausted": (deliveries_by(state=EXHAUSTED), 2),
    "discarded": (deliveries_by(state=DISCARDED), 2),
    "refused": (deliveries_by(state=REFUSED), PAGE),
    "refused from the middle": (deliveries_by(MIDDLE, state=REFUSED), PAGE),
    "exhausted, of an endpoint": (deliveries_by(endpoint_id=FIRST, state=EXHAUSTED), 1),
    "refused, of an endpoint": (deliveries_by(endpoint_id=FIRST, state=REFUSED), PAGE),
    "discarded, of an endpoint": (deliveries_by(endpoint_id=FIRST, state=DISCARDED), 1),
    "watches from the middle of the live ones": (watches_by(f"wat_{ROWS // 2:09}"), PAGE),
    "watches of a chain": (watches_by(scopes=["eip155:1", "evm"]), PAGE),
    "watches by address": (watches_by(address=(77).to_bytes(20, "big")), 1),
    "watches by reference": (watches_by(reference="order-76"), 1),
    "watches by a reference that many have": (watches_by(f"wat_{ROWS // 3:09}", reference="till"), PAGE),
    "jobs": (jobs_by(), PAGE),
    "jobs of a kind": (jobs_by(kind=JobKind.RECOVER), 4),
    "jobs of a kind and state": (jobs_by(kind=JobKind.BACKFILL, state=JobState.CANCELLED), 1),
    "jobs in a frequent state": (jobs_by(state=JobState.QUEUED), PAGE),
    "jobs in a state that none is in": (jobs_by(state=JobState.FAILED), 0),
    "endpoints": (endpoints_there, 50),
}
BOUND_LISTS: dict[str, tuple[Ask, int]] = {
    "feed from a time": (place_of_a_time, 1),
    "delivered": (deliveries_by(state=DELIVERED), PAGE),
    "delivered, of an endpoint": (deliveries_by(endpoint_id=FIRST, state=DELIVERED), PAGE),
    "delivered, of an endpoint with few": (deliveries_by(endpoint_id=OLD, state=DELIVERED), 0),
    "deliveries of an event with very many": (deliveries_by(event_id="evt_many"), PAGE),
    "exhausted, of an event with very many": (deliveries_by(event_id="evt_many", state=EXHAUSTED), 1),
    "pending": (deliveries_by(state=PENDING), 1),
    "held": (deliveries_by(state=HELD), 3),
    "held, from the middle": (deliveries_by(MIDDLE, state=HELD), 3),
    "pending, of an endpoint": (deliveries_by(endpoint_id=FIRST, state=PENDING), 1),
    "held, of a resting endpoint": (deliveries_by(endpoint_id=RESTING, state=HELD), 2),
    "watches": (watches_by(), PAGE),
    "watches behind deleted ones": (watches_by(f"wat_{ROWS - 150:09}"), 49),
    "watches of a chain with few": (watches_by(scopes=["eip155:10"]), 5),
    "watches of a chain without any": (watches_by(scopes=["eip155:5"]), 0),
    "watches by a reference behind deleted ones": (watches_by(f"wat_{ROWS - 300:09}", reference="till"), 0),
    "endpoints behind deleted ones": (endpoints_behind_deleted_ones, 0),
}


async def looks_at(engine: AsyncEngine, lists: dict[str, tuple[Ask, int]], *, is_generic: bool) -> dict[str, Look]:
    """What each page looks at; it answers what it should."""
    looks = {name: await look_at(engine, TENANT, ask, is_generic=is_generic) for name, (ask, _) in lists.items()}
    assert {name: look.answered for name, look in looks.items()} == {name: n for name, (_, n) in lists.items()}
    return looks


@pytest.mark.parametrize("is_generic", [False, True], ids=["plans for these parameters", "plans for all"])
async def test_every_list_reads_by_index_and_within_bounds(api: AsyncEngine, is_generic: bool) -> None:
    tight = await looks_at(api, TIGHT_LISTS, is_generic=is_generic)
    bound = await looks_at(api, BOUND_LISTS, is_generic=is_generic)
    assert {name: look for name, look in (tight | bound).items() if look.sequential} == {}
    assert {name: look for name, look in tight.items() if look.rows > TIGHT} == {}
    assert {name: look for name, look in bound.items() if look.rows > BOUND} == {}


async def test_what_was_frequent_and_is_rare_by_now_is_not_looked_for_through_the_table(
    api: AsyncEngine, owner: AsyncEngine
) -> None:
    """A receiver was down, Postgres counted, and then everything was delivered."""
    await execute(
        owner,
        "ALTER TABLE deliveries SET (autovacuum_enabled = false)",
        "UPDATE deliveries SET state = 'pending', settled_at = NULL WHERE feed_position > 100",
        "ANALYZE deliveries",
        "UPDATE deliveries SET state = 'delivered', settled_at = now() WHERE feed_position > 100",
    )
    lists = {name: BOUND_LISTS[name] for name in ("held", "pending, of an endpoint", "held, of a resting endpoint")}
    for is_generic in (False, True):
        looks = await looks_at(api, lists, is_generic=is_generic)
        assert {name: look for name, look in looks.items() if look.sequential or look.rows > BOUND} == {}
