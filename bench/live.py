"""How long a deposit takes from the node to the merchant: `python -m bench.live TASK`.

A node mines a block with one deposit every two seconds or so. Chainbell follows it at `roots` and delivers, both in this
one process and at the pace that a profile with such blocks has; or a bare loop does the least: poll once a second, fetch,
decode, sign, post. The clock is the machine's, read by all three processes.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from statistics import quantiles

import aiohttp
import msgspec
import structlog
import uvloop
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.typing import EventDict, WrappedLogger

from bench.chain import START_HEIGHT, load_chain, watched_live
from bench.delivering import open_dispatcher, post_signed
from bench.following import fetch_bare, open_adapter, open_workers
from bench.installation import add_tenant, add_watches, ledger_at, make_follower, register
from bench.node import NodeTimes
from bench.past import make_replay, past_of
from bench.sink import Arrival
from bench.usage import Usage, measure_usage
from chainbell.logs import configure_logs
from chainbell.supervisor import calm_garbage_collector
from indexer.commit import Followed
from indexer.follower import Follower
from indexer.historian import Historian
from indexer.run import follow
from ledger.chains import find_chain
from ledger.database import transaction
from ledger.ids import new_id
from ledger.secrets import new_endpoint_secret

PROOF = "roots"
ARRIVAL_LIMIT_S = 120.0
"""How long after the last block its webhook may take before the measurement is given up."""
LOOK_INTERVAL_S = 0.1

POLL_INTERVAL_S = 1.0
"""Of the bare loop; and Chainbell's plain pace, from which it times its polls."""


class LiveTask(msgspec.Struct):
    """`database_url` is empty for the bare loop. Beside the head, what was followed can be replayed again and again."""

    node_url: str
    sink_url: str
    chain_path: str
    blocks: int
    interval_s: float
    database_url: str = ""
    is_beside_past: bool = False


class Spread(msgspec.Struct):
    """Median and 99th percentile, in milliseconds."""

    p50_ms: float
    p99_ms: float


class Latency(msgspec.Struct):
    """Where the time went, over all deposits."""

    usage: Usage
    """Of the whole process over the whole run, whose units are blocks."""
    node_requests: int
    """HTTP requests to the node over the whole run."""
    node_calls: int
    """JSON-RPC calls in them."""
    mined_to_answered: Spread
    """Until the node gives the block to us: the wait for the next poll, and a round trip."""
    answered_to_received: Spread
    answered_to_committed: Spread | None = None
    committed_to_received: Spread | None = None

    def a_minute(self, count: int) -> float:
        """A count over the whole run as a rate."""
        return count * 60 / self.usage.elapsed_s


class _Block(msgspec.Struct):
    height: int


class _Deposit(msgspec.Struct):
    block: _Block


class _News(msgspec.Struct):
    type: str
    data: _Deposit


class CommitTimes:
    """A structlog processor that remembers when the follower said that blocks were applied: one, or several together."""

    def __init__(self) -> None:
        self.at: dict[int, float] = {}

    def __call__(self, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        """Look, and pass on."""
        if event["event"] in ("block applied", "blocks applied"):
            heights = range(event["height"] - event["blocks"] + 1, event["height"] + 1)
            self.at.update(dict.fromkeys(heights, time.time()))
        return event


def spread_of(durations_s: Sequence[float]) -> Spread:
    """The two percentiles of at least two durations in seconds."""
    cuts = quantiles(durations_s, n=100, method="inclusive")
    return Spread(cuts[49] * 1000, cuts[98] * 1000)


async def follow_live(follower: Follower, engine: AsyncEngine, interval_s: float, stop: asyncio.Event) -> None:
    """Follow a chain with a block every so many seconds, at its pace, until `stop` is set."""
    await follow(
        follower,
        engine,
        poll_interval_s=POLL_INTERVAL_S,
        behind_limit_s=60,
        stop=stop,
        block_time_s=interval_s,
    )


async def start_mining(session: aiohttp.ClientSession, node_url: str) -> None:
    """Let the node make its blocks from now on."""
    async with session.post(f"{node_url}/start") as response:
        response.raise_for_status()


async def run_chainbell(task: LiveTask, commits: CommitTimes) -> Latency:
    """Follow and deliver until every deposit has arrived."""
    watched = watched_live(load_chain(task.chain_path))
    stop = asyncio.Event()
    async with (
        ledger_at(task.database_url) as engine,
        open_adapter(task.node_url, PROOF) as adapter,
        open_dispatcher(engine) as dispatcher,
        aiohttp.ClientSession() as session,
    ):
        followed = await register(engine, PROOF)
        tenant_id, _ = await add_tenant(engine, "merchant", [f"{task.sink_url}/live"])
        await add_watches(engine, tenant_id, watched)
        follower = make_follower(engine, adapter, followed)
        await follower.converge()  # the first block: connections are open and statements compiled after it
        async with asyncio.TaskGroup() as group:
            group.create_task(dispatcher.run(stop))
            group.create_task(follow_live(follower, engine, task.interval_s, stop))
            if task.is_beside_past:
                group.create_task(_replay(engine, task, followed, stop))
            with measure_usage(task.blocks - 1) as usage:
                await start_mining(session, task.node_url)
                received = await _received(session, task)
            stop.set()
        node = await _node_times(session, task)
    return _latency(usage, node, received, commits.at)


async def _replay(engine: AsyncEngine, task: LiveTask, followed: Followed, stop: asyncio.Event) -> None:
    """Replay all that there is, as the follow role does beside a head, and then again."""
    async with open_workers(task.node_url, PROOF) as (adapter, _):
        past = past_of(engine, adapter, followed)
        historian = Historian(engine, past, adapter, followed.chain_id, followed.policy.slug)
        while not stop.is_set():
            async with transaction(engine) as connection:
                chain = await find_chain(connection, followed.chain_id)
            job = await make_replay(engine, followed, START_HEIGHT, chain.tip_height or START_HEIGHT)
            await historian.work(job, task.blocks * task.interval_s, stop)


async def run_bare(task: LiveTask) -> Latency:
    """Poll, fetch, decode, sign, post: one block after another, and nothing is kept."""
    secret = new_endpoint_secret()
    height, last = START_HEIGHT, START_HEIGHT + task.blocks - 1
    async with aiohttp.ClientSession(headers={"content-type": "application/json"}) as session:
        await fetch_bare(session, task.node_url, START_HEIGHT)
        with measure_usage(task.blocks - 1) as usage:
            await start_mining(session, task.node_url)
            while height < last:
                head = await _head(session, task.node_url)
                while height < head:
                    height += 1
                    await fetch_bare(session, task.node_url, height)
                    event_id = new_id("evt", datetime.now(UTC))
                    body = msgspec.json.encode(_News("deposit.detected", _Deposit(_Block(height))))
                    await post_signed(session, f"{task.sink_url}/live", event_id, body, secret)
                await asyncio.sleep(POLL_INTERVAL_S)
        return _latency(usage, await _node_times(session, task), await _received(session, task), {})


async def _head(session: aiohttp.ClientSession, node_url: str) -> int:
    call = {"jsonrpc": "2.0", "id": 1, "method": "eth_getBlockByNumber", "params": ["latest", False]}
    async with session.post(node_url, data=msgspec.json.encode(call)) as response:
        return int((await response.json())["result"]["number"], 16)


async def _received(session: aiohttp.ClientSession, task: LiveTask) -> dict[int, float]:
    """When news of the deposit in each block arrived, once all of it has."""
    received: dict[int, float] = {}
    deadline = time.monotonic() + task.blocks * task.interval_s + ARRIVAL_LIMIT_S
    while len(received) < task.blocks - 1:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{len(received)} of {task.blocks - 1} deposits arrived")
        await asyncio.sleep(LOOK_INTERVAL_S)
        async with session.get(f"{task.sink_url}/take") as response:
            arrivals = msgspec.json.decode(await response.read(), type=list[Arrival])
        for arrival in arrivals:
            news = msgspec.json.decode(arrival.body, type=_News)
            if news.type == "deposit.detected" and news.data.block.height != START_HEIGHT:
                received.setdefault(news.data.block.height, arrival.at)
    return received


async def _node_times(session: aiohttp.ClientSession, task: LiveTask) -> NodeTimes:
    async with session.get(f"{task.node_url}/times") as response:
        return msgspec.json.decode(await response.read(), type=NodeTimes)


def _latency(usage: Usage, node: NodeTimes, received: dict[int, float], committed: dict[int, float]) -> Latency:
    """Split each deposit's way where it can be split."""
    blocks = {height: node.blocks[str(height)] for height in received}
    answered = {height: block.answered_at for height, block in blocks.items() if block.answered_at is not None}
    latency = Latency(
        usage,
        node.requests,
        node.calls,
        mined_to_answered=spread_of([at - blocks[height].mined_at for height, at in answered.items()]),
        answered_to_received=spread_of([received[height] - at for height, at in answered.items()]),
    )
    if committed:
        latency.answered_to_committed = spread_of([committed[height] - at for height, at in answered.items()])
        latency.committed_to_received = spread_of([at - committed[height] for height, at in received.items()])
    return latency


def main() -> None:
    """Do the task in the first argument and print where the time went."""
    task = msgspec.json.decode(sys.argv[1], type=LiveTask)
    configure_logs()
    calm_garbage_collector()
    commits = CommitTimes()
    structlog.configure(processors=[commits, *structlog.get_config()["processors"]])
    latency = uvloop.run(run_chainbell(task, commits) if task.database_url else run_bare(task))
    sys.stdout.buffer.write(msgspec.json.encode(latency))


if __name__ == "__main__":
    main()
