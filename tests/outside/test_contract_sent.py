"""Value that contracts send, on a real node that traces and proves accounts: exactly the right entries, and no lie of a
tracing node becomes one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from eth_account import Account

from chainbell.demo.anvil import AnvilNode, anvil
from chainbell.demo.story import CUSTOMER, broadcast
from chainbell.demo.story import send as sign_and_send
from tests.fakes.node import Json
from tests.fakes.proxy import ProxyNode, proxy_before
from tests.fakes.receiver import Receiver, running_receiver
from tests.outside.installation import LOCAL_ENDPOINTS, Installation, Tenant, installed
from tests.outside.payments import deploy, height_of, new_address, send
from tests.outside.sending_contracts import (
    DESTROYER,
    FORWARDER,
    REVERTER,
    address_made_by,
    batch_of,
    creating,
    factory_of,
    forwarding_creation,
    tolerant_of,
    word,
)

TRACE_METHODS = {"debug_traceBlockByHash", "trace_block"}
Summary = tuple[str, str, str, str]
"""Of an entry: from, amount, locator's kind, level of proof."""


def chain_settings(urls: Sequence[str], more: str = "") -> str:
    nodes = ", ".join(f'{{ name = "node-{number}", url = "{url}" }}' for number, url in enumerate(urls, start=1))
    return f"""{LOCAL_ENDPOINTS}
[chains.local]
profile = "anvil"
chain_id = "eip155:31337"
nodes = [ {nodes} ]
start = 0
credit_at = 2
poll_interval_s = 0.1
{more}"""


async def deposits_to(shop: Tenant, address: str) -> list[Summary]:
    """Every deposit to an address, sorted."""
    rows = await shop.rows("/v1/deposits", address=address)
    return sorted(
        (row["from"], row["amount_atomic"], row["locator"]["kind"], row["proof"]["level"])
        for row in rows
        if row["asset"]["kind"] == "native"
    )


@dataclass
class World:
    """One chain, its only node, and a merchant."""

    node: AnvilNode
    shop: Tenant
    receiver: Receiver
    payer: str

    async def settle(self) -> None:
        """Wait until everything so far is committed and told."""
        await self.shop.until_followed("local", await self.node.mine())
        await self.shop.until_delivered()

    async def watched(self) -> str:
        """A new address that is watched."""
        address = new_address()
        await self.shop.watch("local", address)
        return address

    async def put(self, runtime: str) -> str:
        """A contract of that code."""
        return await deploy(self.node, self.payer, creating(runtime))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(module_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        node = await stack.enter_async_context(anvil())
        payer = (await node.rpc("eth_accounts"))[0]
        receiver = await stack.enter_async_context(running_receiver())
        opened = installed(tmp_path_factory.mktemp("sent"), module_database_url, chain_settings([node.url]))
        installation = await stack.enter_async_context(opened)
        await installation.run()
        shop = await installation.tenant("shop")
        await shop.open_endpoint(receiver)
        await shop.until_followed("local", 0)
        yield World(node, shop, receiver, payer)


@pytest.mark.asyncio(loop_scope="module")
async def test_value_that_a_contract_sends_on_is_a_deposit_borne_out_by_the_balance(world: World) -> None:
    address, forwarder = await world.watched(), await world.put(FORWARDER)
    await send(world.node, world.payer, to=forwarder, value=7, data=word(address))
    await world.settle()
    assert await deposits_to(world.shop, address) == [(forwarder, "7", "trace", "state")]
    row = await world.shop.chain("local")
    assert row["value_paths"] == ["native", "logs", "validator_withdrawals", "traces"]
    (row,) = (await world.shop.installation.command("status"))["chains"]
    assert "traces" in row["value_paths"]


@pytest.mark.asyncio(loop_scope="module")
async def test_a_watched_contract_that_sends_on_has_one_deposit_and_one_withdrawal(world: World) -> None:
    forwarder, recipient = await world.put(FORWARDER), new_address()
    await world.shop.watch("local", forwarder)
    await world.shop.until_followed("local", await world.node.mine())
    receipt = await send(world.node, world.payer, to=forwarder, value=9, data=word(recipient))
    await world.settle()
    assert await deposits_to(world.shop, forwarder) == [(world.payer, "9", "native", "roots")]
    (withdrawal,) = await world.shop.rows("/v1/withdrawals", address=forwarder)
    assert (withdrawal["to"], withdrawal["amount_atomic"], withdrawal["fee"]) == (recipient, "9", None)
    assert (withdrawal["locator"]["kind"], withdrawal["proof"]["level"]) == ("trace", "state")
    assert withdrawal["transaction"]["hash"] == receipt["transactionHash"]


@pytest.mark.asyncio(loop_scope="module")
async def test_value_sent_while_a_contract_is_created_is_a_deposit(world: World) -> None:
    address = await world.watched()
    created = await deploy(world.node, world.payer, forwarding_creation(address), value=11)
    await world.settle()
    assert await deposits_to(world.shop, address) == [(created, "11", "trace", "state")]


@pytest.mark.asyncio(loop_scope="module")
async def test_what_a_contract_leaves_when_it_destroys_itself_is_a_deposit(world: World) -> None:
    address, destroyer = await world.watched(), await world.put(DESTROYER)
    await send(world.node, world.payer, to=destroyer, value=13, data=word(address))
    await world.settle()
    assert await deposits_to(world.shop, address) == [(destroyer, "13", "trace", "state")]


@pytest.mark.asyncio(loop_scope="module")
async def test_value_under_a_call_that_reverted_is_nothing(world: World) -> None:
    address, reverter = await world.watched(), await world.put(REVERTER)
    tolerant = await world.put(tolerant_of(reverter))
    receipt = await send(world.node, world.payer, to=tolerant, value=17, data=word(address))
    assert receipt["status"] == "0x1"
    await world.settle()
    assert await deposits_to(world.shop, address) == []
    assert int(await world.node.rpc("eth_getBalance", address, "latest"), 16) == 0


@pytest.mark.asyncio(loop_scope="module")
async def test_each_payment_of_a_smart_wallets_batch_is_a_deposit_equal_ones_too(world: World) -> None:
    one, other = await world.watched(), await world.watched()
    wallet = await world.put(batch_of([(one, 3), (other, 5), (one, 3), (new_address(), 1), (one, 0)]))
    await send(world.node, world.payer, to=wallet, value=12)
    await world.settle()
    assert await deposits_to(world.shop, one) == [(wallet, "3", "trace", "state")] * 2
    assert await deposits_to(world.shop, other) == [(wallet, "5", "trace", "state")]
    rows = await world.shop.rows("/v1/deposits", address=one)
    assert len({row["id"] for row in rows}) == len({row["transfer_id"] for row in rows}) == 2


@pytest.mark.asyncio(loop_scope="module")
async def test_value_that_a_contract_is_created_with_by_create2_is_a_deposit(world: World) -> None:
    factory = await world.put(factory_of("00"))
    address = address_made_by(factory, "00")
    await world.shop.watch("local", address)
    await world.shop.until_followed("local", await world.node.mine())
    await send(world.node, world.payer, to=factory, value=19)
    await world.settle()
    assert await world.node.rpc("eth_getCode", address, "latest") == "0x00"
    assert await deposits_to(world.shop, address) == [(factory, "19", "trace", "state")]


@pytest.mark.asyncio(loop_scope="module")
async def test_a_transaction_to_the_watched_address_itself_is_counted_once(world: World) -> None:
    address = await world.watched()
    await send(world.node, world.payer, to=address, value=23)
    await world.settle()
    assert await deposits_to(world.shop, address) == [(world.payer, "23", "native", "roots")]


@pytest.mark.asyncio(loop_scope="module")
async def test_a_contract_sent_deposit_lost_in_a_reorg_comes_back_as_the_same_deposit(world: World) -> None:
    address, forwarder = await world.watched(), await world.put(FORWARDER)
    await world.shop.until_followed("local", await world.node.height())
    raw = await sign_and_send(world.node, Account.from_key(CUSTOMER), to=forwarder, value=29, data=word(address))

    def story() -> list[tuple[str, int]]:
        events = [request.document for request in world.receiver.requests]
        return [(event["type"], event["sequence"]) for event in events if event["data"].get("to") == address]

    await world.receiver.wait_until("it is told", lambda: len(story()) == 1, 20)
    await world.node.reorg(1)
    await world.receiver.wait_until("its loss is told", lambda: len(story()) == 2, 20)
    await broadcast(world.node, raw)
    await world.node.mine()
    await world.receiver.wait_until("it is credited", lambda: len(story()) == 4, 20)
    assert story() == [
        ("deposit.detected", 1),
        ("deposit.reorged", 2),
        ("deposit.detected", 3),
        ("deposit.confirmed", 4),
    ]
    assert await deposits_to(world.shop, address) == [(forwarder, "29", "trace", "state")]


# --- nodes that lie, and nodes that lose their tracer -----------------------------------------------------------------


@dataclass
class Lies:
    """Proxies before one Anvil, each a host of its own; an installation over them."""

    node: AnvilNode
    proxies: list[ProxyNode]
    installation: Installation
    shop: Tenant
    payer: str

    async def failures(self, node: str, check: str) -> float:
        """Proof failures of a node at /metrics."""
        async with self.installation.session.get(self.installation.url + "/metrics") as response:
            lines = (await response.text()).splitlines()
        words = ("chainbell_proof_failures_total{", f'node="{node}"', f'check="{check}"')
        return sum(float(line.rpartition(" ")[2]) for line in lines if all(part in line for part in words))

    async def until_holding(self, *words: str) -> None:
        """Wait until the chain holds for a reason that has these words in it."""
        await self.shop.until_chain(
            f"it holds for {words}",
            "local",
            lambda row: row["state"] == "holding" and all(word in row["reason"] for word in words),
        )


async def open_lies(stack: AsyncExitStack, directory: Path, url: str, hosts: int, more: str = "") -> Lies:
    """Everything runs, and the chain is followed with traces."""
    node = await stack.enter_async_context(anvil())
    payer = (await node.rpc("eth_accounts"))[0]
    proxies = [await stack.enter_async_context(proxy_before(node.url, f"127.0.0.{n + 2}")) for n in range(hosts)]
    settings = chain_settings([proxy.url for proxy in proxies], more)
    installation = await stack.enter_async_context(installed(directory, url, settings))
    await installation.run()
    shop = await installation.tenant("shop")
    await send(node, payer, to=payer, value=1)
    await shop.until_chain("it is read with traces", "local", lambda row: "traces" in row["value_paths"])
    return Lies(node, proxies, installation, shop, payer)


def inventing(recipient: str, amount: int) -> Any:  # noqa: ANN401 - a function of JSON
    """The lie that the last transaction's callee pays somebody."""

    def lie(traces: Json) -> Json:
        if traces:
            root = traces[-1]["result"]
            frame = {"type": "CALL", "from": root["to"], "to": recipient, "value": hex(amount), "gas": "0x0"}
            root["calls"] = [*root.get("calls", []), {**frame, "gasUsed": "0x0", "input": "0x"}]
        return traces

    return lie


def hiding(traces: Json) -> Json:
    """No transaction called anybody."""
    for row in traces:
        row["result"].pop("calls", None)
    return traces


async def test_what_the_only_tracing_node_invents_is_contradicted_by_the_balance(
    database_url: str, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        lies = await open_lies(stack, tmp_path, database_url, 1)
        victim = new_address()
        await lies.shop.watch("local", victim)
        lies.proxies[0].lies["debug_traceBlockByHash"] = inventing(victim, 10**18)
        height = height_of(await send(lies.node, lies.payer, to=new_address(), value=1))
        await lies.until_holding(f"block {height}", f"the balance of {victim} changed by {10**18}, by proofs of the")
        assert await deposits_to(lies.shop, victim) == []
        assert (await lies.shop.chain("local"))["tip"] == height - 1
        assert await lies.failures("node-1", "state") >= 1


async def test_where_another_node_traces_truly_an_invented_deposit_only_costs_its_inventor(
    database_url: str, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        lies = await open_lies(stack, tmp_path, database_url, 2, "quorum = 1")
        victim, recipient = new_address(), new_address()
        forwarder = await deploy(lies.node, lies.payer, creating(FORWARDER))
        await lies.shop.watch("local", victim, recipient)
        lies.proxies[0].lies["debug_traceBlockByHash"] = inventing(victim, 10**18)
        height = height_of(await send(lies.node, lies.payer, to=forwarder, value=5, data=word(recipient)))
        await lies.shop.until_followed("local", height)
        assert await deposits_to(lies.shop, victim) == []
        assert await deposits_to(lies.shop, recipient) == [(forwarder, "5", "trace", "state")]
        assert await lies.failures("node-1", "state") >= 1
        assert await lies.failures("node-2", "state") == 0


@pytest.mark.parametrize("kind", ["invents", "hides"])
async def test_a_lie_of_one_of_two_tracing_nodes_holds_the_chain_and_a_third_settles_it(
    database_url: str, tmp_path: Path, kind: str
) -> None:
    async with AsyncExitStack() as stack:
        lies = await open_lies(stack, tmp_path, database_url, 3)
        victim, recipient = new_address(), new_address()
        forwarder = await deploy(lies.node, lies.payer, creating(FORWARDER))
        await lies.shop.watch("local", victim, recipient)
        await lies.shop.until_followed("local", await lies.node.height())
        liar, _, third = lies.proxies
        liar.lies["debug_traceBlockByHash"] = inventing(victim, 10**18) if kind == "invents" else hiding
        third.lacks |= TRACE_METHODS
        height = height_of(await send(lies.node, lies.payer, to=forwarder, value=5, data=word(recipient)))
        await lies.until_holding(f"block {height}", "127.0.0.2 and 127.0.0.3 differ" if kind == "invents" else "differ")
        assert await deposits_to(lies.shop, victim) == await deposits_to(lies.shop, recipient) == []
        third.lacks.clear()
        await lies.shop.until_followed("local", height)
        assert await deposits_to(lies.shop, victim) == []
        assert await deposits_to(lies.shop, recipient) == [(forwarder, "5", "trace", "state")]
        assert await lies.failures("node-1", "traces") >= 1
        assert await lies.failures("node-2", "traces") == 0


async def test_a_chain_that_was_read_with_traces_holds_without_them_after_a_restart_too(
    database_url: str, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        lies = await open_lies(stack, tmp_path, database_url, 1)
        address, forwarder = new_address(), await deploy(lies.node, lies.payer, creating(FORWARDER))
        await lies.shop.watch("local", address)
        await lies.shop.until_followed("local", await lies.node.height())
        await lies.installation.stop("run")
        (proxy,) = lies.proxies
        proxy.lacks |= TRACE_METHODS
        await lies.installation.run()
        height = height_of(await send(lies.node, lies.payer, to=forwarder, value=5, data=word(address)))
        await lies.until_holding(f"block {height}: no traces; known to trace: 127.0.0.2", "does not exist")
        assert (await lies.shop.chain("local"))["value_paths"][-1] == "traces"
        proxy.lacks.clear()
        await lies.shop.until_followed("local", height)
        assert await deposits_to(lies.shop, address) == [(forwarder, "5", "trace", "state")]


async def test_without_proofs_of_accounts_an_entry_has_its_traces_level(database_url: str, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        lies = await open_lies(stack, tmp_path, database_url, 2)
        for proxy in lies.proxies:
            proxy.lacks.add("eth_getProof")
        address, forwarder = new_address(), await deploy(lies.node, lies.payer, creating(FORWARDER))
        await lies.shop.watch("local", address)
        height = height_of(await send(lies.node, lies.payer, to=forwarder, value=5, data=word(address)))
        await lies.shop.until_followed("local", height)
        assert await deposits_to(lies.shop, address) == [(forwarder, "5", "trace", "agreed")]


async def test_traces_switched_off_are_not_asked_for(database_url: str, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        lies = await open_lies(stack, tmp_path, database_url, 1)
        await lies.installation.stop("run")
        (proxy,) = lies.proxies
        lies.installation.configure(chain_settings([proxy.url], 'internal = "off"'))
        await lies.installation.run()
        proxy.calls.clear()
        height = height_of(await send(lies.node, lies.payer, to=new_address(), value=1))
        await lies.shop.until_followed("local", height)
        assert not TRACE_METHODS & set(proxy.calls)
        assert "traces" not in (await lies.shop.chain("local"))["value_paths"]
