"""Asking several hosts the same thing at the same time: who agrees, and what each of them calls final.

Agreement is counted over hosts, since the nodes of one host share its mistakes. Whoever asks needs as many hosts as the
quorum, and not one more: so a host that failed lately is not asked while the others are enough, and where they are not,
only now and then. One that is late is not waited for in any case: it is asked again with the next block, and a host that
takes connections and never answers must not delay every block, though credit waits for it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from chains.errors import ChainError
from chains.node.health import Upstream
from chains.node.pool import Pool

T = TypeVar("T")

ASKED_AGAIN_S = 6.0
"""How often a host that failed lately is asked where the quorum cannot do without it."""
NEEDED_PATIENCE_S = 2.0
"""How long such a host is waited for: blocks are told of meanwhile, only their credit waits for it."""


class Hosts:
    """The hosts of one chain's nodes, of which `quorum` have to agree."""

    def __init__(self, pool: Pool, quorum: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._pool = pool
        self._quorum = quorum
        self._clock = clock
        self._asked_at: dict[str, float] = {}

    async def answers(
        self, hosts: Sequence[str], subject: str, ask: Callable[[Upstream], Awaitable[T]], kind: str
    ) -> dict[str, T]:
        """What one node of each host says of `subject`; absent where none answers, or where the others are enough."""
        asked = {host: self._nodes_of(host) for host in self._worth_asking(hosts)}
        if not asked:
            return {}
        tasks = {
            asyncio.create_task(_if_any(self._pool.first_answer(subject, ask, nodes, kind=kind))): host
            for host, nodes in asked.items()
        }
        patience_s = max(self._patience_s(node, kind) for nodes in asked.values() for node in nodes)
        try:
            done, late = await asyncio.wait(tasks, timeout=patience_s)
        finally:
            for task in tasks:
                task.cancel()
        for task in late:
            self._pool.note_late(asked[tasks[task]][0], patience_s)
        return {tasks[task]: answer for task in done for answer in task.result()}

    def _nodes_of(self, host: str) -> list[Upstream]:
        return [upstream for upstream in self._pool.upstreams if upstream.host == host]

    def _well(self) -> set[str]:
        return {upstream.host for upstream in self._pool.upstreams if not self._pool.is_paused(upstream)}

    def _worth_asking(self, hosts: Sequence[str]) -> list[str]:
        """Of hosts that failed lately only those that are needed, and these now and then."""
        well, now = self._well(), self._clock()
        again = {host for host in hosts if now - self._asked_at.get(host, -ASKED_AGAIN_S) >= ASKED_AGAIN_S}
        asked = [host for host in hosts if host in well or (len(well) < self._quorum and host in again)]
        self._asked_at |= dict.fromkeys(asked, now)
        return asked

    def _patience_s(self, node: Upstream, kind: str) -> float:
        return min(NEEDED_PATIENCE_S, node.patience_s(kind)) if self._pool.is_paused(node) else node.patience_s(kind)


async def _if_any(asking: Awaitable[T]) -> list[T]:
    """The answer of the first of a host's nodes that has one; nothing where none does, which the pool has counted."""
    try:
        return [await asking]
    except ChainError:
        return []
