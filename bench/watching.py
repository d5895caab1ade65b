"""Many watches: how fast they are taken, what a follower notices of it, and what a block's match costs afterwards:
`python -m bench.watching TASK`.

The watches come by REST, 10,000 a call, as a payments backend sends them: addresses with checksums, a reference, a little
metadata. Meanwhile somebody takes the chain's row again and again, as a follower does for each commit. The bare way is
COPY of the same rows into an unlogged copy of the table, with its indexes, in the same Postgres.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from random import Random

import aiohttp
import msgspec
import psycopg
import uvloop
from sqlalchemy.ext.asyncio import AsyncEngine

from bench.installation import add_tenant, add_watches, ledger_at, register
from bench.live import Spread, spread_of
from bench.usage import Usage, measure_usage
from chains.evm.address import checksum_of
from chains.model import Address, ChainId
from ledger.chains import lock_chain, update_chain
from ledger.database import transaction
from ledger.ids import TenantId, new_ids
from ledger.keys import create_key
from ledger.matching import match_watches

WATCHES_A_CALL = 10_000
CALLS_AT_ONCE = 2
FIRST_TIP = 1_000
LOCK_INTERVAL_S = 0.02
BLOCK_INTERVAL_S = 12.0
"""The row is taken every `LOCK_INTERVAL_S`; this often, as on Ethereum, the tip moves as well."""

WATCHES_FEW = 1_000
ADDRESSES_A_BLOCK = 600
ADDRESSES_HIT = 4
"""Distinct addresses that a block of mainnet's size moves listed assets between, and how many of them are watched."""

MATCHES = 200


class WatchingTask(msgspec.Struct):
    """`watches` are loaded by the API at `api_url` into a ledger of which it is the API."""

    database_url: str
    api_url: str
    watches: int
    seed: int


class Watching(msgspec.Struct):
    """What was measured. Times are in milliseconds, sizes in bytes."""

    load: Usage
    """Elapsed time of all calls; the CPU time is the API process's."""
    bare: Usage
    idle_wait: Spread
    """How long it takes to get the chain's row while nobody else wants it."""
    loading_wait: Spread
    loading_wait_max_ms: float
    match_few: Spread
    match_many: Spread
    table_bytes: int
    """Of `watches`, with its indexes and without."""
    bare_bytes: int
    api_bytes_before: int
    api_bytes: int


def addresses_of(task: WatchingTask, call: int) -> list[Address]:
    """The addresses of one call; the same every time."""
    random = Random(f"watches {task.seed} {call}")
    return [random.randbytes(20) for _ in range(WATCHES_A_CALL)]


def _call_count(task: WatchingTask) -> int:
    return -(-task.watches // WATCHES_A_CALL)


def plain_url(database_url: str) -> str:
    """The URL without SQLAlchemy's word for the driver."""
    return database_url.replace("+psycopg", "")


def make_body(task: WatchingTask, call: int) -> bytes:
    """What one call sends."""
    rows = [
        {
            "chain": "ethereum",
            "address": checksum_of(address),
            "reference": f"order-{call * WATCHES_A_CALL + n}",
            "metadata": {"customer": n},
        }
        for n, address in enumerate(addresses_of(task, call))
    ]
    return msgspec.json.encode({"watches": rows})


class _Follower:
    """Takes a chain's row as a follower does, and remembers how long it waited."""

    def __init__(self, engine: AsyncEngine, chain_id: ChainId) -> None:
        self._engine, self._chain_id = engine, chain_id
        self.waits_s: list[float] = []
        self._tip = FIRST_TIP
        self._moved_at = 0.0

    async def run(self, stop: asyncio.Event) -> None:
        """Again and again until `stop`."""
        while not stop.is_set():
            await self.commit()
            await asyncio.sleep(LOCK_INTERVAL_S)

    async def commit(self) -> None:
        """Take the row; now and then move the tip, which an insert of watches has to notice."""
        async with transaction(self._engine) as connection:
            began = time.perf_counter()
            await lock_chain(connection, self._chain_id)
            self.waits_s.append(time.perf_counter() - began)
            if began - self._moved_at > BLOCK_INTERVAL_S:
                self._moved_at = began
                self._tip += 1
                await update_chain(connection, self._chain_id, {"tip_height": self._tip})


class AnswerRow(msgspec.Struct):
    """As much of a row as tells whose answer it is."""

    id: str
    address: str
    reference: str
    status: str


class Answered(msgspec.Struct):
    """The answer to one call."""

    data: list[AnswerRow]


def check_answer(task: WatchingTask, call: int, answer: bytes) -> None:
    """Raise unless it has a row for each one of the call, in order, of a watch that was made."""
    rows = msgspec.json.decode(answer, type=Answered).data
    told = [(row.address, row.reference, row.status) for row in rows if row.id.startswith("wat_")]
    first = call * WATCHES_A_CALL
    wanted = [
        (f"0x{address.hex()}", f"order-{first + n}", "active") for n, address in enumerate(addresses_of(task, call))
    ]
    if told != wanted:
        raise RuntimeError(f"call {call}: the answer's rows are not those that were sent")


async def load_watches(task: WatchingTask, key: str, bodies: Iterator[tuple[int, bytes]]) -> None:
    """Post everything, `CALLS_AT_ONCE` calls at a time, each with a key that makes it safe to repeat."""
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    async with aiohttp.ClientSession(headers=headers) as session:

        async def _post() -> None:
            for call, body in bodies:
                given = {"Idempotency-Key": f"load-{call}"}
                async with session.post(f"{task.api_url}/v1/watches", data=body, headers=given) as response:
                    answer = await response.read()
                    if response.status != 200:
                        raise RuntimeError(f"POST /v1/watches: {response.status} {answer[:500].decode()}")
                    check_answer(task, call, answer)

        await asyncio.gather(*(_post() for _ in range(CALLS_AT_ONCE)))


async def _api_figure(task: WatchingTask, name: str) -> float:
    """A figure of the API process, from its own metrics."""
    async with aiohttp.ClientSession() as session, session.get(f"{task.api_url}/metrics") as response:
        found = re.search(rf"^{name} (\S+)$", await response.text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"/metrics has no {name}")
    return float(found[1])


def _copy_lines(task: WatchingTask, call: int) -> Iterator[bytes]:
    now = datetime.now(UTC)
    ids = new_ids("wat", now, WATCHES_A_CALL)
    for n, (watch_id, address) in enumerate(zip(ids, addresses_of(task, call), strict=True)):
        reference, metadata = f"order-{call * WATCHES_A_CALL + n}", f'{{"customer": {n}}}'
        covered = '{"eip155:1": 1001}'
        row = (
            "ten_bare",
            watch_id,
            "eip155:1",
            rf"\\x{address.hex()}",
            reference,
            metadata,
            r"\N",
            covered,
            str(now),
            r"\N",
        )
        yield ("\t".join(row) + "\n").encode()


_COPY = (
    "COPY bare (tenant_id, id, scope, address, reference, metadata, start_height, covered_from, created_at, deleted_at)"
    " FROM STDIN"
)


def load_bare(task: WatchingTask) -> Usage:
    """COPY the same rows, a transaction for each call's."""
    usage = Usage(_call_count(task) * WATCHES_A_CALL)
    with psycopg.connect(plain_url(task.database_url)) as connection:
        connection.execute("CREATE UNLOGGED TABLE bare (LIKE watches INCLUDING ALL)")
        connection.commit()
        for call in range(_call_count(task)):
            text = b"".join(_copy_lines(task, call))
            with measure_usage(WATCHES_A_CALL) as one:
                with connection.cursor() as cursor, cursor.copy(_COPY) as copy:
                    copy.write(text)
                connection.commit()
            usage.elapsed_s += one.elapsed_s
            usage.cpu_s += one.cpu_s
    return usage


def _sizes(task: WatchingTask) -> tuple[int, int]:
    """Bytes of `watches` with its indexes, and without; the copy is dropped."""
    with psycopg.connect(plain_url(task.database_url)) as connection:
        query = "SELECT pg_total_relation_size('watches'), pg_relation_size('bare')"
        row = connection.execute(query).fetchone()
        connection.execute("DROP TABLE bare")
    assert row is not None
    return row[0], row[1]


async def time_matches(engine: AsyncEngine, chain_id: ChainId, hit: Sequence[Address]) -> Spread:
    """How long the match of a block's addresses takes, a few of them watched, other ones each time."""
    random = Random("match")
    times_s = []
    for n in range(MATCHES):
        watched = hit[n * ADDRESSES_HIT : (n + 1) * ADDRESSES_HIT]
        asked = [*watched, *(random.randbytes(20) for _ in range(ADDRESSES_A_BLOCK - len(watched)))]
        async with transaction(engine) as connection:
            began = time.perf_counter()
            found = await match_watches(connection, chain_id, asked)
            times_s.append(time.perf_counter() - began)
        if len(found) != ADDRESSES_HIT:
            raise RuntimeError(f"{len(found)} of {ADDRESSES_HIT} watches were met")
    return spread_of(times_s)


async def _prepare(engine: AsyncEngine) -> tuple[ChainId, TenantId, str]:
    followed = await register(engine, "roots")
    tenant_id, _ = await add_tenant(engine, "acme", [])
    async with transaction(engine) as connection:
        tip = {"first_height": 1, "tip_height": FIRST_TIP, "tip_hash": bytes(32), "tip_at": datetime.now(UTC)}
        await update_chain(connection, followed.chain_id, tip)
        _, key = await create_key(connection, tenant_id, ["watches:write"], datetime.now(UTC))
    return followed.chain_id, tenant_id, key


async def run(task: WatchingTask) -> Watching:
    """Load, beside a follower, and look at what has become of the table."""
    async with ledger_at(task.database_url) as engine:
        chain_id, _, key = await _prepare(engine)
        few_owner, _ = await add_tenant(engine, "few", [])
        few = [Random(f"few {task.seed} {n}").randbytes(20) for n in range(WATCHES_FEW)]
        await add_watches(engine, few_owner, few)
        match_few = await time_matches(engine, chain_id, few)
        follower, stop = _Follower(engine, chain_id), asyncio.Event()
        for _ in range(MATCHES):
            await follower.commit()
        idle_wait, follower.waits_s = spread_of(follower.waits_s), []
        bytes_before = await _api_figure(task, "process_resident_memory_bytes")
        cpu_before = await _api_figure(task, "process_cpu_seconds_total")
        bodies = [make_body(task, call) for call in range(_call_count(task))]
        with measure_usage(len(bodies) * WATCHES_A_CALL) as load:
            committing = asyncio.create_task(follower.run(stop))
            await load_watches(task, key, iter(enumerate(bodies)))
        stop.set()
        await committing
        load.cpu_s = await _api_figure(task, "process_cpu_seconds_total") - cpu_before
        match_many = await time_matches(engine, chain_id, addresses_of(task, 0))
        bytes_after = await _api_figure(task, "process_resident_memory_bytes")
    bare = load_bare(task)
    table_bytes, bare_bytes = _sizes(task)
    return Watching(
        load,
        bare,
        idle_wait,
        spread_of(follower.waits_s),
        max(follower.waits_s) * 1000,
        match_few,
        match_many,
        table_bytes,
        bare_bytes,
        int(bytes_before),
        int(bytes_after),
    )


def main() -> None:
    """Do the task in the first argument and print what it took."""
    task = msgspec.json.decode(sys.argv[1], type=WatchingTask)
    sys.stdout.buffer.write(msgspec.json.encode(uvloop.run(run(task))))


if __name__ == "__main__":
    main()
