"""Two and three tracing hosts before a real node, one of which lies: the block is right, or it is not taken and the reason
names the transaction and the hosts. Nothing invented is ever told, and where two are honest nothing waits for the liar."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

import pytest

from chainbell.demo.anvil import AnvilNode
from chains.adapter import Internal
from chains.errors import ChainHolds
from chains.evm import tracing
from chains.evm.adapter import EvmAdapter
from chains.evm.fetching import TRACE_BOUNDS
from chains.model import Block, LocatorKind, TraceProof
from chains.profile import load_profile
from tests.fakes.liar import LIES, Json, Lie, LyingNode, lying_node
from tests.outside.payments import deploy, height_of, receipt_of, submit
from tests.outside.sending_contracts import batch_of, creating

TRACER = "debug_traceBlockByHash"
LONG_S = 600.0
"""Who waits for a trace that never comes waits this long."""
ALICE, BOB = "0x" + "a11ce0" * 6 + "a11c", "0x" + "b0b0" * 10
PAID = [(ALICE, 3), (BOB, 5)]

HIDES, INVENTS, CHANGES, DROPS, IS_NULL = (
    replace(lie, rate=1.0) for lie in LIES if lie.name.rpartition(" ")[2] in {"on", "trace", "traces"}
)


async def _hang(_node: LyingNode, method: str, _params: list[Json], result: Json) -> Json:
    if method == TRACER:
        await asyncio.Event().wait()
    return result


async def _know_nothing(_node: LyingNode, method: str, _params: list[Json], result: Json) -> Json:
    return None if method in (TRACER, "trace_block") else result


HANGS, KNOWS_NO_TRACES = Lie("never traces", _hang), Lie("null for any trace", _know_nothing)


@dataclass(frozen=True)
class Settings:
    """A node as the operator configures it."""

    url: str
    name: str | None = None
    rps: float | None = None
    ws: str | None = None


@dataclass
class Court:
    """Hosts before one Anvil, and a block of two transactions; in the first a contract pays Alice and Bob."""

    adapter: EvmAdapter
    hosts: list[LyingNode]
    height: int
    transactions: list[str]

    async def block(self) -> Block:
        """The block, by whoever may be believed."""
        return await self.adapter.fetch_block(self.height)

    async def while_lying(self, liar: int, lie: Lie) -> Block:
        """The block, after all hosts were seen to trace and one of them began to lie."""
        await self.block()
        self.hosts[liar].lies = [lie]
        return await self.block()


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "PATIENCE_S", (0.01,))
    monkeypatch.setattr("chains.evm.fetching.TRACE_BOUNDS", replace(TRACE_BOUNDS, timeout_s=LONG_S))


async def opened(stack: AsyncExitStack, anvil: AnvilNode, count: int) -> Court:
    """Hosts 127.0.0.2 and so on, of a quorum of two; all share the turn for a trace (`LyingNode.tracing`)."""
    payer = (await anvil.rpc("eth_accounts"))[0]
    contract = await deploy(anvil, payer, creating(batch_of(PAID)))
    await anvil.rpc("evm_setAutomine", False)
    transactions = [await submit(anvil, payer, to=to, value=8) for to in (contract, ALICE)]
    await anvil.rpc("evm_mine")
    (height,) = {height_of(await receipt_of(anvil, transaction)) for transaction in transactions}
    turn = asyncio.Lock()
    before = [lying_node(anvil.url, host=f"127.0.0.{number}", tracing=turn) for number in range(2, 2 + count)]
    hosts = [await stack.enter_async_context(host) for host in before]
    given = [Settings(host.url, f"node-{number}") for number, host in enumerate(hosts)]
    adapter = EvmAdapter(load_profile("anvil"), given, internal=Internal.AUTO, quorum=2)
    stack.push_async_callback(adapter.close)
    return Court(adapter, hosts, height, transactions)


def told(block: Block) -> list[tuple[str, int]]:
    """To whom contracts paid how much."""
    traced = [transfer for transfer in block.transfers if transfer.locator.kind is LocatorKind.TRACE]
    return [("0x" + (transfer.recipient or b"").hex(), transfer.amount_atomic) for transfer in traced]


def proofs_of(block: Block) -> set[object]:
    return {transfer.proof for transfer in block.transfers if transfer.locator.kind is LocatorKind.TRACE}


@pytest.mark.parametrize("liar", [0, 1])
@pytest.mark.parametrize("lie", [HIDES, INVENTS, CHANGES], ids=lambda lie: lie.name)
async def test_of_two_hosts_that_differ_neither_is_believed_and_the_transaction_is_named(
    stack: AsyncExitStack, anvil_node: AnvilNode, lie: Lie, liar: int
) -> None:
    court = await opened(stack, anvil_node, 2)
    with pytest.raises(ChainHolds) as held:
        await court.while_lying(liar, lie)
    assert f"block {court.height}: 2 of the tracing hosts have to tell the same traces" in str(held.value)
    named = re.search(r"127\.0\.0\.[23] and 127\.0\.0\.[23] differ about transaction ([01]) (0x\w+)", str(held.value))
    assert named is not None
    assert named[2] == court.transactions[int(named[1])]
    court.hosts[liar].lies = []
    block = await court.block()
    assert (told(block), proofs_of(block)) == (PAID, {TraceProof.AGREED})


@pytest.mark.parametrize("liar", [0, 1])
@pytest.mark.parametrize("lie", [DROPS, IS_NULL], ids=lambda lie: lie.name)
async def test_one_of_two_hosts_that_tells_too_little_is_not_gone_without(
    stack: AsyncExitStack, anvil_node: AnvilNode, lie: Lie, liar: int
) -> None:
    court = await opened(stack, anvil_node, 2)
    with pytest.raises(ChainHolds, match=r"127\.0\.0\.2 .*127\.0\.0\.3 .*node-") as held:
        await court.while_lying(liar, lie)
    assert f"node-{liar}: " in str(held.value)
    assert f"node-{1 - liar}: " not in str(held.value)


@pytest.mark.parametrize("liar", [0, 1])
@pytest.mark.parametrize("lie", [HIDES, INVENTS, CHANGES, DROPS, IS_NULL, HANGS], ids=lambda lie: lie.name)
async def test_two_honest_hosts_of_three_give_the_block_and_do_not_wait_for_the_liar(
    stack: AsyncExitStack, anvil_node: AnvilNode, lie: Lie, liar: int
) -> None:
    court = await opened(stack, anvil_node, 3)
    async with asyncio.timeout(LONG_S / 2):
        block = await court.while_lying(liar, lie)
    honest = tuple(f"node-{number}" for number in range(3) if number != liar)
    assert (told(block), proofs_of(block), block.traced_by) == (PAID, {TraceProof.AGREED}, honest)
    states = {status.name: status.state for status in court.adapter.node_statuses()}
    assert [name for name, state in states.items() if state == "failing"] == [f"node-{liar}"] * (lie is not IS_NULL)


async def test_agreed_is_said_of_two_hosts_alone_and_not_while_one_is_undecided(
    stack: AsyncExitStack, anvil_node: AnvilNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "SEARCH_AGAIN_UNDECIDED_S", 0.0)
    court = await opened(stack, anvil_node, 2)
    court.hosts[1].lies = [KNOWS_NO_TRACES]
    block = await court.block()
    assert (told(block), proofs_of(block), block.traced_by) == (PAID, {TraceProof.TRACE}, ("node-0",))
    court.hosts[1].lies = []
    async with asyncio.timeout(240):
        while proofs_of(block) != {TraceProof.AGREED}:
            block = await court.block()  # the search goes on beside it
    assert (told(block), block.traced_by) == (PAID, ("node-0", "node-1"))
