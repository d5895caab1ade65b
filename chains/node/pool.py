"""Several nodes of one chain, tried in order until one gives an answer that holds.

A node that fails goes to the end of the line, says why once a minute at most, and gets its place back when its pause
is over or when it answers well. Nothing here decides what a good answer is: `ask` does, and raises a `NodeError` when
it is not one. Before a node is asked for the first time, and again after each failing, it is *admitted*: a node that
comes back may have come back as a node of another chain.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import structlog

from chains.adapter import NodeStatus
from chains.errors import BlockNotFound, ChainError, ChainHolds, NodeUnavailable
from chains.model import Slug
from chains.node.client import NodeClient
from chains.node.errors import NodeError, NodeLacks, NodeUnproven
from chains.node.metrics import PROOF_FAILURES

T = TypeVar("T")
log = structlog.get_logger(__name__)

PAUSE_MIN_S = 30.0
PAUSE_MAX_S = 300.0
COMPLAINT_INTERVAL_S = 60.0


@dataclass(eq=False)
class Upstream:
    """One node and how it has been doing."""

    client: NodeClient
    state: str = "unknown"
    """`unknown` until first asked, then `ok` or `failing`."""
    reason: str | None = None
    head: int | None = None
    """Height of the newest block that it told us of."""
    has_block_receipts: bool = True
    """Whether it offers receipts by block, as far as we have learnt."""
    is_admitted: bool = False
    failures: int = 0
    """In a row."""
    paused_until: float = field(default=0.0, repr=False)
    complained_at: float | None = field(default=None, repr=False)
    has_complained: bool = field(default=False, repr=False)

    @property
    def name(self) -> str:
        """The name it is called by in messages and metrics."""
        return self.client.name

    @property
    def host(self) -> str:
        """Its host: agreement is counted over hosts."""
        return self.client.host

    def status(self) -> NodeStatus:
        """The node as operators see it."""
        return NodeStatus(self.name, self.host, self.state, self.head, self.reason)


class Pool:
    """The nodes of one chain in the operator's order of preference."""

    def __init__(
        self,
        chain: Slug,
        upstreams: Sequence[Upstream],
        admit: Callable[[Upstream], Awaitable[None]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.upstreams = tuple(upstreams)
        self._chain = chain
        self._admit = admit
        self._clock = clock

    async def first_answer(
        self,
        subject: str,
        ask: Callable[[Upstream], Awaitable[T]],
        among: Sequence[Upstream] | None = None,
    ) -> T:
        """The first good answer about `subject` (`block 19000001`), of the nodes in `among` or of all.

        Raises `ChainHolds` when any node answered and none could prove it, `BlockNotFound` when those that answered
        have no such block, `NodeUnavailable` when none answered.
        """
        failures: list[NodeError] = []
        for upstream in self._in_order(self.upstreams if among is None else among):
            try:
                return await self.ask_one(upstream, ask)
            except NodeError as failure:
                failures.append(failure)
        raise verdict(self._chain, subject, failures)

    async def ask_one(self, upstream: Upstream, ask: Callable[[Upstream], Awaitable[T]]) -> T:
        """Ask this node and remember how it did. Raises its `NodeError`."""
        failures = upstream.failures
        try:
            if not upstream.is_admitted:
                await self._admit(upstream)
                upstream.is_admitted = True
            answer = await ask(upstream)
        except NodeLacks:
            raise
        except NodeError as failure:
            self.note_failure(upstream, failure)
            raise
        if upstream.failures <= failures:  # else it was found to have lied while this was asked
            self._note_success(upstream)
        return answer

    def is_paused(self, upstream: Upstream) -> bool:
        """True while a node that failed is left alone, as far as others can do."""
        return upstream.paused_until > self._clock()

    def _in_order(self, upstreams: Sequence[Upstream]) -> list[Upstream]:
        return sorted(upstreams, key=self.is_paused)

    def note_failure(self, upstream: Upstream, failure: NodeError) -> None:
        """Count a failing of this node, say it, and ask the others before it for a while."""
        if isinstance(failure, NodeUnproven):
            PROOF_FAILURES.labels(self._chain, upstream.name, failure.check).inc()
        now = self._clock()
        upstream.state, upstream.reason, upstream.is_admitted = "failing", failure.detail, False
        upstream.paused_until = now + min(PAUSE_MIN_S * 2 ** min(upstream.failures, 8), PAUSE_MAX_S)
        upstream.failures += 1
        if upstream.complained_at is None or now - upstream.complained_at >= COMPLAINT_INTERVAL_S:
            upstream.complained_at, upstream.has_complained = now, True
            log.warning("node failing", chain=self._chain, node=upstream.name, reason=failure.detail)

    def _note_success(self, upstream: Upstream) -> None:
        if upstream.has_complained:
            log.info("node recovered", chain=self._chain, node=upstream.name, failures=upstream.failures)
        upstream.state, upstream.reason, upstream.failures = "ok", None, 0
        upstream.paused_until, upstream.has_complained = 0.0, False


def verdict(chain: Slug, subject: str, failures: Sequence[NodeError]) -> ChainError:
    """What the failings of all nodes asked for one thing mean for the chain.

    One node that answers wrongly is a bad node. When nobody answers rightly and somebody answers, the likeliest reason
    is that our model of the chain is wrong: then the chain holds, since guessing here loses deposits in silence.
    """
    reasons = "; ".join(str(failure) for failure in failures)
    unproven = [failure for failure in failures if isinstance(failure, NodeUnproven)]
    if unproven:
        checks = ", ".join(sorted({failure.check for failure in unproven}))
        return ChainHolds(f"{chain}: {subject}: no node's answer can be proven ({checks}): {reasons}")
    if any(isinstance(failure, NodeLacks) for failure in failures):
        return BlockNotFound(f"{chain}: {subject}: no node has it: {reasons}")
    return NodeUnavailable(f"{chain}: {subject}: no node answered: {reasons}")
