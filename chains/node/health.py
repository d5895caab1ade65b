"""One node and how it has been doing: what it answered, how fast, how far its chain reaches, and why it is left alone."""

from __future__ import annotations

from dataclasses import dataclass, field

from chains.adapter import NodeStatus
from chains.node.client import NodeClient

HEAD, REF, BLOCK, STATE = "head", "ref", "block", "state"
"""The kinds of questions, by what they cost a node."""

LATENCY_GAIN = 0.2
"""How far one answer moves our idea of how long the node takes."""

PATIENCE_MIN_S = 1.0
PATIENCE_UNKNOWN_S = 2.0
PATIENCE_FACTOR = 4.0
"""A node that takes this many times as long as it usually does is late: then the next one is asked as well."""

OLD_BLOCKS = 16
"""So far below its head a block is old: a node that lacks one has thrown it away, or never had it."""


@dataclass(eq=False)
class Upstream:
    """One node and how it has been doing."""

    client: NodeClient
    state: str = "unknown"
    """`unknown` until first asked, then `ok` or `failing`."""
    reason: str | None = None
    head: int | None = None
    """Height of the newest block that it told us of."""
    lowest: int = 0
    """It has no blocks below this height, as far as we have learnt."""
    latencies_s: dict[str, float] = field(default_factory=dict)
    """How long its good answers take, by the kind of question: a moving average. A full block takes many times as long as
    a head, and a node must not seem late with the one for being quick with the other."""
    has_block_receipts: bool = True
    """Whether it offers receipts by block, as far as we have learnt."""
    shortcomings: dict[str, str] = field(default_factory=dict)
    """What it fails at beside blocks, with the reason: it keeps its place in the line for blocks."""
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

    def patience_s(self, kind: str) -> float:
        """How long to wait for it alone: several times as long as it usually takes, and as its pace holds us up."""
        known_s = self.latencies_s.get(kind)
        usual_s = PATIENCE_UNKNOWN_S if known_s is None else PATIENCE_FACTOR * known_s
        return max(PATIENCE_MIN_S, usual_s) + self.client.backlog_s()

    def note_latency(self, kind: str, seconds: float) -> None:
        """It gave a good answer after so long."""
        known_s = self.latencies_s.get(kind, seconds)
        self.latencies_s[kind] = known_s + LATENCY_GAIN * (seconds - known_s)

    def note_lacking(self, height: int) -> None:
        """It has no block at this height: it lags, or, far below its head, its history does not reach so far down."""
        if self.head is not None and height <= self.head - OLD_BLOCKS:
            self.lowest = max(self.lowest, height + 1)

    def status(self) -> NodeStatus:
        """The node as operators see it."""
        falls_short = [f"{what}: {reason}" for what, reason in sorted(self.shortcomings.items())]
        state = "failing" if falls_short else self.state
        reason = "; ".join([*([self.reason] if self.reason else []), *falls_short]) or None
        latency_s = self.latencies_s.get(HEAD)
        latency_ms = None if latency_s is None else round(latency_s * 1000)
        return NodeStatus(self.name, self.host, state, self.head, reason, latency_ms)
