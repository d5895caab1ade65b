"""Who of a chain's nodes traces, and bringing several of them to agree on a block's traces.

No header commits to traces: nothing in a block says whether a trace is whole, or true. So two hosts are compared where
two trace, and three where two differ; one that stands alone against two is a failing node. Which hosts trace is found by
asking each for a trace of a recent block, since a node may offer the method and have no tracer, or no state to trace by.

**Nothing weakens by itself.** A host that was once seen to trace counts for ever (the ledger remembers it): from then on
a block without its traces is not taken, unless other tracing hosts are as many as are needed. A host that begins to
trace later only makes more of them. The operator alone can ask for less: by `internal = "off"`, or by taking the host
out of the configuration. And nothing begins weak by accident: as long as no host is known to trace, a block is taken
only from a node that has said clearly that it does not.

**Not at the cost of blocks.** A node that refuses a trace, or is slow with it, is left for the next tracing one for a
while, is shown as failing at traces, and keeps its place in the line for blocks. A host that is late is waited for
beside the next one: where the others are enough, one that hangs delays nobody for long. Only a trace that others
contradict is a failing of the node itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import structlog

from chains.adapter import Internal
from chains.errors import ChainHolds
from chains.evm.fetching import described, fetch_recent_ref, fetch_traces
from chains.evm.reading import RawBlock
from chains.evm.traces import RawTraces, TraceMethod, TracesDiffer, TracesRefused
from chains.model import Block, BlockHash, BlockRef, Slug
from chains.node.errors import (
    AnswerTooLarge,
    MethodNotSupported,
    NodeDenied,
    NodeError,
    NodeFailed,
    NodeLacks,
    NodeUnproven,
    RpcError,
)
from chains.node.health import LATENCY_GAIN, PATIENCE_FACTOR, Upstream
from chains.node.naming import one_line
from chains.node.pool import Pool

log = structlog.get_logger(__name__)

COMPARED_HOSTS = 2
"""As many hosts have to tell the same of a block, where as many trace and the quorum asks for it."""

SEARCH_AGAIN_S = 600.0
"""Until nodes that are not known to trace are asked again, beside the work: it costs each of them about a dozen calls."""
SEARCH_AGAIN_UNDECIDED_S = 60.0
"""The same where one has not said yet whether it traces."""
SEARCH_AGAIN_HOLDING_S = 10.0
"""The same while the chain holds for it."""

PAUSE_S = 30.0
"""A node that failed to trace is the last one to be asked for this long."""

PATIENCE_S = (0.25, 0.5, 1.0, 2.0)
"""Pauses for a node that does not have the block yet: it may be a moment behind the one that gave it."""

TRACE_PATIENCE_MIN_S = 2.0
"""A tracing host is not late before this: a full block costs it a second, and it may wait for the block first."""

DISTRUST_S = 60.0
"""For this long a node is not asked again for the traces of a block that it told falsely."""

_REFUSALS = (RpcError, NodeDenied, AnswerTooLarge)
"""What a node says that does not trace, or not for us. Anything else may be an accident."""

Read = Callable[[RawBlock, int | None], Awaitable[Block]]
"""Proves and decodes a block with so many equal answers about its traces (None: without traces)."""


@dataclass(eq=False)
class _Tracer:
    """One node, as far as it traces."""

    upstream: Upstream
    method: TraceMethod | None = None
    """By which it was seen to trace."""
    reason: str = "not asked yet"
    """Why it is not known to trace."""
    is_undecided: bool = True
    """It has not said yet whether it traces: it was not asked, or could not be understood."""
    has_one_method: bool = False
    """It has said that it does not know the other one."""
    paused_until: float = 0.0
    latency_s: float = PATIENCE_S[-1] / PATIENCE_FACTOR
    """How long its traces take: a moving average."""

    @property
    def patience_s(self) -> float:
        """How long its traces are waited for before another host's are."""
        return max(TRACE_PATIENCE_MIN_S, PATIENCE_FACTOR * self.latency_s) + self.upstream.client.backlog_s()

    def note_latency(self, seconds: float) -> None:
        """It gave traces after so long, and falls short no more."""
        self.latency_s += LATENCY_GAIN * (seconds - self.latency_s)
        self.upstream.shortcomings.pop("traces", None)


class Tracers:
    """The tracing nodes of one chain. One for each adapter; it holds what the ledger remembers and what was found."""

    def __init__(
        self, chain: Slug, pool: Pool, internal: Internal, quorum: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`quorum` is the number of hosts that must agree on a block before anything in it is credited."""
        self._chain = chain
        self._pool = pool
        self._internal = internal
        self._quorum = quorum
        self._clock = clock
        self._tracers = [_Tracer(upstream) for upstream in pool.upstreams]
        self._methods: dict[str, TraceMethod] = {}
        self._search_lock = asyncio.Lock()
        self._search: asyncio.Task[None] | None = None
        self._search_at = 0.0
        self._has_searched = False
        self._distrusted: dict[tuple[BlockHash, str], float] = {}

    @property
    def is_wanted(self) -> bool:
        """The operator wants traces, if there are any."""
        return self._internal is not Internal.OFF

    @property
    def is_due(self) -> bool:
        """A block that is read now has to be settled: somebody traces or has to, a node has not said yet whether it does,
        or it is time to ask again."""
        is_bound = self.needed > 0 or self._internal is Internal.REQUIRED
        is_open = any(tracer.is_undecided for tracer in self._tracers) or self._clock() >= self._search_at
        return self.is_wanted and (is_bound or is_open)

    @property
    def is_open(self) -> bool:
        """Traces are wanted, and no block has made it necessary yet to find out who traces."""
        return self.is_wanted and not self._methods and not self._has_searched

    @property
    def methods(self) -> Mapping[str, str]:
        """By host, the method by which it traces, or was once seen to."""
        configured = dict.fromkeys(tracer.upstream.host for tracer in self._tracers)
        return {host: self._methods[host].value for host in configured if host in self._methods}

    @property
    def needed(self) -> int:
        """How many hosts have to tell the same of a block; 0 while none is known to trace."""
        return min(self._quorum, COMPARED_HOSTS, len(self._methods))

    def recall(self, methods: Mapping[str, str]) -> None:
        """Take over what the ledger remembers of configured hosts."""
        configured = {tracer.upstream.host for tracer in self._tracers}
        for host, method in methods.items():
            if self.is_wanted and host in configured and host not in self._methods:
                self._methods[host] = TraceMethod(method)

    def distrust(self, block_hash: BlockHash, names: Collection[str], check: str, detail: str) -> None:
        """These nodes told a block's traces falsely: count it, and do not ask them for that block for a while."""
        for tracer in self._tracers:
            if tracer.upstream.name in names:
                self._distrust(tracer, block_hash, check, detail)

    async def settle(self, first: Upstream, raw: RawBlock, ref: BlockRef, read: Read) -> Block:
        """The block with its traces, as enough hosts tell them; without, where no node is known to trace and none has
        to. The host of `first`, which gave the block, is asked first.

        Raises `ChainHolds` where too few answer or too few agree, and whatever `read` raises about the block itself.
        """
        await self._look_for_tracers(ref)
        if self.needed == 0 and self._internal is not Internal.REQUIRED:
            await self._require_decision(first, ref)
        if self.needed == 0 and self._internal is not Internal.REQUIRED:
            return await read(raw, None)
        hearing = _Hearing(max(1, self.needed))
        block = await self._hear(hearing, self._line(first.host, ref.hash), raw, ref, read)
        if block is not None:
            return block
        await read(raw, None)  # a block that cannot be proven is a failing of its own node, and the next one is asked
        raise ChainHolds(f"{self._chain}: {described(ref.height)}: {self._why_not(hearing)}")

    async def close(self) -> None:
        """End what is still being asked."""
        if self._search is not None:
            self._search.cancel()
            await asyncio.gather(self._search, return_exceptions=True)

    # --- who traces ---------------------------------------------------------------------------------------------------

    async def _look_for_tracers(self, ref: BlockRef) -> None:
        """Ask the nodes that are not known to trace: at once where nothing is known yet or the chain holds for it, else
        beside the work."""
        if self._clock() < self._search_at or all(tracer.method for tracer in self._tracers):
            return
        has_to_know = self.needed == 0 and (self._internal is Internal.REQUIRED or not self._has_searched)
        if has_to_know:
            async with self._search_lock:
                if self._clock() >= self._search_at:
                    await self._search_all(ref)
        elif self._search is None or self._search.done():
            self._search = asyncio.create_task(self._search_all(ref))

    async def _search_all(self, ref: BlockRef) -> None:
        unknown = [tracer for tracer in self._tracers if tracer.method is None]
        await asyncio.gather(*(self._search_one(tracer, ref) for tracer in unknown))
        self._has_searched = True
        if self.needed == 0 and self._internal is Internal.REQUIRED:
            pause_s = SEARCH_AGAIN_HOLDING_S
        else:
            is_undecided = any(tracer.is_undecided for tracer in self._tracers)
            pause_s = SEARCH_AGAIN_UNDECIDED_S if is_undecided else SEARCH_AGAIN_S
        self._search_at = self._clock() + pause_s

    async def _require_decision(self, first: Upstream, ref: BlockRef) -> None:
        """The node that gave the block has to say whether it traces, or its block is left for another's: a node that
        fails just when it is asked for traces must not make the chain go on without them. Raises `NodeFailed`."""
        (tracer,) = [tracer for tracer in self._tracers if tracer.upstream is first]
        if tracer.is_undecided:
            await self._search_one(tracer, ref)
        if tracer.is_undecided:
            raise NodeFailed(first.name, f"it cannot be told whether it traces: {tracer.reason}")

    async def _search_one(self, tracer: _Tracer, ref: BlockRef) -> None:
        """Ask one node for a trace of a recent block of its own, or else of the block that is wanted."""
        try:
            recent = await fetch_recent_ref(tracer.upstream) or ref
        except NodeError as failure:
            tracer.reason = str(failure)
            return
        refusals = 0
        for method in TraceMethod:
            try:
                await fetch_traces(tracer.upstream, method, recent)
            except NodeError as failure:
                tracer.reason = str(failure)
                refusals += isinstance(failure, _REFUSALS)
            else:
                self._note_method(tracer, method)
                return
        tracer.is_undecided = refusals < len(TraceMethod)

    def _note_method(self, tracer: _Tracer, method: TraceMethod) -> None:
        host = tracer.upstream.host
        if self._methods.get(host) is not method:
            log.info("node traces", chain=self._chain, node=tracer.upstream.name, method=method.value)
            self._methods[host] = method
        tracer.method, tracer.is_undecided = method, False

    # --- asking -------------------------------------------------------------------------------------------------------

    def _line(self, first_host: str, block_hash: BlockHash) -> list[list[_Tracer]]:
        """The nodes of each tracing host that may be asked for a block, host by host in the order of asking."""
        now = self._clock()
        self._distrusted = {key: until for key, until in self._distrusted.items() if until > now}
        line = [
            [
                tracer
                for tracer in sorted(self._tracers, key=lambda tracer: tracer.method is None)
                if tracer.upstream.host == host and (block_hash, tracer.upstream.name) not in self._distrusted
            ]
            for host in self.methods
        ]
        asked = [tracers for tracers in line if tracers]
        asked.sort(key=lambda tracers: (tracers[0].paused_until > now, tracers[0].upstream.host != first_host))
        return asked

    async def _ask_host(self, tracers: Sequence[_Tracer], ref: BlockRef) -> RawTraces | NodeError:
        """What one host tells of a block's traces, or how its last node failed."""
        failure: NodeError
        for tracer in tracers:
            began = self._clock()
            try:
                traces = await self._ask_patiently(tracer, ref)
            except NodeError as error:
                failure = error
                if not isinstance(error, NodeLacks):
                    self._put_aside(tracer, error.detail)
            else:
                tracer.note_latency(self._clock() - began)
                return traces
        return failure

    async def _ask_patiently(self, tracer: _Tracer, ref: BlockRef) -> RawTraces:
        for pause_s in PATIENCE_S:
            try:
                return await self._ask(tracer, ref)
            except NodeLacks:
                await asyncio.sleep(pause_s)
        return await self._ask(tracer, ref)

    async def _ask(self, tracer: _Tracer, ref: BlockRef) -> RawTraces:
        """One node's traces, by the method that its host is known for; by the other where it has lost that one, or has the
        block's traces and not the state to make them anew."""
        known = tracer.method or self._methods[tracer.upstream.host]
        other = next(method for method in TraceMethod if method is not known)
        try:
            return await fetch_traces(tracer.upstream, known, ref)
        except (MethodNotSupported, NodeLacks) as refusal:
            failure = refusal
        if tracer.has_one_method and isinstance(failure, NodeLacks):
            raise failure
        try:
            traces = await fetch_traces(tracer.upstream, other, ref)
        except (MethodNotSupported, NodeLacks) as refusal:
            tracer.has_one_method = isinstance(refusal, MethodNotSupported)
            raise failure from None
        if isinstance(failure, MethodNotSupported):
            self._note_method(tracer, other)
        return traces

    async def _hear(
        self, hearing: _Hearing, waiting: list[list[_Tracer]], raw: RawBlock, ref: BlockRef, read: Read
    ) -> Block | None:
        """The block by the first hosts of the line that agree: as many are asked as are missing, and one more for each that
        is late. None where all were heard and too few agree."""
        asked: dict[asyncio.Task[RawTraces | NodeError], list[_Tracer]] = {}
        asked_at: dict[str, float] = {}
        late = 0
        try:
            while waiting or asked:
                wanted = max(0, hearing.missing + late - len(asked))
                for tracers in waiting[:wanted]:
                    asked[asyncio.create_task(self._ask_host(tracers, ref))] = tracers
                    asked_at[tracers[0].upstream.host] = self._clock()
                waiting = waiting[wanted:]
                patience_s = max(tracers[0].patience_s for tracers in asked.values()) if waiting else None
                done, _ = await asyncio.wait(asked, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
                late = 0 if done else len(asked)
                for task in done:
                    del asked[task]
                hearing.hear([task.result() for task in done])
                block = await self._judge(hearing, raw, ref, read) if done else None
                if block is not None:
                    self._leave_late([tracers[0] for tracers in asked.values()], asked_at)
                    return block
            return None
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    def _leave_late(self, tracers: Sequence[_Tracer], asked_at: Mapping[str, float]) -> None:
        """Others agreed while these did not answer: those that had their time for it are put aside."""
        for tracer in tracers:
            waited_s = self._clock() - asked_at[tracer.upstream.host]
            if waited_s >= tracer.patience_s:
                self._put_aside(tracer, f"no traces in {waited_s:.1f} s, when others had them")

    def _put_aside(self, tracer: _Tracer, reason: str) -> None:
        """Ask the others first for a while, and show why: of its blocks nothing bad is known."""
        tracer.paused_until = self._clock() + PAUSE_S
        tracer.upstream.shortcomings["traces"] = one_line(reason)

    # --- agreeing -----------------------------------------------------------------------------------------------------

    async def _judge(self, hearing: _Hearing, raw: RawBlock, ref: BlockRef, read: Read) -> Block | None:
        """The block by the first answers that are equal and enough; the nodes that told otherwise are failing then."""
        for answers in hearing.untried():
            traced = replace(raw, traces=answers, rpc_calls=raw.rpc_calls + len(hearing.heard))
            try:
                block = await read(traced, len(answers))
            except TracesRefused as refusal:
                hearing.refuse(refusal.node, f"{refusal.node}: {refusal.detail}")
                self.distrust(ref.hash, [refusal.node], "traces", f"{described(ref.height)}: {refusal.detail}")
                continue
            except TracesDiffer as difference:
                hearing.note(difference.detail)
                continue
            told = {answer.node for answer in answers}
            names = [tracer.upstream.name for tracer in self._tracers if tracer.upstream.name in told]
            others = {answer.node for answer in hearing.heard} - set(names)
            self.distrust(
                ref.hash, others, "traces", f"{described(ref.height)}: its traces differ from {_listed(names)}'s"
            )
            return replace(block, traced_by=tuple(names))
        return None

    def _distrust(self, tracer: _Tracer, block_hash: BlockHash, check: str, detail: str) -> None:
        self._distrusted[block_hash, tracer.upstream.name] = self._clock() + DISTRUST_S
        self._pool.note_failure(tracer.upstream, NodeUnproven(tracer.upstream.name, check, one_line(detail)))

    def _why_not(self, hearing: _Hearing) -> str:
        """What operators read while the chain holds for a block's traces."""
        if not self._methods:
            reasons = "; ".join(tracer.reason for tracer in self._tracers)
            return f"traces are required, and no node is known to trace: {reasons}"
        hosts = ", ".join(f"{host} ({method})" for host, method in self.methods.items())
        wanted = (
            f"{hearing.needed} of the tracing hosts have to tell the same traces" if hearing.needed > 1 else "no traces"
        )
        told = "; ".join(hearing.reasons) or "what they told was refused or contradicted; asked again in a minute"
        return f"{wanted}; known to trace: {hosts}: {told}"


class _Hearing:
    """What the hosts said of one block's traces so far."""

    def __init__(self, needed: int) -> None:
        self.needed = needed
        self.heard: list[RawTraces] = []
        self.reasons: list[str] = []
        self._tried: set[frozenset[str]] = set()

    @property
    def missing(self) -> int:
        """How many hosts to ask next: as many as are missing, one more where those that were heard differ."""
        return max(1, self.needed - len(self.heard))

    def hear(self, answers: Sequence[RawTraces | NodeError]) -> None:
        """Take in what hosts answered."""
        for answer in answers:
            if isinstance(answer, RawTraces):
                self.heard.append(answer)
            else:
                self.note(str(answer))

    def note(self, reason: str) -> None:
        """A reason why there is no agreement yet."""
        self.reasons.append(one_line(reason))

    def refuse(self, node: str, reason: str) -> None:
        """What this node answered is worth nothing."""
        self.heard = [answer for answer in self.heard if answer.node != node]
        self.note(reason)

    def untried(self) -> Iterator[tuple[RawTraces, ...]]:
        """Every choice of enough answers that was not compared before."""
        for answers in combinations(self.heard, self.needed):
            names = frozenset(answer.node for answer in answers)
            if names not in self._tried and all(answer in self.heard for answer in answers):
                self._tried.add(names)
                yield answers


def _listed(names: Sequence[str]) -> str:
    return " and ".join(names)
