"""How fast real `chainbell notify` processes empty a queue: `python -m bench.draining TASK`.

Either everything is there at once, in one commit, or the queue is kept full for a time. Then another session may hold a
snapshot from before: as long as it does, Postgres cleans up nothing of what claims and settlings leave behind.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import aiohttp
import msgspec
import psycopg
import uvloop
from sqlalchemy.ext.asyncio import AsyncEngine

from bench.delivering import ENDPOINTS, RECORDED_AT_ONCE, TENANTS, make_event
from bench.installation import add_tenant, ledger_at, make_history
from bench.isolation import EVENTS_BEFORE, FIRST_BEFORE
from bench.merchants import Heard, Mood
from bench.usage import Usage, cpu_s_of
from bench.watching import plain_url
from chainbell.logs import configure_logs
from chainbell.supervisor import calm_garbage_collector
from ledger.database import transaction
from ledger.events import NewEvent, record_events
from ledger.ids import TenantId

QUEUED_MIN = 5_000
"""Deliveries that wait at the least while the queue is kept full: more than several claims take."""
LOOK_INTERVAL_S = 0.05
EDGE = 20
"""A twentieth of all deliveries is left out at each end: there the processes begin, and have nothing more to do."""
SILENCE_MAX_S = 60.0


class DrainingTask(msgspec.Struct):
    """All `deliveries` are there at once; or, with `seconds`, the queue is kept full for so long."""

    database_url: str
    merchants_url: str
    notify_pids: list[int]
    deliveries: int = 0
    seconds: float = 0.0
    holds_snapshot: bool = False


class Drained(msgspec.Struct):
    """What was delivered in the time that counts."""

    usage: Usage
    """Of all notify processes together."""
    database_cpu_s: float
    """Of Postgres' sessions meanwhile, those of the notify processes."""


class Queue:
    """A ledger that tenants' events are put into, and the merchants that they come out at."""

    def __init__(self, engine: AsyncEngine, session: aiohttp.ClientSession, task: DrainingTask) -> None:
        self.engine = engine
        self.session = session
        self.task = task
        self.tenant_ids: list[TenantId] = []
        self.events = 0
        self.came_at: list[float] = []

    async def open(self) -> None:
        """Make the tenants with their endpoints, all of which want everything, and have got some of it."""
        for tenant in range(TENANTS):
            urls = [f"{self.task.merchants_url}/{Mood.WELL}/{tenant}-{endpoint}" for endpoint in range(ENDPOINTS)]
            self.tenant_ids.append((await add_tenant(self.engine, f"merchant {tenant}", urls))[0])
        before = [make_event(self.tenant_ids[n % TENANTS], FIRST_BEFORE + n) for n in range(EVENTS_BEFORE // ENDPOINTS)]
        await make_history(self.engine, before)

    async def put(self, events: int) -> None:
        """Commit events, each owed to all of its tenant's endpoints."""
        made: list[NewEvent] = []
        for _ in range(events):
            self.events += 1
            made.append(make_event(self.tenant_ids[self.events % TENANTS], self.events))
        async with transaction(self.engine) as connection:
            await record_events(connection, made, datetime.now(UTC))

    @property
    def is_empty(self) -> bool:
        """Everything has come."""
        return len(self.came_at) >= self.events * ENDPOINTS

    async def look(self) -> None:
        """Note what came since the last look. Raises `TimeoutError` when nothing has for long."""
        await asyncio.sleep(LOOK_INTERVAL_S)
        async with self.session.get(f"{self.task.merchants_url}/take") as response:
            heard = msgspec.json.decode(await response.read(), type=list[Heard])
        self.came_at += [one.at for one in heard]
        if self.came_at and not self.is_empty and time.time() - self.came_at[-1] > SILENCE_MAX_S:
            raise TimeoutError(f"{len(self.came_at)} of {self.events * ENDPOINTS} deliveries came")

    async def fill(self) -> None:
        """Let enough wait."""
        while self.events * ENDPOINTS - len(self.came_at) < QUEUED_MIN:
            await self.put(RECORDED_AT_ONCE // ENDPOINTS)


class Meter:
    """CPU time of the notify processes and of the sessions that serve them."""

    def __init__(self, task: DrainingTask) -> None:
        self.notify_pids = task.notify_pids
        with psycopg.connect(plain_url(task.database_url)) as connection:
            query = "SELECT pid FROM pg_stat_activity WHERE application_name = 'chainbell notify'"
            self.session_pids = [int(row[0]) for row in connection.execute(query)]
        self.began = cpu_s_of(self.notify_pids), cpu_s_of(self.session_pids)

    def drained(self, count: int, elapsed_s: float) -> Drained:
        """What it took since the meter was made."""
        usage = Usage(count, elapsed_s, cpu_s_of(self.notify_pids) - self.began[0])
        return Drained(usage, cpu_s_of(self.session_pids) - self.began[1])


async def drain(queue: Queue, deliveries: int) -> Drained:
    """Everything at once. The rate is that without the edges; CPU time is that of the whole."""
    await queue.put(deliveries // ENDPOINTS)
    meter = Meter(queue.task)
    while not queue.is_empty:
        await queue.look()
    came_at = sorted(queue.came_at)
    edge = len(came_at) // EDGE
    between = came_at[-edge - 1] - came_at[edge]
    whole_s = between * len(came_at) / (len(came_at) - 2 * edge)
    return meter.drained(len(came_at), whole_s)


async def keep_full(queue: Queue, seconds: float) -> Drained:
    """As much as there is to do, for a time; the second half of it counts."""
    deadline = time.monotonic() + seconds / 2
    while time.monotonic() < deadline:
        await queue.fill()
        await queue.look()
    meter, before, began = Meter(queue.task), len(queue.came_at), time.monotonic()
    while time.monotonic() < began + seconds / 2:
        await queue.fill()
        await queue.look()
    return meter.drained(len(queue.came_at) - before, time.monotonic() - began)


@contextmanager
def held_snapshot(database_url: str) -> Iterator[None]:
    """Another session that has looked once and does not end its transaction, as a report or a dump does."""
    with psycopg.connect(plain_url(database_url)) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.execute("SELECT count(*) FROM deliveries")
        yield


async def run(task: DrainingTask) -> Drained:
    """Fill and watch."""
    async with ledger_at(task.database_url) as engine, aiohttp.ClientSession() as session:
        queue = Queue(engine, session, task)
        await queue.open()
        if task.deliveries:
            return await drain(queue, task.deliveries)
        if not task.holds_snapshot:
            return await keep_full(queue, task.seconds)
        with held_snapshot(task.database_url):
            return await keep_full(queue, task.seconds)


def main() -> None:
    """Do the task in the first argument and print what it took."""
    task = msgspec.json.decode(sys.argv[1], type=DrainingTask)
    configure_logs()
    calm_garbage_collector()
    sys.stdout.buffer.write(msgspec.json.encode(uvloop.run(run(task))))


if __name__ == "__main__":
    main()
