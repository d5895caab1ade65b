"""Reading a recorded chain from a real node, and storing it: `python -m bench.following TASK`.

Two ways over the same bytes and with as many requests in flight: Chainbell's own, from the node to Postgres at a level of
proof, and the least that any program must do, which is to fetch a block and decode the few fields that a deposit needs.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import msgspec
import uvloop

from bench.chain import START_HEIGHT, bench_profile, load_recipients, watched_while_following
from bench.installation import add_crowd, add_tenant, add_watches, ledger_at, make_follower, register
from bench.usage import Usage, cpu_s_of, measure_usage, most_bytes_of
from chainbell.logs import configure_logs
from chainbell.settings_model import NodeSettings
from chainbell.supervisor import calm_garbage_collector
from chains.evm.adapter import EvmAdapter
from chains.evm.workers import Workers
from indexer.follower import Extended, Nothing
from indexer.prefetch import IN_FLIGHT_MAX

BARE = "bare"


class FollowingTask(msgspec.Struct):
    """`proof` is a level, or `bare` for fetching and decoding alone, which needs no database. Beside the `watches`, of which
    some are paid, a `crowd` of others is there that nobody pays."""

    node_url: str
    chain_path: str
    proof: str
    blocks: int
    database_url: str = ""
    watches: int = 0
    crowd: int = 0
    seed: int = 1


class FollowingUsage(Usage):
    """What following took, and what its workers did."""

    workers_cpu_s: float = 0.0
    most_bytes: int = 0
    """Memory of the follow process, at its largest."""
    worker_most_bytes: int = 0
    """The same of the largest worker."""


class _Transaction(msgspec.Struct):
    hash: str
    sender: str = msgspec.field(name="from")
    to: str | None
    value: str


class _Block(msgspec.Struct, rename="camel"):
    number: str
    hash: str
    parent_hash: str
    timestamp: str
    transactions: list[_Transaction]


class _Log(msgspec.Struct, rename="camel"):
    address: str
    topics: list[str]
    data: str
    log_index: str


class _Receipt(msgspec.Struct, rename="camel"):
    transaction_hash: str
    status: str
    logs: list[_Log]


class _BlockAnswer(msgspec.Struct):
    id: int
    result: msgspec.Raw


_decode_answers = msgspec.json.Decoder(list[_BlockAnswer]).decode
_decode_block = msgspec.json.Decoder(_Block).decode
_decode_receipts = msgspec.json.Decoder(list[_Receipt]).decode


async def fetch_bare(session: aiohttp.ClientSession, node_url: str, height: int) -> tuple[_Block, list[_Receipt]]:
    """One block and its receipts, asked in one batch and decoded; nothing is checked."""
    calls = [
        {"jsonrpc": "2.0", "id": 1, "method": "eth_getBlockByNumber", "params": [hex(height), True]},
        {"jsonrpc": "2.0", "id": 2, "method": "eth_getBlockReceipts", "params": [hex(height)]},
    ]
    async with session.post(node_url, data=msgspec.json.encode(calls)) as response:
        block, receipts = _decode_answers(await response.read())
    return _decode_block(block.result), _decode_receipts(receipts.result)


async def run_bare(task: FollowingTask) -> Usage:
    """Fetch and decode every block after the first."""
    heights = iter(range(START_HEIGHT + 1, START_HEIGHT + task.blocks))
    async with aiohttp.ClientSession() as session:
        await fetch_bare(session, task.node_url, START_HEIGHT)

        async def work() -> None:
            for height in heights:
                await fetch_bare(session, task.node_url, height)

        with measure_usage(task.blocks - 1) as usage:
            await asyncio.gather(*(work() for _ in range(IN_FLIGHT_MAX)))
    return usage


@asynccontextmanager
async def open_adapter(node_url: str, proof: str) -> AsyncIterator[EvmAdapter]:
    """Ethereum, as this node tells it, read where it arrives."""
    adapter = EvmAdapter(bench_profile(proof), [NodeSettings(url=node_url)])
    try:
        yield adapter
    finally:
        await adapter.close()


@asynccontextmanager
async def open_workers(node_url: str, proof: str) -> AsyncIterator[tuple[EvmAdapter, Workers]]:
    """The same, with workers that have started: a catch-up that matters lasts longer than that."""
    workers = Workers()
    adapter = EvmAdapter(bench_profile(proof), [NodeSettings(url=node_url)], workers=workers)
    try:
        await asyncio.gather(*(adapter.fetch_block_ahead(START_HEIGHT) for _ in range(2 * workers.count)))
        yield adapter, workers
    finally:
        await adapter.close()
        await workers.close()


async def run_follower(task: FollowingTask) -> FollowingUsage:
    """Follow from the first block to the head, as catch-up does."""
    watched = watched_while_following(load_recipients(task.chain_path), task.watches, task.seed)
    async with (
        ledger_at(task.database_url) as engine,
        open_workers(task.node_url, task.proof) as (adapter, workers),
    ):
        followed = await register(engine, task.proof)
        tenant_id, _ = await add_tenant(engine, "merchant", ["http://127.0.0.1:9/"])
        await add_watches(engine, tenant_id, watched)
        await add_crowd(engine, tenant_id, task.crowd)
        follower = make_follower(engine, adapter, followed)
        await follower.converge()  # the first block: connections are open and statements compiled after it
        workers_began = cpu_s_of(workers.process_ids)
        with measure_usage(task.blocks - 1) as usage:
            outcome = await follower.converge()
            while isinstance(outcome, Extended) and outcome.is_behind:
                outcome = await follower.converge()
        if not isinstance(outcome, Extended | Nothing) or follower.head_height != START_HEIGHT + task.blocks - 1:
            raise RuntimeError(f"the follower ended with {outcome}")
        return FollowingUsage(
            usage.count,
            usage.elapsed_s,
            usage.cpu_s,
            cpu_s_of(workers.process_ids) - workers_began,
            most_bytes_of(),
            max(most_bytes_of(pid) for pid in workers.process_ids),
        )


def main() -> None:
    """Do the task in the first argument and print what it took."""
    task = msgspec.json.decode(sys.argv[1], type=FollowingTask)
    configure_logs()
    calm_garbage_collector()
    usage = uvloop.run(run_bare(task) if task.proof == BARE else run_follower(task))
    sys.stdout.buffer.write(msgspec.json.encode(usage))


if __name__ == "__main__":
    main()
