"""The EVM adapter before nodes that tell the truth, lag, lie and lack methods: recorded mainnet blocks on loopback."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from chains.errors import BlockNotFound, ChainHolds, NodeUnavailable, ProfileError, WrongChain
from chains.evm.adapter import EvmAdapter
from chains.evm.workers import Workers
from chains.model import BlockRef, LocatorKind, ProofLevel, Slug
from chains.profile import load_profile
from tests.fakes.node import (
    Answer,
    Exchange,
    Json,
    RecordedNode,
    Refusal,
    drop_one_log,
    empty_list,
    html,
    null,
    refuse,
    short_batch,
    status,
)
from tests.unit.chains.evm.recorded import WITH_RECEIPTS, recorded, recorded_traces

HEIGHT = 13_998_626
EARLIER = 1_000_000
FULL = 22_431_084
"""One with transfers of listed tokens."""
RECEIPTS = "eth_getBlockReceipts"


@dataclass(frozen=True)
class Settings:
    """A node as the operator configures it."""

    url: str
    name: str | None = None
    rps: float | None = None
    ws: str | None = None


@dataclass
class Town:
    """Two nodes that know the same two mainnet blocks; tests make adapters over them."""

    stack: AsyncExitStack
    near: RecordedNode
    far: RecordedNode

    def adapter(
        self, *nodes: RecordedNode, proof: ProofLevel = ProofLevel.ROOTS, workers: Workers | None = None
    ) -> EvmAdapter:
        names = {id(self.near): "near", id(self.far): "far"}
        profile = replace(load_profile("ethereum"), slug=Slug("townnet"), proof=proof)
        adapter = EvmAdapter(profile, [Settings(node.url, names[id(node)]) for node in nodes], workers=workers)
        self.stack.push_async_callback(adapter.close)
        return adapter


def answers() -> dict[int, tuple[Json, Json]]:
    return {height: (recorded(height).block, recorded(height).receipts) for height in (EARLIER, HEIGHT)}


@pytest.fixture
async def town() -> AsyncIterator[Town]:
    async with AsyncExitStack() as stack:
        near = await stack.enter_async_context(RecordedNode(answers()))
        far = await stack.enter_async_context(RecordedNode(answers(), host="127.0.0.2"))
        yield Town(stack, near, far)


def ref_of(height: int) -> BlockRef:
    block = recorded(height).block
    return BlockRef(height, bytes.fromhex(block["hash"][2:]), bytes.fromhex(block["parentHash"][2:]))


def proof_failures(node: str) -> dict[str, float]:
    """Proof failures of a node so far, by check."""
    return {
        sample.labels["check"]: sample.value
        for metric in REGISTRY.collect()
        for sample in metric.samples
        if sample.name == "chainbell_proof_failures_total"
        and (sample.labels["chain"], sample.labels["node"]) == ("townnet", node)
    }


async def test_a_block_is_one_batch_of_one_node_proven_and_decoded(town: Town) -> None:
    block = await town.adapter(town.near, town.far).fetch_block(HEIGHT)
    assert (block.ref, block.proof, block.transaction_count) == (ref_of(HEIGHT), ProofLevel.ROOTS, 7)
    assert (block.node, block.host, block.rpc_calls) == ("near", "127.0.0.1", 2)
    assert block.timestamp_s == int(recorded(HEIGHT).block["timestamp"], 16)
    assert {transfer.asset_id for transfer in block.transfers} >= {"eip155:1/slip44:60"}
    assert [method for method, _ in town.near.calls] == ["eth_chainId", "eth_getBlockByNumber", RECEIPTS]
    assert (town.near.exchanges, town.far.exchanges) == (2, 0)


async def test_every_recorded_block_comes_through_whole() -> None:
    blocks: dict[int, tuple[Json, Json]] = {h: (recorded(h).block, recorded(h).receipts) for h in WITH_RECEIPTS}
    async with RecordedNode(blocks) as node, AsyncExitStack() as stack:
        adapter = EvmAdapter(load_profile("ethereum"), [Settings(node.url)])
        stack.push_async_callback(adapter.close)
        for height in WITH_RECEIPTS:
            block = await adapter.fetch_block(height)
            assert (block.ref, block.proof) == (ref_of(height), ProofLevel.ROOTS)
            assert block.transaction_count == len(blocks[height][0]["transactions"])


async def test_a_block_by_hash_is_the_same_block(town: Town) -> None:
    adapter = town.adapter(town.near)
    assert await adapter.fetch_block_by_hash(ref_of(HEIGHT).hash) == await adapter.fetch_block(HEIGHT)


async def test_every_level_of_proof_gives_the_same_transfers_and_says_its_name(town: Town) -> None:
    blocks = [await town.adapter(town.near, proof=level).fetch_block(HEIGHT) for level in ProofLevel]
    assert [block.proof for block in blocks] == list(ProofLevel)
    assert {block.transfers for block in blocks} == {blocks[0].transfers}


def forge_recipient(block: Json) -> Json:
    block["transactions"][0]["to"] = "0x" + "11" * 20
    return block


def forge_sender(block: Json) -> Json:
    block["transactions"][0]["from"] = "0x" + "11" * 20
    return block


def forge_timestamp(block: Json) -> Json:
    return {**block, "timestamp": "0x1"}


def shift_amount(receipts: Json) -> Json:
    log = next(log for receipt in receipts for log in receipt["logs"])
    log["data"] = "0x" + "ff" * 32
    return receipts


def not_hexadecimal(block: Json) -> Json:
    return {**block, "gasUsed": "0xzz"}


def without_a_field(block: Json) -> Json:
    return {name: value for name, value in block.items() if name != "receiptsRoot"}


LIES = [
    (drop_one_log, RECEIPTS, "structure"),
    (empty_list, RECEIPTS, "structure"),
    (null, RECEIPTS, "receipts_missing"),
    (refuse(-32000, "block not found"), RECEIPTS, "receipts_missing"),
    (shift_amount, RECEIPTS, "receipts_root"),
    (forge_recipient, "eth_getBlockByNumber", "transaction_hash"),
    (forge_sender, "eth_getBlockByNumber", "sender"),
    (forge_timestamp, "eth_getBlockByNumber", "header_hash"),
    (not_hexadecimal, "eth_getBlockByNumber", "structure"),
    (without_a_field, "eth_getBlockByNumber", "structure"),
    (lambda _: recorded(EARLIER).block, "eth_getBlockByNumber", "place"),
]


@pytest.mark.parametrize(("lie", "method", "check"), LIES)
async def test_a_lying_node_is_named_and_the_next_one_answers(town: Town, lie: Answer, method: str, check: str) -> None:
    town.near.misbehave(lie, method=method, height=HEIGHT)
    before = proof_failures("near").get(check, 0.0)
    with capture_logs() as logs:
        block = await town.adapter(town.near, town.far).fetch_block(HEIGHT)
    assert (block.ref, block.node) == (ref_of(HEIGHT), "far")
    assert proof_failures("near")[check] == before + 1
    assert [(row["event"], row["node"]) for row in logs] == [("node failing", "near")]
    assert logs[0]["reason"].startswith(check)


@pytest.mark.parametrize(("lie", "method", "check"), LIES)
async def test_when_all_nodes_lie_the_chain_holds_and_goes_on_when_one_tells_the_truth(
    town: Town, lie: Answer, method: str, check: str
) -> None:
    adapter = town.adapter(town.near, town.far)
    for node in (town.near, town.far):
        node.misbehave(lie, method=method, height=HEIGHT)
    with pytest.raises(ChainHolds, match=rf"townnet: block {HEIGHT}: .*\({check}\).*near.*far"):
        await adapter.fetch_block(HEIGHT)
    assert [status.state for status in adapter.node_statuses()] == ["failing", "failing"]
    town.far.behave()
    assert (await adapter.fetch_block(HEIGHT)).node == "far"
    assert [status.state for status in adapter.node_statuses()] == ["failing", "ok"]


async def test_receipts_that_come_late_are_asked_once_more_without_a_complaint(town: Town) -> None:
    town.near.misbehave(null, method=RECEIPTS, times=1)
    with capture_logs() as logs:
        block = await town.adapter(town.near, town.far).fetch_block(HEIGHT)
    assert (block.node, logs) == ("near", [])
    assert (town.near.calls_of(RECEIPTS), town.near.calls_of("eth_getTransactionReceipt")) == (2, 0)


async def test_a_reorg_between_the_calls_of_a_batch_is_asked_once_more_without_a_complaint(town: Town) -> None:
    town.near.misbehave(lambda _: recorded(EARLIER).receipts, method=RECEIPTS, height=HEIGHT, times=1)
    with capture_logs() as logs:
        block = await town.adapter(town.near, town.far).fetch_block(HEIGHT)
    assert (block.node, logs) == ("near", [])


@pytest.mark.parametrize("trouble", [html, status(500), status(403), short_batch])
async def test_a_node_that_does_not_speak_is_passed_over(town: Town, trouble: Exchange) -> None:
    town.near.misbehave(trouble, method="eth_getBlockByNumber")
    assert (await town.adapter(town.near, town.far).fetch_block(HEIGHT)).node == "far"


async def test_no_node_answering_is_not_holding(town: Town) -> None:
    for node in (town.near, town.far):
        node.misbehave(status(403))
    with pytest.raises(NodeUnavailable, match="no node answered") as caught:
        await town.adapter(town.near, town.far).fetch_block(HEIGHT)
    assert not isinstance(caught.value, BlockNotFound)


async def test_a_block_that_one_node_has_is_found(town: Town) -> None:
    town.near.head = EARLIER
    adapter = town.adapter(town.near, town.far)
    assert (await adapter.fetch_block(HEIGHT)).node == "far"
    assert "failing" not in [status.state for status in adapter.node_statuses()]


async def test_a_block_that_no_node_has_is_not_found_by_height_hash_or_header(town: Town) -> None:
    adapter = town.adapter(town.near, town.far)
    with pytest.raises(BlockNotFound, match=f"block {HEIGHT + 1}: no node has it"):
        await adapter.fetch_block(HEIGHT + 1)
    with pytest.raises(BlockNotFound, match="block 0xabab"):
        await adapter.fetch_block_by_hash(b"\xab" * 32)
    assert await adapter.fetch_ref(HEIGHT + 1) is None


async def test_what_no_node_had_is_found_as_soon_as_one_has_it(town: Town) -> None:
    """Nothing absent is remembered: near the head a null is true for a moment only."""
    adapter = town.adapter(town.near)
    nulls = town.near.misbehave(null, method="eth_getBlockByNumber", height=HEIGHT)
    with pytest.raises(BlockNotFound):
        await adapter.fetch_block(HEIGHT)
    assert await adapter.fetch_ref(HEIGHT) is None
    nulls.times = 0
    assert (await adapter.fetch_block(HEIGHT)).ref == ref_of(HEIGHT)
    assert await adapter.fetch_ref(HEIGHT) == ref_of(HEIGHT)


async def test_no_bloom_is_asked_whether_a_block_holds_a_transfer(town: Town) -> None:
    """Some chains' nodes tell of blooms of zero, or late: where they are not proven they must not be used either."""
    town.near.blocks = {FULL: (recorded(FULL).block, recorded(FULL).receipts)}
    expected = (await town.adapter(town.near).fetch_block(FULL)).transfers
    assert any(transfer.locator.kind is LocatorKind.LOG for transfer in expected)

    def _without_bits(answer: Json) -> Json:
        for row in answer if isinstance(answer, list) else [answer]:
            row["logsBloom"] = "0x" + "00" * 256
        return answer

    town.near.misbehave(_without_bits, height=FULL)
    block = await town.adapter(town.near, proof=ProofLevel.STRUCTURE).fetch_block(FULL)
    assert block.transfers == expected


async def test_a_node_that_says_not_found_in_an_error_has_no_such_block(town: Town) -> None:
    town.near.misbehave(refuse(-32001, "Resource not found"), method="eth_getBlockByNumber")
    with pytest.raises(BlockNotFound):
        await town.adapter(town.near).fetch_block(HEIGHT)


async def test_a_node_without_receipts_by_block_is_asked_for_each_and_that_is_remembered(town: Town) -> None:
    town.near.unsupported.add(RECEIPTS)
    adapter = town.adapter(town.near)
    block = await adapter.fetch_block(HEIGHT)
    assert (block.ref, block.proof, block.rpc_calls) == (ref_of(HEIGHT), ProofLevel.ROOTS, 8)
    assert await adapter.fetch_block(HEIGHT) == block
    assert town.near.calls_of(RECEIPTS) == 1
    assert town.near.calls_of("eth_getTransactionReceipt") == 14


async def test_a_receipt_that_is_missing_among_them_is_no_block_without_it(town: Town) -> None:
    town.near.unsupported.add(RECEIPTS)
    town.near.misbehave(
        lambda receipt: None if receipt["transactionIndex"] == "0x3" else receipt, method="eth_getTransactionReceipt"
    )
    with pytest.raises(ChainHolds, match="receipts_missing") as caught:
        await town.adapter(town.near).fetch_block(HEIGHT)
    assert str(HEIGHT) in str(caught.value)


async def test_a_node_without_batches_serves_too(town: Town) -> None:
    town.near.batch_max = 0
    town.near.unsupported.add(RECEIPTS)
    assert (await town.adapter(town.near).fetch_block(HEIGHT)).ref == ref_of(HEIGHT)


async def test_the_head_and_its_tags_are_one_batch(town: Town) -> None:
    town.near.safe = town.near.finalized = EARLIER
    adapter = town.adapter(town.near, town.far)
    head = await adapter.fetch_head()
    assert (head.node, head.head, head.safe, head.finalized) == (
        "near",
        ref_of(HEIGHT),
        ref_of(EARLIER),
        ref_of(EARLIER),
    )
    assert town.near.exchanges == 2, "the chain id, then one batch"
    assert adapter.node_statuses()[0].head == HEIGHT


async def test_a_node_without_tags_has_a_head_all_the_same(town: Town) -> None:
    head = await town.adapter(town.near).fetch_head()
    assert (head.head, head.safe, head.finalized) == (ref_of(HEIGHT), None, None)


async def test_a_head_whose_fields_do_not_give_its_hash_is_not_believed(town: Town) -> None:
    town.near.misbehave(forge_timestamp, method="eth_getBlockByNumber")
    assert (await town.adapter(town.near, town.far).fetch_head()).node == "far"
    assert (await town.adapter(town.near, proof=ProofLevel.BLOOM).fetch_head()).node == "near"


async def test_a_node_that_names_no_head_is_passed_over(town: Town) -> None:
    town.near.misbehave(null, method="eth_getBlockByNumber")
    assert (await town.adapter(town.near, town.far).fetch_head()).node == "far"


async def test_a_ref_is_a_proven_header_at_that_height(town: Town) -> None:
    adapter = town.adapter(town.near)
    assert await adapter.fetch_ref(EARLIER) == ref_of(EARLIER)
    town.near.misbehave(forge_timestamp, method="eth_getBlockByNumber")
    with pytest.raises(ChainHolds, match="header_hash"):
        await adapter.fetch_ref(EARLIER)


async def test_hosts_agree_disagree_or_are_left_out(town: Town) -> None:
    adapter = town.adapter(town.near, town.far)
    ref = ref_of(EARLIER)
    assert adapter.hosts == ("127.0.0.1", "127.0.0.2")
    assert await adapter.fetch_agreements(ref, adapter.hosts) == {"127.0.0.1": True, "127.0.0.2": True}
    other = replace(ref, hash=b"\x01" * 32)
    assert await adapter.fetch_agreements(other, adapter.hosts[1:]) == {"127.0.0.2": False}
    town.near.head = 1
    town.far.misbehave(forge_timestamp)
    assert await adapter.fetch_agreements(ref, adapter.hosts) == {}


async def test_a_node_of_another_chain_stops_the_start_with_a_sentence(town: Town) -> None:
    town.far.chain_id = 5
    with pytest.raises(WrongChain, match=r"townnet: far: .*eip155:5, not eip155:1") as caught:
        await town.adapter(town.near, town.far).check_chain_id()
    assert "near" not in str(caught.value)


async def test_a_node_that_is_down_at_the_start_is_checked_when_it_comes_back(town: Town) -> None:
    port = int(town.near.url.rsplit(":", 1)[1])
    await town.near.stop()
    adapter = town.adapter(town.near, town.far)
    await adapter.check_chain_id()
    assert [status.state for status in adapter.node_statuses()] == ["failing", "ok"]
    town.near.chain_id = 5
    await town.near.start(port)
    await town.far.stop()
    with pytest.raises(ChainHolds, match="chain_id"):
        await adapter.fetch_block(HEIGHT)


async def test_what_a_node_can_do_is_found_by_asking(town: Town) -> None:
    town.far.head = EARLIER
    town.far.unsupported |= {RECEIPTS, "eth_getLogs"}
    town.far.batch_max = 0
    near, far = await town.adapter(town.near, town.far).probe()
    assert (near.name, near.reason, near.chain_id, near.head, near.lag_blocks) == ("near", None, "eip155:1", HEIGHT, 0)
    assert (near.has_batches, near.has_block_receipts, near.log_range_max) == (True, True, 10_000)
    assert (near.trace_methods, near.has_old_blocks, near.has_old_state) == ((), False, True)
    assert near.client == "Recorded/1"
    assert near.latency_ms is not None
    assert (far.lag_blocks, far.has_batches, far.has_block_receipts) == (HEIGHT - EARLIER, False, False)
    assert far.log_range_max == 0


async def test_a_node_that_traces_is_found_by_a_trace_of_a_recent_block(town: Town) -> None:
    town.near.traces = {HEIGHT: recorded_traces(HEIGHT)}
    town.near.extra["eth_getProof"] = lambda *_: {}
    town.far.extra["debug_traceBlockByHash"] = lambda *_: []
    town.far.extra["trace_block"] = lambda _: None
    near, far = await town.adapter(town.near, town.far).probe()
    assert (near.trace_methods, far.trace_methods) == (("debug_traceBlockByHash",), ())
    assert (near.has_state_proofs, far.has_state_proofs) == (True, False)


async def test_where_no_transaction_was_mined_lately_a_method_that_is_offered_counts(town: Town) -> None:
    def unknown_block(*_: Json) -> Json:
        raise Refusal(-32000, "block 0x01 not found")

    quiet = recorded(HEIGHT).block | {"transactions": []}
    town.near.blocks = {HEIGHT: (quiet, [])}
    town.near.extra["debug_traceBlockByHash"] = unknown_block
    town.near.extra["trace_block"] = lambda _: None
    (near,) = await town.adapter(town.near).probe()
    assert near.trace_methods == ("debug_traceBlockByHash", "trace_block")


async def test_a_probe_of_a_dead_node_says_why(town: Town) -> None:
    await town.near.stop()
    (probe,) = await town.adapter(town.near).probe()
    assert (probe.head, probe.lag_blocks, probe.chain_id) == (None, None, None)
    assert "connection failed" in (probe.reason or "")


async def test_a_url_that_is_none_is_refused_before_anything_is_opened() -> None:
    with pytest.raises(ProfileError, match="must be http"):
        EvmAdapter(load_profile("ethereum"), [Settings("node.example:8545")])


async def test_a_strangers_words_do_not_break_the_line(town: Town) -> None:
    def speak(block: Json) -> Json:
        return {**block, "number": "0x1\n\x1b[31mALL FINE" + " " * 10}

    town.near.misbehave(speak, method="eth_getBlockByNumber")
    with pytest.raises(ChainHolds) as caught:
        await town.adapter(town.near).fetch_block(HEIGHT)
    assert str(caught.value).isprintable()


# --- fetching ahead ---------------------------------------------------------------------------------------------------


@pytest.fixture
async def workers() -> AsyncIterator[Workers]:
    made = Workers(1)
    yield made
    await made.close()


async def test_a_block_fetched_ahead_is_the_same_block(town: Town, workers: Workers) -> None:
    adapter = town.adapter(town.near, workers=workers)
    ahead = await adapter.fetch_block_ahead(HEIGHT)
    assert workers.process_ids
    assert replace(ahead, transfers=tuple(ahead.transfers)) == await adapter.fetch_block(HEIGHT)


async def test_without_workers_a_block_is_read_here(town: Town) -> None:
    adapter = town.adapter(town.near)
    assert await adapter.fetch_block_ahead(HEIGHT) == await adapter.fetch_block(HEIGHT)


async def test_a_proof_that_fails_in_a_worker_counts_against_the_node_that_answered(
    town: Town, workers: Workers
) -> None:
    town.near.misbehave(drop_one_log, method=RECEIPTS)
    before = proof_failures("near").get("structure", 0.0), proof_failures("far")
    adapter = town.adapter(town.near, town.far, workers=workers)
    block = await adapter.fetch_block_ahead(HEIGHT)
    assert block.node == "far"
    assert (proof_failures("near")["structure"], proof_failures("far")) == (before[0] + 1, before[1])
    assert [(node.name, node.state) for node in adapter.node_statuses()] == [("near", "failing"), ("far", "ok")]


async def test_a_chain_whose_answers_all_fail_in_workers_holds(town: Town, workers: Workers) -> None:
    town.near.misbehave(drop_one_log, method=RECEIPTS)
    with pytest.raises(ChainHolds, match="no node's answer can be proven"):
        await town.adapter(town.near, workers=workers).fetch_block_ahead(HEIGHT)


async def test_the_head_of_one_chain_is_read_while_another_waits_for_a_worker(town: Town, workers: Workers) -> None:
    behind, live = town.adapter(town.near, workers=workers), town.adapter(town.far, workers=workers)
    await behind.fetch_block_ahead(HEIGHT)
    (pid,) = workers.process_ids
    os.kill(pid, signal.SIGSTOP)
    ahead = [asyncio.ensure_future(behind.fetch_block_ahead(height)) for height in (EARLIER, HEIGHT)]
    try:
        assert (await asyncio.wait_for(live.fetch_block(HEIGHT), 60)).ref == ref_of(HEIGHT)
        assert not any(task.done() for task in ahead)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert [block.ref for block in await asyncio.gather(*ahead)] == [ref_of(EARLIER), ref_of(HEIGHT)]
