"""The statements of every claim and every settling, at volume: by index, and quick behind what has to wait."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Executable
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger import bodies, claims, deliveries, owed, suspects
from ledger.by_index import READ_BY_INDEX
from ledger.claims import Claimed
from ledger.database import transaction
from ledger.deliveries import Settlement, settle_deliveries
from ledger.states import DeliveryState
from tests.fakes.claiming import claim_any
from tests.fakes.receiver import running_receiver
from tests.integration.notifier.conftest import TENANT, Post

TOKEN = "t"

SETTLED_ROWS = int(os.environ.get("CHAINBELL_QUEUE_ROWS", "50000"))
"""Of a queue at volume. `CHAINBELL_QUEUE_ROWS=1000000` for a million, by hand."""


async def fill(post: Post, endpoint_id: str, *, number: int, state: str, lanes: int, first_position: int) -> None:
    """So many deliveries in one state, with an event each, spread over lanes."""
    range_ = {"first": first_position, "last": first_position + number - 1, "tenant": TENANT}
    await post.execute(
        "INSERT INTO events (tenant_id, id, feed_position, type, subject, sequence, body, created_at)"
        " SELECT :tenant, 'evt_' || n, n, 'deposit.detected', 'dep', 1, repeat('x', 400)::bytea, now() - interval '1 hour'"
        " FROM generate_series(CAST(:first AS int), CAST(:last AS int)) n",
        **range_,
    )
    await post.execute(
        "INSERT INTO deliveries (tenant_id, id, event_id, event_type, event_created_at, feed_position, endpoint_id, subject,"
        " priority, state, due_at, created_at, settled_at)"
        " SELECT tenant_id, 'del_' || feed_position, id, type, created_at, feed_position, :endpoint,"
        " 'dep_' || (feed_position % CAST(:lanes AS int)), 0, CAST(:state AS text), created_at, created_at,"
        " CASE WHEN CAST(:state AS text) = 'pending' THEN NULL ELSE now() END"
        " FROM events WHERE tenant_id = :tenant AND feed_position BETWEEN :first AND :last",
        endpoint=endpoint_id,
        state=state,
        lanes=lanes,
        **range_,
    )


async def plan_of(connection: AsyncConnection, statement: Executable, parameters: Mapping[str, object]) -> str:
    """The plan that Postgres chooses for a statement, as text."""
    dialect = postgresql.psycopg.dialect()  # type: ignore[no-untyped-call]
    expanded = statement.compile(dialect=dialect).construct_expanded_state(parameters)  # type: ignore[attr-defined]
    rows = await connection.exec_driver_sql(f"EXPLAIN {expanded.statement}", expanded.parameters)
    return "\n".join(row[0] for row in rows)


@pytest.fixture
async def full(post: Post) -> Post:
    """Deliveries of a busy hour: most settled, many due."""
    async with running_receiver() as receiver:
        endpoint_id = await post.add_endpoint(receiver)
    for first in range(1, SETTLED_ROWS, 50_000):
        await fill(post, endpoint_id, number=50_000, state="delivered", lanes=20_000, first_position=first)
    await fill(post, endpoint_id, number=5_000, state="pending", lanes=2_000, first_position=SETTLED_ROWS + 1)
    await post.execute("ANALYZE")
    return post


async def test_a_claim_reads_by_index(full: Post) -> None:
    async with transaction(full.engine) as connection:
        await connection.execute(READ_BY_INDEX.statement)
        plan = await plan_of(connection, claims._claim_with_urls, TO_CLAIM)
        rooms = {"rooms_rows": TO_CLAIM["rooms_rows"]}
        pending = await plan_of(connection, claims._PENDING_FROM.statement, rooms)
    begins = r"ix_deliveries_turn.*\n *Index Cond: \(\(ROW\(tenant_id, endpoint_id, priority, due_at\) >= ROW\(.*_from,"
    assert len(re.findall(begins, plan)) == len(re.findall(begins, pending)) == 2  # of each priority
    assert "ix_deliveries_turn" in plan
    assert "ix_deliveries_lane" in plan
    assert "Seq Scan on deliveries" not in plan


async def test_bodies_are_read_by_index_from_the_days_that_are_asked_for(full: Post) -> None:
    told = json.dumps([{"tenant_id": TENANT, "id": f"evt_{SETTLED_ROWS + 1}", "created_at": "2026-01-01T00:00:00Z"}])
    now = datetime.now(UTC)
    async with transaction(full.engine) as connection:
        await connection.execute(READ_BY_INDEX.statement)
        parameters = {"told_rows": told, "first": now - timedelta(minutes=1), "last": now}
        plan = await plan_of(connection, bodies._bodies, parameters)
    assert "Index Scan using events_" in plan
    assert len(set(re.findall(r"on (events_\d+)", plan))) <= 2, plan


async def test_a_claim_stops_at_its_limit_however_much_is_due(full: Post) -> None:
    async with transaction(full.engine) as connection:
        await connection.execute(READ_BY_INDEX.statement)
        plan = await plan_of(connection, claims._claim_with_urls, TO_CLAIM)
    choice = plan[plan.index("CTE due") : plan.index("CTE claimed")]
    assert "SubPlan" in choice
    assert "ix_deliveries_lane" in choice
    assert "Sort" not in choice
    assert "Hash" not in choice


SETTLED: dict[str, object] = {
    "tenant_id": TENANT,
    "id": f"del_{SETTLED_ROWS + 1}",
    "token": TOKEN,
    "was": "pending",
    "attempts": 1,
    "state": "pending",
    "delay_s": 5.0,
    "given_back": 0,
}
TO_SETTLE: dict[str, object] = {"asked_rows": json.dumps([SETTLED]), "health_rows": "[]"}
TO_CLAIM: dict[str, object] = {
    "lease_s": 60.0,
    "token": TOKEN,
    "rooms_rows": json.dumps([{"tenant_id": TENANT, "endpoint_id": "ep_1", "room": 64}]),
}


async def test_settling_reads_by_index(full: Post) -> None:
    async with transaction(full.engine) as connection:
        plan = await plan_of(connection, deliveries._settle_all, TO_SETTLE)
    assert "pk_deliveries" in plan
    assert "ix_deliveries_lane" in plan
    assert "Seq Scan on deliveries" not in plan


@pytest.mark.parametrize("statement", [claims._claim_with_urls, deliveries._settle_all], ids=["claim", "settle"])
async def test_a_queue_that_postgres_knows_nothing_of_is_read_by_index(post: Post, statement: Executable) -> None:
    """Statistics are old whenever a queue has just filled: the plan must be the right one without them."""
    async with running_receiver() as receiver:
        endpoint_id = await post.add_endpoint(receiver)
    await fill(post, endpoint_id, number=5_000, state="pending", lanes=2_000, first_position=1)
    async with transaction(post.engine) as connection:
        await connection.execute(READ_BY_INDEX.statement)
        plan = await plan_of(connection, statement, TO_CLAIM | TO_SETTLE)
    for other_way in ("Seq Scan on deliveries", "Bitmap", "Sort", "Hash Join", "Merge"):
        assert other_way not in plan, plan


async def multiply(post: Post, table: str, changes: str) -> None:
    """The rows of a table once more for each of four tenants and eight endpoints, with these changes."""
    await post.execute(
        f"INSERT INTO {table} SELECT made.* FROM {table} one, generate_series(1, 4) tenant, generate_series(1, 8) number,"
        f" jsonb_populate_record(one, jsonb_build_object('tenant_id', 'ten_' || tenant, {changes})) made"
    )


async def test_a_claim_reads_no_whole_tenant_where_most_of_it_is_pending(post: Post) -> None:
    """With statistics as new as can be. To read all that a tenant has, and to sort it bit by bit, looks cheap."""
    async with running_receiver() as receiver:
        endpoint_id = await post.add_endpoint(receiver)
    await fill(post, endpoint_id, number=625, state="pending", lanes=625, first_position=1)
    await post.execute(
        "INSERT INTO tenants (id, name, created_at) SELECT 'ten_' || n, n, now() FROM generate_series(1, 4) n"
    )
    await multiply(post, "endpoints", "'id', 'ep_' || number")
    await multiply(post, "deliveries", "'id', one.id || '_' || number, 'endpoint_id', 'ep_' || number")
    await post.execute("ANALYZE")
    async with transaction(post.engine) as connection:
        await connection.execute(READ_BY_INDEX.statement)
        plan = await plan_of(connection, claims._claim_with_urls, TO_CLAIM)
    choice = plan[plan.index("CTE due") : plan.index("CTE claimed")]
    assert choice.count("ix_deliveries_turn") == 2, choice  # of each priority
    assert "Sort" not in choice, choice


@pytest.mark.parametrize("is_known", [True, False], ids=["known", "unknown"])
async def test_who_is_owed_anything_is_found_by_index(post: Post, is_known: bool) -> None:
    async with running_receiver() as receiver:
        endpoint_id = await post.add_endpoint(receiver)
    await fill(post, endpoint_id, number=5_000, state="pending", lanes=5_000, first_position=1)
    if is_known:
        await post.execute("ANALYZE")
    async with transaction(post.engine) as connection:
        await connection.execute(READ_BY_INDEX.statement)
        fresh = await plan_of(connection, owed._FRESH.statement, {"age_s": 1.0})
        place = {"after_tenant_id": "", "after_endpoint_id": "", "limit": 500}
        sweep = await plan_of(connection, owed._SWEEP.statement, place)
    assert "ix_deliveries_due" in fresh
    assert sweep.count("ix_deliveries_turn") >= 3
    assert "Seq Scan on deliveries" not in fresh + sweep


@pytest.mark.parametrize("is_known", [True, False], ids=["known", "unknown"])
async def test_suspects_are_found_among_themselves_however_much_is_due(post: Post, is_known: bool) -> None:
    async with running_receiver() as receiver:
        endpoint_id = await post.add_endpoint(receiver)
    await fill(post, endpoint_id, number=5_000, state="pending", lanes=2_000, first_position=1)
    if is_known:
        await post.execute("ANALYZE")
    async with transaction(post.engine) as connection:
        await connection.execute(READ_BY_INDEX.statement)
        plan = await plan_of(connection, suspects._SUSPECTS.statement, {})
    assert "Index Scan using ix_deliveries_suspects" in plan
    for other_way in ("Seq Scan", "Bitmap", "Sort", "ix_deliveries_due", "ix_deliveries_turn"):
        assert other_way not in plan, plan


async def test_what_others_are_owed_is_not_read_where_little_is_due(post: Post) -> None:
    """By their number, to read all that is due to anybody looks cheap: it would be read for each endpoint, the bad ones'
    retries with it, and each endpoint for each that is owed anything."""
    for number in range(60):
        async with running_receiver() as receiver:
            endpoint_id = await post.add_endpoint(receiver)
        await fill(post, endpoint_id, number=30, state="delivered", lanes=30, first_position=1 + 30 * number)
    await post.execute("ANALYZE")
    await fill(post, endpoint_id, number=100, state="pending", lanes=100, first_position=10_000)
    async with transaction(post.engine) as connection:
        await connection.execute(READ_BY_INDEX.statement)
        claim = await plan_of(connection, claims._claim_with_urls, TO_CLAIM)
        place = {"after_tenant_id": "", "after_endpoint_id": "", "limit": 500}
        sweep = await plan_of(connection, owed._SWEEP.statement, place)
    for plan in (claim[claim.index("CTE due") : claim.index("CTE claimed")], sweep):
        assert "ix_deliveries_turn" in plan
        assert "ix_deliveries_due" not in plan
        assert "Join Filter" not in plan


async def test_a_claim_reads_lanes_one_by_one_however_much_one_endpoint_is_owed(post: Post) -> None:
    """By the average of many small ones, to read a large endpoint's whole backlog once looks cheap."""
    for number in range(30):
        async with running_receiver() as receiver:
            endpoint_id = await post.add_endpoint(receiver)
        few, first = (3, 1 + 3 * number) if number else (4_000, 1_000)
        await fill(post, endpoint_id, number=few, state="pending", lanes=few, first_position=first)
    await post.execute("ANALYZE")
    async with transaction(post.engine) as connection:
        await connection.execute(READ_BY_INDEX.statement)
        plan = await plan_of(connection, claims._claim_with_urls, TO_CLAIM)
    assert "Materialize" not in plan


async def test_settling_looks_at_what_it_settles_and_not_at_the_queue(post: Post) -> None:
    """Where few are pending, their index looks cheap to Postgres: it would be read whole, once for each row."""
    async with running_receiver() as receiver:
        endpoint_id = await post.add_endpoint(receiver)
    await fill(post, endpoint_id, number=4_000, state="pending", lanes=4_000, first_position=1)
    await post.execute("ANALYZE")
    async with transaction(post.engine) as connection:
        await connection.execute(READ_BY_INDEX.statement)
        plan = await plan_of(connection, deliveries._settle_all, TO_SETTLE)
    settling = plan[plan.index("CTE settled") : plan.index("CTE moved")]
    assert "Index Scan using pk_deliveries" in settling
    assert "ix_deliveries_turn" not in settling


async def test_lanes_that_wait_are_not_looked_at_by_claims(full: Post) -> None:
    """A merchant that is down leaves a queue behind each failed delivery: it must not slow what others are owed."""
    while claimed := await claim(full, limit=1_000):
        failures = [Settlement(delivery, DeliveryState.PENDING, timedelta(minutes=10)) for delivery in claimed]
        async with transaction(full.engine) as connection:
            assert len((await settle_deliveries(connection, failures)).ids) == len(claimed)
    assert await full.execute("SELECT 1 FROM deliveries WHERE state = 'pending'") == 5_000
    assert await full.execute("SELECT 1 FROM deliveries WHERE state = 'pending' AND due_at <= now()") == 0


async def claim(post: Post, limit: int) -> list[Claimed]:
    """Claim as a dispatcher does."""
    async with transaction(post.engine) as connection:
        return await claim_any(connection, limit, lease_s=60.0, token=TOKEN)
