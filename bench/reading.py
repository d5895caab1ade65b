"""What a block's proof costs on one core, part by part, and how it spreads over worker processes:
`python -m bench.reading TASK`.

The blocks have 200 transactions and 400 logs. Times are CPU time of this process, pinned to one core; each is the median
over the blocks of the best of a few tries.
"""

from __future__ import annotations

import asyncio
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import msgspec
import uvloop

from bench.blocks import make_chain
from bench.chain import START_HEIGHT, bench_profile
from bench.following import FollowingUsage
from bench.usage import Usage, cpu_s_of, measure_usage, most_bytes_of
from chainbell.logs import configure_logs
from chainbell.supervisor import calm_garbage_collector
from chains.evm.envelope import envelope_of
from chains.evm.proof import prove_block
from chains.evm.reading import RawBlock, ReadingRules, read_block
from chains.evm.senders import senders_of
from chains.evm.wire import WireBlock, WireReceipt, decode_block, decode_receipts
from chains.evm.workers import Workers, pickled_rules
from chains.model import ProofLevel

TRANSACTIONS, LOGS, TRANSFERS = 200, 400, 190
IN_FLIGHT_A_WORKER = 2
TRIES = 6


class ReadingTask(msgspec.Struct):
    """`blocks` different ones are read; by the workers `rounds` times each."""

    blocks: int
    rounds: int
    seed: int


class Reading(msgspec.Struct):
    """CPU time of each part in milliseconds a block, and reading whole blocks here and in workers."""

    decoding_ms: float
    roots_ms: float
    """Header, transactions, receipts with their blooms, withdrawals: every commitment but the signatures."""
    senders_ms: float
    here: Usage
    spread: FollowingUsage


def make_blocks(task: ReadingTask) -> tuple[ReadingRules, list[RawBlock]]:
    """The rules of Ethereum at `roots`, and the blocks as a node answers them."""
    profile = bench_profile("roots")
    tokens = {token.contract: token for token in profile.tokens if token.contract is not None}
    chain = make_chain(
        task.blocks,
        transactions=TRANSACTIONS,
        logs=LOGS,
        transfers=TRANSFERS,
        seed=task.seed,
        start_height=START_HEIGHT,
        tokens=[*tokens, *(os.urandom(20) for _ in range(22))],
    )
    rules = ReadingRules(profile.chain_id, profile.proof, profile.native, tokens, profile.dialect)
    return rules, [RawBlock(block, receipts, "bench", "bench", 2) for block, receipts in chain]


def decode(raw: RawBlock) -> tuple[WireBlock, list[WireReceipt]]:
    """The block and its receipts as typed values."""
    block, receipts = decode_block(raw.block), decode_receipts(raw.receipts)
    assert block is not None and receipts is not None
    return block, receipts


def medians_ms(works: Sequence[Callable[[int], object]], count: int) -> list[float]:
    """For each kind of work the median CPU time of one of `count` pieces, each at its best of a few tries, by turns: what
    neighbours on the same core add comes and goes."""
    best = [[math.inf] * count for _ in works]
    for _ in range(TRIES):
        for times, work in zip(best, works, strict=True):
            for index in range(count):
                began = time.process_time()
                work(index)
                times[index] = min(times[index], time.process_time() - began)
    return [statistics.median(times) * 1000 for times in best]


async def read_spread(rules: ReadingRules, blocks: Sequence[RawBlock], rounds: int) -> FollowingUsage:
    """Read every block `rounds` times with as many workers as there are cores."""
    pickled, workers = pickled_rules(rules), Workers()
    places = asyncio.Semaphore(workers.count * IN_FLIGHT_A_WORKER)

    async def _read(index: int) -> None:
        async with places:
            await workers.read(pickled, START_HEIGHT + index, blocks[index])

    await asyncio.gather(*(_read(index) for index in range(min(len(blocks), 2 * workers.count))))
    began = cpu_s_of(workers.process_ids)
    with measure_usage(rounds * len(blocks)) as usage:
        await asyncio.gather(*(_read(index) for _ in range(rounds) for index in range(len(blocks))))
    in_workers = cpu_s_of(workers.process_ids) - began
    largest = max(most_bytes_of(pid) for pid in workers.process_ids)
    await workers.close()
    return FollowingUsage(usage.count, usage.elapsed_s, usage.cpu_s, in_workers, most_bytes_of(), largest)


def run(task: ReadingTask) -> Reading:
    """Read everything, first here on one core, then spread."""
    cores = os.sched_getaffinity(0)
    rules, blocks = make_blocks(task)
    os.sched_setaffinity(0, {min(cores)})
    decoded = [decode(raw) for raw in blocks]
    signed = [(block.transactions, [envelope_of(row) for row in block.transactions]) for block, _ in decoded]
    decoding_ms, structure_ms, senders_ms, whole_ms = medians_ms(
        [
            lambda index: decode(blocks[index]),
            lambda index: prove_block(*decoded[index], ProofLevel.STRUCTURE),
            lambda index: list(senders_of(*signed[index])),
            lambda index: prove_block(*decoded[index], ProofLevel.ROOTS),
        ],
        len(blocks),
    )
    roots_ms = whole_ms - structure_ms - senders_ms
    with measure_usage(len(blocks)) as here:
        for height, raw in enumerate(blocks, START_HEIGHT):
            read_block(rules, height, raw)
    os.sched_setaffinity(0, cores)
    return Reading(decoding_ms, roots_ms, senders_ms, here, uvloop.run(read_spread(rules, blocks, task.rounds)))


def main() -> None:
    """Do the task in the first argument and print what it took."""
    task = msgspec.json.decode(sys.argv[1], type=ReadingTask)
    configure_logs()
    calm_garbage_collector()
    sys.stdout.buffer.write(msgspec.json.encode(run(task)))


if __name__ == "__main__":
    main()
