"""Accidents that no kill is: two followers of one chain at once, one that is frozen past its lock and comes back, database
sessions that end at random, and a disk that is full. No row is wrong afterwards and nothing is told twice; each process goes
on by itself, and has said what was wrong."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from sqlalchemy import Engine, create_engine, make_url, text

from chainbell.demo.anvil import AnvilNode, anvil
from ledger.embedded import embedded_postgres, remove_embedded_postgres
from tests.fakes.receiver import Receiver, running_receiver
from tests.fixtures.postgres import FAST
from tests.outside.installation import LOCAL_ENDPOINTS, Installation, Tenant, installed
from tests.outside.payments import new_address, send

BLOCKS = 10
"""At least so many blocks, each with a payment, while an accident lasts."""
FILL = "fill"


@dataclass
class Shop:
    """A merchant, their customers on a local chain, and the database below all of it."""

    installation: Installation
    node: AnvilNode
    tenant: Tenant
    receiver: Receiver
    database: Engine
    customer: str
    addresses: list[str]
    paid: int = 0

    async def pay(self, count: int = 1) -> None:
        """A payment in a block of its own, so many times."""
        for _ in range(count):
            self.paid += 1
            address = self.addresses[self.paid % len(self.addresses)]
            await send(self.node, self.customer, to=address, value=self.paid)

    def ask(self, statement: str, **parameters: object) -> list[Any]:
        """Rows of a statement in the installation's database, as its superuser."""
        with self.database.connect() as connection:
            result = connection.execute(text(statement), parameters)
            return list(result.all()) if result.returns_rows else []

    def terminate(self, where: str, **parameters: object) -> int:
        """End the database sessions of which `where` holds, other than our own, and wait until they are gone; how many."""
        others = "pid <> pg_backend_pid() AND datname = current_database() AND backend_type = 'client backend'"
        ended = f"SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE {others} AND {where}"
        return len(self.ask(ended, **parameters))

    async def leader(self) -> int:
        """The session that holds a chain's leadership: of the advisory locks the only one that is held by a session, and not
        by one of its transactions."""
        held = (
            "SELECT l.pid FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE l.locktype = 'advisory' AND l.granted"
            " AND a.application_name = 'chainbell follow' AND a.xact_start IS NULL"
        )

        async def _holds() -> int | None:
            return next((int(row.pid) for row in self.ask(held)), None)

        return await self.installation.until("somebody leads", _holds) or 0

    async def check(self) -> None:
        """Each payment is one deposit, final; each event was told once, or again with the same bytes, in sequence."""
        last = await self.node.height()
        await self.node.mine(9)
        await self.tenant.until_final("local", last)
        await self.tenant.until_delivered()
        rows = await self.tenant.rows("/v1/deposits")
        standing = [row for row in rows if row["block"] is not None]
        assert sorted(int(row["amount_atomic"]) for row in standing) == list(range(1, self.paid + 1))
        assert {row["state"] for row in standing} == {"finalized"}
        assert {row["state"] for row in rows if row["block"] is None} <= {"reorged", "dropped", "replaced"}
        feed = await self.tenant.feed()
        told: dict[str, list[int]] = {}
        for event in feed:
            told.setdefault(event["data"]["id"], []).append(event["sequence"])
        assert told.keys() == {row["id"] for row in rows}
        assert {row["id"]: list(range(1, row["sequence"] + 1)) for row in rows} == told
        assert {row["sequence"] for row in standing} == {3}
        bodies = {(request.event_id, request.body) for request in self.receiver.requests}
        assert sorted(event_id for event_id, _ in bodies) == sorted(event["id"] for event in feed)
        self.check_blocks()

    def check_blocks(self) -> None:
        """The ledger's chain has one block for each height and no hole, and each follows the one before it."""
        rows = self.ask("SELECT height, hash, parent_hash FROM blocks WHERE state = 'canonical' ORDER BY height")
        assert [row.height for row in rows] == list(range(rows[0].height, rows[0].height + len(rows)))
        assert all(bytes(b.parent_hash) == bytes(a.hash) for a, b in pairwise(rows))


@asynccontextmanager
async def open_shop(directory: Path, url: str, *roles: str) -> AsyncIterator[Shop]:
    """An installation over a fresh chain and a migrated database, with `roles` at work."""
    superuser = create_engine(make_url(url), isolation_level="AUTOCOMMIT", pool_size=1)
    async with (
        anvil(extra_args=["--slots-in-an-epoch", "4"]) as node,
        running_receiver() as receiver,
        installed(directory, url, settings(node)) as installation,
    ):
        await installation.command("migrate")
        for role in roles:
            await installation.start(role)
        await installation.ready()
        tenant = await installation.tenant("shop")
        await tenant.open_endpoint(receiver)
        accounts = await node.rpc("eth_accounts")
        addresses = [new_address() for _ in range(3)]
        await tenant.watch("local", *addresses)
        try:
            yield Shop(installation, node, tenant, receiver, superuser, accounts[0], addresses)
        finally:
            superuser.dispose()


def settings(node: AnvilNode) -> str:
    """Without traces, as in `test_crashes`."""
    return f"""{LOCAL_ENDPOINTS}
[chains.local]
profile = "anvil"
chain_id = "eip155:31337"
nodes = [ {{ url = "{node.url}" }} ]
start = 0
poll_interval_s = 0.1
internal = "off"
"""


# --- two followers ----------------------------------------------------------------------------------------------------


async def test_a_follower_frozen_past_its_lock_and_resumed_writes_no_wrong_row(
    database_url: str, tmp_path: Path
) -> None:
    async with open_shop(tmp_path, database_url, "follow", "notify", "serve") as shop:
        await shop.pay(2)
        await shop.tenant.until_followed("local", await shop.node.height())
        leader = await shop.leader()
        await shop.installation.start("follow", name="second")
        frozen = shop.installation.processes["follow"]
        frozen.send_signal(signal.SIGSTOP)
        try:
            await shop.pay(2)
            # As when the machine stood still for so long that the server gave its connections up.
            shop.terminate("application_name = 'chainbell follow' AND pid = :pid", pid=leader)
            await shop.tenant.until_followed("local", await shop.node.height())
            assert await shop.leader() != leader
            await shop.node.reorg(1)
            shop.paid -= 1
            await shop.pay(2)
        finally:
            frozen.send_signal(signal.SIGCONT)
        await shop.pay(BLOCKS)
        # The one that was frozen has noticed, and stands by.
        await shop.installation.until("it noticed", _logs(shop, "database unavailable"))
        await shop.check()
        await shop.installation.stop("follow")
        await shop.installation.stop("second")


async def test_leadership_taken_away_again_and_again_writes_each_block_once(database_url: str, tmp_path: Path) -> None:
    """While blocks come: whoever loses the lock is in the middle of a cycle, and its successor begins one."""
    async with open_shop(tmp_path, database_url, "follow", "notify", "serve") as shop:
        await shop.installation.start("follow", name="second")
        leaders = set()
        for _ in range(4):
            leader = await shop.leader()
            leaders.add(leader)
            await shop.pay(2)
            # Only the lock's session: the transactions of that follower go on beside those of its successor.
            assert shop.terminate("pid = :pid", pid=leader) == 1
            await shop.pay(2)
        assert len(leaders) == 4
        await shop.check()


def _logs(shop: Shop, what: str) -> Callable[[], Any]:
    async def _is_logged() -> bool:
        return what in shop.installation.log_text()

    return _is_logged


# --- sessions that end ------------------------------------------------------------------------------------------------


async def test_database_sessions_that_end_at_random_lose_and_double_nothing(database_url: str, tmp_path: Path) -> None:
    chance = random.Random(1)
    async with open_shop(tmp_path, database_url, "follow", "notify", "serve") as shop:
        processes = dict(shop.installation.processes)
        await shop.pay()  # who loses its database before it has begun says so and ends
        await shop.receiver.wait_until("each role is at work", lambda: bool(shop.receiver.requests))
        ended = number = 0
        while number < BLOCKS or ended <= BLOCKS:
            await shop.pay()
            await _register(shop, f"order-{number}")
            await asyncio.sleep(chance.uniform(0.0, 0.1))
            ended += shop.terminate("random() < 0.8")
            number += 1
        await shop.check()
        assert len(await shop.tenant.rows("/v1/watches")) == len(shop.addresses) + number
        for role, process in processes.items():
            assert process.returncode is None, f"{role} ended: {shop.installation.log_tail()}"
        for role in processes:
            await shop.installation.stop(role)


async def _register(shop: Shop, key: str) -> None:
    """Register an address with one idempotency key until there is an answer."""
    body = {"watches": [{"chain": "local", "address": new_address(), "reference": key}]}

    async def _is_registered() -> bool:
        try:
            answer = await shop.tenant.ask("POST", "/v1/watches", body, {"idempotency-key": key})
        except aiohttp.ClientError:
            return False
        assert answer.status in (200, 201, 409, 503), answer
        return answer.status < 300

    await shop.installation.until("a watch is registered", _is_registered)


# --- a full disk ------------------------------------------------------------------------------------------------------


@contextmanager
def small_disk(size_mb: int) -> Iterator[Path]:
    """A file system of so many MB, for root: others may mount nothing."""
    directory = Path(tempfile.mkdtemp(prefix="chainbell-disk-"))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_mb}m,mode=755", "tmpfs", str(directory)]
    try:
        if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
            pytest.skip("a file system can be mounted by root only")
        try:
            yield directory
        finally:
            subprocess.run(["umount", "--lazy", str(directory)], check=True)
    finally:
        shutil.rmtree(directory)


def fill(directory: Path) -> None:
    """Leave no byte free."""
    with (directory / FILL).open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 65536)
        except OSError:
            pass


@pytest.fixture
def disk() -> Iterator[Path]:
    with small_disk(300) as directory:
        yield directory
        remove_embedded_postgres(directory)


async def test_a_disk_that_fills_up_stops_the_chain_only_until_there_is_room(disk: Path, tmp_path: Path) -> None:
    """Tables have no room to grow: Postgres refuses commits, and lives, for its log of changes has room in its segment."""
    with embedded_postgres(disk, settings=FAST) as url:
        async with open_shop(tmp_path, url, "follow", "notify", "serve") as shop:
            shop.ask("SELECT pg_switch_wal()")
            await shop.pay(2)
            await shop.tenant.until_followed("local", await shop.node.height())
            fill(disk)
            stuck_at = int((await shop.tenant.chain("local"))["tip"])
            await shop.pay(BLOCKS)
            await shop.installation.until("it is said", _logs(shop, "No space left on device"))
            assert all(process.returncode is None for process in shop.installation.processes.values())
            (disk / FILL).unlink()
            await shop.tenant.until_followed("local", stuck_at + 1)
            await shop.check()
