"""Running roles: one in this process until a signal, or all of them as supervised child processes.

Why processes and not tasks. A role must be able to die without taking the others: a proof that keeps a core busy must not
delay a webhook, and `kill -9` of one must be harmless. The parent only starts, watches and stops. A child that refuses (a
wrong setting, a node of another chain) at its first start has said why, and the whole stops with it; one that dies later
or of anything else is started again, soon at first and then less often. Children look for their parent: if that is
killed, they stop by themselves rather than run on unseen.
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path

import structlog
import uvloop

from chainbell.errors import ChainbellError

log = structlog.get_logger()

ROLES = ("follow", "notify", "serve")

REFUSED = 78
"""Exit status of a supervised child that a person has to help (EX_CONFIG of sysexits.h): it is not started again."""

PARENT_VARIABLE = "CHAINBELL_PARENT"
"""Set for children: the process id of their supervisor. It has no `__`, so it is no setting."""

RESTART_FIRST_S = 1.0
RESTART_MAX_S = 30.0
"""Pause before a child is started again, doubling; back to the first after it has run for the longest."""

GARBAGE_THRESHOLD = 10_000
"""Objects made, less those gone, before the collector looks at the young ones; Python's own number is 700."""

OPEN_FILES = 65_536

STOP_LIMIT_S = 40.0
"""How long a child may take to end: longer than one exchange with a merchant."""


def calm_garbage_collector() -> None:
    """What is imported by now lives as long as the process: the collector need not walk through it again and again, and what
    is made from now on makes few cycles. Left as it comes, it took a sixth of a follower's time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_THRESHOLD, 10, 10)


def raise_open_files_limit() -> None:
    """Let this process have as many sockets as the system allows it: 1,024 is what many give by default, and a notifier
    keeps one to each of its receivers for some seconds."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def run_until_signal(work: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    """Run a coroutine in a uvloop; SIGTERM, SIGINT or the loss of a supervisor set its event. Raises what it raises."""
    calm_garbage_collector()
    raise_open_files_limit()
    uvloop.run(_run_until_signal(work))


async def _run_until_signal(work: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    orphanhood = asyncio.create_task(_stop_when_orphaned(stop))
    try:
        await work(stop)
    except BaseExceptionGroup as group:
        raise _first_of(group) from group
    finally:
        orphanhood.cancel()


def _first_of(error: BaseException) -> BaseException:
    """A task group's first fault stands for all: the others were cancelled because of it."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _stop_when_orphaned(stop: asyncio.Event) -> None:
    parent = os.environ.get(PARENT_VARIABLE)
    while parent is not None and not stop.is_set():
        if str(os.getppid()) != parent:
            log.warning("supervisor is gone", parent=parent)
            stop.set()
        await asyncio.sleep(1.0)


async def supervise(arguments: Sequence[str], stop: asyncio.Event, roles: Sequence[str] = ROLES) -> None:
    """Run `chainbell <arguments> <role>` for each role until `stop`. Raises `ChainbellError` when one refuses."""
    with tempfile.TemporaryDirectory(prefix="chainbell-metrics-") as directory:
        # Counters of all roles in one place: `serve` shows them all at /metrics.
        environment = os.environ | {PARENT_VARIABLE: str(os.getpid()), "PROMETHEUS_MULTIPROC_DIR": directory}
        async with asyncio.TaskGroup() as group:
            kept = [group.create_task(_keep(role, [*arguments, role], environment, stop)) for role in roles]
    # Raised when every child has ended, not before: what they still say would come after the reason.
    refused = [role for role, task in zip(roles, kept, strict=True) if task.result() == REFUSED]
    if refused:
        raise ChainbellError(f"the role {refused[0]} cannot start; it has said why above")


async def _keep(role: str, arguments: Sequence[str], environment: dict[str, str], stop: asyncio.Event) -> int | None:
    """Run one role until `stop`, again and again; `REFUSED`, and `stop` is set, when its first start was refused."""
    pause_s = RESTART_FIRST_S
    is_first = True
    while not stop.is_set():
        started = time.monotonic()
        # -P: what lies in the working directory must not be taken for our modules.
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "chainbell", *arguments, env=environment, start_new_session=True
        )
        log.info("role started", role=role, pid=child.pid)
        status = await _wait(child, stop)
        if status == REFUSED and is_first:
            stop.set()
            return REFUSED
        if stop.is_set():
            return None
        is_first = False
        _forget_metrics(environment["PROMETHEUS_MULTIPROC_DIR"], child.pid)
        pause_s = RESTART_FIRST_S if time.monotonic() - started > RESTART_MAX_S else pause_s
        log.error("role died", role=role, status=status, restart_in_s=pause_s)
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), pause_s)
        pause_s = min(pause_s * 2, RESTART_MAX_S)
    return None


async def _wait(child: asyncio.subprocess.Process, stop: asyncio.Event) -> int:
    """Wait for a child to end, or end it when `stop` is set: asked first, killed if it does not listen."""
    ended = asyncio.create_task(child.wait())
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({ended, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            child.send_signal(signal.SIGTERM)
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(ended), STOP_LIMIT_S)
        if not ended.done():
            log.error("role does not stop and is killed", pid=child.pid)
            child.kill()
        return await ended
    finally:
        stopping.cancel()


def _forget_metrics(directory: str, pid: int) -> None:
    """Live gauges of a dead process are no more; its counters stay counted."""
    for file in Path(directory).glob(f"gauge_live*_{pid}.db"):
        file.unlink(missing_ok=True)
