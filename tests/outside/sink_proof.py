"""Scenarios of accidents in the middle of a delivery. All of one comes from its seed: which points, lanes and endpoints.

Each seed has endpoints and entries of its own. At each of its points a batch of events is committed, something dies or
freezes exactly there, and comes back; what has been claimed by the dead is free once its lease has run out, which is brought
about by moving the lease, not by waiting. At the end `sink_checks.faults` must find none.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from random import Random

from ledger.events import NewEvent
from ledger.ids import TenantId
from tests.fakes.sink import Sink, running_sink
from tests.outside.sink_checks import ACCEPTED, Key, Owed, faults
from tests.outside.sink_world import World
from tests.outside.sockets import Connection, connections_to, owner_of

POLL_S = 0.05
QUIET_S = 20.0
"""How long nothing happens before what is still leased counts as nobody's: claimed by a statement whose answer was lost. Far
longer than a notifier waits for anything here."""
QUIET_LOOKS = 200
"""How often that must have been seen besides: where all are slow, whoever holds the lease is slow too."""
SETTLED_LIMIT_S = 480.0
TARGET_LANE = "wdr_1"
"""The one entry of which the target is told: so there is never more than one delivery to it under way."""


@dataclass
class Figures:
    """What one seed came to."""

    seed: int
    points: tuple[str, ...]
    events: int
    deliveries: int
    receipts: int
    refused: int
    duplicates: int
    """Receipts beyond the first of an event at an endpoint, other than after a refusal."""
    leases_lost: int
    leases_counted: int
    """By the notifiers: `chainbell_leases_expired_total`."""
    leases_unknown: int
    """Claimed by a db transaction whose answer was lost: nobody knew of holding them."""
    faults: list[str]
    duration_s: float

    @property
    def is_right(self) -> bool:
        """Nothing is wrong with any event, and what came again was counted by a notifier too."""
        return not self.faults and self.duplicates <= self.leases_counted


@dataclass
class Play:
    """One seed's endpoints and entries, and what became of them so far."""

    world: World
    chance: Random
    tenants: tuple[TenantId, TenantId]
    everything: Sink
    """Is told of all entries of the first tenant."""
    deposits: Sink
    """Is told of its deposits."""
    target: Sink
    """Is told of the one withdrawal."""
    other: Sink
    """The second tenant's."""
    lanes: int
    sequences: Counter[tuple[TenantId, str]] = field(default_factory=Counter)
    promised: set[Key] = field(default_factory=set)
    lost: Counter[Key] = field(default_factory=Counter)
    unknown: Counter[Key] = field(default_factory=Counter)
    newcomers: int = 0
    dead_tokens: set[str] = field(default_factory=set)

    @property
    def sinks(self) -> tuple[Sink, ...]:
        """All of them."""
        return self.everything, self.deposits, self.target, self.other

    # --- events -------------------------------------------------------------------------------------------------------

    def batch(self, *, of_each: int = 1, padding: int = 0) -> list[NewEvent]:
        """The next events of every entry, mixed, each entry's own in sequence. The target's is padded to so many bytes."""
        first, second = self.tenants
        lanes = [(first, f"dep_{number}") for number in range(self.lanes)]
        lanes += [(second, f"dep_{number}") for number in range(self.lanes)]
        told = lanes * of_each
        self.chance.shuffle(told)
        told.insert(self.chance.randrange(len(told)), (first, TARGET_LANE))
        return [self._next_event(tenant_id, lane, padding if lane == TARGET_LANE else 0) for tenant_id, lane in told]

    def _next_event(self, tenant_id: TenantId, lane: str, padding: int) -> NewEvent:
        self.sequences[tenant_id, lane] += 1
        side = "withdrawal" if lane == TARGET_LANE else "deposit"
        data = {"id": lane, "note": "." * padding}
        return NewEvent(tenant_id, f"{side}.detected", lane, False, data, self.sequences[tenant_id, lane])

    async def write(self, *, of_each: int = 1, padding: int = 0) -> None:
        """Have a batch committed."""
        await self.commit(self.batch(of_each=of_each, padding=padding))

    async def commit(self, news: Sequence[NewEvent]) -> None:
        """Have these committed, and remember whom they were promised to."""
        for event, event_id in zip(news, await self.world.write(news), strict=True):
            self.promised |= {(sink.endpoint_id, event_id) for sink in self._told(event)}

    def _told(self, event: NewEvent) -> tuple[Sink, ...]:
        if event.tenant_id == self.tenants[1]:
            return (self.other,)
        return (self.everything, self.target if event.subject == TARGET_LANE else self.deposits)

    # --- the target's delivery ----------------------------------------------------------------------------------------

    async def token(self) -> str:
        """Of whoever has leased the target's delivery: what all of its claims' tokens begin with."""
        [token] = await self._tokens()
        return token

    async def _tokens(self) -> list[str]:
        rows = await self.world.ask(
            "SELECT lease_token FROM deliveries WHERE endpoint_id = :id AND lease_token IS NOT NULL",
            id=self.target.endpoint_id,
        )
        return [str(row.lease_token).split("-", maxsplit=1)[0] for row in rows]

    async def until_connecting(self, state: str) -> int:
        """Return when a notifier's connection to the target is in this state; the notifier, which stands still from then on:
        on a slow machine it could have given up before it is killed."""

        async def found() -> int | None:
            pid = self.owner(lambda row: row.state == state)
            if pid is None:
                return None
            os.kill(pid, signal.SIGSTOP)
            if self.owner(lambda row: row.state == state) == pid and await self._tokens():
                return pid
            os.kill(pid, signal.SIGCONT)
            return None

        pid = await self.world.installation.until(f"a connection to the target is in state {state}", found)
        assert pid is not None
        return pid

    def owner(self, is_it: Callable[[Connection], bool]) -> int | None:
        """The notifier with such a connection to the target."""
        pids = self.world.notifiers()
        owners = (owner_of(row, pids) for row in connections_to(self.target.port) if is_it(row))
        return next((pid for pid in owners if pid is not None), None)

    def sender(self, peer_port: int) -> int:
        """The notifier whose request came to the target from this port."""
        pid = self.owner(lambda row: row.local_port == peer_port)
        assert pid is not None, f"no notifier has port {peer_port}"
        return pid

    async def kill(self, pid: int) -> str:
        """`kill -9` of a notifier that has leased the target's delivery; its token."""
        token = await self.token()
        await self.world.kill_notifier(pid)
        return token

    async def outlive(self, token: str) -> None:
        """While the leases of the dead stand, go on: the next events of all entries are committed, and a newcomer's. Once
        that has come, the others have looked for work with all this before them. Then the leases may end."""
        self.newcomers += 1
        newcomer = f"dep_new_{self.newcomers}"
        await self.commit([*self.batch(), self._next_event(self.tenants[1], newcomer, 0)])

        async def has_come() -> bool:
            return any(receipt.subject == newcomer for receipt in self.other.receipts)

        await self.world.installation.until("others go on", has_come)
        self.dead_tokens.add(token)

    def came(self, event_id: str) -> int:
        """How often an event came to the target."""
        return sum(receipt.event_id == event_id for receipt in self.target.receipts)

    def target_key(self, event_id: str) -> Key:
        """An event's delivery to the target."""
        return self.target.endpoint_id, event_id

    # --- time passes --------------------------------------------------------------------------------------------------

    async def _expire(self, *tokens: str) -> None:
        """End the leases of these, who are dead or frozen."""
        self.lost += await self.world.expire_leases(
            "split_part(lease_token, '-', 1) = ANY(:tokens)", tokens=sorted(tokens)
        )

    async def until_expired(self, token: str, event_id: str) -> None:
        """End the leases of one who stands still, the target's of this event among them."""
        self.dead_tokens.add(token)

        async def is_expired() -> bool:
            await self.world.end_stuck_transactions()
            await self._expire(*self.dead_tokens)
            return self.lost[self.target_key(event_id)] > 0

        await self.world.installation.until("the frozen one's lease has run out", is_expired)

    async def until_settled(self, sinks: Sequence[Sink]) -> None:
        """Let time pass, for leases of the dead and for retries, until nothing is owed to these endpoints."""
        ids = [sink.endpoint_id for sink in self.sinks]
        deadline = time.monotonic() + SETTLED_LIMIT_S
        seen: list[object] = []
        quiet_since, looks = time.monotonic(), 0
        while True:
            await self._pass_time(ids)
            rows = await self.world.ask(
                "SELECT endpoint_id, id, attempts, lease_token FROM deliveries"
                " WHERE endpoint_id = ANY(:ids) AND state <> 'delivered' ORDER BY id",
                ids=ids,
            )
            if not any(row.endpoint_id in {sink.endpoint_id for sink in sinks} for row in rows):
                return
            now = time.monotonic()
            assert now < deadline, f"still owed: {rows}\n{self.world.installation.log_tail()}"
            if rows != seen or any(sink.is_busy for sink in self.sinks):
                seen, quiet_since, looks = list(rows), now, 0
            elif now - quiet_since > QUIET_S and looks > QUIET_LOOKS:
                self.unknown += await self.world.expire_leases("endpoint_id = ANY(:ids)", ids=ids)
                quiet_since, looks = now, 0
            looks += 1
            await asyncio.sleep(POLL_S)

    async def _pass_time(self, ids: Sequence[str]) -> None:
        await self.world.end_stuck_transactions()
        await self._expire(*self.dead_tokens)
        await self.world.ask(
            "UPDATE deliveries SET due_at = now() WHERE endpoint_id = ANY(:ids) AND state = 'pending'"
            " AND lease_token IS NULL AND due_at > now()",
            ids=ids,
        )

    # --- the end ------------------------------------------------------------------------------------------------------

    async def find_faults(self) -> list[str]:
        """What is wrong when all has come to rest."""
        receipts = [receipt for sink in self.sinks for receipt in sink.receipts]
        found = faults(self.promised, await self._owed(), receipts, self.lost, self.unknown)
        positions = await self.world.ask(
            "SELECT tenant_id, array_agg(feed_position ORDER BY feed_position) AS positions FROM events"
            " WHERE tenant_id = ANY(:ids) GROUP BY 1",
            ids=list(self.tenants),
        )
        return found + [
            f"the feed of {row.tenant_id} has holes: {row.positions}"
            for row in positions
            if row.positions != list(range(1, len(row.positions) + 1))
        ]

    async def _owed(self) -> list[Owed]:
        rows = await self.world.ask(
            "SELECT d.endpoint_id, d.event_id, d.subject, e.sequence, e.body, e.created_at, d.state, d.attempts"
            " FROM deliveries d JOIN events e ON (e.tenant_id, e.id) = (d.tenant_id, d.event_id)"
            " WHERE d.tenant_id = ANY(:ids)",
            ids=list(self.tenants),
        )
        return [
            Owed(
                row.endpoint_id, row.event_id, row.subject, row.sequence, bytes(row.body),
                row.created_at.timestamp(), row.state, row.attempts,
            )
            for row in rows
        ]  # fmt: skip


@asynccontextmanager
async def playing(world: World, seed: int) -> AsyncIterator[Play]:
    """A seed's tenants and endpoints, which are told nothing after the block."""
    chance = Random(seed)
    tenants = (TenantId(f"ten_{seed}_a"), TenantId(f"ten_{seed}_b"))
    for tenant_id in tenants:
        await world.ask("INSERT INTO tenants (id, name, created_at) VALUES (:id, :id, now())", id=tenant_id)
    async with AsyncExitStack() as stack:
        everything, deposits, target, other = [
            # Each request to the target makes a connection, so that it can be stopped there.
            await stack.enter_async_context(running_sink(chance, keeps_connections=name != "target"))
            for name in ("everything", "deposits", "target", "other")
        ]
        play = Play(world, chance, tenants, everything, deposits, target, other, lanes=chance.randint(4, 10))
        filters = {everything: None, deposits: ["deposit.*"], target: ["withdrawal.*"], other: None}
        for sink, event_types in filters.items():
            await world.open_endpoint(tenants[1] if sink is other else tenants[0], sink, event_types)
        yield play


async def play_seed(world: World, seed: int, points: Mapping[str, Callable[[Play], Awaitable[None]]]) -> Figures:
    """One scenario from its first event to its verdict."""
    began, counted_before = time.monotonic(), world.leases_counted()
    async with playing(world, seed) as play:
        play.everything.refused_next = play.chance.randint(0, 2)
        for point in points.values():
            await point(play)
            await play.until_settled([play.target])
        await play.write()
        await play.until_settled(play.sinks)
        world.notifiers()  # none has ended by itself
        receipts = [receipt for sink in play.sinks for receipt in sink.receipts]
        refused = sum(receipt.status != ACCEPTED for receipt in receipts)
        return Figures(
            seed=seed,
            points=tuple(points),
            events=sum(play.sequences.values()),
            deliveries=len(play.promised),
            receipts=len(receipts),
            refused=refused,
            duplicates=len(receipts) - refused - len(play.promised),
            leases_lost=play.lost.total(),
            leases_counted=world.leases_counted() - counted_before,
            leases_unknown=play.unknown.total(),
            faults=await play.find_faults(),
            duration_s=time.monotonic() - began,
        )
