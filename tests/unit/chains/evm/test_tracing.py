"""Who traces, and what is taken of their traces: recorded mainnet blocks on nodes that trace, lie, lag and refuse."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
import msgspec
import pytest
from prometheus_client import REGISTRY

from chains.adapter import Internal
from chains.errors import ChainHolds, NodeUnavailable
from chains.evm import tracing
from chains.evm.adapter import EvmAdapter
from chains.evm.fetching import TRACE_BOUNDS, fetch_traces, outline_of
from chains.evm.traces import TraceMethod
from chains.evm.workers import Workers
from chains.model import Block, LocatorKind, ProofLevel, Slug, TraceProof, hex_of
from chains.node.client import NodeClient, open_session
from chains.node.health import Upstream
from chains.profile import load_profile
from tests.fakes.node import Json, RecordedNode, delay, drop_one_log, html, null, refuse
from tests.unit.chains.evm.recorded import internal_moves, recorded, recorded_traces
from tests.unit.chains.evm.trace_forms import flat_form

HEIGHT = 13_998_626
LATER = 19_299_001
TRACE = "debug_traceBlockByHash"
VICTIM = "0x" + "c0ffee" * 6 + "c0ff"
LONG_S = 600.0
"""Who waits for a trace that never comes waits this long."""


@dataclass(frozen=True)
class Settings:
    """A node as the operator configures it."""

    url: str
    name: str | None = None
    rps: float | None = None
    ws: str | None = None


def recorded_node(host: str, *, has_traces: bool = True) -> RecordedNode:
    """A node that knows two mainnet blocks, and how to trace them."""
    blocks: dict[int, tuple[Json, Json]] = {h: (recorded(h).block, recorded(h).receipts) for h in (HEIGHT, LATER)}
    traces = {height: recorded_traces(height) for height in (HEIGHT, LATER)} if has_traces else {}
    return RecordedNode(blocks, host=host, traces=traces)


@dataclass
class Town:
    """Nodes on hosts of their own; adapters over some of them."""

    stack: AsyncExitStack

    async def node(self, number: int, *, has_traces: bool = True) -> RecordedNode:
        """A node on the host 127.0.0.<number>, called `node-<number>`."""
        return await self.stack.enter_async_context(recorded_node(f"127.0.0.{number}", has_traces=has_traces))

    async def session(self) -> aiohttp.ClientSession:
        """A session for a node of one's own."""
        return await self.stack.enter_async_context(open_session())

    def adapter(
        self,
        *nodes: RecordedNode,
        internal: Internal = Internal.AUTO,
        quorum: int = 2,
        proof: ProofLevel = ProofLevel.ROOTS,
        workers: Workers | None = None,
    ) -> EvmAdapter:
        """An adapter over the nodes, in that order of preference."""
        profile = replace(load_profile("ethereum"), slug=Slug("tracenet"), proof=proof)
        given = [Settings(node.url, f"node-{node.host[-1]}") for node in nodes]
        adapter = EvmAdapter(profile, given, workers=workers, internal=internal, quorum=quorum)
        self.stack.push_async_callback(adapter.close)
        return adapter


@pytest.fixture
async def town(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Town]:
    monkeypatch.setattr(tracing, "PATIENCE_S", (0.01,))
    async with AsyncExitStack() as stack:
        yield Town(stack)


def internal_transfers(block: Block) -> list[tuple[str, str, int]]:
    return [
        (hex_of(transfer.sender or b""), hex_of(transfer.recipient or b""), transfer.amount_atomic)
        for transfer in block.transfers
        if transfer.locator.kind is LocatorKind.TRACE
    ]


def internal_proofs(block: Block) -> set[object]:
    return {transfer.proof for transfer in block.transfers if transfer.locator.kind is LocatorKind.TRACE}


def invent(traces: Json) -> Json:
    """The last transaction pays somebody whom it does not pay."""
    root = traces[-1].get("result", traces[-1])
    frame = {"type": "CALL", "from": root["to"], "to": VICTIM, "value": hex(10**18), "gas": "0x0", "input": "0x"}
    root.setdefault("calls", []).append(frame)
    return traces


def hide(traces: Json) -> Json:
    """Calls inside transactions that move something are left out, with all that is under them."""

    def without_value(call: Json) -> Json:
        kept = [row for row in call.get("calls") or () if not int(row.get("value") or "0x0", 16)]
        return {**call, "calls": [without_value(row) for row in kept]}

    return [without_value(row.get("result", row)) for row in traces]


def drop_last(traces: Json) -> Json:
    return traces[:-1]


def failures(node: str, check: str) -> float:
    """Proof failures of a node so far."""
    labels = {"chain": "tracenet", "node": node, "check": check}
    return REGISTRY.get_sample_value("chainbell_proof_failures_total", labels) or 0.0


@pytest.mark.parametrize("height", [HEIGHT, LATER])
async def test_two_tracing_hosts_that_agree_give_every_internal_transfer(town: Town, height: int) -> None:
    adapter = town.adapter(await town.node(1), await town.node(2))
    block = await adapter.fetch_block(height)
    expected = [move for row in recorded_traces(height) for move in internal_moves(row.get("result", row))]
    assert len(expected) > 0
    assert sorted(internal_transfers(block)) == sorted(expected)
    assert (internal_proofs(block), block.traced_by) == ({TraceProof.AGREED}, ("node-1", "node-2"))
    assert adapter.value_paths == ("native", "logs", "validator_withdrawals", "traces")
    assert adapter.tracers == {"127.0.0.1": TRACE, "127.0.0.2": TRACE}


async def test_one_tracing_host_is_one_hosts_word(town: Town) -> None:
    adapter = town.adapter(await town.node(1, has_traces=False), await town.node(2))
    block = await adapter.fetch_block(HEIGHT)
    assert (block.node, block.traced_by, internal_proofs(block)) == ("node-1", ("node-2",), {TraceProof.TRACE})
    assert adapter.tracers == {"127.0.0.2": TRACE}


async def test_a_quorum_of_one_takes_one_hosts_word_where_two_trace(town: Town) -> None:
    near, far = await town.node(1), await town.node(2)
    block = await town.adapter(near, far, quorum=1).fetch_block(HEIGHT)
    assert (block.traced_by, internal_proofs(block)) == (("node-1",), {TraceProof.TRACE})


async def test_off_asks_nobody(town: Town) -> None:
    node = await town.node(1)
    adapter = town.adapter(node, internal=Internal.OFF)
    adapter.recall_tracers({"127.0.0.1": TRACE})
    assert internal_transfers(await adapter.fetch_block(HEIGHT)) == []
    assert (node.calls_of(TRACE), dict(adapter.tracers)) == (0, {})
    assert adapter.value_paths == ("native", "logs", "validator_withdrawals")


async def test_auto_goes_on_without_traces_where_no_node_traces(town: Town) -> None:
    adapter = town.adapter(await town.node(1, has_traces=False), await town.node(2, has_traces=False))
    block = await adapter.fetch_block(HEIGHT)
    assert (internal_transfers(block), block.traced_by, dict(adapter.tracers)) == ([], (), {})
    assert adapter.value_paths == ("native", "logs", "validator_withdrawals")


async def test_required_holds_where_no_node_traces_and_says_why(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "SEARCH_AGAIN_HOLDING_S", 0.0)
    node = await town.node(1, has_traces=False)
    adapter = town.adapter(node, internal=Internal.REQUIRED)
    with pytest.raises(
        ChainHolds, match=r"no node is known to trace: node-1: trace_block: the method trace_block does"
    ):
        await adapter.fetch_block(HEIGHT)
    node.traces = {height: recorded_traces(height) for height in (HEIGHT, LATER)}
    assert internal_proofs(await adapter.fetch_block(HEIGHT)) == {TraceProof.TRACE}


async def test_a_node_that_has_the_method_and_no_tracer_does_not_trace(town: Town) -> None:
    node = await town.node(1)
    node.misbehave(refuse(-32000, "tracer not found"), method=TRACE)
    adapter = town.adapter(node)
    assert internal_transfers(await adapter.fetch_block(HEIGHT)) == []
    assert dict(adapter.tracers) == {}


async def test_a_node_that_fails_just_when_it_is_asked_for_traces_gives_no_block(town: Town) -> None:
    node = await town.node(1)
    adapter = town.adapter(node)
    for method in (TRACE, "trace_block"):
        node.misbehave(html, method=method)
    with pytest.raises(NodeUnavailable, match="cannot be told whether it traces: node-1: answered HTML"):
        await adapter.fetch_block(HEIGHT)
    node.behave()
    assert internal_proofs(await adapter.fetch_block(HEIGHT)) == {TraceProof.TRACE}


async def test_a_host_that_once_traced_holds_the_chain_without_its_traces(town: Town) -> None:
    node = await town.node(1, has_traces=False)
    adapter = town.adapter(node)
    adapter.recall_tracers({"127.0.0.1": TRACE, "gone.example": TRACE})
    assert adapter.tracers == {"127.0.0.1": TRACE}
    with pytest.raises(ChainHolds, match=rf"block {HEIGHT}: no traces; known to trace: 127\.0\.0\.1 .*does not exist"):
        await adapter.fetch_block(HEIGHT)
    node.traces = {HEIGHT: recorded_traces(HEIGHT)}
    assert internal_proofs(await adapter.fetch_block(HEIGHT)) == {TraceProof.TRACE}


async def test_a_host_taken_out_of_the_configuration_holds_nothing(town: Town) -> None:
    adapter = town.adapter(await town.node(1, has_traces=False))
    adapter.recall_tracers({"127.0.0.9": TRACE})
    assert (await adapter.fetch_block(HEIGHT)).traced_by == ()


async def test_one_of_two_hosts_that_once_traced_is_not_enough(town: Town) -> None:
    adapter = town.adapter(await town.node(1), await town.node(2, has_traces=False))
    adapter.recall_tracers({"127.0.0.1": TRACE, "127.0.0.2": TRACE})
    with pytest.raises(ChainHolds, match="2 of the tracing hosts have to tell the same traces"):
        await adapter.fetch_block(HEIGHT)


async def test_a_third_tracing_host_stands_in_for_one_that_has_none(town: Town) -> None:
    nodes = [await town.node(number) for number in (1, 2, 3)]
    adapter = town.adapter(*nodes)
    assert (await adapter.fetch_block(LATER)).traced_by == ("node-1", "node-2")
    nodes[1].unsupported = {TRACE}
    assert (await adapter.fetch_block(HEIGHT)).traced_by == ("node-1", "node-3")
    first, second, third = adapter.node_statuses()
    assert {first.state, third.state} <= {"ok", "unknown"}
    assert (second.state, (second.reason or "").partition(":")[0]) == ("failing", "traces")
    nodes[1].unsupported = set()
    await adapter.fetch_block(LATER)


async def test_a_tracing_host_that_never_answers_is_not_waited_for_where_the_others_are_enough(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "TRACE_PATIENCE_MIN_S", 1.0)
    monkeypatch.setattr("chains.evm.fetching.TRACE_BOUNDS", replace(TRACE_BOUNDS, timeout_s=LONG_S))
    nodes = [await town.node(number) for number in (1, 2, 3)]
    adapter = town.adapter(*nodes)
    assert (await adapter.fetch_block(LATER)).traced_by == ("node-1", "node-2")
    nodes[1].misbehave(delay(LONG_S * 2), method=TRACE)
    async with asyncio.timeout(LONG_S / 2):
        assert (await adapter.fetch_block(HEIGHT)).traced_by == ("node-1", "node-3")
    late = adapter.node_statuses()[1]
    assert late.state == "failing"
    assert late.reason is not None and "when others had them" in late.reason
    asked = nodes[1].calls_of(TRACE)
    assert (await adapter.fetch_block(LATER)).traced_by == ("node-1", "node-3")
    assert nodes[1].calls_of(TRACE) == asked
    assert adapter.node_statuses()[2].state != "failing"


@pytest.mark.parametrize("lie", [invent, hide])
async def test_a_lie_of_one_of_two_tracing_hosts_holds_the_chain_and_names_it(town: Town, lie: Any) -> None:  # noqa: ANN401
    near, far = await town.node(1), await town.node(2)
    adapter = town.adapter(near, far)
    far.misbehave(lie, method=TRACE, height=HEIGHT)
    with pytest.raises(ChainHolds) as held:
        await adapter.fetch_block(HEIGHT)
    assert f"block {HEIGHT}: 2 of the tracing hosts have to tell the same traces" in str(held.value)
    assert "127.0.0.1 and 127.0.0.2 differ" in str(held.value) or "127.0.0.2 and 127.0.0.1 differ" in str(held.value)
    assert any(row["hash"] in str(held.value) for row in recorded(HEIGHT).block["transactions"])
    far.behave()
    assert internal_proofs(await adapter.fetch_block(HEIGHT)) == {TraceProof.AGREED}


@pytest.mark.parametrize("lie", [invent, hide])
@pytest.mark.parametrize("liar", [1, 2])
async def test_a_third_tracing_host_finds_the_liar(town: Town, lie: Any, liar: int) -> None:  # noqa: ANN401
    nodes = [await town.node(number) for number in (1, 2, 3)]
    adapter = town.adapter(*nodes)
    nodes[liar - 1].misbehave(lie, method=TRACE, height=HEIGHT)
    before = failures(f"node-{liar}", "traces")
    block = await adapter.fetch_block(HEIGHT)
    honest = tuple(f"node-{number}" for number in (1, 2, 3) if number != liar)
    assert (block.traced_by, internal_proofs(block)) == (honest, {TraceProof.AGREED})
    assert VICTIM not in str(internal_transfers(block))
    assert failures(f"node-{liar}", "traces") == before + 1
    states = {status.name: status.state for status in adapter.node_statuses()}
    assert states[f"node-{liar}"] == "failing"


async def test_traces_that_are_too_few_are_their_nodes_failing_and_the_next_is_asked(town: Town) -> None:
    near, far = await town.node(1), await town.node(2)
    adapter = town.adapter(near, far, quorum=1)
    near.misbehave(drop_last, method=TRACE, height=HEIGHT)
    before = failures("node-1", "traces")
    block = await adapter.fetch_block(HEIGHT)
    assert (block.traced_by, failures("node-1", "traces")) == (("node-2",), before + 1)


async def test_a_node_that_refuses_a_trace_keeps_its_place_for_blocks(town: Town) -> None:
    near, far = await town.node(1), await town.node(2)
    adapter = town.adapter(near, far, quorum=1)
    await adapter.fetch_block(LATER)
    near.misbehave(refuse(-32000, "execution timeout"), method=TRACE)
    assert (await adapter.fetch_block(HEIGHT)).traced_by == ("node-2",)
    asked = near.calls_of(TRACE)
    again = await adapter.fetch_block(HEIGHT)
    assert (again.node, again.traced_by, near.calls_of(TRACE)) == ("node-1", ("node-2",), asked)


async def test_a_tracing_node_that_is_a_moment_behind_is_waited_for(town: Town) -> None:
    near, far = await town.node(1), await town.node(2)
    adapter = town.adapter(near, far)
    await adapter.fetch_block(LATER)
    far.misbehave(null, method=TRACE, height=HEIGHT, times=1)
    assert (await adapter.fetch_block(HEIGHT)).traced_by == ("node-1", "node-2")


async def test_a_block_that_its_tracers_have_no_state_for_holds(town: Town) -> None:
    node = await town.node(1)
    node.traces = {LATER: recorded_traces(LATER)}
    adapter = town.adapter(node)
    await adapter.fetch_block(LATER)
    with pytest.raises(ChainHolds, match="required historical state unavailable"):
        await adapter.fetch_block(HEIGHT)


async def test_a_lying_block_is_its_own_nodes_failing_and_not_the_tracers(town: Town) -> None:
    near, far = await town.node(1, has_traces=False), await town.node(2)
    adapter = town.adapter(near, far)
    near.misbehave(drop_one_log, method="eth_getBlockReceipts")
    block = await adapter.fetch_block(HEIGHT)
    assert (block.node, internal_proofs(block)) == ("node-2", {TraceProof.TRACE})
    assert {status.name: status.state for status in adapter.node_statuses()} == {"node-1": "failing", "node-2": "ok"}


@pytest.mark.parametrize("lie", [invent, hide])
async def test_a_lie_is_found_out_where_blocks_are_read_by_workers_too(town: Town, lie: Any) -> None:  # noqa: ANN401
    workers = Workers(count=1)
    town.stack.push_async_callback(workers.close)
    nodes = [await town.node(number) for number in (1, 2, 3)]
    adapter = town.adapter(*nodes, workers=workers)
    nodes[0].misbehave(lie, method=TRACE, height=HEIGHT)
    block = await adapter.fetch_block_ahead(HEIGHT)
    assert (block.traced_by, internal_proofs(block)) == (("node-2", "node-3"), {TraceProof.AGREED})
    assert internal_transfers(block) == internal_transfers(await town.adapter(*nodes[1:]).fetch_block(HEIGHT))


async def test_a_state_sync_alone_is_nothing_that_every_tracer_traces(town: Town) -> None:
    answer = recorded(HEIGHT).block
    nobody = "0x" + "00" * 20
    sync = answer["transactions"][0] | {"from": nobody, "to": nobody}
    upstream = Upstream(NodeClient(Slug("tracenet"), "node", "http://127.0.0.1:1", await town.session()))
    counts = [
        outline_of(upstream, msgspec.json.encode(answer | {"transactions": rows})).traced_count
        for rows in ([], [sync], [*answer["transactions"], sync], [row["hash"] for row in answer["transactions"]])
    ]
    assert counts == [0, 0, 7, 7]


async def test_an_empty_block_is_not_traced(town: Town) -> None:
    node = await town.node(1)
    empty = recorded(HEIGHT)
    empty.block["transactions"], empty.receipts = [], []
    node.blocks = {HEIGHT: (empty.block, [])}
    await town.adapter(node, proof=ProofLevel.OFF).fetch_block(HEIGHT)
    assert node.calls_of(TRACE) == 0


async def test_a_node_that_begins_to_trace_is_found_beside_the_work(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "SEARCH_AGAIN_S", 0.0)
    node = await town.node(1, has_traces=False)
    adapter = town.adapter(node)
    assert (await adapter.fetch_block(HEIGHT)).traced_by == ()
    node.traces = {height: recorded_traces(height) for height in (HEIGHT, LATER)}
    async with asyncio.timeout(60):
        while not (await adapter.fetch_block(HEIGHT)).traced_by:
            pass  # the search goes on beside it
    assert adapter.tracers == {"127.0.0.1": TRACE}


async def test_nodes_that_said_that_they_do_not_trace_are_left_alone_for_a_while(town: Town) -> None:
    node = await town.node(1, has_traces=False)
    adapter = town.adapter(node)
    await adapter.fetch_block(HEIGHT)
    node.calls.clear()
    for _ in range(3):
        await adapter.fetch_block(LATER)
    assert {method for method, _ in node.calls} == {"eth_getBlockByNumber", "eth_getBlockReceipts"}


async def test_a_host_that_lost_one_method_is_asked_by_the_other(town: Town) -> None:
    node = await town.node(1)
    adapter = town.adapter(node)
    adapter.recall_tracers({"127.0.0.1": "trace_block"})
    assert (await adapter.fetch_block(HEIGHT)).traced_by == ("node-1",)
    assert adapter.tracers == {"127.0.0.1": TRACE}


@pytest.mark.parametrize("says", ["Resource not found", "required historical state unavailable"])
async def test_a_block_whose_state_is_gone_is_traced_by_what_the_node_had_kept_of_it(town: Town, says: str) -> None:
    """A node that keeps traces can tell those of blocks that it can no longer make anew; it is no liar for that."""
    node, whole = await town.node(1), await town.node(2)
    flat = flat_form(recorded_traces(HEIGHT), recorded(HEIGHT).block["hash"])
    node.extra["trace_block"] = lambda _height: flat
    pruned = [{"txHash": row["hash"], "error": says} for row in recorded(HEIGHT).block["transactions"]]
    node.misbehave(lambda _answer: pruned, method=TRACE, height=HEIGHT)
    adapter = town.adapter(node)
    await adapter.fetch_block(LATER)
    block = await adapter.fetch_block(HEIGHT)
    assert internal_transfers(block) == internal_transfers(await town.adapter(whole).fetch_block(HEIGHT))
    assert block.traced_by == ("node-1",)
    assert adapter.tracers == {"127.0.0.1": TRACE}  # of newer blocks it is asked as before
    assert [status.state for status in adapter.node_statuses()] == ["ok"]


async def test_a_block_whose_state_is_gone_holds_where_the_node_has_kept_nothing_of_it(town: Town) -> None:
    node = await town.node(1)
    pruned = [{"txHash": row["hash"], "error": "Resource not found"} for row in recorded(HEIGHT).block["transactions"]]
    node.misbehave(lambda _answer: pruned, method=TRACE, height=HEIGHT)
    adapter = town.adapter(node)
    await adapter.fetch_block(LATER)
    with pytest.raises(ChainHolds, match=f"cannot trace block {HEIGHT}: .Resource not found"):
        await adapter.fetch_block(HEIGHT)
    assert [status.state for status in adapter.node_statuses()] == ["ok"]


async def test_a_bare_frame_of_a_failed_transaction_is_a_trace(town: Town) -> None:
    node, whole = await town.node(1), await town.node(2)
    bare = [row.get("result", row) for row in recorded_traces(HEIGHT)]
    failed = [{**frame, "error": "execution reverted"} if frame.get("value") == "0x0" else frame for frame in bare]
    assert any("error" in frame for frame in failed)
    node.misbehave(lambda _answer: bare, method=TRACE, height=HEIGHT)
    block = await town.adapter(node).fetch_block(HEIGHT)
    assert internal_transfers(block) == internal_transfers(await town.adapter(whole).fetch_block(HEIGHT))
    upstream = Upstream(NodeClient(Slug("tracenet"), "node-1", node.url, await town.session()))
    node.misbehave(lambda _answer: failed, method=TRACE, height=HEIGHT)
    ref = outline_of(upstream, msgspec.json.encode(recorded(HEIGHT).block)).ref
    assert (await fetch_traces(upstream, TraceMethod.CALL_TRACER, ref)).answer
