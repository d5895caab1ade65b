"""Metrics of following, by name. Labels are a chain and an outcome, never an address or a URL.

What a chain's row in the ledger says (head, tip, lag, halted) is not counted here: `/metrics` reads it from there.
"""

from __future__ import annotations

from prometheus_client import Counter, Histogram

from ledger.states import ENTRY_EVENT_TYPES

BLOCKS = Counter("chainbell_blocks_total", "Blocks by what became of them.", ["chain", "outcome"])
REORGS = Counter("chainbell_reorgs_total", "Reorganisations that were applied.", ["chain"])
REORG_DEPTH = Histogram(
    "chainbell_reorg_depth_blocks",
    "Blocks orphaned by a reorganisation.",
    ["chain"],
    buckets=(1, 2, 3, 5, 8, 16, 32, 64, 128),
)
EVENTS = Counter("chainbell_events_total", "Events written, by type.", ["type"])
for event_type in ENTRY_EVENT_TYPES:
    EVENTS.labels(event_type)  # present at 0 from the start: a rate over a series that is born at 1 misses the first


def count_from_zero(chain: str) -> None:
    """The same for what is counted by chain."""
    BLOCKS.labels(chain, "committed")
    REORGS.labels(chain)
    REORG_DEPTH.labels(chain)
