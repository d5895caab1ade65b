"""What recovering, holding and judging read, at volume: a batch by index, however much an endpoint has had."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.database import database_now, transaction
from ledger.endpoint_health import glance_at
from ledger.failing import find_dead_endpoints, find_failing_endpoints, find_gone_endpoints
from ledger.holding import Held, Only, Task, pause_endpoint, resume_endpoint, start_task
from ledger.ids import DeliveryId, EndpointId
from ledger.recovery import BATCH, claim_recovery, step_recovery
from ledger.redelivery import redeliver
from tests.fakes.receiver import running_receiver
from tests.integration.notifier.conftest import TENANT, Post

DELIVERED = 20_000
PENDING = 1_500
EXHAUSTED = 1_500

Work = Callable[[AsyncConnection], Awaitable[object]]


@pytest.fixture
async def endpoint(post: Post) -> EndpointId:
    """An endpoint that has had a lot, is owed some, and did not take some; another that has had as much."""
    async with running_receiver() as receiver:
        endpoint, other = await post.add_endpoint(receiver), await post.add_endpoint(receiver)
    first = 1
    for endpoint_id, number, state in (
        (endpoint, DELIVERED, "delivered"),
        (endpoint, PENDING, "pending"),
        (endpoint, EXHAUSTED, "exhausted"),
        (other, DELIVERED, "delivered"),
        (other, EXHAUSTED, "exhausted"),
    ):
        range_ = {"first": str(first), "last": str(first + number - 1), "tenant": TENANT}
        await post.execute(_EVENTS, **range_)
        await post.execute(_DELIVERIES, **range_, endpoint=endpoint_id, state=state)
        first += number
    await post.execute("ANALYZE")
    return endpoint


_EVENTS = """
INSERT INTO events (tenant_id, id, feed_position, type, subject, sequence, body, created_at)
SELECT :tenant, 'evt_' || n, n, 'deposit.detected', 'dep_' || n % 10000, 1, '\\x00',
       now() - interval '1 hour' + n * interval '1 ms'
FROM generate_series(CAST(:first AS int), CAST(:last AS int)) n
"""
_DELIVERIES = """
INSERT INTO deliveries (tenant_id, id, event_id, event_type, event_created_at, feed_position, endpoint_id, subject, priority,
                        state, due_at, created_at, settled_at)
SELECT tenant_id, 'del_' || feed_position, id, type, created_at, feed_position, :endpoint, subject, 0, CAST(:state AS text),
       created_at, created_at, CASE WHEN CAST(:state AS text) = 'pending' THEN NULL ELSE now() END
FROM events WHERE tenant_id = :tenant AND feed_position BETWEEN CAST(:first AS int) AND CAST(:last AS int)
"""


@contextmanager
def noting(connection: AsyncConnection) -> Iterator[list[tuple[str, Any]]]:
    """Every statement that goes by meanwhile, with its parameters."""
    seen: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: object) -> None:  # noqa: ANN401
        seen.append((statement, parameters))

    event.listen(connection.sync_connection, "before_cursor_execute", note)
    yield seen
    event.remove(connection.sync_connection, "before_cursor_execute", note)


async def rows_read(connection: AsyncConnection) -> int:
    """How many rows of deliveries, events and attempts this connection has looked at lately, by whatever way."""
    counted = await connection.execute(
        text(
            "SELECT coalesce(sum(coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0)), 0) FROM pg_stat_xact_all_tables"
            " WHERE relname = 'deliveries' OR relname LIKE 'events%' OR relname LIKE 'attempts%'"
        )
    )
    return int(counted.scalar_one())


async def look(post: Post, work: Work, rows_max: int) -> None:
    """Do it, and see how much it reads."""
    async with transaction(post.engine) as connection:
        before = await rows_read(connection)
        with noting(connection) as seen:
            await work(connection)
        read = await rows_read(connection) - before
        plans = [await plan_of(connection, *statement) for statement in seen]
    assert read <= rows_max, f"{read} rows were read:\n" + "\n\n".join(plans)


async def plan_of(connection: AsyncConnection, statement: str, parameters: Mapping[str, Any]) -> str:
    """The plan, for whoever reads of a failure."""
    if not statement.startswith(("SELECT", "UPDATE", "WITH")):
        return statement[:60]
    rows = await connection.exec_driver_sql(f"EXPLAIN {statement}", parameters)
    return "\n".join(line[:160] for line in (statement.replace("\n", " "), *(row[0] for row in rows)))


async def step(connection: AsyncConnection) -> None:
    now = await database_now(connection)
    job = await claim_recovery(connection, now)
    assert job is not None
    await step_recovery(connection, job, now)


async def start(post: Post, endpoint: EndpointId | None, **asked: object) -> None:
    async with transaction(post.engine) as connection:
        await start_task(connection, TENANT, endpoint, Task.RECOVER, asked, await database_now(connection))


async def finish(post: Post) -> None:
    """What a notifier does until no job is left."""
    for _ in range(20):
        async with transaction(post.engine) as connection:
            now = await database_now(connection)
            job = await claim_recovery(connection, now)
            if job is None:
                return
            await step_recovery(connection, job, now)
    raise AssertionError("jobs did not end in 20 steps")


async def test_a_recovery_reads_a_batch_of_events_and_their_deliveries(post: Post, endpoint: EndpointId) -> None:
    since = "2026-01-01T00:00:00+00:00"
    await start(post, endpoint, since=since, until=None, only=Only.FAILED.value)
    for _ in range(3):
        await look(post, step, rows_max=PENDING + 3 * BATCH)
    await post.execute("UPDATE jobs SET state = 'cancelled', ended_at = now(), lease_token = NULL, leased_until = NULL")
    await start(post, None, event_id="evt_17", only=Only.ALL.value)
    await look(post, step, rows_max=20)
    await start(post, None, entry_id="dep_none", only=Only.ALL.value)
    await look(post, step, rows_max=20)

    async def by_hand(connection: AsyncConnection) -> None:
        assert await redeliver(connection, TENANT, DeliveryId("del_17"), await database_now(connection)) is not None

    await look(post, by_hand, rows_max=20)


@pytest.mark.parametrize("held", [Held.ALL, Held.LATEST])
async def test_a_pause_and_a_resumption_read_what_they_change(post: Post, endpoint: EndpointId, held: Held) -> None:
    async with transaction(post.engine) as connection:
        await pause_endpoint(connection, TENANT, endpoint, await database_now(connection), reason="tests")
    for _ in range(PENDING // BATCH + 1):
        await look(post, step, rows_max=2 * PENDING + 3 * BATCH)
    await finish(post)
    async with transaction(post.engine) as connection:
        await resume_endpoint(connection, TENANT, endpoint, held, await database_now(connection))
    for _ in range(PENDING // BATCH + 1):
        await look(post, step, rows_max=16 * BATCH)  # the latest of a lane is found among all that it had
    await finish(post)
    states = await post.states()
    assert states["delivered"] == 2 * DELIVERED
    assert states.get("held", 0) == 0
    assert states["pending"] == (PENDING + EXHAUSTED if held is Held.ALL else PENDING)


async def test_judging_and_a_glance_read_by_index(post: Post, endpoint: EndpointId) -> None:
    """Endpoints that fail for days are those with the longest histories."""
    await post.execute(
        "UPDATE endpoints SET failures_consecutive = 50, gone_answers = 2, failing_since = now() - interval '6 days'"
    )
    await post.execute(
        "INSERT INTO endpoint_windows (tenant_id, endpoint_id, began_at, attempts, accepted, durations)"
        " SELECT tenant_id, id, date_trunc('hour', now()) - n * interval '10 minutes', 9, 9, array_fill(1, ARRAY[19])"
        " FROM endpoints, generate_series(0, 500) n"
    )

    async def judge(connection: AsyncConnection) -> None:
        now = await database_now(connection)
        assert len(await find_gone_endpoints(connection)) == 2
        assert len(await find_dead_endpoints(connection, now)) == 2
        assert len(await find_failing_endpoints(connection, now + timedelta(seconds=1))) == 2

    await look(post, judge, rows_max=10)

    async def glance(connection: AsyncConnection) -> None:
        found = await glance_at(connection, TENANT, endpoint, await database_now(connection))
        owed = found.owed
        assert (owed.pending, owed.held, owed.exhausted, owed.refused) == (PENDING, 0, EXHAUSTED, 0)
        assert 1_200 < found.last_day.attempts < 1_320

    await look(post, glance, rows_max=PENDING + EXHAUSTED)
