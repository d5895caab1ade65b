"""Notifiers as an operator runs them over a Postgres that may be killed, a process that commits events, merchants' sinks.

Nothing of the product is changed for it. The moments in the middle of a db transaction are found from outside: the test
holds a lock that the transaction needs, and Postgres tells who waits for it.
"""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector
from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncEngine

from ledger.database import connect, transaction
from ledger.endpoints import create_endpoint
from ledger.events import NewEvent
from ledger.ids import TenantId
from ledger.secrets import SecretBox
from tests.fakes.sink import Sink
from tests.fixtures.cluster import Cluster
from tests.outside.installation import LOCAL_ENDPOINTS, MASTER_KEY, Installation, installed
from tests.outside.sink_checks import Key

NOTIFIERS = 2
METRICS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Where processes keep what they count, as under `chainbell run`: it outlives them."""
BARRIER = 7_041
"""Advisory lock on which the points in the middle of a db transaction wait."""

POINTS = f"""
CREATE TABLE proof_points (point text NOT NULL, endpoint_id text NOT NULL);
CREATE FUNCTION proof_wait() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM proof_points WHERE point = TG_ARGV[0] AND endpoint_id = NEW.endpoint_id) THEN
        PERFORM pg_advisory_xact_lock_shared({BARRIER});
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER proof_fan_out BEFORE INSERT ON deliveries FOR EACH ROW EXECUTE FUNCTION proof_wait('fan-out');
CREATE CONSTRAINT TRIGGER proof_commit AFTER UPDATE ON deliveries DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.state = 'delivered') EXECUTE FUNCTION proof_wait('commit');
CREATE FUNCTION proof_lengthen() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.leased_until := NEW.leased_until + interval '1 hour';
    RETURN NEW;
END $$;
CREATE TRIGGER proof_leases BEFORE UPDATE ON deliveries FOR EACH ROW
    WHEN (NEW.leased_until > now() AND NEW.leased_until IS DISTINCT FROM OLD.leased_until)
    EXECUTE FUNCTION proof_lengthen();
"""
"""A deferred trigger runs inside COMMIT: who waits in it has done all of its work and has not committed. And no lease ends
by itself, however slow all are: they end when a scenario has them end, and are counted then."""


@dataclass
class World:
    """Made by `sink_world`."""

    installation: Installation
    cluster: Cluster
    engine: AsyncEngine
    secret_box: SecretBox
    writer: asyncio.subprocess.Process | None = None
    numbers: count[int] = field(default_factory=lambda: count(1))

    # --- processes ----------------------------------------------------------------------------------------------------

    async def start_notifier(self) -> None:
        """One more `chainbell notify`."""
        await self.installation.start("notify", name=f"notify-{next(self.numbers)}")

    def notifiers(self) -> dict[int, str]:
        """Those that should run, by process id; fails when one has ended by itself."""
        found = {}
        for name, process in self.installation.processes.items():
            assert process.returncode is None, f"{name} ended by itself:\n{self.installation.log_tail(40)}"
            found[process.pid] = name
        return found

    async def kill_notifier(self, pid: int) -> None:
        """`kill -9`, and start another in its place."""
        await self.installation.kill(self.notifiers()[pid])
        await self.start_notifier()

    async def until_all_at_work(self) -> None:
        """Return when each notifier has come to listening for news: one that loses the database before that says so and
        ends, and its service manager would start it again. Who listens asks now and then whether the session still lives."""

        async def all_listen() -> bool:
            rows = await self.ask(
                "SELECT FROM pg_stat_activity WHERE application_name = 'chainbell notify' AND state = 'idle'"
                " AND (query LIKE 'LISTEN%' OR query = 'SELECT 1')"
            )
            return len(rows) == len(self.notifiers())

        await self.installation.until("all notifiers are at work", all_listen)

    async def start_writer(self) -> None:
        """The process that commits events."""
        self.writer = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.outside.sink_writer", self.cluster.url,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip

    def ask_writer(self, news: Sequence[NewEvent]) -> None:
        """Have a transaction written, without waiting for it."""
        assert self.writer is not None and self.writer.stdin is not None
        self.writer.stdin.write(msgspec.json.encode(news) + b"\n")

    async def write(self, news: Sequence[NewEvent]) -> list[str]:
        """Have a transaction written; the ids of what was committed."""
        self.ask_writer(news)
        assert self.writer is not None and self.writer.stdout is not None
        async with asyncio.timeout(120):
            answer = await self.writer.stdout.readline()
        assert answer, "the writer ended by itself"
        return list(msgspec.json.decode(answer))

    async def kill_writer(self) -> None:
        """`kill -9`."""
        if self.writer is not None and self.writer.returncode is None:
            self.writer.kill()
            await self.writer.wait()

    # --- Postgres -----------------------------------------------------------------------------------------------------

    async def ask(self, statement: str, **parameters: object) -> list[Row[Any]]:
        """Rows of a statement of the test's own, committed."""
        async with transaction(self.engine) as connection:
            result = await connection.execute(text(statement), parameters)
            return list(result.all()) if result.returns_rows else []

    async def expire_leases(self, condition: str, **parameters: object) -> Counter[Key]:
        """As if the time of these leases had passed, by the database's clock; whose they were. One whose row is locked
        at the moment keeps its time."""
        rows = await self.ask(
            "UPDATE deliveries SET leased_until = now() - interval '1 s' WHERE (tenant_id, id) IN (SELECT tenant_id, id"
            f" FROM deliveries WHERE leased_until > now() AND {condition} FOR UPDATE SKIP LOCKED)"
            " RETURNING endpoint_id, event_id",
            **parameters,
        )
        return Counter((row.endpoint_id, row.event_id) for row in rows)

    async def end_stuck_transactions(self) -> None:
        """As Postgres ends a notifier's db transaction that says nothing for long: a frozen one may be in the middle of one
        and hold what others need."""
        await self.ask(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'chainbell notify'"
            " AND wait_event = 'ClientRead' AND xact_start < clock_timestamp() - interval '2 s'"
        )

    @asynccontextmanager
    async def holding(self, statement: str, **parameters: object) -> AsyncIterator[int]:
        """A lock that `statement` takes, held for as long as the block lasts; the holder's session."""
        async with transaction(self.engine) as connection:
            await connection.execute(text(statement), parameters)
            yield (await connection.execute(text("SELECT pg_backend_pid()"))).scalar_one()

    def leases_counted(self) -> int:
        """Leases of deliveries that ended with nobody's word, as all notifiers have counted them, the dead ones too."""
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=self.installation.environment[METRICS_VARIABLE])  # type: ignore[no-untyped-call]
        return int(registry.get_sample_value("chainbell_leases_expired_total", {"of": "deliveries"}) or 0)

    @asynccontextmanager
    async def barrier(self, point: str, sink: Sink) -> AsyncIterator[int]:
        """Whoever comes to this point for this endpoint waits for as long as the block lasts; the session they wait for."""
        await self.ask("INSERT INTO proof_points VALUES (:point, :id)", point=point, id=sink.endpoint_id)
        async with self.holding(f"SELECT pg_advisory_xact_lock({BARRIER})") as holder:
            yield holder
        await self.ask("DELETE FROM proof_points")

    async def until_waiting(self, application: str, holder: int) -> Row[Any]:
        """Return when a session of this application waits for one of ours; the session and its statement."""

        async def waiting() -> Row[Any] | None:
            rows = await self.ask(
                "SELECT pid, query FROM pg_stat_activity"
                " WHERE application_name = :name AND CAST(:pid AS int) = ANY(pg_blocking_pids(pid))",
                name=application,
                pid=holder,
            )
            return rows[0] if rows else None

        found = await self.installation.until(f"{application} waits for our lock", waiting)
        assert found is not None
        return found

    async def until_gone(self, session: int) -> None:
        """Return when a session of Postgres has ended."""

        async def is_gone() -> bool:
            return not await self.ask("SELECT FROM pg_stat_activity WHERE pid = :pid", pid=session)

        await self.installation.until("a dead client's session is gone", is_gone)

    async def terminate_notifiers_sessions(self) -> int:
        """End every session of every notifier; how many there were."""
        rows = await self.ask(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'chainbell notify'"
        )
        return len(rows)

    async def restart_postgres(self) -> None:
        """Start the server again that was killed."""
        await asyncio.to_thread(self.cluster.start)

    async def open_endpoint(self, tenant_id: TenantId, sink: Sink, event_types: Sequence[str] | None) -> None:
        """Register a sink, which then knows its secret."""
        async with transaction(self.engine) as connection:
            row, sink.secret = await create_endpoint(
                connection,
                self.secret_box,
                tenant_id=tenant_id,
                url=sink.url,
                event_types=event_types,
                description=None,
                now=datetime.now(UTC),
            )
        sink.endpoint_id = row.id


@asynccontextmanager
async def sink_world(directory: Path, cluster: Cluster) -> AsyncIterator[World]:
    """Notifiers at work on an empty ledger, and a writer."""
    async with installed(directory, cluster.url, LOCAL_ENDPOINTS) as installation:
        metrics = directory / "metrics"
        metrics.mkdir()
        installation.environment[METRICS_VARIABLE] = str(metrics)
        await installation.command("migrate")
        engine = connect(cluster.url, application="sink proof", pool_size=4)
        world = World(installation, cluster, engine, SecretBox(base64.b64decode(MASTER_KEY)))
        try:
            await world.ask(POINTS)
            for _ in range(NOTIFIERS):
                await world.start_notifier()
            await world.start_writer()
            yield world
        finally:
            await world.kill_writer()
            for pid in list(world.installation.processes.values()):
                if pid.returncode is None:
                    os.kill(
                        pid.pid, signal.SIGCONT
                    )  # one that a failed test left frozen would not hear that it should end
            await installation.stop_all()
            await engine.dispose()
