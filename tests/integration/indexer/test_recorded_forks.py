"""Forks of Polygon as a real node showed them: the follower ends on the chain that won, through every turn of it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from sqlalchemy import select

from indexer.follower import Reorged
from ledger.database import transaction
from ledger.schema import blocks
from tests.fakes.recorded_chain import RecordedChain, read_recording
from tests.integration.indexer.conftest import Ledger, make_ledger

RECORDINGS = Path(__file__).parents[2] / "data" / "reorg" / "polygon-mainnet"

WON = {
    "watch1": {13_522_194: "e5a6598d287904b84988b7ae0bc6566b79abebf46e2abc90a5579827fa0af3ce"},
    "watch3": {
        13_522_239: "c73a1047034dd7b03cd01950e4bff4621b79321e8120b623744cf8cfc93f3efd",
        13_522_240: "29373daeae5bff3b48cf051f78ada7fb2260c8d1d5e0f7f93546089012d1f452",
    },
}
"""By recording, the competing heights, each with the hash that the node's later blocks build on."""

DEPTHS = {"watch1": [1], "watch3": [1, 2]}
"""How many blocks of ours each turn replaced. The second of the other recording goes back to a block that it had left."""


async def follow(ledger: Ledger, chain: RecordedChain) -> list[int]:
    """Follow the node to the end of its recording; the depth of each reorg."""
    depths = []
    while chain.advance():
        outcome = await ledger.converge()
        if isinstance(outcome, Reorged):
            depths.append(outcome.depth)
            outcome = await ledger.converge()
        assert (await ledger.row()).tip_hash == (await chain.fetch_head()).head.hash, outcome
    return depths


@pytest.mark.parametrize("name", sorted(WON))
async def test_a_recorded_fork_ends_on_the_branch_that_won(name: str, database_url: str) -> None:
    recorded = list(read_recording(RECORDINGS / f"{name}.jsonl.gz"))
    named = {ref.hash: ref for ref in recorded if ref is not None}
    chain = RecordedChain(answers=iter(recorded), named=named)
    ledger = await make_ledger(database_url, chain, start=None, has_finality_tags=False)
    try:
        assert await follow(ledger, chain) == DEPTHS[name]
        async with transaction(ledger.engine) as connection:
            rows = (await connection.execute(select(blocks).order_by(blocks.c.height))).all()
    finally:
        await ledger.engine.dispose()
    canonical = [row for row in rows if row.state == "canonical"]
    assert all(later.parent_hash == earlier.hash for earlier, later in pairwise(canonical))
    assert canonical[-1].hash == next(ref.hash for ref in reversed(recorded) if ref is not None)
    assert {row.height: row.hash.hex() for row in canonical if row.height in WON[name]} == WON[name]
    assert len({row.hash for row in rows}) == len(rows)
    assert {row.hash for row in rows} == {ref.hash for ref in named.values() if ref.height >= canonical[0].height}
