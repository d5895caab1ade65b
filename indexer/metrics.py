"""Metrics of following, by name. Labels are a chain and an outcome, never an address or a URL."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

HEAD_HEIGHT = Gauge("chainbell_chain_head_height", "Newest block that a node reports.", ["chain"])
TIP_HEIGHT = Gauge("chainbell_chain_tip_height", "Newest block that is committed.", ["chain"])
LAG_SECONDS = Gauge("chainbell_chain_lag_seconds", "Age of the tip while the head is above it, else 0.", ["chain"])
HALTED = Gauge("chainbell_chain_halted", "1 while a person has to decide.", ["chain"])
BLOCKS = Counter("chainbell_blocks_total", "Blocks by what became of them.", ["chain", "outcome"])
REORGS = Counter("chainbell_reorgs_total", "Reorganisations that were applied.", ["chain"])
REORG_DEPTH = Histogram(
    "chainbell_reorg_depth_blocks",
    "Blocks orphaned by a reorganisation.",
    ["chain"],
    buckets=(1, 2, 3, 5, 8, 16, 32, 64, 128),
)
EVENTS = Counter("chainbell_events_total", "Events written, by type.", ["type"])
