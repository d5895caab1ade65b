"""Value that contracts send, on a real node that traces and proves accounts: exactly the right entries, and no lie of a
tracing node becomes one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
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
    BURNER,
    DESTROYER,
    ENDING,
    FORWARDER,
    REVERTER,
    address_made_by,
    address_of_creation,
    batch_of,
    creating,
    factory_of,
    forwarding_creation,
    tolerant_of,
    word,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

ETHER = 10**18
TRACER = "debug_traceBlockByHash"
TRACE_METHODS = {TRACER, "trace_block"}
Summary = tuple[str, str, str, str]
"""Of an entry: from, amount, locator's kind, level of proof."""


@dataclass
class Chain:
    """A followed chain: a node, perhaps behind proxies that are hosts of their own, and the merchant who watches it."""

    slug: str
    number: int
    node: AnvilNode
    payer: str
    proxies: list[ProxyNode]
    more: str = ""
    """Settings besides its nodes."""

    def settings(self) -> str:
        urls = [proxy.url for proxy in self.proxies] or [self.node.url]
        nodes = ", ".join(f'{{ name = "node-{n}", url = "{url}" }}' for n, url in enumerate(urls, start=1))
        return f"""
[chains.{self.slug}]
profile = "anvil"
chain_id = "eip155:{self.number}"
nodes = [ {nodes} ]
start = 0
credit_at = 2
poll_interval_s = 0.1
{self.more}
"""

    async def put(self, runtime: str) -> str:
        """A contract of that code."""
        return await deploy(self.node, self.payer, creating(runtime))

    async def pay(self, to: str, value: int, data: str = "0x") -> int:
        """A transaction; its height."""
        return height_of(await send(self.node, self.payer, to=to, value=value, data=data))


@dataclass
class World:
    """Chains whose nodes are honest (`local`), and chains whose nodes tests spoil; one installation, one merchant."""

    installation: Installation
    shop: Tenant
    receiver: Receiver
    chains: dict[str, Chain]

    @property
    def local(self) -> Chain:
        """The chain without proxies."""
        return self.chains["local"]

    async def settle(self) -> None:
        """Wait until everything so far is committed on the honest chain, and told."""
        await self.shop.until_followed("local", await self.local.node.mine())
        await self.shop.until_delivered()

    async def watched(self, slug: str = "local") -> str:
        """A new address that is watched from the next block on."""
        address = new_address()
        await self.shop.watch(slug, address)
        return address

    async def pay_signed(self, contract: str, value: int, recipient: str) -> str:
        """A customer's payment through a contract of the honest chain; its bytes as hex, to be mined again."""
        await self.shop.until_followed("local", await self.local.node.height())
        customer = Account.from_key(CUSTOMER)
        return await sign_and_send(self.local.node, customer, to=contract, value=value, data=word(recipient))

    async def until_told(self, address: str, *types: str) -> None:
        """Wait until the whole story of the deposits to an address is `types`, numbered from 1 on."""
        wanted = [(f"deposit.{name}", number) for number, name in enumerate(types, start=1)]

        def is_told() -> bool:
            events = [request.document for request in self.receiver.requests]
            return [(e["type"], e["sequence"]) for e in events if e["data"].get("to") == address] == wanted

        await self.receiver.wait_until(f"{address}: {wanted}", is_told)

    async def deposits(self, address: str) -> list[Summary]:
        """Every deposit to an address, sorted."""
        rows = await self.shop.rows("/v1/deposits", address=address)
        return sorted(
            (row["from"], row["amount_atomic"], row["locator"]["kind"], row["proof"]["level"]) for row in rows
        )

    async def failures(self, slug: str, node: str, check: str) -> float:
        """Proof failures of a node at /metrics."""
        async with self.installation.session.get(self.installation.url + "/metrics") as response:
            lines = (await response.text()).splitlines()
        words = ("chainbell_proof_failures_total{", f'chain="{slug}"', f'node="{node}"', f'check="{check}"')
        return sum(float(line.rpartition(" ")[2]) for line in lines if all(part in line for part in words))

    async def until_holding(self, slug: str, *words: str) -> None:
        """Wait until a chain holds for a reason that has these words in it."""
        await self.shop.until_chain(
            f"it holds for {words}",
            slug,
            lambda row: row["state"] == "holding" and all(word in row["reason"] for word in words),
        )


async def open_chain(stack: AsyncExitStack, slug: str, number: int, hosts: int, more: str = "") -> Chain:
    """A chain whose newest block has a transaction, so that its nodes can be asked for a trace."""
    node = await stack.enter_async_context(anvil(extra_args=["--chain-id", str(number)]))
    payer = (await node.rpc("eth_accounts"))[0]
    await send(node, payer, to=payer, value=1)
    proxies = [await stack.enter_async_context(proxy_before(node.url, f"127.0.0.{n + 2}")) for n in range(hosts)]
    return Chain(slug, number, node, payer, proxies, more)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(module_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        opened = [
            await open_chain(stack, "local", 31337, 0),
            await open_chain(stack, "alone", 31401, 1),
            await open_chain(stack, "pair", 31402, 2, "quorum = 1"),
            await open_chain(stack, "trio", 31403, 3),
            await open_chain(stack, "bare", 31404, 2),
        ]
        chains = {chain.slug: chain for chain in opened}
        for proxy in chains["bare"].proxies:
            proxy.lacks.add("eth_getProof")
        receiver = await stack.enter_async_context(running_receiver())
        settings = LOCAL_ENDPOINTS + "".join(chain.settings() for chain in opened)
        installation = await stack.enter_async_context(
            installed(tmp_path_factory.mktemp("sent"), module_database_url, settings)
        )
        await installation.run()
        shop = await installation.tenant("shop")
        await shop.open_endpoint(receiver)
        for slug in chains:
            await shop.until_chain("it is read with traces", slug, lambda row: "traces" in row["value_paths"])
        yield World(installation, shop, receiver, chains)


async def test_value_that_a_contract_sends_on_is_a_deposit_borne_out_by_the_balance(world: World) -> None:
    address, forwarder = await world.watched(), await world.local.put(FORWARDER)
    await send(world.local.node, world.local.payer, to=forwarder, value=7, data=word(address))
    await world.settle()
    assert await world.deposits(address) == [(forwarder, "7", "trace", "state")]
    row = await world.shop.chain("local")
    assert row["value_paths"] == ["native", "logs", "validator_withdrawals", "traces"]
    rows = (await world.installation.command("status"))["chains"]
    assert [row["value_paths"][-1] for row in rows] == ["traces"] * len(world.chains)


async def test_a_watched_contract_that_sends_on_has_one_deposit_and_one_withdrawal(world: World) -> None:
    forwarder, recipient = await world.local.put(FORWARDER), new_address()
    await world.shop.watch("local", forwarder)
    await world.shop.until_followed("local", await world.local.node.mine())
    receipt = await send(world.local.node, world.local.payer, to=forwarder, value=9, data=word(recipient))
    await world.settle()
    assert await world.deposits(forwarder) == [(world.local.payer, "9", "native", "roots")]
    (withdrawal,) = await world.shop.rows("/v1/withdrawals", address=forwarder)
    assert (withdrawal["to"], withdrawal["amount_atomic"], withdrawal["fee"]) == (recipient, "9", None)
    assert (withdrawal["locator"]["kind"], withdrawal["proof"]["level"]) == ("trace", "state")
    assert withdrawal["transaction"]["hash"] == receipt["transactionHash"]


async def test_value_sent_while_a_contract_is_created_is_a_deposit(world: World) -> None:
    address = await world.watched()
    created = await deploy(world.local.node, world.local.payer, forwarding_creation(address), value=11)
    await world.settle()
    assert await world.deposits(address) == [(created, "11", "trace", "state")]


async def test_what_a_contract_leaves_when_it_destroys_itself_is_a_deposit(world: World) -> None:
    address, destroyer = await world.watched(), await world.local.put(DESTROYER)
    await send(world.local.node, world.local.payer, to=destroyer, value=13, data=word(address))
    await world.settle()
    assert await world.deposits(address) == [(destroyer, "13", "trace", "state")]


async def test_value_under_a_call_that_reverted_is_nothing(world: World) -> None:
    address, reverter = await world.watched(), await world.local.put(REVERTER)
    tolerant = await world.local.put(tolerant_of(reverter))
    receipt = await send(world.local.node, world.local.payer, to=tolerant, value=17, data=word(address))
    assert receipt["status"] == "0x1"
    await world.settle()
    assert await world.deposits(address) == []
    assert int(await world.local.node.rpc("eth_getBalance", address, "latest"), 16) == 0


async def test_each_payment_of_a_smart_wallets_batch_is_a_deposit_equal_ones_too(world: World) -> None:
    one, other = await world.watched(), await world.watched()
    wallet = await world.local.put(batch_of([(one, 3), (other, 5), (one, 3), (new_address(), 1), (one, 0)]))
    await send(world.local.node, world.local.payer, to=wallet, value=12)
    await world.settle()
    assert await world.deposits(one) == [(wallet, "3", "trace", "state")] * 2
    assert await world.deposits(other) == [(wallet, "5", "trace", "state")]
    rows = await world.shop.rows("/v1/deposits", address=one)
    assert len({row["id"] for row in rows}) == len({row["transfer_id"] for row in rows}) == 2


async def test_value_that_a_contract_is_created_with_by_create2_is_a_deposit(world: World) -> None:
    factory = await world.local.put(factory_of("00"))
    address = address_made_by(factory, "00")
    await world.shop.watch("local", address)
    await world.shop.until_followed("local", await world.local.node.mine())
    await send(world.local.node, world.local.payer, to=factory, value=19)
    await world.settle()
    assert await world.local.node.rpc("eth_getCode", address, "latest") == "0x00"
    assert await world.deposits(address) == [(factory, "19", "trace", "state")]


async def test_what_an_account_burned_that_destroyed_itself_holds_no_chain(world: World) -> None:
    burner = await world.local.put(BURNER)
    address = address_of_creation(burner, ENDING)
    await world.shop.watch("local", address)
    await world.shop.until_followed("local", await world.local.node.mine())
    await send(world.local.node, world.local.payer, to=burner, value=31)
    await world.settle()
    assert int(await world.local.node.rpc("eth_getBalance", address, "latest"), 16) == 0
    assert await world.deposits(address) == [(burner, "31", "trace", "trace")]
    (row,) = await world.shop.rows("/v1/deposits", address=address)
    assert (row["disposition"], row["reasons"]) == ("ignore", ["unproven_destruction"])


async def test_a_transaction_to_the_watched_address_itself_is_counted_once(world: World) -> None:
    address = await world.watched()
    await send(world.local.node, world.local.payer, to=address, value=23)
    await world.settle()
    assert await world.deposits(address) == [(world.local.payer, "23", "native", "roots")]


async def test_a_contract_sent_deposit_lost_in_a_reorg_comes_back_as_the_same_deposit(world: World) -> None:
    address, forwarder = await world.watched(), await world.local.put(FORWARDER)
    raw = await world.pay_signed(forwarder, 29, address)
    await world.until_told(address, "detected")
    await world.local.node.reorg(1)
    await world.until_told(address, "detected", "reorged")
    await broadcast(world.local.node, raw)
    await world.local.node.mine()
    await world.until_told(address, "detected", "reorged", "detected", "confirmed")
    assert await world.deposits(address) == [(forwarder, "29", "trace", "state")]


async def test_a_contract_sent_deposit_that_a_reorg_moves_stays_and_is_proven_where_it_is(world: World) -> None:
    address, forwarder = await world.watched(), await world.local.put(FORWARDER)
    raw = await world.pay_signed(forwarder, 37, address)
    await world.until_told(address, "detected")
    (before,) = await world.shop.rows("/v1/deposits", address=address)
    await world.local.node.mine()
    await world.until_told(address, "detected", "confirmed")
    await world.local.node.reorg(2, [(raw, 1)])
    await world.until_told(address, "detected", "confirmed", "moved")
    (after,) = await world.shop.rows("/v1/deposits", address=address)
    assert (after["id"], after["transfer_id"]) == (before["id"], before["transfer_id"])
    assert after["block"]["height"] == before["block"]["height"] + 1
    assert (after["state"], after["proof"]["level"]) == ("confirmed", "state")


# --- nodes that lie, and nodes that lose their tracer -----------------------------------------------------------------


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


async def test_where_another_node_traces_truly_an_invented_deposit_only_costs_its_inventor(world: World) -> None:
    pair = world.chains["pair"]
    forwarder = await pair.put(FORWARDER)
    victim, recipient = await world.watched("pair"), await world.watched("pair")
    pair.proxies[0].lies[TRACER] = inventing(victim, 10**18)
    paid: list[Summary] = []

    async def is_caught() -> bool:
        """Where the inventor was slow just before, it is the other's turn for a while."""
        await world.shop.until_followed("pair", await pair.pay(forwarder, 5, word(recipient)))
        paid.append((forwarder, "5", "trace", "state"))
        assert await world.deposits(victim) == []
        assert await world.deposits(recipient) == paid
        return await world.failures("pair", "node-1", "state") >= 1

    await world.installation.until("the inventor is caught", is_caught)
    assert await world.failures("pair", "node-2", "state") == 0


@pytest.mark.parametrize("kind", ["invents", "hides"])
async def test_a_lie_of_one_of_two_tracing_nodes_holds_the_chain_and_a_third_settles_it(
    world: World, kind: str
) -> None:
    trio = world.chains["trio"]
    forwarder = await trio.put(FORWARDER)
    victim, recipient = await world.watched("trio"), await world.watched("trio")
    await world.shop.until_followed("trio", await trio.node.height())
    liar, _, third = trio.proxies
    liar.lies[TRACER] = inventing(victim, 10**18) if kind == "invents" else hiding
    third.lacks |= TRACE_METHODS
    told = await world.failures("trio", "node-1", "traces")
    height = await trio.pay(forwarder, 5, word(recipient))
    await world.until_holding("trio", f"block {height}: 2 of the tracing hosts have to tell the same traces", "differ")
    assert await world.deposits(victim) == await world.deposits(recipient) == []
    third.lacks.clear()
    await world.shop.until_followed("trio", height)
    liar.lies.clear()
    assert await world.deposits(victim) == []
    assert await world.deposits(recipient) == [(forwarder, "5", "trace", "state")]
    assert await world.failures("trio", "node-1", "traces") > told
    assert await world.failures("trio", "node-2", "traces") == 0


async def test_without_proofs_of_accounts_an_entry_has_its_traces_level(world: World) -> None:
    bare = world.chains["bare"]
    address, forwarder = await world.watched("bare"), await bare.put(FORWARDER)
    await world.shop.until_followed("bare", await bare.pay(forwarder, 5, word(address)))
    assert await world.deposits(address) == [(forwarder, "5", "trace", "agreed")]


async def test_what_the_only_tracing_node_invents_is_contradicted_by_the_balance(world: World) -> None:
    alone = world.chains["alone"]
    victim = await world.watched("alone")
    alone.proxies[0].lies[TRACER] = inventing(victim, 10**18)
    height = await alone.pay(new_address(), 1)
    await world.until_holding("alone", f"block {height}", f"balance of {victim} changed by {10**18}, by proofs of the")
    assert await world.deposits(victim) == []
    assert (await world.shop.chain("alone"))["tip"] == height - 1
    assert await world.failures("alone", "node-1", "state") >= 1


async def test_a_chain_that_was_read_with_traces_holds_without_them_until_the_operator_says_off(world: World) -> None:
    bare = world.chains["bare"]
    address, forwarder = await world.watched("bare"), await bare.put(FORWARDER)
    await world.shop.until_followed("bare", await bare.node.height())
    await world.installation.stop("run")
    for proxy in bare.proxies:
        proxy.lacks |= TRACE_METHODS
    await world.installation.run()
    height = await bare.pay(forwarder, 5, word(address))
    await world.until_holding("bare", f"block {height}: 2 of the tracing hosts", "127.0.0.2 (", "does not exist")
    assert (await world.shop.chain("bare"))["value_paths"][-1] == "traces"
    for proxy in bare.proxies:
        proxy.lacks -= TRACE_METHODS
    await world.shop.until_followed("bare", height)
    assert await world.deposits(address) == [(forwarder, "5", "trace", "agreed")]
    await world.installation.stop("run")
    bare.more = 'internal = "off"'
    world.installation.configure(LOCAL_ENDPOINTS + "".join(chain.settings() for chain in world.chains.values()))
    for proxy in bare.proxies:
        proxy.calls.clear()
    await world.installation.run()
    await world.shop.until_followed("bare", await bare.pay(forwarder, 5, word(address)))
    assert not TRACE_METHODS & {method for proxy in bare.proxies for method in proxy.calls}
    assert "traces" not in (await world.shop.chain("bare"))["value_paths"]


async def test_what_a_tracer_makes_up_at_a_contracts_end_is_told_and_not_credited(world: World) -> None:
    """It pays one ether and destroys itself in its own favour, which moves nothing; this node's tracer tells of another."""
    address = await world.watched()
    pays = f"600060006000600067{ETHER:016x}73{address[2:]}5af150"
    contract = await world.local.put(pays + "30ff")
    await world.local.pay(contract, 3 * ETHER)
    await world.settle()
    rows = await world.shop.rows("/v1/deposits", address=address)
    credited = [int(row["amount_atomic"]) for row in rows if row["disposition"] == "credit"]
    assert sum(credited) == int(await world.local.node.rpc("eth_getBalance", address, "latest"), 16) == ETHER
    ignored = [row["reasons"] for row in rows if row["disposition"] == "ignore"]
    assert ignored == [["unproven_destruction"]], "the tracer has been mended: then this test has nothing to show"
