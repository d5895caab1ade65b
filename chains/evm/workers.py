"""Reading blocks on all cores: processes that a catch-up starts, and that end when it is over.

Proof and decoding are pure computing, up to twenty milliseconds a block, and one process of Python computes on one core.
Far behind the head they are done elsewhere: this process fetches bytes and commits, the workers do what lies between. At
the head blocks are read at once where they arrive, so that one chain's catch-up makes no other chain's newest block wait.

A worker holds nothing that cannot be lost. One that dies is replaced and its block read again; a block on which several
die is held to be the cause, and the chain holds. What workers are given at one time is bounded in bytes as well, since the
values of a block take several times the space of its bytes.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import structlog

from chains.errors import ChainHolds
from chains.evm.reading import Place, RawBlock, ReadingRules
from chains.evm.worker import LENGTH_BYTES, framed, unpickled
from chains.model import Block

log = structlog.get_logger(__name__)

IDLE_LIMIT_S = 30.0
"""Workers end when none was needed for this long: longer than any pause between the cycles of a catch-up."""

DEATHS_MAX = 3
"""Workers that may die reading one block."""

READING_BYTES_MAX = 64 * 1024 * 1024
"""Bytes of answers that all workers read at one time; one larger answer is read alone."""

END_LIMIT_S = 2.0


class WorkerDied(Exception):
    """The process ended before it had answered."""


class Workers:
    """The reading processes of this process, shared by all its chains; made and used in one loop. None runs before the
    first block is read."""

    def __init__(self, count: int | None = None, idle_limit_s: float = IDLE_LIMIT_S) -> None:
        """`count` is how many at most; None: as many as there are cores that this process may use."""
        self.count = count if count is not None else usable_cores()
        self._idle_limit_s = idle_limit_s
        self._places = asyncio.Semaphore(self.count)
        self._room = _Room(READING_BYTES_MAX)
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()
        self._under_way: set[asyncio.Future[Any]] = set()
        self._ending: asyncio.TimerHandle | None = None

    @property
    def process_ids(self) -> tuple[int, ...]:
        """The workers that run now."""
        return tuple(worker.process.pid for worker in self._all)

    async def read(self, rules: bytes, place: Place, raw: RawBlock) -> Block:
        """`read_block` in a worker; `rules` come from `pickled_rules`. Raises what that raises, and `ChainHolds` when
        workers die of this block."""
        subject = f"{_named(place)} of {raw.node}"
        request = pickle.dumps((rules, place, raw), pickle.HIGHEST_PROTOCOL)
        del raw  # its bytes are in the request: a large answer is held once
        reading = asyncio.ensure_future(self._read(request, subject))
        self._keep(reading)
        # Whoever asked may stop waiting; the exchange goes on to its end, so that the worker can be used again.
        return await asyncio.shield(reading)

    async def close(self) -> None:
        """End every worker, and whatever they are reading."""
        if self._ending is not None:
            self._ending.cancel()
        for reading in tuple(self._under_way):
            reading.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)
        await asyncio.gather(*(worker.end() for worker in self._all))
        self._all.clear()

    async def _read(self, request: bytes, subject: str) -> Block:
        async with self._places, self._room.taken(len(request)):
            for _ in range(DEATHS_MAX):
                try:
                    return unpickled(await self._ask(request))
                except WorkerDied as death:
                    log.warning("worker died", subject=subject, reason=str(death))
        raise ChainHolds(f"{subject}: {DEATHS_MAX} processes died reading it")

    async def _ask(self, request: bytes) -> bytes:
        worker = self._idle.pop() if self._idle else await self._start()
        try:
            answer = await worker.exchange(request)
        except BaseException:
            # Dead, or broken off in the middle of an exchange: its next answer would be that of this request.
            self._all.discard(worker)
            await worker.kill()
            raise
        self._idle.append(worker)
        self._end_when_idle()
        return answer

    async def _start(self) -> _Worker:
        worker = await start_worker()
        self._all.add(worker)
        log.info("worker started", pid=worker.process.pid)
        return worker

    def _end_when_idle(self) -> None:
        if self._ending is not None:
            self._ending.cancel()
        self._ending = asyncio.get_running_loop().call_later(self._idle_limit_s, self._end_idle)

    def _end_idle(self) -> None:
        idle, self._idle = self._idle, []
        self._all.difference_update(idle)
        for worker in idle:
            self._keep(asyncio.ensure_future(worker.end()))

    def _keep(self, future: asyncio.Future[Any]) -> None:
        self._under_way.add(future)
        future.add_done_callback(self._under_way.discard)


@dataclass(eq=False, slots=True)
class _Worker:
    """One process and its two pipes."""

    process: Process
    requests: asyncio.StreamWriter
    answers: asyncio.StreamReader

    async def exchange(self, request: bytes) -> bytes:
        """One request and its answer. Raises `WorkerDied`."""
        try:
            self.requests.write(framed(request))
            self.requests.write(request)
            await self.requests.drain()
            length = await self.answers.readexactly(LENGTH_BYTES)
            return await self.answers.readexactly(int.from_bytes(length, "big"))
        except (asyncio.IncompleteReadError, ConnectionError, RuntimeError) as error:
            # RuntimeError: uvloop's word for a pipe that is closed already.
            raise WorkerDied(f"process {self.process.pid}: {type(error).__name__}") from error

    async def end(self) -> None:
        """Close its input, which is how a worker is told; kill it if it does not listen."""
        self.requests.close()
        try:
            await asyncio.wait_for(self._gone(), END_LIMIT_S)
        except TimeoutError:
            await self.kill()

    async def kill(self) -> None:
        """End it at once."""
        with suppress(ProcessLookupError):
            self.process.kill()
        await asyncio.shield(self._gone())

    async def _gone(self) -> None:
        """Return when it has ended and what it had written was read to the end: asyncio's own `wait` may not return while
        a pipe is too full to be read on, and a loop that ends right after it may leave an open pipe behind."""
        with suppress(ConnectionError):
            await self.answers.read()
        await self.process.wait()


async def start_worker() -> _Worker:
    """A new process, which ends with this one."""
    # -P: what lies in the working directory must not be taken for our modules. A session of its own: a terminal's
    # signals are for the parent.
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "chains.evm.worker", stdin=PIPE, stdout=PIPE, start_new_session=True
    )
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("a process was started without the pipes that it was given")
    return _Worker(process, process.stdin, process.stdout)


class _Room:
    """Bytes that may be taken at one time. Whoever wants more than there is waits until everybody else is done."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._held = 0
        self._freed = asyncio.Event()

    @asynccontextmanager
    async def taken(self, size: int) -> AsyncIterator[None]:
        """Hold so many bytes for as long as the block lasts; waits until there is room."""
        while self._held and self._held + size > self._size:
            self._freed.clear()
            await self._freed.wait()
        self._held += size
        try:
            yield
        finally:
            self._held -= size
            self._freed.set()


def pickled_rules(rules: ReadingRules) -> bytes:
    """A chain's rules as `Workers.read` takes them: pickled once, and known to a worker again by their bytes."""
    return pickle.dumps(rules, pickle.HIGHEST_PROTOCOL)


def usable_cores() -> int:
    """How many cores this process may run on: fewer than the machine has, in a container that pins it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _named(place: Place) -> str:
    return f"block {place if isinstance(place, int) else '0x' + place.hex()}"
