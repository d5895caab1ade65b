"""A chain's past as an operator and a merchant see it: backfills, replays, downtime and coverage, by command line and REST.

`CHAINBELL_PAST_BLOCKS` says how many blocks back the watch of the first test asks for: 600 by default, which is what every
run can afford; 10000 is the size that the product promises.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

from chainbell.demo.anvil import AnvilNode, anvil
from chainbell.demo.contracts import transfer_call
from tests.fakes.proxy import ProxyNode, proxy_before
from tests.fakes.receiver import Receiver, running_receiver
from tests.outside.installation import LOCAL_ENDPOINTS, Ended, Installation, Tenant, free_port, installed
from tests.outside.payments import REVERTING_CODE, deploy, height_of, new_address, send
from tests.outside.sending_contracts import FORWARDER, creating, word

PAST_BLOCKS = int(os.environ.get("CHAINBELL_PAST_BLOCKS", "600"))
PAST_DEADLINE_S = 240.0 + PAST_BLOCKS / 20
MINED_AT_ONCE = 200
ROLES = ("follow", "notify", "serve")
CREDITED = ["deposit.detected", "deposit.confirmed", "deposit.finalized"]


@dataclass
class World:
    """One chain before one installation, whose roles run by themselves, and a merchant."""

    installation: Installation
    node: AnvilNode
    proxy: ProxyNode
    receiver: Receiver
    token: str
    accounts: list[str]
    shop: Tenant = field(init=False)

    def configure(self, *tokens: str, url: str | None = None) -> None:
        """Write the settings, with these tokens listed."""
        listed = "".join(
            f'\n[[chains.anvil.assets]]\ncontract = "{token}"\nsymbol = "T{number}"\ndecimals = 6\n'
            for number, token in enumerate(tokens)
        )
        self.installation.configure(f"""{LOCAL_ENDPOINTS}
[chains.anvil]
nodes = [ {{ url = "{url or self.proxy.url}" }} ]
start = "latest"
poll_interval_s = 0.1
{listed}""")

    async def begin(self) -> None:
        """Start every role for the first time; the merchant has a webhook."""
        await self.installation.command("migrate")
        for role in ROLES:
            await self.installation.start(role)
        await self.installation.ready()
        self.shop = await self.installation.tenant("shop")
        await self.shop.open_endpoint(self.receiver)
        await self.shop.until_followed("anvil", await self.node.height())

    async def watch(self, address: str, start_height: int | None = None) -> dict[str, Any]:
        """Watch an address from a height on."""
        row = {"chain": "anvil", "address": address, "start_height": start_height}
        made: dict[str, Any] = (await self.shop.call("POST", "/v1/watches", {"watches": [row]}))["data"][0]
        return made

    async def pay(self, address: str, value: int) -> int:
        """A native payment; its height."""
        return height_of(await send(self.node, self.accounts[1], to=address, value=value))

    async def pay_token(self, token: str, address: str, amount: int) -> int:
        """A token payment; its height."""
        return height_of(await send(self.node, self.accounts[0], to=token, data=transfer_call(address, amount)))

    async def settle(self) -> None:
        """Make everything so far final, and wait until it was told."""
        height = await self.node.height()
        head = await self.node.mine(9)
        await self.shop.until_final("anvil", height)
        await self.shop.until_followed("anvil", head)  # so that nothing is read at one tip and compared at another
        await self.shop.until_delivered()

    async def state(self) -> Any:  # noqa: ANN401 - JSON
        """Everything that the merchant may ask about what came to it."""
        paths = ("/v1/deposits", "/v1/withdrawals", "/v1/deliveries", "/v1/watches")
        return [*[await self.shop.rows(path) for path in paths], await self.shop.feed()]

    async def coverage(self, *words: str) -> Any:  # noqa: ANN401 - JSON
        """What `chainbell coverage` prints."""
        return await self.installation.command("coverage", "--chain", "anvil", *words)

    async def replay(self, from_height: int, to_height: int, *words: str) -> Ended:
        """Run `chainbell replay`, whatever comes of it."""
        heights = ("--from", str(from_height), "--to", str(to_height))
        return await self.installation.attempt("--json", "replay", "--chain", "anvil", *heights, *words)

    async def execute(self, statement: str, values: Mapping[str, object]) -> int:
        """Do by hand to the database what an operator should not; how many rows it hit."""
        return await asyncio.to_thread(self._execute, statement, values)

    def _execute(self, statement: str, values: Mapping[str, object]) -> int:
        url = sqlalchemy.make_url(self.installation.database_url).set(drivername="postgresql+psycopg")
        engine = sqlalchemy.create_engine(url)
        try:
            with engine.begin() as connection:
                return connection.execute(sqlalchemy.text(statement), values).rowcount
        finally:
            engine.dispose()


@asynccontextmanager
async def world_of(directory: Path, database_url: str) -> AsyncIterator[World]:
    """A chain with a token, behind a proxy that traces by `trace_block` alone: the other method, asked for several blocks
    at once, locks Anvil up while it mines (`chainbell.demo.anvil`)."""
    async with AsyncExitStack() as stack:
        node = await stack.enter_async_context(anvil(extra_args=["--slots-in-an-epoch", "4"]))
        proxy = await stack.enter_async_context(proxy_before(node.url))
        proxy.lacks = {"debug_traceBlockByHash"}
        receiver = await stack.enter_async_context(running_receiver())
        accounts = await node.rpc("eth_accounts")
        token = await deploy(node, accounts[0])
        installation = await stack.enter_async_context(installed(directory, database_url))
        world = World(installation, node, proxy, receiver, token, accounts)
        world.configure(token)
        yield world


@pytest.fixture
async def world(tmp_path: Path, empty_database_url: str) -> AsyncIterator[World]:
    async with world_of(tmp_path, empty_database_url) as made:
        yield made


def told(world: World, entry: Mapping[str, Any]) -> list[str]:
    """The types of an entry's webhooks as they came, none twice, each signed, numbered from 1 on."""
    requests = [request for request in world.receiver.requests if request.document["data"]["id"] == entry["id"]]
    assert all(request.is_signed for request in requests)
    assert [request.document["sequence"] for request in requests] == list(range(1, len(requests) + 1))
    return [request.document["type"] for request in requests]


# --- backfill ---------------------------------------------------------------------------------------------------------


async def test_a_watch_from_far_back_gets_its_whole_past_though_the_follower_is_killed(world: World) -> None:
    address = world.accounts[3]
    forwarder = await deploy(world.node, world.accounts[1], creating(FORWARDER))
    refusing = await deploy(world.node, world.accounts[1], REVERTING_CODE)
    start = await world.node.height() + 1
    expected: dict[tuple[str, str], int] = {}  # by object and amount, the height

    async def pass_time() -> None:
        """A fifth of the past, in runs that Anvil mines well within the time that a call has."""
        left = PAST_BLOCKS // 5
        while left:
            run = min(left, MINED_AT_ONCE)
            await world.node.mine(run)
            left -= run

    expected["deposit", "101"] = await world.pay(address, 101)
    await pass_time()
    expected["deposit", "102"] = await world.pay_token(world.token, address, 102)
    await pass_time()
    forwarded = await send(world.node, world.accounts[1], to=forwarder, value=103, data=word(address))
    expected["deposit", "103"] = height_of(forwarded)
    await pass_time()
    expected["withdrawal", "104"] = height_of(await send(world.node, address, to=new_address(), value=104))
    await pass_time()
    expected["withdrawal", "105"] = height_of(await send(world.node, address, to=refusing, value=105))
    await pass_time()

    await world.begin()
    made = await world.watch(address, start)
    first_covered = made["covered_from_height"]
    job_id = made["backfill_job_id"]
    job, watch = f"/v1/jobs/{job_id}", f"/v1/watches/{made['id']}"

    async def entries() -> list[Any]:
        return [*await world.shop.rows("/v1/deposits"), *await world.shop.rows("/v1/withdrawals")]

    async def is_half_done() -> bool:
        return bool((await world.shop.call("GET", job))["done"] > PAST_BLOCKS // 3)

    await world.installation.until("the backfill is under way", is_half_done, PAST_DEADLINE_S)
    await world.installation.kill("follow")

    async def is_gone() -> bool:
        """Postgres has done what the killed one had told it to."""
        sessions = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'chainbell follow'"
        return not await world.execute(f"{sessions} AND datname = current_database()", {})

    await world.installation.until("its sessions are gone", is_gone)
    stopped_at = (await world.shop.call("GET", watch))["covered_from_height"]
    assert start <= stopped_at < first_covered
    assert {(e["object"], e["amount_atomic"]) for e in await entries()} == {
        key for key, height in expected.items() if height >= stopped_at
    }
    told_of = await world.coverage("--address", address)
    assert told_of["watches"][0]["covered_from_height"] == stopped_at
    # The lease of the killed one would be waited out for a minute.
    await world.execute("UPDATE jobs SET leased_until = now() - interval '1 second' WHERE id = :id", {"id": job_id})
    await world.installation.start("follow")
    live_height = await world.pay(address, 106)

    seen = [stopped_at]

    async def is_told() -> bool:
        seen.append((await world.shop.call("GET", watch))["covered_from_height"])
        found = {(e["object"], e["amount_atomic"]) for e in await entries()}
        due = {key for key, height in expected.items() if height >= seen[-1]}
        assert due <= found, f"covered from {seen[-1]}, and yet {due - found} is not there"
        return any(request.document["type"] == "watch.activated" for request in world.receiver.requests)

    await world.installation.until("the watch is activated", is_told, PAST_DEADLINE_S)
    assert seen == sorted(seen, reverse=True)
    await world.settle()
    (activated,) = [r.document for r in world.receiver.requests if r.document["type"] == "watch.activated"]
    assert (activated["data"]["id"], activated["data"]["covered_from_height"]) == (made["id"], start)
    assert (await world.shop.call("GET", watch))["covered_from_height"] == start
    found = {(e["object"], e["amount_atomic"]): e for e in await entries()}
    assert {key: e["block"]["height"] for key, e in found.items()} == {**expected, ("deposit", "106"): live_height}
    assert len(await entries()) == len(found)
    assert {e["origin"] for key, e in found.items() if key != ("deposit", "106")} == {"backfill"}
    assert found["deposit", "106"]["origin"] == "live"
    for number in ("101", "102", "103", "106"):
        assert found["deposit", number]["state"] == "finalized"
        assert told(world, found["deposit", number]) == CREDITED
    assert told(world, found["withdrawal", "104"]) == [kind.replace("deposit", "withdrawal") for kind in CREDITED]
    assert told(world, found["withdrawal", "105"]) == ["withdrawal.failed"]
    covered = (await world.coverage("--address", address))["watches"][0]
    assert (covered["covered_from_height"], covered["gaps"]) == (start, [])
    finished = await world.shop.call("GET", job)
    assert (finished["state"], finished["done"]) == ("done", finished["total"])


# --- replay -----------------------------------------------------------------------------------------------------------


async def test_a_lost_deposit_is_shown_and_brought_back_by_a_replay_that_changes_nothing_else(world: World) -> None:
    await world.begin()
    address = new_address()
    await world.watch(address)
    first = await world.pay(address, 7)
    await world.pay_token(world.token, address, 8)
    await world.settle()
    before, sent = await world.state(), len(world.receiver.requests)
    last = await world.node.height()
    (lost,) = [row for row in before[0] if row["amount_atomic"] == "7"]
    assert await world.execute("DELETE FROM entries WHERE id = :id", {"id": lost["id"]}) == 1
    assert (await world.shop.ask("GET", f"/v1/deposits/{lost['id']}")).status == 404

    shown = await world.replay(first, last, "--dry-run")
    assert (shown.status, lost["id"] in shown.output) == (3, True), shown
    heights = ("--from", str(first), "--to", str(last))
    table = await world.installation.attempt("replay", "--chain", "anvil", *heights, "--dry-run")
    assert (table.status, "1 missing" in table.output) == (3, True), table
    assert (await world.shop.ask("GET", f"/v1/deposits/{lost['id']}")).status == 404

    # A node that has lost the history: refused, and what is there stays.
    def pruned(block: Any) -> Any:  # noqa: ANN401 - JSON
        return None if block is not None and int(block["number"], 16) <= first else block

    without = await world.state()
    world.proxy.lies = {"eth_getBlockByNumber": pruned, "eth_getBlockByHash": pruned}
    refused = await world.replay(first, last)
    assert (refused.status, refused.output) == (1, ""), refused
    assert "configure a node that still has these blocks" in refused.sentence
    assert await world.state() == without
    world.proxy.lies = {}

    assert (await world.replay(first, last)).status == 0
    assert await world.state() == before
    assert (await world.replay(first, last, "--dry-run")).status == 0
    for _ in range(2):
        assert (await world.replay(first, last)).status == 0
    await world.pay(address, 9)
    await world.settle()
    assert len(world.receiver.requests) == sent + len(CREDITED)
    assert sorted(row["amount_atomic"] for row in await world.shop.rows("/v1/deposits")) == ["7", "8", "9"]
    lines = (await world.installation.attempt("--json", "audit-log", "--actor", "command line")).output.splitlines()
    asked = [line["detail"] for line in map(json.loads, lines) if line["action"] == "replay.created"]
    assert [one["dry_run"] for one in asked] == [True, True, False, False, True, False, False]


async def test_what_a_replay_cannot_do_is_one_sentence(world: World) -> None:
    await world.begin()
    tip = await world.node.height()
    attempt = world.installation.attempt
    wrong: dict[tuple[str, ...], tuple[str, ...]] = {
        ("--chain", "unheard", "--from", "0", "--to", "1"): ("unheard", "anvil"),
        ("--chain", "anvil", "--from", "2", "--to", "1"): ("--from 2", "--to 1"),
        ("--chain", "anvil", "--from", str(tip), "--to", str(tip + 9)): (f"--to {tip + 9}",),
        ("--chain", "anvil", "--from", str(tip), "--to", str(tip), "--address", "0x12"): ("0x12",),
    }
    for arguments, words in wrong.items():
        ended = await attempt("replay", *arguments)
        assert (ended.status, ended.output) == (2, ""), ended
        assert all(word in ended.sentence for word in words), ended
    world.configure(world.token, url=f"http://127.0.0.1:{free_port()}")
    down = await attempt("replay", "--chain", "anvil", "--from", str(tip), "--to", str(tip))
    assert (down.status, down.output) == (1, ""), down
    assert down.sentence.startswith("chainbell: ")


# --- downtime, and a token that is listed later -----------------------------------------------------------------------


async def test_neither_downtime_nor_a_token_listed_later_leaves_a_gap(world: World) -> None:
    await world.begin()
    address = new_address()
    await world.watch(address)
    later = await deploy(world.node, world.accounts[0])
    unlisted = [await world.pay_token(later, address, 70)]
    await world.shop.until_followed("anvil", await world.node.height())
    first = (await world.coverage())["from_height"]
    for role in ROLES:
        await world.installation.stop(role)

    paid = []
    for value in (1, 2, 3):
        await world.node.mine(80)
        paid.append(await world.pay(address, value))
    unlisted.append(await world.pay_token(later, address, 71))
    for role in ROLES:
        await world.installation.start(role)
    await world.installation.ready()
    await world.settle()
    rows = await world.shop.rows("/v1/deposits")
    assert {(row["amount_atomic"], row["block"]["height"]) for row in rows} == set(zip("123", paid, strict=True))
    assert {row["origin"] for row in rows} == {"live"}
    require_whole(await world.coverage(), first, paid[-1])

    await world.installation.stop("follow")
    world.configure(world.token, later)
    shown = await world.replay(first, await world.node.height(), "--dry-run")  # the first that runs by the new settings
    assert (shown.status, json.loads(shown.output)["result"]["missing"]) == (3, 2), shown
    opened = (await world.coverage())["gaps"]
    assert opened[0]["from_height"] == first
    assert later in opened[0]["missing"]
    await world.installation.start("follow")

    async def is_closed() -> bool:
        return not (await world.coverage())["gaps"]

    await world.installation.until("the gap is closed", is_closed)
    await world.settle()
    found = [row for row in await world.shop.rows("/v1/deposits") if row["amount_atomic"] in ("70", "71")]
    assert sorted(row["block"]["height"] for row in found) == unlisted
    assert {(row["origin"], row["state"]) for row in found} == {("backfill", "finalized")}
    assert [told(world, row) for row in found] == [CREDITED, CREDITED]
    require_whole(await world.coverage(), first, paid[-1])


def require_whole(told_of: Mapping[str, Any], first: int, last: int) -> None:
    """Ranges that follow each other from `first` on to `last` at least, and no gap."""
    assert told_of["gaps"] == []
    ranges = told_of["ranges"]
    assert ranges[0]["from_height"] == first
    assert ranges[-1]["to_height"] == told_of["to_height"] >= last
    assert all(b["from_height"] == a["to_height"] + 1 for a, b in pairwise(ranges))
