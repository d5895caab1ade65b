"""A payments backend that asks how its deposits stand: `python -m bench.asking TASK`.

Requests are ready bytes, sent over connections that stay open, one at a time on each. At a rate they are sent at random
moments that were drawn beforehand (exponential gaps), whatever has been answered by then. Each is timed from the moment at
which it should have been sent: an answer that is late delays no question, and no question escapes the count by waiting for
its turn. Without a rate each connection asks again as soon as it was answered.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from collections.abc import Callable
from itertools import accumulate, cycle
from random import Random
from typing import cast
from urllib.parse import urlsplit

import msgspec
import psycopg
import uvloop

from bench.live import Spread, spread_of
from bench.usage import cpu_s_of
from bench.watching import plain_url
from chainbell.supervisor import calm_garbage_collector

WARM_UP_S = 1.0
"""Asked before anything counts: connections are open then, and statements prepared."""
ANSWER_LIMIT_S = 60.0
_LENGTH = b"Content-Length: "


class AskingTask(msgspec.Struct):
    """Ask `url` for `paths` in turn. `rate` questions a second; 0: as many as are answered."""

    url: str
    server_pid: int
    paths: list[str]
    key: str
    rate: float
    seconds: float
    connections: int
    seed: int = 1
    database_url: str = ""
    """Whose sessions called `chainbell serve` are counted with the server."""


class Asked(msgspec.Struct):
    """What came of it."""

    count: int
    elapsed_s: float
    latency: Spread
    server_cpu_s: float
    database_cpu_s: float
    cpu_s: float
    """Of the process that asked."""


class Connection(asyncio.Protocol):
    """One connection, with at most one question under way."""

    def __init__(self, answered: Callable[[Connection], None], failed: Callable[[str], None]) -> None:
        self._answered = answered
        self._failed = failed
        self._received = b""
        self._transport: asyncio.Transport | None = None
        self.due_at = 0.0
        """When the question under way should have been sent."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep what is written to."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class

    def ask(self, request: bytes, due_at: float) -> None:
        """Send a question."""
        assert self._transport is not None
        self.due_at = due_at
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Put an answer together, and tell of it when it is whole."""
        received = self._received + data if self._received else data
        head = received.find(b"\r\n\r\n")
        at = received.find(_LENGTH, 0, head)
        if head < 0 or len(received) < head + 4 + int(received[at + len(_LENGTH) : received.find(b"\r", at)]):
            self._received = received
            return
        self._received = b""
        if received[9:12] != b"200":
            self._failed(received.decode(errors="replace"))
        self._answered(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody hangs up while questions are asked."""
        self._failed(f"the connection was lost: {exc!r}")

    def close(self) -> None:
        """Hang up."""
        assert self._transport is not None
        self._transport.close()


class Asker:
    """All connections, and what waits for one that is free."""

    def __init__(self, task: AskingTask) -> None:
        self.task = task
        host = urlsplit(task.url).netloc
        self._requests = cycle(
            f"GET {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {task.key}\r\n\r\n".encode()
            for path in task.paths
        )
        self._connections: list[Connection] = []
        self._free: deque[Connection] = deque()
        """In turn: one that is not used is closed by the server after a while."""
        self._waiting: deque[float] = deque()
        self._under_way = 0
        self._failures: list[str] = []
        self.latencies_s: list[float] = []
        self.stops_at = 0.0
        """Without a rate: until when is asked again."""

    async def open(self) -> None:
        """Connect."""
        loop, parts = asyncio.get_running_loop(), urlsplit(self.task.url)
        for _ in range(self.task.connections):
            _, made = await loop.create_connection(
                lambda: Connection(self._take, self._failures.append), parts.hostname or "", parts.port or 0
            )
            self._connections.append(made)
        self._free = deque(self._connections)

    def close(self) -> None:
        """Hang up all."""
        for connection in self._connections:
            connection.close()

    def _ask(self, due_at: float) -> None:
        if self._free:
            self._under_way += 1
            self._free.popleft().ask(next(self._requests), due_at)
        else:
            self._waiting.append(due_at)

    def _take(self, connection: Connection) -> None:
        now = time.perf_counter()
        self.latencies_s.append(now - connection.due_at)
        self._under_way -= 1
        self._free.append(connection)
        if self._waiting:
            self._ask(self._waiting.popleft())
        elif now < self.stops_at:
            self._ask(now)

    async def at_rate(self, moments: list[float]) -> None:
        """Ask at these moments of the clock, and wait for the answers."""
        due = deque(moments)
        while due:
            now = time.perf_counter()
            while due and due[0] <= now:
                self._ask(due.popleft())
            self._raise_failures()
            await asyncio.sleep(max(0.0, due[0] - now) if due else 0)
        await self._finish()

    async def at_most(self, seconds: float) -> None:
        """Ask on every connection for as long, and wait for the last answers."""
        now = time.perf_counter()
        self.stops_at = now + seconds
        for _ in self._connections:
            self._ask(now)
        await asyncio.sleep(seconds)
        await self._finish()

    async def _finish(self) -> None:
        deadline = time.perf_counter() + ANSWER_LIMIT_S
        while self._under_way or self._waiting:
            self._raise_failures()
            if time.perf_counter() > deadline:
                raise TimeoutError(f"{self._under_way + len(self._waiting)} questions were not answered")
            await asyncio.sleep(0.001)
        self._raise_failures()

    def _raise_failures(self) -> None:
        if self._failures:
            raise RuntimeError(self._failures[0])


async def ask_for(asker: Asker, seconds: float, random: Random) -> None:
    """Ask for so long, as the task says."""
    rate = asker.task.rate
    if not rate:
        await asker.at_most(seconds)
        return
    gaps = (random.expovariate(rate) for _ in range(int(rate * seconds)))
    await asker.at_rate(list(accumulate(gaps, initial=time.perf_counter())))


def session_pids_of(database_url: str) -> list[int]:
    """The processes of Postgres that serve the API."""
    if not database_url:
        return []
    with psycopg.connect(plain_url(database_url)) as connection:
        query = "SELECT pid FROM pg_stat_activity WHERE application_name = 'chainbell serve'"
        return [int(row[0]) for row in connection.execute(query)]


async def run(task: AskingTask) -> Asked:
    """Ask, after some questions that do not count."""
    asker, random = Asker(task), Random(task.seed)
    await asker.open()
    await ask_for(asker, WARM_UP_S, random)
    asker.latencies_s.clear()
    pids = session_pids_of(task.database_url)
    server_cpu_s, database_cpu_s, cpu_s = cpu_s_of([task.server_pid]), cpu_s_of(pids), time.process_time()
    began = time.perf_counter()
    await ask_for(asker, task.seconds, random)
    asked = Asked(
        count=len(asker.latencies_s),
        elapsed_s=time.perf_counter() - began,
        latency=spread_of(asker.latencies_s),
        server_cpu_s=cpu_s_of([task.server_pid]) - server_cpu_s,
        database_cpu_s=cpu_s_of(pids) - database_cpu_s,
        cpu_s=time.process_time() - cpu_s,
    )
    asker.close()
    return asked


def main() -> None:
    """Do the task in the first argument and print what came of it."""
    task = msgspec.json.decode(sys.argv[1], type=AskingTask)
    calm_garbage_collector()
    sys.stdout.buffer.write(msgspec.json.encode(uvloop.run(run(task))))


if __name__ == "__main__":
    main()
