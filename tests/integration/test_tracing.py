"""What a real node's traces tell, in both of their forms, and judged by its proofs of accounts: borne out, untold or
contradicted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

import pytest

from chainbell.demo.anvil import AnvilNode
from chains.adapter import Internal
from chains.errors import ChainHolds
from chains.evm import accounts
from chains.evm.adapter import EvmAdapter
from chains.model import Block, LocatorKind, ProofLevel, TraceProof, Transfer
from chains.profile import load_profile
from tests.fakes.node import Json
from tests.fakes.proxy import ProxyNode, proxy_before
from tests.outside.payments import deploy, height_of, send
from tests.outside.sending_contracts import (
    DESTROYER,
    FORWARDER,
    REVERTER,
    batch_of,
    creating,
    factory_of,
    forwarding_creation,
    tolerant_of,
    word,
)

TRACER = "debug_traceBlockByHash"
ALICE, BOB = bytes.fromhex("a11ce0" * 6 + "a11c"), bytes.fromhex("b0b0" * 10)


@dataclass(frozen=True)
class Settings:
    """A node as the operator configures it."""

    url: str
    name: str | None = None
    rps: float | None = None
    ws: str | None = None


@dataclass
class Bench:
    """Anvil behind two proxies, and adapters over them that read traces of the first which answers."""

    stack: AsyncExitStack
    node: AnvilNode
    near: ProxyNode
    far: ProxyNode
    payer: str

    def adapter(self, *nodes: ProxyNode, proof: ProofLevel = ProofLevel.ROOTS, quorum: int = 1) -> EvmAdapter:
        """An adapter over the proxies, `near` alone by default."""
        profile = replace(load_profile("anvil"), proof=proof)
        given = [Settings(node.url, "near" if node is self.near else "far") for node in nodes or (self.near,)]
        adapter = EvmAdapter(profile, given, internal=Internal.AUTO, quorum=quorum)
        self.stack.push_async_callback(adapter.close)
        return adapter

    async def pay(self, *payments: tuple[bytes, int]) -> int:
        """Payments by one contract in one transaction; its height."""
        runtime = batch_of([("0x" + address.hex(), amount) for address, amount in payments])
        contract = await deploy(self.node, self.payer, creating(runtime))
        return height_of(await send(self.node, self.payer, to=contract, value=sum(amount for _, amount in payments)))

    async def sent(self, name: str) -> tuple[int, list[int]]:
        """Value sent by a contract in that way; the height, and the amounts that moved."""
        alice = word("0x" + ALICE.hex())
        if name == "batch":
            return await self.pay((ALICE, 3), (BOB, 5), (ALICE, 3)), [3, 5, 3]
        if name == "while_created":
            code = forwarding_creation("0x" + ALICE.hex())
            return height_of(await send(self.node, self.payer, data=code, value=7)), [7]
        reverter = await deploy(self.node, self.payer, creating(REVERTER))
        runtime = {
            "forwarded": FORWARDER,
            "destroyed": DESTROYER,
            "under_a_revert": tolerant_of(reverter),
            "created": factory_of("00"),
        }[name]
        contract = await deploy(self.node, self.payer, creating(runtime))
        receipt = await send(self.node, self.payer, to=contract, value=7, data=alice)
        assert receipt["status"] == "0x1"
        return height_of(receipt), [] if name == "under_a_revert" else [7]


@pytest.fixture
async def bench(anvil_node: AnvilNode) -> AsyncIterator[Bench]:
    async with AsyncExitStack() as stack:
        near = await stack.enter_async_context(proxy_before(anvil_node.url, "127.0.0.2"))
        far = await stack.enter_async_context(proxy_before(anvil_node.url, "127.0.0.3"))
        yield Bench(stack, anvil_node, near, far, (await anvil_node.rpc("eth_accounts"))[0])


def traced(block: Block) -> list[Transfer]:
    return [transfer for transfer in block.transfers if transfer.locator.kind is LocatorKind.TRACE]


def proofs_of(block: Block) -> list[tuple[int, object]]:
    """Amount and level of what only traces tell."""
    return [(transfer.amount_atomic, transfer.proof) for transfer in traced(block)]


@pytest.mark.parametrize("name", ["forwarded", "while_created", "destroyed", "under_a_revert", "batch", "created"])
async def test_two_hosts_that_trace_by_different_methods_tell_the_same(bench: Bench, name: str) -> None:
    bench.near.lacks.add("trace_block")
    bench.far.lacks.add(TRACER)
    height, expected = await bench.sent(name)
    adapter = bench.adapter(bench.near, bench.far, quorum=2)
    block = await adapter.fetch_block(height)
    assert adapter.tracers == {"127.0.0.2": TRACER, "127.0.0.3": "trace_block"}
    assert block.traced_by == ("near", "far")
    assert proofs_of(block) == [(amount, TraceProof.AGREED) for amount in expected]


async def judged(adapter: EvmAdapter, height: int, *watched: bytes) -> Block:
    (block,) = await adapter.prove_balances([await adapter.fetch_block(height)], watched)
    return block


async def test_only_what_concerns_watched_addresses_is_asked_for_and_raised(bench: Bench) -> None:
    height = await bench.pay((ALICE, 3), (BOB, 5), (ALICE, 3))
    block = await judged(bench.adapter(), height, ALICE)
    assert proofs_of(block) == [(3, TraceProof.STATE), (5, TraceProof.TRACE), (3, TraceProof.STATE)]
    assert bench.near.calls.count("eth_getProof") == 2


async def test_nobody_watched_is_nothing_asked(bench: Bench) -> None:
    height = await bench.pay((ALICE, 3))
    assert proofs_of(await judged(bench.adapter(), height)) == [(3, TraceProof.TRACE)]
    assert "eth_getProof" not in bench.near.calls


async def test_a_transfer_between_two_watched_addresses_needs_both_balances(bench: Bench) -> None:
    forwarder = await deploy(bench.node, bench.payer, creating(FORWARDER))
    height = height_of(await send(bench.node, bench.payer, to=forwarder, value=9, data=word("0x" + BOB.hex())))
    block = await judged(bench.adapter(), height, BOB, bytes.fromhex(forwarder[2:]))
    assert proofs_of(block) == [(9, TraceProof.STATE)]
    assert bench.near.calls.count("eth_getProof") == 4


async def test_below_roots_there_is_no_state_to_prove_by(bench: Bench) -> None:
    height = await bench.pay((ALICE, 3))
    block = await judged(bench.adapter(proof=ProofLevel.BLOOM), height, ALICE)
    assert proofs_of(block) == [(3, TraceProof.TRACE)]
    assert "eth_getProof" not in bench.near.calls


def without_last_node(proof: Json) -> Json:
    return {**proof, "accountProof": proof["accountProof"][:-1]}


def of_nobody(proof: Json) -> Json:
    return {**proof, "accountProof": []}


@pytest.mark.parametrize("lie", [without_last_node, of_nobody])
async def test_a_proof_that_proves_nothing_raises_nothing_and_another_nodes_does(bench: Bench, lie: Json) -> None:
    bench.near.lies["eth_getProof"] = lie
    height = await bench.pay((ALICE, 3))
    assert proofs_of(await judged(bench.adapter(), height, ALICE)) == [(3, TraceProof.TRACE)]
    assert proofs_of(await judged(bench.adapter(bench.near, bench.far), height, ALICE)) == [(3, TraceProof.STATE)]


async def test_a_node_that_keeps_its_proofs_to_itself_delays_a_block_no_longer_than_the_bound(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounts, "ASKING_LIMIT_S", 0.2)
    height = await bench.pay((ALICE, 3))
    adapter = bench.adapter()
    block = await adapter.fetch_block(height)
    bench.near.hangs.add("eth_getProof")
    async with asyncio.timeout(9):
        (judged_block,) = await adapter.prove_balances([block], {ALICE})
    assert proofs_of(judged_block) == [(3, TraceProof.TRACE)]


def without_one_payment(traces: Json) -> Json:
    """The first of the contract's calls is left out."""
    traces[-1]["result"]["calls"] = traces[-1]["result"]["calls"][1:]
    return traces


def a_wei_more(traces: Json) -> Json:
    """The first of the contract's calls paid a wei more."""
    call = traces[-1]["result"]["calls"][0]
    call["value"] = hex(int(call["value"], 16) + 1)
    return traces


@pytest.mark.parametrize("lie", [without_one_payment, a_wei_more])
async def test_a_payment_that_is_hidden_beside_another_or_altered_is_contradicted(bench: Bench, lie: Json) -> None:
    height = await bench.pay((ALICE, 3), (ALICE, 4))
    adapter = bench.adapter(bench.near, bench.far)
    await adapter.fetch_block(height)
    bench.near.lies[TRACER] = lie
    block = await adapter.fetch_block(height)
    assert block.traced_by == ("near",)
    with pytest.raises(ChainHolds, match=f"block {height}: by its traces the balance of 0x{ALICE.hex()} changed by"):
        await adapter.prove_balances([block], {ALICE})
    states = {status.name: status.state for status in adapter.node_statuses()}
    assert states["near"] == "failing"
    again = await judged(adapter, height, ALICE)
    assert (again.traced_by, proofs_of(again)) == (("far",), [(3, TraceProof.STATE), (4, TraceProof.STATE)])
