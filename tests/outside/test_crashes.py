"""`kill -9` of every role and of Postgres, at random moments under load: afterwards each deposit is in the ledger once, each
event is at the merchant, and nothing came twice but with the same `webhook-id` and bytes."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from chainbell.demo.anvil import AnvilNode, anvil
from tests.fakes.receiver import Behaviour, Receiver, hang, running_receiver
from tests.fixtures.cluster import Cluster, own_cluster
from tests.outside.installation import DEADLINE_S, LOCAL_ENDPOINTS, POLL_S, Installation, Tenant, installed
from tests.outside.payments import new_address, receipt_of, send, submit

ROLES = ("follow", "notify", "serve")
BLOCKS_MIN = 15
PAYMENTS_A_BLOCK = 10
BLOCK_TIME_S = 0.3
LEASE_S = 60.0
"""What a killed notifier had claimed is free for another one after this."""


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with own_cluster() as made:
        yield made


@dataclass
class Load:
    """A backend that registers an address for each block, whatever it takes, and customers who pay to all of them."""

    node: AnvilNode
    shop: Tenant
    chance: random.Random
    accounts: list[str]
    addresses: list[str] = field(default_factory=list)
    transactions: list[str] = field(default_factory=list)

    async def run(self, is_over: asyncio.Event) -> None:
        """Register and pay, block after block, at least until `is_over`."""
        await self.node.rpc("evm_setAutomine", False)
        while not is_over.is_set() or len(self.addresses) < BLOCKS_MIN:
            await self._register()
            payers = self.chance.sample(self.accounts, PAYMENTS_A_BLOCK)
            sent = [
                await submit(self.node, payer, to=self.chance.choice(self.addresses), value=self.chance.randint(1, 99))
                for payer in payers
            ]
            await self.node.mine()
            self.transactions += [str((await receipt_of(self.node, row))["transactionHash"]) for row in sent]
            await asyncio.sleep(BLOCK_TIME_S)

    async def _register(self) -> None:
        """Ask with one idempotency key until there is an answer: how a backend meets an API that is being killed."""
        address = new_address()
        body = {"watches": [{"chain": "local", "address": address, "reference": f"order-{len(self.addresses)}"}]}
        headers = {"idempotency-key": f"register-{address}"}

        async def is_registered() -> bool:
            try:
                answer = await self.shop.ask("POST", "/v1/watches", body, headers)
            except aiohttp.ClientError:
                return False
            assert answer.status in (200, 201, 409, 503), answer
            return answer.status < 300

        await self.shop.installation.until("a watch is registered", is_registered)
        self.addresses.append(address)


def slow_answer(chance: random.Random) -> Behaviour:
    """Accept after a moment, so that a kill finds something in flight."""

    async def behave(_: web.BaseRequest) -> web.StreamResponse:
        await asyncio.sleep(chance.uniform(0.0, 0.1))
        return web.Response(status=204)

    return behave


@dataclass
class ServiceManager:
    """Starts again whatever ended, killed or by itself: a role that starts while Postgres recovers says so and ends."""

    installation: Installation
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def restart(self, role: str, *, is_needed: bool = True) -> None:
        """Kill a role, if it has not ended by itself, and start it again: only if it has, where it is not needed."""
        async with self.turn:
            if is_needed or self.installation.processes[role].returncode is not None:
                await self.installation.kill(role)
                await self.installation.start(role)

    async def keep_running(self, is_over: asyncio.Event) -> None:
        """Start each role again that ended by itself, until `is_over`."""
        while not is_over.is_set():
            for role in ROLES:
                await self.restart(role, is_needed=False)
            await asyncio.sleep(POLL_S)


async def kill_at_random(
    manager: ServiceManager, cluster: Cluster, chance: random.Random, receiver: Receiver, is_over: asyncio.Event
) -> None:
    """The notifier while its first request waits for an answer; then three kills of each role and one of Postgres, in
    random order, after random pauses; each is started again at once, so that it can be killed while it starts."""
    await receiver.wait_until("the first request waits", lambda: bool(receiver.requests))
    await manager.restart("notify")
    victims = [*ROLES * 3, "postgres"]
    chance.shuffle(victims)
    for victim in victims:
        await asyncio.sleep(chance.uniform(0.1, 2.0))
        if victim == "postgres":
            cluster.kill()
            await asyncio.to_thread(cluster.start)
        else:
            await manager.restart(victim)
    is_over.set()


def settings(node: AnvilNode) -> str:
    """Without traces: a follower that is killed and comes back traces many blocks at once, which locks Anvil up while it
    mines (`chainbell.demo.anvil`)."""
    return f"""{LOCAL_ENDPOINTS}
[chains.local]
profile = "anvil"
chain_id = "eip155:31337"
nodes = [ {{ url = "{node.url}" }} ]
start = 0
poll_interval_s = 0.1
internal = "off"
"""


async def test_run_outlives_a_postgres_and_a_follower_that_are_killed_together(
    cluster: Cluster, tmp_path: Path
) -> None:
    async with (
        anvil() as node,
        running_receiver() as receiver,
        installed(tmp_path, cluster.url, settings(node)) as installation,
    ):
        await installation.run()
        shop = await installation.tenant("shop")
        await shop.open_endpoint(receiver)
        first, second = new_address(), new_address()
        await shop.watch("local", first, second)
        accounts = await node.rpc("eth_accounts")
        await send(node, accounts[0], to=first, value=1)
        await receiver.wait_until("the first deposit is told", lambda: len(receiver.requests) == 1)
        cluster.kill()
        os.kill(child_of(installation, "follow"), signal.SIGKILL)
        await send(node, accounts[0], to=second, value=2)
        await installation.until("the follower complains", lambda: complains(installation, "follow"))
        await asyncio.to_thread(cluster.start)
        await receiver.wait_until("both are told, the first to its credit", lambda: len(receiver.requests) == 3)
        await shop.until_delivered()
        assert [row["amount_atomic"] for row in await shop.rows("/v1/deposits")] == ["2", "1"]
        assert {event["id"] for event in await shop.feed()} == {request.event_id for request in receiver.requests}
        await installation.stop("run")


def child_of(installation: Installation, role: str) -> int:
    """Process id of a supervised role, as the log tells it."""
    return [int(line["pid"]) for line in logged(installation, "role started") if line["role"] == role][-1]


def logged(installation: Installation, event: str) -> list[dict[str, Any]]:
    """The lines of the log that tell of one kind of event."""
    lines = [json.loads(line) for line in installation.log_text().splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == event]


async def complains(installation: Installation, role: str) -> bool:
    """True once the supervisor has seen that role die twice: of the kill, and of the database that is away."""
    return len([line for line in logged(installation, "role died") if line["role"] == role]) >= 2


@pytest.mark.parametrize("seed", [1])
async def test_whatever_is_killed_under_load_nothing_is_lost_doubled_or_out_of_order(
    seed: int, cluster: Cluster, tmp_path: Path
) -> None:
    chance = random.Random(seed)
    async with (
        anvil(extra_args=["--slots-in-an-epoch", "4", "--accounts", "20"]) as node,
        running_receiver(behaviour=slow_answer(chance)) as receiver,
        installed(tmp_path, cluster.url, settings(node)) as installation,
    ):
        await installation.command("migrate")
        for role in ROLES:
            await installation.start(role)
        await installation.ready()
        shop = await installation.tenant("shop")
        await shop.open_endpoint(receiver)
        load = Load(node, shop, chance, await node.rpc("eth_accounts"))
        receiver.script(hang())
        manager = ServiceManager(installation)
        is_paid, is_over = asyncio.Event(), asyncio.Event()
        async with asyncio.TaskGroup() as managing:
            managing.create_task(manager.keep_running(is_paid))
            async with asyncio.TaskGroup() as group:
                group.create_task(load.run(is_over))
                group.create_task(kill_at_random(manager, cluster, chance, receiver, is_over))
            is_paid.set()
        for role in ROLES:
            await manager.restart(role)
        await installation.ready()
        last = await node.height()
        await node.mine(9)
        await shop.until_final("local", last)
        await shop.until_delivered(LEASE_S + DEADLINE_S)
        await check_ledger(load)
        await check_merchant(load, receiver)
        for role in ROLES:
            await installation.stop(role)  # none has ended by itself, and each ends well


async def check_ledger(load: Load) -> None:
    """Each payment is one deposit, final, at the address that it was sent to."""
    rows = await load.shop.rows("/v1/deposits")
    assert sorted(row["transaction"]["hash"] for row in rows) == sorted(load.transactions)
    assert {row["state"] for row in rows} == {"finalized"}
    assert {row["to"] for row in rows} <= set(load.addresses)


async def check_merchant(load: Load, receiver: Receiver) -> None:
    """Every event of the feed came, signed; first arrivals of a deposit's events are in sequence; repetitions are equal."""
    feed = await load.shop.feed()
    bodies = defaultdict(set)
    arrivals: dict[str, list[int]] = defaultdict(list)
    for request in receiver.requests:
        assert request.is_signed
        if request.event_id not in bodies:
            arrivals[request.document["data"]["id"]].append(request.document["sequence"])
        bodies[request.event_id].add(request.body)
    assert {event["id"] for event in feed} == set(bodies)
    assert all(len(seen) == 1 for seen in bodies.values())
    assert len(receiver.of_event(receiver.requests[0].event_id)) > 1  # it was in flight at the first kill
    assert len(feed) == 3 * len(load.transactions)
    assert {tuple(sequences) for sequences in arrivals.values()} == {(1, 2, 3)}
