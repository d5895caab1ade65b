"""What a real node tells of accounts: native value proven against its state roots, and a token's balances."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

import pytest

from chainbell.demo.anvil import AnvilNode
from chains.adapter import NodeStatus
from chains.evm.adapter import EvmAdapter
from chains.model import AssetId, BlockRef, Holding
from chains.profile import load_profile, make_token
from tests.fakes.node import Json
from tests.fakes.proxy import ProxyNode, proxy_before
from tests.outside.payments import deploy, height_of, new_address, send
from tests.outside.sending_contracts import creating, word

KEEPER = "36604014601157600435545f5260205ff35b6020355f355500"
"""Called with an address and an amount it keeps that as the address's balance; called with a selector and an address, as
`balanceOf(address)` is, it answers what it keeps."""


@dataclass(frozen=True)
class Settings:
    """A node as the operator configures it."""

    url: str
    name: str | None = None
    rps: float | None = None
    ws: str | None = None


@dataclass
class Bench:
    """Anvil behind a proxy, a contract that keeps balances, and an adapter that lists it."""

    node: AnvilNode
    proxy: ProxyNode
    payer: str
    contract: str
    adapter: EvmAdapter

    @property
    def native(self) -> AssetId:
        return self.adapter.profile.native.id

    @property
    def token(self) -> AssetId:
        return self.adapter.profile.tokens[0].id

    async def ref(self, height: int) -> BlockRef:
        ref = await self.adapter.fetch_ref(height)
        assert ref is not None
        return ref

    async def keep(self, address: str, amount: int) -> int:
        """The contract keeps that balance; from which height on."""
        data = word(address) + amount.to_bytes(32).hex()
        receipt = await send(self.node, self.payer, to=self.contract, data=data)
        assert receipt["status"] == "0x1"
        return height_of(receipt)

    async def holding(self, height: int, address: str, asset_id: AssetId) -> Holding | None:
        one = (bytes.fromhex(address[2:]), asset_id)
        return (await self.adapter.fetch_holdings(await self.ref(height), [one])).get(one)

    def status(self) -> NodeStatus:
        (status,) = self.adapter.node_statuses()
        return status


@pytest.fixture
async def bench(anvil_node: AnvilNode) -> AsyncIterator[Bench]:
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(proxy_before(anvil_node.url, "127.0.0.2"))
        payer = (await anvil_node.rpc("eth_accounts"))[0].lower()
        contract = await deploy(anvil_node, payer, creating(KEEPER))
        profile = load_profile("anvil")
        token = make_token(profile.chain_id, contract, "KPT", 6)
        adapter = EvmAdapter(replace(profile, tokens=(token,)), [Settings(proxy.url)])
        stack.push_async_callback(adapter.close)
        yield Bench(anvil_node, proxy, payer, contract, adapter)


async def test_native_value_is_proven_at_every_height(bench: Bench) -> None:
    alice = new_address()
    first = height_of(await send(bench.node, bench.payer, to=alice, value=5))
    second = height_of(await send(bench.node, bench.payer, to=alice, value=7))
    told = [await bench.holding(height, alice, bench.native) for height in (first - 1, first, second)]
    assert told == [Holding(amount, True, 0, False, "127.0.0.2") for amount in (0, 5, 12)]


async def test_the_nonce_counts_what_an_account_sent_and_a_contract_has_code(bench: Bench) -> None:
    before = await bench.holding(await bench.node.height(), bench.payer, bench.native)
    receipt = await send(bench.node, bench.payer, to=new_address(), value=9)
    after = await bench.holding(height_of(receipt), bench.payer, bench.native)
    assert before is not None
    assert after is not None
    fee = int(receipt["gasUsed"], 16) * int(receipt["effectiveGasPrice"], 16)
    assert before.amount_atomic - after.amount_atomic == 9 + fee
    assert (after.nonce, after.has_code) == ((before.nonce or 0) + 1, False)
    contract = await bench.holding(height_of(receipt), bench.contract, bench.native)
    assert contract == Holding(0, True, 1, True, "127.0.0.2")


async def test_the_same_is_told_by_a_node_that_proves_nothing(bench: Bench) -> None:
    height = await bench.keep(new_address(), 1)
    for address in (bench.payer, bench.contract, new_address()):
        proven = await bench.holding(height, address, bench.native)
        bench.proxy.lacks.add("eth_getProof")
        said = await bench.holding(height, address, bench.native)
        bench.proxy.lacks.clear()
        assert proven is not None
        assert proven.is_proven
        assert said == replace(proven, is_proven=False)


async def test_a_tokens_balance_is_told_at_every_height(bench: Bench) -> None:
    alice = new_address()
    first = await bench.keep(alice, 5)
    second = await bench.keep(alice, 2**256 - 1)
    told = [await bench.holding(height, alice, bench.token) for height in (first - 1, first, second)]
    assert told == [Holding(amount, False, None, None, "127.0.0.2") for amount in (0, 5, 2**256 - 1)]
    assert await bench.holding(0, alice, bench.token) is None, "the contract is not there yet"


def without_last_node(proof: Json) -> Json:
    return {**proof, "accountProof": proof["accountProof"][:-1]}


async def test_a_cut_proof_of_a_real_account_is_no_proof(bench: Bench) -> None:
    bench.proxy.lies["eth_getProof"] = without_last_node
    assert await bench.holding(await bench.node.height(), bench.payer, bench.native) is None
    assert bench.status().state == "failing"


async def test_a_block_that_was_left_is_not_told_of(bench: Bench) -> None:
    height = await bench.keep(new_address(), 1)
    left = await bench.ref(height)
    await bench.node.reorg(1)
    one = (bytes.fromhex(bench.payer[2:]), bench.native)
    assert await bench.adapter.fetch_holdings(left, [one]) == {}
    assert (await bench.adapter.fetch_holdings(await bench.ref(height), [one])).keys() == {one}
