"""A state sync's bytes come from a node by place or by hash; without them its block is not proven."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from chains.errors import ChainHolds
from chains.evm.adapter import EvmAdapter
from chains.evm.dialect import Dialect
from chains.model import Block, ProofLevel, hex_of
from chains.profile import load_profile
from tests.fakes.node import RecordedNode
from tests.unit.chains.evm.dialect_blocks import HEIGHT, make_answer, signed
from tests.unit.chains.evm.dialect_reading import transfer_log
from tests.unit.chains.evm.factories import BOB, make_asset
from tests.unit.chains.evm.recorded import Answer
from tests.unit.chains.evm.test_adapter import Settings
from tests.unit.chains.evm.test_polygon import state_sync

BY_PLACE = "eth_getRawTransactionByBlockHashAndIndex"
BY_HASH = "eth_getRawTransactionByHash"


def synced() -> Answer:
    """A block of Polygon with one payment and a state sync under its roots."""
    return make_answer(Dialect.POLYGON, [signed(BOB, 1, chain_number=137), state_sync()])


async def fetch(answer: Answer, extra: dict[str, Callable[..., Any]], proof: ProofLevel) -> tuple[Block, list[str]]:
    """The block as the adapter makes it, and the methods that it called."""
    async with RecordedNode({HEIGHT: (answer.block, answer.receipts)}, chain_id=137, extra=extra) as node:
        profile = replace(load_profile("polygon"), tokens=(make_asset(),), proof=proof)
        adapter = EvmAdapter(profile, [Settings(node.url)])
        try:
            return await adapter.fetch_block(HEIGHT), [method for method, _ in node.calls]
        finally:
            await adapter.close()


@pytest.mark.parametrize("method", [BY_PLACE, BY_HASH])
async def test_a_block_with_a_state_sync_is_proven_by_either_method(method: str) -> None:
    raw = hex_of(state_sync().raw)
    block, called = await fetch(synced(), {method: lambda *_: raw}, ProofLevel.ROOTS)
    assert block.proof is ProofLevel.ROOTS
    assert [(t.amount_atomic, t.proof) for t in block.transfers] == [(1, None), (9, None)]
    assert called[-2:] == [BY_PLACE, BY_HASH]
    assert block.rpc_calls == 4


@pytest.mark.parametrize("told", ["null", "nothing", "another's", "unsupported"])
async def test_a_node_that_does_not_give_its_bytes_fails_the_proof(told: str) -> None:
    answers = {"null": None, "nothing": "0x", "another's": "0x7fc0"}
    extra: dict[str, Callable[..., Any]] = {} if told == "unsupported" else {BY_PLACE: lambda *_: answers[told]}
    with pytest.raises(ChainHolds, match=r"state sync|does not hash"):
        await fetch(synced(), extra, ProofLevel.ROOTS)


async def test_a_block_without_a_state_sync_costs_no_further_call() -> None:
    answer = make_answer(Dialect.POLYGON, [signed(BOB, 1, nonce=0x7F, chain_number=137)])
    block, called = await fetch(answer, {}, ProofLevel.ROOTS)
    assert (block.transaction_count, block.rpc_calls) == (1, 2)
    assert not {BY_PLACE, BY_HASH} & set(called)


async def test_below_the_roots_nobody_is_asked_for_it() -> None:
    block, called = await fetch(synced(), {}, ProofLevel.BLOOM)
    assert [t.amount_atomic for t in block.transfers] == [1, 9]
    assert not {BY_PLACE, BY_HASH} & set(called)
    assert transfer_log(9)["address"] == hex_of(make_asset().contract or b"")
