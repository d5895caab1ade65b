"""Old block rows become ranges: each height is told of once whatever happens, and what anybody may need is still there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace

import pytest
from sqlalchemy import func, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

import indexer.coverage
import ledger.coverage
from chains.model import AssetId, ChainId, TraceProof
from indexer.coverage import Compression, Readings, kept_blocks_of
from indexer.follower import Extended, Halted, Reorged
from ledger.chains import find_chain, lock_chain, update_chain
from ledger.coverage import CoverageRange, Gap, find_coverage, find_gaps, list_readings
from ledger.database import transaction
from ledger.documents import CoverageGapDocument, coverage_document
from ledger.errors import NoSuchBranch
from ledger.halts import require_known_block, resume_chain
from ledger.schema import blocks, coverage, entries
from ledger.spent_nonces import SpentNonce, insert_spent_nonces
from tests.fakes.adapter import CHAIN_ID, COIN, TOKEN, FakeChain, address, payment
from tests.integration.indexer.conftest import Ledger, make_ledger

ALICE = address(1)
STEP, KEPT, ANCHOR = 7, 10, 16
ENTRIES_AT = (3, 20, 33)
EFFECTS = ("lock_chain", "find_uncompressed", "extend_coverage", "delete_compressed")


class Killed(BaseException):
    """The process ended here."""


@dataclass
class Told:
    """What the ledger says of each height at one moment."""

    ranges: list[CoverageRange]
    rows: dict[int, bytes]
    """Canonical block rows, those at compressed heights too."""


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexer.coverage, "STEP_BLOCKS", STEP)
    monkeypatch.setattr(ledger.coverage, "ANCHOR_INTERVAL", ANCHOR)


def compression_of(made: Ledger) -> Compression:
    return Compression(made.engine, CHAIN_ID, made.follower.course.slug, KEPT)


@pytest.fixture
async def grown(database_url: str) -> AsyncIterator[Ledger]:
    """A chain of 61 blocks, final up to 55, with deposits in a few of them."""
    chain = FakeChain()
    for height in range(61):
        chain.mine(*([payment(f"in-{height}", ALICE)] if height in ENTRIES_AT else []))
    chain.finalized = 55
    made = await make_ledger(database_url, chain)
    await made.watch(ALICE, covered_from=1)
    await follow(made)
    yield made
    await made.engine.dispose()


async def follow(made: Ledger) -> None:
    """Up to the head, and once more for what it made final."""
    while isinstance(await made.converge(), Extended):
        pass


async def compress_all(made: Ledger) -> int:
    """Steps until one finds nothing; how many blocks were compressed."""
    compression, count = compression_of(made), 0
    while step := await compression.step():
        count += step
    return count


async def told_of(made: Ledger) -> Told:
    async with transaction(made.engine) as connection:
        statement = select(coverage.c.to_height).where(coverage.c.state == "canonical")
        end = max((await connection.execute(statement)).scalars().all(), default=-1)
        ranges = await find_coverage(connection, CHAIN_ID, 0, end)
        canonical = select(blocks.c.height, blocks.c.hash).where(blocks.c.state == "canonical")
        rows = {row.height: row.hash for row in await connection.execute(canonical)}
    return Told([one for one in ranges if one.from_height <= end], rows)


async def require_each_height_once(made: Ledger) -> None:
    """Ranges without hole or overlap from the first block on, then rows, all with the chain's own hashes; and no entry
    without its block."""
    told = await told_of(made)
    hashes = [block.ref.hash for block in made.chain.blocks]
    height = 0
    for one in told.ranges:
        assert one.from_height == height
        assert one.hash == hashes[one.to_height]
        assert height == 0 or one.parent_hash == hashes[height - 1]
        height = one.to_height + 1
    tip = (await made.row()).tip_height or 0
    assert [row for row in sorted(told.rows) if row >= height] == list(range(height, tip + 1))
    assert all(block_hash == hashes[row] for row, block_hash in told.rows.items())
    async with transaction(made.engine) as connection:
        statement = select(entries.c.block_height, entries.c.block_hash).where(entries.c.block_hash.is_not(None))
        for row in await connection.execute(statement):
            assert told.rows[row.block_height] == row.block_hash


async def test_old_rows_become_one_range_but_for_entries_and_anchors(grown: Ledger) -> None:
    assert await compress_all(grown) == 51
    await require_each_height_once(grown)
    told = await told_of(grown)
    refs = [block.ref for block in grown.chain.blocks]
    assert told.ranges == [CoverageRange(0, 50, refs[0].parent_hash, refs[50].hash, 1, "roots", None, 1, ("node-a",))]
    assert sorted(told.rows) == sorted({0, 16, 32, 48, *ENTRIES_AT, *range(51, 61)})


@pytest.mark.parametrize("is_after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("effect", EFFECTS)
async def test_a_kill_between_any_two_steps_loses_and_doubles_nothing(
    grown: Ledger, monkeypatch: pytest.MonkeyPatch, effect: str, is_after: bool
) -> None:
    original: Callable[..., Awaitable[object]] = getattr(indexer.coverage, effect)

    async def _killing(*arguments: object) -> object:
        if is_after:
            await original(*arguments)
        raise Killed

    while True:
        monkeypatch.setattr(indexer.coverage, effect, _killing)
        before = await told_of(grown)
        with pytest.raises(Killed):
            await compression_of(grown).step()
        assert await told_of(grown) == before
        monkeypatch.setattr(indexer.coverage, effect, original)
        if not await compression_of(grown).step():
            break
        await require_each_height_once(grown)
        if effect != "lock_chain" and (await told_of(grown)).ranges[-1].to_height == 50:
            break  # with nothing to do, the other effects are not come to
    assert (await told_of(grown)).ranges[-1].to_height == 50


async def test_reading_while_rows_are_compressed_finds_no_gap(grown: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    find_rows = ledger.coverage._find_above_ranges

    async def _then_compress(connection: AsyncConnection, chain_id: ChainId, *heights: int) -> list[CoverageRange]:
        rows = await find_rows(connection, chain_id, *heights)
        assert await compression_of(grown).step() == STEP
        return rows

    monkeypatch.setattr(ledger.coverage, "_find_above_ranges", _then_compress)
    for _ in range(3):
        async with transaction(grown.engine) as connection:
            assert await find_gaps(connection, CHAIN_ID, 0, 62) == [Gap(61, 62)]


async def test_nothing_is_compressed_before_it_is_final_and_agreed_on(grown: Ledger) -> None:
    async with transaction(grown.engine) as connection:
        await update_chain(connection, CHAIN_ID, {"agreed_height": 12})
    assert await compress_all(grown) == 13
    async with transaction(grown.engine) as connection:
        await update_chain(
            connection, CHAIN_ID, {"agreed_height": 60, "finalized_height": None, "finalized_hash": None}
        )
    assert await compress_all(grown) == 0
    await require_each_height_once(grown)


async def test_nothing_is_compressed_while_a_person_decides(grown: Ledger) -> None:
    for values in ({"state": "halted", "reason": "a deep reorg"}, {"state": "following", "accepted_reorg_height": 5}):
        async with transaction(grown.engine) as connection:
            await update_chain(connection, CHAIN_ID, values)
        assert await compress_all(grown) == 0
    async with transaction(grown.engine) as connection:
        await update_chain(connection, CHAIN_ID, {"accepted_reorg_height": None})
    assert await compress_all(grown) == 51


async def test_rows_that_form_no_chain_stay_as_they_are(grown: Ledger) -> None:
    async with transaction(grown.engine) as connection:
        await connection.execute(text("DELETE FROM blocks WHERE height = 9"))
    assert await compress_all(grown) == STEP
    assert sorted((await told_of(grown)).rows) == [0, 3, *range(7, 9), *range(10, 61)]
    async with transaction(grown.engine) as connection:
        assert await find_gaps(connection, CHAIN_ID, 0, 60) == [Gap(9, 9)]


async def test_a_block_keeps_its_row_when_its_entry_came_later(grown: Ledger) -> None:
    async with transaction(grown.engine) as connection:
        await connection.execute(update(blocks).values(entry_count=0))
    await compress_all(grown)
    await require_each_height_once(grown)


async def test_a_block_that_shows_a_nonce_to_be_spent_keeps_its_row(grown: Ledger) -> None:
    """`find_spent_entries` asks whether such a block is canonical, however long it takes until it is final."""
    shown = SpentNonce(9, grown.chain.blocks[9].ref.hash, ALICE, 7, 7, b"\x01" * 32)
    async with transaction(grown.engine) as connection:
        await insert_spent_nonces(connection, CHAIN_ID, [shown])
    await compress_all(grown)
    assert 9 in (await told_of(grown)).rows
    await require_each_height_once(grown)


async def test_the_follower_compresses_as_it_goes_and_not_for_every_block(
    grown: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexer.coverage, "PAUSE_BLOCKS", 5)
    compression = Compression(grown.engine, CHAIN_ID, grown.follower.course.slug, KEPT)
    for _ in range(8):
        await compression.after(0)  # after a start it looks, and goes on for as long as steps are full
    assert (await told_of(grown)).ranges[-1].to_height == 50
    ends = []
    for _ in range(10):
        grown.chain.mine()
        grown.chain.finalized = len(grown.chain.blocks) - 2
        outcome = await grown.converge()
        await compression.after(outcome.count if isinstance(outcome, Extended) else 0)
        ends.append((await told_of(grown)).ranges[-1].to_height)
    assert ends == [50, 50, 50, 50, 55, 55, 55, 55, 55, 60]
    await require_each_height_once(grown)


# --- what blocks were read for ----------------------------------------------------------------------------------------


async def test_a_listed_asset_opens_its_gap(grown: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = replace(TOKEN, id=AssetId(f"{CHAIN_ID}/erc20:0x{'bb' * 20}"), contract=b"\xbb" * 20)
    monkeypatch.setattr(FakeChain, "assets", property(lambda _: (COIN, TOKEN, listed)))
    grown.restart()
    grown.chain.mine(count=30)
    grown.chain.finalized = 85
    await follow(grown)
    await compress_all(grown)
    await require_each_height_once(grown)
    async with transaction(grown.engine) as connection:
        ranges = await find_coverage(connection, CHAIN_ID, 0, 90)
        assert [(one.from_height, one.to_height, one.reading) for one in ranges] == [(0, 60, 1), (61, 90, 2)]
        assert await find_gaps(connection, CHAIN_ID, 0, 90, asset_id=TOKEN.id) == []
        assert await find_gaps(connection, CHAIN_ID, 0, 90, asset_id=listed.id) == [Gap(0, 60)]
        assert await find_gaps(connection, CHAIN_ID, 0, 90, value_path="traces") == [Gap(0, 90)]
        readings = await list_readings(connection, CHAIN_ID)
        assert sorted(readings) == [1, 2]
    document = coverage_document(await grown.row(), 50, 95, ranges, readings, [TOKEN.id, listed.id])
    assert [(one.from_height, one.to_height, one.assets) for one in document.ranges] == [
        (0, 60, sorted([COIN.id, TOKEN.id])),
        (61, 90, sorted([COIN.id, TOKEN.id, listed.id])),
    ]
    assert document.gaps == [CoverageGapDocument(91, 95, None), CoverageGapDocument(50, 60, listed.id)]


async def test_traces_are_covered_only_where_they_were_read(grown: Ledger) -> None:
    grown.chain.mine(payment("untraced", ALICE))
    grown.chain.blocks[-1] = replace(grown.chain.blocks[-1], untraced_count=1)
    grown.chain.mine()
    grown.chain.mine(payment("traced", ALICE))
    grown.chain.blocks[-1] = replace(grown.chain.blocks[-1], trace_proof=TraceProof.AGREED)
    grown.chain.tracers = {"node-a": "debug_traceBlockByHash"}
    await follow(grown)
    async with transaction(grown.engine) as connection:
        assert await find_gaps(connection, CHAIN_ID, 61, 63, value_path="traces") == [Gap(61, 61)]
        assert await find_gaps(connection, CHAIN_ID, 61, 63, value_path="native") == []
        newest = (await find_coverage(connection, CHAIN_ID, 62, 63))[-1]
    assert (newest.from_height, newest.to_height, newest.trace_proof) == (62, 63, "agreed")


async def test_a_reading_is_written_down_once(grown: Ledger) -> None:
    before = grown.chain.blocks[-1]
    for _ in range(2):
        assert await Readings(grown.engine, CHAIN_ID, grown.chain).of([before]) == [1]
    async with transaction(grown.engine) as connection:
        assert list(await list_readings(connection, CHAIN_ID)) == [1]


# --- reorgs below what was compressed ---------------------------------------------------------------------------------


async def _fork_below_finality(made: Ledger, ancestor: int) -> None:
    """Another branch from `ancestor` on, one block longer than ours, with the deposit of height 33 moved to 40."""
    made.chain.drop_to(ancestor)
    while len(made.chain.blocks) < 62:
        height = len(made.chain.blocks)
        made.chain.mine(*([payment("in-33", ALICE)] if height == 40 else []), salt="fork")


async def _resume(made: Ledger, accepted: int) -> None:
    async with transaction(made.engine) as connection:
        chain, now = await lock_chain(connection, CHAIN_ID)
        await resume_chain(connection, chain, accepted, "test", now)


@pytest.mark.parametrize(("ancestor", "kept"), [(16, 16), (19, 16), (31, 20)])
async def test_a_reorg_below_what_was_compressed_works_when_a_person_accepts_it(
    grown: Ledger, ancestor: int, kept: int
) -> None:
    """`kept` is the highest common block whose row was kept: from there on the chain is read again."""
    await compress_all(grown)
    await _fork_below_finality(grown, ancestor)
    assert isinstance(await grown.converge(), Halted)
    await _resume(grown, 16)
    assert await grown.converge() == Reorged(60 - kept)
    await follow(grown)
    await require_each_height_once(grown)
    async with transaction(grown.engine) as connection:
        statement = select(coverage.c.state, coverage.c.from_height, coverage.c.to_height).order_by(
            coverage.c.to_height
        )
        found = [tuple(row) for row in await connection.execute(statement)]
    assert found == [("canonical", 0, kept), ("orphaned", kept + 1, 50)]
    types = [event_type for event_type, _, _ in await grown.story()]
    assert types.count("deposit.reversed") == (0 if ancestor == 31 else 1)  # that of height 20 is in one branch alone
    assert types.count("deposit.moved") == 1
    assert types.count("deposit.detected") == len(ENTRIES_AT)
    grown.chain.mine(count=20)
    grown.chain.finalized = 75
    await follow(grown)
    assert await compress_all(grown) == 71 - kept
    await require_each_height_once(grown)


@pytest.mark.parametrize(("asked", "nearest"), [(2, 0), (19, 16), (31, 20), (50, 48)])
async def test_a_person_is_told_where_a_branch_can_grow(grown: Ledger, asked: int, nearest: int) -> None:
    await compress_all(grown)
    chain = await grown.row()
    async with transaction(grown.engine) as connection:
        with pytest.raises(NoSuchBranch, match=f"give {nearest}, below it"):
            await require_known_block(connection, chain, asked)
        await require_known_block(connection, chain, nearest)
        await require_known_block(connection, chain, 51)


async def test_all_that_was_followed_can_be_replaced(grown: Ledger) -> None:
    await compress_all(grown)
    async with transaction(grown.engine) as connection:
        await connection.execute(text("DELETE FROM blocks WHERE height < 16"))  # as where the first is no anchor
        with pytest.raises(NoSuchBranch, match="give -1, below it"):
            await require_known_block(connection, await find_chain(connection, CHAIN_ID), 2)
    grown.chain.blocks.clear()
    grown.chain.mine(count=62, salt="another")
    assert isinstance(await grown.converge(), Halted)
    await _resume(grown, -1)
    assert await grown.converge() == Reorged(61)
    await follow(grown)
    await require_each_height_once(grown)


# --- at volume --------------------------------------------------------------------------------------------------------

_MANY = """
INSERT INTO blocks (chain_id, hash, height, parent_hash, block_at, state, proof, agreed_by, node, transaction_count,
                    entry_count, committed_at)
SELECT 'eip155:31337', int8send(n), n, int8send(n - 1), now(), 'canonical', 'roots', 2, 'node-' || n % 2, 1, 0, now()
FROM generate_series(0, 29999) n
"""


async def test_the_table_stays_small_however_long_the_chain(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexer.coverage, "STEP_BLOCKS", 1024)
    monkeypatch.setattr(ledger.coverage, "ANCHOR_INTERVAL", 1024)
    made = await make_ledger(database_url, FakeChain())
    async with transaction(made.engine) as connection:
        await connection.execute(text(_MANY))
    compression = Compression(made.engine, CHAIN_ID, made.follower.course.slug, kept_blocks_of(64))
    counts = []
    for tip in (9_999, 19_999, 29_999):
        async with transaction(made.engine) as connection:
            heights = {"first_height": 0, "tip_height": tip, "tip_hash": tip.to_bytes(8, "big"), "agreed_height": tip}
            final = {"finalized_height": tip - 64, "finalized_hash": b"\x01"}
            await update_chain(connection, CHAIN_ID, {**heights, **final})
        while await compression.step():
            pass
        async with transaction(made.engine) as connection:
            rows = select(func.count()).select_from(blocks).where(blocks.c.height <= tip)
            ranges = select(func.count()).select_from(coverage)
            counts.append(
                ((await connection.execute(rows)).scalar_one(), (await connection.execute(ranges)).scalar_one())
            )
            assert await find_gaps(connection, CHAIN_ID, 0, tip) == []
    await made.engine.dispose()
    # The window, and one row in 1,024: at ten million blocks 10,766 rows, and one range.
    assert counts == [(1_000 + 9, 1), (1_000 + 19, 1), (1_000 + 29, 1)]
