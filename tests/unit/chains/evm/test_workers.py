"""Reading in other processes: the same blocks and the same failures as here, whoever dies on the way."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from bench.blocks import make_chain
from chains.errors import ChainHolds
from chains.evm import workers as module
from chains.evm.errors import ProofFailure
from chains.evm.reading import BlocksMixed, RawBlock, ReadingRules, read_block
from chains.evm.traces import TracesDiffer, TracesRefused
from chains.evm.worker import NICENESS, answer_to, unpickled
from chains.evm.workers import WorkerDied, Workers, pickled_rules, usable_cores
from chains.model import Block, ProofLevel
from chains.packing import PackedTransfers, pack, parties_of, transfers_of
from chains.profile import load_profile
from indexer.prefetch import Bounds, prefetch
from tests.unit.chains.evm.recorded import WITH_RECEIPTS, recorded

START = 100
PROFILE = load_profile("ethereum")
RULES = ReadingRules(
    PROFILE.chain_id,
    ProofLevel.ROOTS,
    PROFILE.native,
    {token.contract: token for token in PROFILE.tokens if token.contract is not None},
    PROFILE.dialect,
)
PICKLED = pickled_rules(RULES)
CHAIN = [
    RawBlock(block, receipts, "near", "127.0.0.1", 2)
    for block, receipts in make_chain(
        30, transactions=4, logs=8, transfers=4, withdrawals=1, start_height=START, tokens=tuple(RULES.tokens)
    )
]


def raw(height: int) -> RawBlock:
    answer = recorded(height)
    return RawBlock(msgspec.json.encode(answer.block), msgspec.json.encode(answer.receipts), "near", "127.0.0.1", 2)


def whole(block: Block) -> Block:
    """With its transfers as values, wherever it was read."""
    return replace(block, transfers=tuple(block.transfers))


@asynccontextmanager
async def running(count: int = 1, idle_limit_s: float = 60.0) -> AsyncIterator[Workers]:
    workers = Workers(count, idle_limit_s)
    try:
        yield workers
    finally:
        await workers.close()
        assert workers.process_ids == ()


def is_running(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status != "Z"


async def until(condition: Callable[[], bool], limit_s: float = 120.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        await asyncio.sleep(0.01)


async def test_a_worker_reads_what_would_be_read_here() -> None:
    async with running(2) as workers:
        read = await asyncio.gather(*(workers.read(PICKLED, height, raw(height)) for height in WITH_RECEIPTS))
    assert [whole(block) for block in read] == [read_block(RULES, h, raw(h)) for h in WITH_RECEIPTS]
    assert all(isinstance(block.transfers, PackedTransfers) for block in read)


async def test_blocks_come_in_order_and_complete_from_several_workers() -> None:
    async with running(3) as workers:

        async def fetch(height: int) -> Block:
            return await workers.read(PICKLED, height, CHAIN[height - START])

        async with prefetch(fetch, START, START + len(CHAIN) - 1) as blocks:
            read = [whole(block) async for block in blocks]
        assert len(workers.process_ids) == 3
    assert read == [read_block(RULES, START + n, answer) for n, answer in enumerate(CHAIN)]


async def test_a_block_whose_worker_is_killed_is_read_again_by_another() -> None:
    async with running() as workers:
        first = await workers.read(PICKLED, START, CHAIN[0])
        (victim,) = workers.process_ids
        os.kill(victim, signal.SIGSTOP)
        reading = asyncio.ensure_future(workers.read(PICKLED, START, CHAIN[0]))
        await asyncio.sleep(0)
        os.kill(victim, signal.SIGKILL)
        assert whole(await reading) == whole(first)
        assert victim not in workers.process_ids
        assert len(workers.process_ids) == 1


async def test_a_catch_up_goes_on_while_its_workers_are_killed_one_after_the_other() -> None:
    async with running(2) as workers:

        async def fetch(height: int) -> Block:
            return await workers.read(PICKLED, height, CHAIN[height - START])

        read: list[int] = []
        killed: list[int] = []
        async with prefetch(fetch, START, START + len(CHAIN) - 1, Bounds(in_flight=4)) as blocks:
            async for block in blocks:
                read.append(block.ref.height)
                if len(read) % 10 == 0:
                    # One that has just been killed may still be listed.
                    alive = next((pid for pid in workers.process_ids if pid not in killed), None)
                    if alive is not None:
                        os.kill(alive, signal.SIGKILL)
                        killed.append(alive)
    assert killed
    assert read == list(range(START, START + len(CHAIN)))


async def test_a_block_that_kills_every_worker_holds_the_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    class _Doomed(FakeWorker):
        async def exchange(self, request: bytes) -> bytes:
            raise WorkerDied("out of memory")

    async def _start() -> FakeWorker:
        started.append(_Doomed())
        return started[-1]

    monkeypatch.setattr(module, "start_worker", _start)
    async with running() as workers:
        with pytest.raises(ChainHolds, match=f"block {START} of near: 3 processes died reading it"):
            await workers.read(PICKLED, START, CHAIN[0])
    assert len(started) == 3


class FakeWorker:
    """Reads here; says how many bytes all of its kind read at one time."""

    reading_bytes = 0
    most_bytes = 0

    def __init__(self) -> None:
        self.process = self
        self.pid = 0

    async def exchange(self, request: bytes) -> bytes:
        FakeWorker.reading_bytes += len(request)
        FakeWorker.most_bytes = max(FakeWorker.most_bytes, FakeWorker.reading_bytes)
        for _ in range(5):
            await asyncio.sleep(0)
        FakeWorker.reading_bytes -= len(request)
        return answer_to(request)

    async def end(self) -> None: ...

    async def kill(self) -> None: ...


async def test_no_more_bytes_are_read_at_one_time_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    async def _start() -> FakeWorker:
        return FakeWorker()

    largest = max(len(pickle.dumps((PICKLED, START, answer))) for answer in CHAIN)
    monkeypatch.setattr(module, "start_worker", _start)
    monkeypatch.setattr(module, "READING_BYTES_MAX", 2 * largest)
    FakeWorker.most_bytes = 0
    async with running(8) as workers:
        await asyncio.gather(*(workers.read(PICKLED, START + n, answer) for n, answer in enumerate(CHAIN)))
    assert largest < FakeWorker.most_bytes <= 2 * largest


async def test_an_answer_larger_than_the_bound_is_read_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async def _start() -> FakeWorker:
        return FakeWorker()

    monkeypatch.setattr(module, "start_worker", _start)
    monkeypatch.setattr(module, "READING_BYTES_MAX", 10)
    FakeWorker.most_bytes = 0
    async with running(8) as workers:
        await asyncio.gather(*(workers.read(PICKLED, START + n, answer) for n, answer in enumerate(CHAIN)))
    assert FakeWorker.most_bytes == max(len(pickle.dumps((PICKLED, START + n, a))) for n, a in enumerate(CHAIN))


async def test_a_failed_proof_is_the_same_failure_as_here() -> None:
    forged = replace(CHAIN[0], block=re.sub(rb'"from":"0x.{40}"', b'"from":"0x%b"' % (b"11" * 20), CHAIN[0].block))
    mixed = replace(CHAIN[0], receipts=CHAIN[1].receipts)
    async with running() as workers:
        for answer in (forged, mixed, replace(CHAIN[0], receipts=b"[]"), replace(CHAIN[0], block=b"null")):
            with pytest.raises(ProofFailure) as there:
                await workers.read(PICKLED, START, answer)
            with pytest.raises(ProofFailure) as here:
                read_block(RULES, START, answer)
            assert (type(there.value), vars(there.value)) == (type(here.value), vars(here.value))
        assert len(workers.process_ids) == 1  # a bad answer harms no worker


FAILURES: list[ProofFailure] = [
    ProofFailure("bloom", "a log is missing"),
    BlocksMixed("structure", "the receipts are of another block"),
    TracesRefused("near", "127.0.0.1", "as many traces as transactions"),
    TracesDiffer(("127.0.0.1", "127.0.0.2"), "one tells more"),
]


def test_every_kind_of_failed_check_is_tried() -> None:
    def _kinds(parent: type[ProofFailure]) -> set[type[ProofFailure]]:
        return {parent}.union(*(_kinds(child) for child in parent.__subclasses__()))

    assert _kinds(ProofFailure) == {type(failure) for failure in FAILURES}


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
def test_every_failed_check_survives_the_way(failure: ProofFailure) -> None:
    copy = pickle.loads(pickle.dumps(failure))  # noqa: S301 - our own
    assert (type(copy), vars(copy), str(copy)) == (type(failure), vars(failure), str(failure))


def test_a_fault_that_cannot_be_copied_is_told_in_words() -> None:
    class _Unpicklable(Exception):
        def __init__(self, one: str, two: str) -> None:
            super().__init__(f"{one} and {two}")

    def _fail(*_: object) -> Block:
        raise _Unpicklable("this", "that")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("chains.evm.worker.read_block", _fail)
        answer = answer_to(pickle.dumps((PICKLED, START, CHAIN[0])))
    with pytest.raises(RuntimeError, match="_Unpicklable: this and that"):
        unpickled(answer)


async def test_whoever_stops_waiting_costs_no_worker() -> None:
    async with running() as workers:
        await workers.read(PICKLED, START, CHAIN[0])
        before = workers.process_ids
        reading = asyncio.ensure_future(workers.read(PICKLED, START + 1, CHAIN[1]))
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert whole(await workers.read(PICKLED, START + 2, CHAIN[2])) == read_block(RULES, START + 2, CHAIN[2])
        assert workers.process_ids == before


async def test_a_worker_may_be_killed_when_its_answer_has_filled_the_pipe() -> None:
    """Nobody reads on, and asyncio has stopped to listen to it."""
    script = "import sys; sys.stdout.buffer.write(bytes(10_000_000))"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdin=PIPE, stdout=PIPE)
    assert process.stdin is not None and process.stdout is not None
    worker = module._Worker(process, process.stdin, process.stdout)
    await process.stdout.readexactly(1)
    while not process.stdout._paused:  # type: ignore[attr-defined]  # noqa: ASYNC110 - a pipe sets no event
        await asyncio.sleep(0)
    async with asyncio.timeout(120):
        await worker.kill()
    assert process.returncode == -signal.SIGKILL


async def test_workers_end_when_nothing_was_read_for_a_while_and_start_again() -> None:
    async with running(idle_limit_s=0.05) as workers:
        await workers.read(PICKLED, START, CHAIN[0])
        (pid,) = workers.process_ids
        await until(lambda: workers.process_ids == () and not is_running(pid))
        await workers.read(PICKLED, START, CHAIN[0])


async def test_signals_that_stop_a_parent_do_not_stop_a_worker() -> None:
    async with running() as workers:
        await workers.read(PICKLED, START, CHAIN[0])
        before = workers.process_ids
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(before[0], number)
        await workers.read(PICKLED, START, CHAIN[0])
        assert workers.process_ids == before


async def test_a_worker_steps_back_for_whoever_is_waited_for() -> None:
    async with running() as workers:
        await workers.read(PICKLED, START, CHAIN[0])
        ours = os.getpriority(os.PRIO_PROCESS, 0)
        assert os.getpriority(os.PRIO_PROCESS, workers.process_ids[0]) == min(19, ours + NICENESS)


PARENT = """
import asyncio, json, sys
from tests.unit.chains.evm.test_workers import CHAIN, PICKLED, START, Workers
async def main():
    workers = Workers(2)
    await asyncio.gather(*(workers.read(PICKLED, START + n, CHAIN[n]) for n in range(4)))
    print(json.dumps(workers.process_ids), file=sys.stderr, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


async def test_workers_die_with_a_parent_that_is_killed() -> None:
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", PARENT, stdout=DEVNULL, stderr=PIPE)
    try:
        assert parent.stderr is not None
        pids = json.loads(await parent.stderr.readline())
        assert len(pids) == 2
        assert all(is_running(pid) for pid in pids)
    finally:
        parent.kill()
        await parent.communicate()  # to the end of what its workers had open, too
    await until(lambda: not any(is_running(pid) for pid in pids))


def test_a_worker_loads_nothing_that_reading_does_not_need() -> None:
    script = "import sys, chains.evm.worker; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, check=True, text=True).stdout
    roots = {name.partition(".")[0] for name in loaded.split()}
    assert "coincurve" in roots
    assert not roots & {
        *("sqlalchemy", "psycopg", "aiohttp", "asyncio", "uvloop", "typer", "prometheus_client", "structlog"),
        *("ledger", "indexer", "notifier", "api", "chainbell"),
    }


def test_there_are_as_many_workers_as_usable_cores() -> None:
    assert usable_cores() == len(os.sched_getaffinity(0))


def test_packed_transfers_are_the_same_transfers() -> None:
    transfers = read_block(RULES, WITH_RECEIPTS[-1], raw(WITH_RECEIPTS[-1])).transfers
    packed = pickle.loads(pickle.dumps(pack(transfers)))  # noqa: S301 - our own
    assert len(transfers) > 10
    assert (len(packed), tuple(packed), packed[-1], packed[2:5]) == (
        len(transfers),
        transfers,
        transfers[-1],
        transfers[2:5],
    )
    assert [transfer.id for transfer in packed] == [transfer.id for transfer in transfers]
    assert list(parties_of(packed)) == [(t.sender, t.recipient) for t in transfers] == list(parties_of(transfers))
    one = transfers[3]
    assert one.recipient is not None
    concerned = [t for t in transfers if one.recipient in (t.sender, t.recipient)]
    assert list(transfers_of(packed, {one.recipient})) == list(transfers_of(transfers, {one.recipient})) == concerned
