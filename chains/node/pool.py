"""Several nodes of one chain, tried in order until one gives an answer that holds.

One at a time, for a question costs money. But a node that takes the connection and never answers would hold everything
up for as long as a time-out lasts, and that has to be long, for a full block may take seconds. So a node that takes several
times as long as it usually does is *late*: the next one is asked beside it, the first good answer counts, and where that
is not the late one's, the late one has failed.

A node that fails goes to the end of the line, says why once a minute at most, and gets its place back when its pause
is over or when it answers well. Nothing here decides what a good answer is: `ask` does, and raises a `NodeError` when
it is not one. Before a node is asked for the first time, and again after each failing, it is *admitted*: a node that
comes back may have come back as a node of another chain.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Generic, TypeVar

import structlog

from chains.errors import BlockNotFound, ChainError, ChainHolds, NodeUnavailable
from chains.model import Slug
from chains.node.errors import NodeError, NodeLacks, NodeTimeout, NodeUnproven
from chains.node.health import Upstream
from chains.node.metrics import PROOF_FAILURES, count_proofs_from_zero

T = TypeVar("T")
log = structlog.get_logger(__name__)

PAUSE_MIN_S = 30.0
PAUSE_MAX_S = 300.0
PAUSE_JITTER = 0.2
"""A pause is shorter by up to this part: many followers of one node do not come back to it at one instant."""
BEHIND_BLOCKS = 2
"""A node so far below the heads of two other hosts was perhaps asked before them; one that is further behind has its turn
after them."""

COMPLAINT_INTERVAL_S = 60.0


class Pool:
    """The nodes of one chain in the operator's order of preference."""

    def __init__(
        self,
        chain: Slug,
        upstreams: Sequence[Upstream],
        admit: Callable[[Upstream], Awaitable[None]],
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.upstreams = tuple(upstreams)
        self._chain = chain
        self._admit = admit
        self._clock = clock
        self._chance = chance
        count_proofs_from_zero(chain, [upstream.name for upstream in self.upstreams])

    async def first_answer(
        self,
        subject: str,
        ask: Callable[[Upstream], Awaitable[T]],
        among: Sequence[Upstream] | None = None,
        *,
        kind: str,
        height: int | None = None,
        is_urgent: bool = True,
    ) -> T:
        """The first good answer about `subject` (`block 19000001`), of the nodes in `among` or of all.

        One node is asked at a time. Where it `is_urgent`, one that is late is waited for beside the next one, and failing
        when that is faster. Nodes that are known to lack the block at `height` are asked last.
        Raises `ChainHolds` when any node answered and none could prove it, `BlockNotFound` when those that answered
        have no such block, `NodeUnavailable` when none answered.
        """
        line = self.in_order(self.upstreams if among is None else among, height)
        race = _Race(self, ask, kind, height)
        try:
            while line or race.is_on:
                if line:
                    race.enter(line.pop(0))
                patience_s = race.patience_s if is_urgent and line else None
                heard = await race.hear(patience_s)
                if heard:
                    return heard[0]
        finally:
            await race.end()
        raise verdict(self._chain, subject, race.failures)

    async def ask_one(self, upstream: Upstream, ask: Callable[[Upstream], Awaitable[T]], kind: str) -> T:
        """Ask this node a question of this kind and remember how it did. Raises its `NodeError`."""
        failures = upstream.failures
        try:
            if not upstream.is_admitted:
                await self._admit(upstream)
                upstream.is_admitted = True
            began = self._clock()
            answer = await ask(upstream)
            upstream.note_latency(kind, self._clock() - began)
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

    def in_order(self, upstreams: Sequence[Upstream], height: int | None) -> list[Upstream]:
        """Those first that are well, have the block at `height`, and do not lag; else as the operator prefers them."""

        def _place(one: Upstream) -> tuple[bool, bool, bool]:
            return self.is_paused(one), height is not None and height < one.lowest, self._is_behind(one)

        return sorted(upstreams, key=_place)

    def _is_behind(self, upstream: Upstream) -> bool:
        """Two other hosts told of a newer head: it lags, or stands on a branch that the chain has left. One host could say
        what it likes."""
        heads: dict[str, int] = {}
        for other in self.upstreams:
            if other.host != upstream.host and other.head is not None:
                heads[other.host] = max(other.head, heads.get(other.host, 0))
        ahead = [head for head in heads.values() if upstream.head is not None and head > upstream.head + BEHIND_BLOCKS]
        return len(ahead) >= 2

    def note_late(self, upstream: Upstream, waited_s: float) -> None:
        """Others answered while this node did not."""
        self.note_failure(upstream, NodeTimeout(upstream.name, f"no answer in {waited_s:.1f} s, when another had one"))

    def note_failure(self, upstream: Upstream, failure: NodeError) -> None:
        """Count a failing of this node, say it, and ask the others before it for a while."""
        if isinstance(failure, NodeUnproven):
            PROOF_FAILURES.labels(self._chain, upstream.name, failure.check).inc()
        now = self._clock()
        upstream.state, upstream.reason, upstream.is_admitted = "failing", failure.detail, False
        pause_s = min(PAUSE_MIN_S * 2 ** min(upstream.failures, 8), PAUSE_MAX_S)
        upstream.paused_until = now + pause_s * (1 - PAUSE_JITTER * self._chance())
        upstream.failures += 1
        if upstream.complained_at is None or now - upstream.complained_at >= COMPLAINT_INTERVAL_S:
            upstream.complained_at, upstream.has_complained = now, True
            log.warning("node failing", chain=self._chain, node=upstream.name, reason=failure.detail)

    def _note_success(self, upstream: Upstream) -> None:
        if upstream.has_complained:
            log.info("node recovered", chain=self._chain, node=upstream.name, failures=upstream.failures)
        upstream.state, upstream.reason, upstream.failures = "ok", None, 0
        upstream.paused_until, upstream.has_complained = 0.0, False


class _Race(Generic[T]):
    """Nodes that are asked the same, each entering when those before it are late or have failed."""

    def __init__(self, pool: Pool, ask: Callable[[Upstream], Awaitable[T]], kind: str, height: int | None) -> None:
        self.failures: list[NodeError] = []
        self._pool = pool
        self._ask = ask
        self._kind = kind
        self._height = height
        self._running: dict[asyncio.Task[T], tuple[Upstream, float]] = {}
        self._clock = asyncio.get_running_loop().time

    @property
    def is_on(self) -> bool:
        """True while somebody may still answer."""
        return bool(self._running)

    @property
    def patience_s(self) -> float:
        """How long to wait for the one that entered last before the next one does."""
        upstream, _ = list(self._running.values())[-1]
        return upstream.patience_s(self._kind)

    def enter(self, upstream: Upstream) -> None:
        """Ask one more."""
        task = asyncio.create_task(self._pool.ask_one(upstream, self._ask, self._kind))
        self._running[task] = (upstream, self._clock())

    async def hear(self, patience_s: float | None) -> list[T]:
        """The first good answer, if there is one; else one more has to be asked: time is up, or a node has failed."""
        await asyncio.wait(self._running, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
        # In the order in which they entered, and all of them before anybody is called late.
        done = [(task, self._running.pop(task)) for task in list(self._running) if task.done()]
        heard = [row for task, (upstream, entered_at) in done for row in self._heard(task, upstream, entered_at)]
        for _, entered_at in heard[:1]:
            for late, since in self._running.values():
                if since < entered_at:
                    self._pool.note_late(late, self._clock() - since)
        return [answer for answer, _ in heard[:1]]

    def _heard(self, task: asyncio.Task[T], upstream: Upstream, entered_at: float) -> Iterator[tuple[T, float]]:
        """The answer of one that has ended, and when it entered; nothing where it failed."""
        try:
            yield task.result(), entered_at
        except NodeError as failure:
            self.failures.append(failure)
            if isinstance(failure, NodeLacks) and self._height is not None:
                upstream.note_lacking(self._height)

    async def end(self) -> None:
        """Nobody else has to answer."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)


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
