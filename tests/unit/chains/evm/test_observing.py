"""Proofs that are only observed: nothing is refused that can be decoded, and nothing is claimed that was not reached."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from chains.errors import ChainHolds
from chains.evm.adapter import EvmAdapter
from chains.evm.observing import COMPLAINT_INTERVAL_S, SHOWN_FOR_S, ProofObserver
from chains.evm.workers import Workers
from chains.model import Block, FailedCheck, ProofLevel, Slug
from chains.node.naming import NodeSettings
from chains.profile import load_profile
from tests.fakes.node import Answer, Json, RecordedNode, drop_one_log, empty_list
from tests.unit.chains.evm.recorded import recorded
from tests.unit.chains.evm.test_adapter import (
    EARLIER,
    HEIGHT,
    RECEIPTS,
    Settings,
    forge_recipient,
    forge_sender,
    forge_timestamp,
    ref_of,
    shift_amount,
    without_a_field,
)

BLOCK = "eth_getBlockByNumber"


def forge_bloom(block: Json) -> Json:
    return {**block, "logsBloom": "0x" + "00" * 256}


def forge_every_header(block: Json) -> Json:
    return block and {**block, "timestamp": "0x1"}


def without_a_root(block: Json) -> Json:
    return block and without_a_field(block)


def forge_gas(receipts: Json) -> Json:
    receipts[0]["gasUsed"] = "0x1"
    return receipts


def forge_withdrawals_root(block: Json) -> Json:
    return {**block, "withdrawalsRoot": "0x" + "11" * 32, "withdrawals": []}


def move_receipt(receipts: Json) -> Json:
    receipts[1]["transactionHash"] = receipts[0]["transactionHash"]
    return receipts


def move_log(receipts: Json) -> Json:
    log = next(log for receipt in receipts for log in receipt["logs"])
    log["transactionHash"] = "0x" + "11" * 32
    return receipts


@pytest.fixture
async def node() -> AsyncIterator[RecordedNode]:
    blocks = {height: (recorded(height).block, recorded(height).receipts) for height in (EARLIER, HEIGHT)}
    async with RecordedNode(blocks) as opened:
        yield opened


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as opened:
        yield opened


def adapter_of(
    stack: AsyncExitStack, node: RecordedNode, *, is_enforced: bool = False, workers: Workers | None = None
) -> EvmAdapter:
    profile = replace(load_profile("ethereum"), slug=Slug("newnet"), is_proof_enforced=is_enforced)
    nodes: list[NodeSettings] = [Settings(node.url, "near")]
    adapter = EvmAdapter(profile, nodes, workers=workers)
    stack.push_async_callback(adapter.close)
    return adapter


def failures_of(check: str) -> float:
    labels = {"chain": "newnet", "node": "near", "check": check}
    return REGISTRY.get_sample_value("chainbell_proof_failures_total", labels) or 0.0


LIES = [
    (drop_one_log, RECEIPTS, ["structure", "bloom", "receipts_root"], ProofLevel.OFF),
    (forge_gas, RECEIPTS, ["structure"], ProofLevel.OFF),
    (forge_bloom, BLOCK, ["bloom", "header_hash"], ProofLevel.STRUCTURE),
    (shift_amount, RECEIPTS, ["receipts_root"], ProofLevel.BLOOM),
    (forge_recipient, BLOCK, ["transaction_hash", "sender"], ProofLevel.BLOOM),
    (forge_sender, BLOCK, ["sender"], ProofLevel.BLOOM),
    (forge_timestamp, BLOCK, ["header_hash"], ProofLevel.BLOOM),
    (forge_withdrawals_root, BLOCK, ["header_hash", "withdrawals_root"], ProofLevel.BLOOM),
]


@pytest.mark.parametrize(("lie", "method", "checks", "reached"), LIES, ids=[lie[0].__name__ for lie in LIES])
async def test_a_lying_node_is_told_counted_and_flagged_and_refused_again_once_proofs_are_enforced(
    stack: AsyncExitStack, node: RecordedNode, lie: Answer, method: str, checks: list[str], reached: ProofLevel
) -> None:
    node.misbehave(lie, method=method, height=HEIGHT)
    adapter = adapter_of(stack, node)
    before = {check: failures_of(check) for check in checks}
    with capture_logs() as logs:
        block = await adapter.fetch_block(HEIGHT)
    assert (block.proof, [failed.check for failed in block.failed_checks]) == (reached, checks)
    assert {check: failures_of(check) - before[check] for check in checks} == dict.fromkeys(checks, 1.0)
    told = [(entry["check"], entry["node"]) for entry in logs if entry["event"] == "proof failed, not enforced"]
    assert told == [(check, "near") for check in checks]
    (status,) = adapter.node_statuses()
    assert status.state == "ok"
    assert status.reason is not None
    assert status.reason.startswith(f"not enforced: {checks[-1]}: ")
    with pytest.raises(ChainHolds, match=checks[0]):
        await adapter_of(stack, node, is_enforced=True).fetch_block(HEIGHT)


UNDECODABLE = [
    (empty_list, RECEIPTS),
    (move_receipt, RECEIPTS),
    (move_log, RECEIPTS),
    (without_a_field, BLOCK),
    (lambda _: recorded(EARLIER).block, BLOCK),
]


@pytest.mark.parametrize(("lie", "method"), UNDECODABLE)
async def test_what_cannot_be_decoded_or_is_of_another_block_is_refused_all_the_same(
    stack: AsyncExitStack, node: RecordedNode, lie: Answer, method: str
) -> None:
    node.misbehave(lie, method=method, height=HEIGHT)
    with pytest.raises(ChainHolds, match="no node's answer can be proven"):
        await adapter_of(stack, node).fetch_block(HEIGHT)


async def test_an_honest_block_is_proven_as_ever(stack: AsyncExitStack, node: RecordedNode) -> None:
    observed = await adapter_of(stack, node).fetch_block(HEIGHT)
    assert observed == await adapter_of(stack, node, is_enforced=True).fetch_block(HEIGHT)
    assert (observed.proof, observed.failed_checks) == (ProofLevel.ROOTS, ())


async def test_blocks_read_ahead_are_observed_in_the_same_way(stack: AsyncExitStack, node: RecordedNode) -> None:
    node.misbehave(shift_amount, method=RECEIPTS, height=HEIGHT)
    workers = Workers(1)
    stack.push_async_callback(workers.close)
    before = failures_of("receipts_root")
    adapter = adapter_of(stack, node, workers=workers)
    blocks: list[Block] = [await adapter.fetch_block_ahead(HEIGHT), await adapter.fetch_block(HEIGHT)]
    assert [(block.proof, block.failed_checks) for block in blocks] == [(ProofLevel.BLOOM, blocks[1].failed_checks)] * 2
    assert failures_of("receipts_root") == before + 2


async def test_heads_are_observed_too(stack: AsyncExitStack, node: RecordedNode) -> None:
    node.misbehave(forge_every_header, method=BLOCK)
    before = failures_of("header_hash")
    adapter = adapter_of(stack, node)
    assert (await adapter.fetch_head()).head == ref_of(HEIGHT)
    assert await adapter.fetch_ref(EARLIER) == ref_of(EARLIER)
    assert failures_of("header_hash") == before + 2
    node.misbehave(without_a_root, method=BLOCK)
    with pytest.raises(ChainHolds):
        await adapter.fetch_ref(EARLIER)


def test_a_check_is_logged_once_a_minute_and_shown_for_a_while() -> None:
    now = 1_000.0
    observer = ProofObserver(Slug("newnet"), clock=lambda: now)
    failed = [FailedCheck("bloom", "not that of the logs")]
    with capture_logs() as logs:
        for wait_s in (0, COMPLAINT_INTERVAL_S - 1, 1, SHOWN_FOR_S - 1):
            now += wait_s
            assert (observer.reason_of("a") is None) == (wait_s == 0)
            observer.note("a", failed, "block 7")
        observer.note("b", [*failed, FailedCheck("sender", "not the signer")], "block 8")
    assert [entry["check"] for entry in logs] == ["bloom", "bloom", "bloom", "sender"]
    assert observer.reason_of("a") == "not enforced: bloom: not that of the logs"
    now += SHOWN_FOR_S
    assert observer.reason_of("a") is None
