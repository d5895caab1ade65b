"""How many blocks of the past are read at a time: pure.

A step ends in one transaction under the chain's lock, and its blocks are held until then. So it is bounded by what it may
hold and by how long it may take; within these, the larger the better. What a chain's blocks are like changes along its
history: the size follows what the last step was like, as a congestion window does.
"""

from __future__ import annotations

from dataclasses import dataclass

STEP_BLOCKS_MIN = 4
STEP_BLOCKS_MAX = 64
"""Blocks that are read whole in one step: as many as catch-up commits at once."""

SPAN_BLOCKS_MAX = 2000
"""Blocks that are passed in one step where most need not be read: their headers are."""

STEP_TRANSFERS_MAX = 20_000
STEP_BYTES_MAX = 64 * 1024 * 1024
STEP_LIMIT_S = 5.0
"""A step that took longer is followed by a smaller one: a cancelled job, or a process that has to stop, waits for it."""


@dataclass(frozen=True, slots=True)
class StepCost:
    """What one step was like."""

    read_blocks: int
    transfers: int
    answer_bytes: int
    seconds: float


def next_span(span: int, cost: StepCost, span_max: int) -> int:
    """How many blocks the next step passes: half as many where any bound was exceeded, twice as many where none was come
    near."""
    used = max(
        cost.read_blocks / STEP_BLOCKS_MAX,
        cost.transfers / STEP_TRANSFERS_MAX,
        cost.answer_bytes / STEP_BYTES_MAX,
        cost.seconds / STEP_LIMIT_S,
    )
    if used > 1:
        return max(STEP_BLOCKS_MIN, span // 2)
    return min(span_max, span * 2) if used <= 0.5 else span
