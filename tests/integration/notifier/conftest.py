"""A ledger with a tenant, endpoints at real receivers on loopback, and dispatchers that run while a block does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from typing import Any

import pytest
from sqlalchemy import Row, insert, select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from ledger.database import connect, transaction
from ledger.endpoints import create_endpoint
from ledger.events import LIVE_PRIORITY, NewEvent, record_events
from ledger.ids import EndpointId, EventId, TenantId
from ledger.schema import attempts, deliveries, endpoints, tenants
from ledger.secrets import SecretBox
from ledger.urls import EndpointPolicy
from notifier.backoff import ATTEMPTS_MAX
from notifier.claiming import IDLE_INTERVAL_S
from notifier.dispatcher import Dispatcher
from notifier.sender import Sender, TimeLimits
from tests.fakes.receiver import Receiver

TENANT = TenantId("ten_a")
MASTER_KEY = b"k" * 32
LOOPBACK = EndpointPolicy(allow_http=True, allow_private=(ip_network("127.0.0.0/8"),))
PUBLIC_ONLY = EndpointPolicy(allow_http=True)
EXCHANGE_S = 60.0
"""Time limit of an exchange: no machine is so slow that one comes to it."""
SHORT_EXCHANGE_S = 3.0
"""The same where something hangs, which then is over soon."""
LEASE_S = 40.0


SCHEDULE = tuple(timedelta(hours=number) for number in range(ATTEMPTS_MAX))


@pytest.fixture(autouse=True)
def _patient_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed is tried again when a test says so: after five seconds, a slow machine would do it in between."""
    monkeypatch.setattr("notifier.backoff.SCHEDULE", SCHEDULE)


@dataclass
class Post:
    """What a test needs to say: who is to be told, what happened, who is at work, and what became of it."""

    engine: AsyncEngine
    url: str
    secret_box: SecretBox = field(default_factory=lambda: SecretBox(MASTER_KEY))

    async def add_endpoint(
        self, receiver: Receiver, event_types: Sequence[str] | None = None, max_per_s: int | None = None
    ) -> EndpointId:
        """An endpoint at a receiver, which learns its secret."""
        async with transaction(self.engine) as connection:
            row, secret = await create_endpoint(
                connection,
                self.secret_box,
                tenant_id=TENANT,
                url=receiver.url,
                event_types=event_types,
                description=None,
                max_per_s=max_per_s,
                now=datetime.now(UTC),
            )
        receiver.secrets.append(secret)
        return row.id

    async def record(
        self, subject: str, sequence: int = 1, event_type: str = "deposit.detected", priority: int = LIVE_PRIORITY
    ) -> EventId:
        """One event of the tenant."""
        return (await self.record_all([(subject, sequence)], event_type, priority))[0]

    async def record_all(
        self,
        told: Sequence[tuple[str, int]],
        event_type: str = "deposit.detected",
        priority: int = LIVE_PRIORITY,
    ) -> list[EventId]:
        """Events of the tenant in one transaction: subject and sequence of each."""
        news = [
            NewEvent(TENANT, event_type, subject, False, {"id": subject}, sequence, priority=priority)
            for subject, sequence in told
        ]
        async with transaction(self.engine) as connection:
            return await record_events(connection, news, datetime.now(UTC))

    async def execute(self, statement: str, **parameters: object) -> int:
        """Run a statement of the test's own; returns the number of rows."""
        async with transaction(self.engine) as connection:
            return (await connection.execute(text(statement), parameters)).rowcount

    async def make_due(self, event_id: EventId) -> None:
        """As if the wait before the next attempt were over, and the endpoint's rest if its breaker is open."""
        await self.end_rests()
        assert (
            await self.execute(
                "UPDATE deliveries SET due_at = now() WHERE event_id = :id AND state = 'pending'", id=event_id
            )
            == 1
        )

    async def rest_for_long(self) -> None:
        """Wait until an endpoint's breaker is open, and let it rest until a test ends that: its own rest is over soon."""
        statement = "UPDATE endpoints SET rests_until = now() + interval '1 hour' WHERE rests_until > now()"
        while not await self.execute(statement):  # noqa: ASYNC110 - Postgres sets no event
            await asyncio.sleep(0.01)

    async def end_rests(self) -> int:
        """As if endpoints whose breaker is open had rested for long enough; returns how many there are."""
        return await self.execute("UPDATE endpoints SET rests_until = now() WHERE rests_until IS NOT NULL")

    async def rest_of(self, endpoint_id: EndpointId) -> Any:  # noqa: ANN401
        """How an endpoint's breaker stands: until when it rests, and how many rests there were."""
        async with transaction(self.engine) as connection:
            columns = (endpoints.c.rests_until, endpoints.c.rests)
            return (await connection.execute(select(*columns).where(endpoints.c.id == endpoint_id))).one()

    async def expire_leases(self) -> int:
        """As if the leases had run out; returns how many there were."""
        return await self.execute(
            "UPDATE deliveries SET leased_until = now() - interval '1 s' WHERE lease_token IS NOT NULL"
        )

    async def deliveries(self) -> list[Row[Any]]:
        """Every delivery in feed order."""
        async with transaction(self.engine) as connection:
            return list(await connection.execute(select(deliveries).order_by(deliveries.c.feed_position)))

    async def delivery(self, event_id: EventId) -> Row[Any]:
        """The one delivery of an event."""
        [row] = [row for row in await self.deliveries() if row.event_id == event_id]
        return row

    async def attempts(self, event_id: EventId) -> list[Row[Any]]:
        """The attempts to deliver an event, in order."""
        delivery = await self.delivery(event_id)
        async with transaction(self.engine) as connection:
            return list(
                await connection.execute(
                    select(attempts).where(attempts.c.delivery_id == delivery.id).order_by(attempts.c.number)
                )
            )

    async def states(self) -> Mapping[str, int]:
        """How many deliveries are in each state."""
        counts: dict[str, int] = {}
        for row in await self.deliveries():
            counts[row.state] = counts.get(row.state, 0) + 1
        return counts

    async def wait_until(
        self, what: str, condition: Callable[[list[Row[Any]]], bool], deadline_s: float = 120.0
    ) -> None:
        """Return as soon as `condition` holds of the deliveries; fail naming `what` at the deadline."""
        deadline = asyncio.get_running_loop().time() + deadline_s
        while not condition(rows := await self.deliveries()):
            if asyncio.get_running_loop().time() > deadline:
                raise AssertionError(f"not within {deadline_s} s: {what}; {await self.states()}, {rows[:3]}")
            await asyncio.sleep(0.02)

    async def wait_for_attempts(self, event_id: EventId, number: int) -> None:
        """Until an event's attempt of that number is over and settled."""

        def is_settled(rows: list[Row[Any]]) -> bool:
            return any(row.event_id == event_id and row.attempts == number and row.lease_token is None for row in rows)

        await self.wait_until(f"attempt {number} of {event_id} is settled", is_settled)

    async def wait_for_states(self, **counts: int) -> None:
        """Until the deliveries are in these states and no others."""

        def is_so(rows: list[Row[Any]]) -> bool:
            states = [row.state for row in rows]
            return {state: states.count(state) for state in set(states)} == counts

        await self.wait_until(f"deliveries are {counts}", is_so)

    @asynccontextmanager
    async def dispatching(
        self,
        *,
        number: int = 1,
        slots: int = 64,
        policy: EndpointPolicy = LOOPBACK,
        idle_interval_s: float = IDLE_INTERVAL_S,
        exchange_s: float = EXCHANGE_S,
    ) -> AsyncIterator[list[Dispatcher]]:
        """So many dispatchers at work, with an engine and a sender each, until the block ends."""
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            dispatchers = [self._start(group, stop, slots, policy, idle_interval_s, exchange_s) for _ in range(number)]
            ready = [await dispatcher for dispatcher in dispatchers]
            try:
                yield ready
            finally:
                stop.set()

    async def _start(
        self,
        group: asyncio.TaskGroup,
        stop: asyncio.Event,
        slots: int,
        policy: EndpointPolicy,
        idle_interval_s: float,
        exchange_s: float,
    ) -> Dispatcher:
        engine = connect(self.url, application="dispatcher", pool_size=8)
        sender = Sender(policy, version="test", limits=TimeLimits(total_s=exchange_s))
        dispatcher = Dispatcher(
            engine,
            sender,
            self.secret_box,
            slots=slots,
            lease_s=max(LEASE_S, exchange_s + 35),
            idle_interval_s=idle_interval_s,
            randomness=lambda: 0.5,
        )

        async def work() -> None:
            async with sender:
                await dispatcher.run(stop)
            await engine.dispose()

        group.create_task(work())
        return dispatcher


@pytest.fixture
async def post(database_url: str) -> AsyncIterator[Post]:
    """A migrated ledger with one tenant and nothing else."""
    engine = connect(database_url, application="tests", pool_size=5)
    async with transaction(engine) as connection:
        await connection.execute(insert(tenants).values(id=TENANT, name="a", created_at=datetime.now(UTC)))
    yield Post(engine, database_url)
    await engine.dispose()
