"""Answers that are meant to hurt, from as many receivers at once as there are slots: each slot is free again in time, memory
stays flat, and who answers well is told meanwhile."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from sqlalchemy import Row

from notifier.isolation import SLOTS
from tests.fakes.receiver import Behaviour, Receiver, drip, drip_headers, endless, gzip_bomb, raw, running_receiver
from tests.integration.notifier.conftest import SHORT_EXCHANGE_S, Post
from tests.integration.notifier.test_leases import dispatcher_process

GIANT_HEADERS = b"HTTP/1.1 200 OK\r\n" + b"".join(b"x-%d: %s\r\n" % (n, b"a" * 8000) for n in range(500)) + b"\r\n"
BOMBS: dict[str, Behaviour] = {
    "gzip": gzip_bomb(gzip.compress(bytes(50_000_000))),
    "endless body": endless(),
    "one byte a second": drip(1.0),
    "one byte of a header a second": drip_headers(1.0),
    "giant headers": raw(GIANT_HEADERS),
}
OF_EACH = 2 * SLOTS // len(BOMBS)
"""Twice as many as there are slots, so that the second half is begun only where the first has left."""
GROWTH_KIB_MAX = 30 * 1024
"""What a process may need more than before: one gzip bomb alone would be 50 MB."""
DEADLINE_S = 120.0


def memory_peak_kib(pid: int) -> int:
    """The most that a process ever had in memory."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith("VmHWM:")]
    return int(line.split()[1])


async def open_endpoints(post: Post, stack: AsyncExitStack) -> tuple[Receiver, Sequence[str]]:
    """A healthy endpoint and those of the bombs, each told of its own kind of event only."""
    healthy = await stack.enter_async_context(running_receiver())
    await post.add_endpoint(healthy, ["deposit.*"])
    types = [f"bomb_{number}.armed" for number in range(len(BOMBS))]
    for event_type, behaviour in zip(types, BOMBS.values(), strict=True):
        receiver = await stack.enter_async_context(running_receiver(behaviour=behaviour))
        await post.add_endpoint(receiver, [event_type])
    return healthy, types


async def test_bombs_free_their_slots_in_time_with_memory_flat(post: Post) -> None:
    async with AsyncExitStack() as stack:
        healthy, types = await open_endpoints(post, stack)
        process = await stack.enter_async_context(dispatcher_process(post.url, SHORT_EXCHANGE_S))
        await post.record("dep_0")
        await healthy.wait_until("it is at work", lambda: len(healthy.requests) == 1, DEADLINE_S)
        before_kib = memory_peak_kib(process.pid)
        for event_type in types:
            await post.record_all([(f"{event_type}_{number}", 1) for number in range(OF_EACH)], event_type)
        await post.record_all([(f"dep_{number}", 1) for number in range(1, 20)])

        def all_were_left(rows: list[Row[Any]]) -> bool:
            """Each was tried or waits, none is under way, and whoever answers well was told."""
            tried = {row.event_type for row in rows if row.attempts > 0}
            told = [row.state == "delivered" for row in rows if row.event_type == "deposit.detected"]
            return tried >= set(types) and all(told) and all(row.lease_token is None for row in rows)

        await post.wait_until("every slot is free again", all_were_left, DEADLINE_S)
        assert memory_peak_kib(process.pid) - before_kib < GROWTH_KIB_MAX
        assert process.returncode is None
