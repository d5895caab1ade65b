"""A commit is whole or it is nothing, and it stands on the very tip that it was made for."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import func, select

from ledger.chains import Checkpoint, move_checkpoint
from ledger.database import transaction
from ledger.errors import CheckpointMoved
from ledger.schema import blocks, deliveries, entries, events
from tests.fakes.adapter import CHAIN_ID, address, payment
from tests.integration.indexer.conftest import Ledger

ALICE = address(1)
AT = datetime(2026, 11, 1, tzinfo=UTC)


async def counts(ledger: Ledger) -> list[int]:
    """Rows of everything that a block may bring: blocks, entries, events, deliveries."""
    async with transaction(ledger.engine) as connection:
        tables = (blocks, entries, events, deliveries)
        return [(await connection.execute(select(func.count()).select_from(table))).scalar_one() for table in tables]


async def test_a_commit_that_fails_at_its_last_step_leaves_nothing_behind_and_is_made_again(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ledger.watch(ALICE)
    await ledger.converge()
    ledger.chain.mine(payment("one", ALICE))

    async def _lost_connection(*_: Any, **__: Any) -> None:  # noqa: ANN401 - whatever it is called with
        raise ConnectionResetError("the database is gone")

    with monkeypatch.context() as patched:
        patched.setattr("indexer.commit.move_checkpoint", _lost_connection)
        with pytest.raises(ConnectionResetError):
            await ledger.converge()
    assert await counts(ledger) == [1, 0, 0, 0]
    ledger.restart()
    await ledger.converge()
    assert await counts(ledger) == [2, 1, 1, 1]
    assert await ledger.story() == [("deposit.detected", 1, None)]


async def test_a_checkpoint_moves_only_from_the_very_block_that_was_built_on(ledger: Ledger) -> None:
    ledger.chain.mine(count=2)
    await ledger.converge(2)
    tip = (await ledger.row()).tip_hash
    assert tip is not None
    wrong = (Checkpoint(2, b"\x00" * 32), Checkpoint(1, tip), None)
    for expected in wrong:
        with pytest.raises(CheckpointMoved):
            async with transaction(ledger.engine) as connection:
                new = Checkpoint(3, b"\x01" * 32)
                await move_checkpoint(connection, CHAIN_ID, expected=expected, new=new, new_at=AT, extra={})
    assert ((await ledger.row()).tip_height, (await ledger.row()).tip_hash) == (2, tip)
