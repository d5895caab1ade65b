"""Asking several hosts the same thing at the same time: who agrees, and what each of them calls final.

Agreement is counted over hosts, since the nodes of one host share its mistakes. Whoever asks needs as many hosts as the
quorum, and not one more: so a host that failed lately is not asked while the others are enough, and one that is late
now is not waited for. Else a host that takes connections and never answers would delay every block.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from chains.errors import ChainError
from chains.node.health import Upstream
from chains.node.pool import Pool

T = TypeVar("T")


class Hosts:
    """The hosts of one chain's nodes, of which `quorum` have to agree."""

    def __init__(self, pool: Pool, quorum: int) -> None:
        self._pool = pool
        self._quorum = quorum

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
        patience_s = max(node.patience_s(kind) for nodes in asked.values() for node in nodes)
        try:
            done, late = await asyncio.wait(tasks, timeout=patience_s)
            if len(self._well() - {tasks[task] for task in late}) < self._quorum:
                done, late = await asyncio.wait(tasks)
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
        well = self._well()
        return [host for host in hosts if host in well or len(well) < self._quorum]


async def _if_any(asking: Awaitable[T]) -> list[T]:
    """The answer of the first of a host's nodes that has one; nothing where none does, which the pool has counted."""
    try:
        return [await asking]
    except ChainError:
        return []
