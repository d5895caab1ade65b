"""How much is measured: in a run for figures, and in one that only shows that everything runs."""

from __future__ import annotations

import msgspec


class Sizes(msgspec.Struct):
    """How much is measured."""

    blocks: int
    watches: int
    crowd: int
    deliveries: int
    live_blocks: int
    live_interval_s: float
    watches_loaded: int
    deposits: int
    connections: int
    reads_rate: float
    reads_s: float
    endpoints: int
    isolation_rate: float
    isolation_s: float
    isolation_rounds: int
    steady_s: float
    processes_rounds: int
    snapshot_minutes: float
    seed: int


FULL = Sizes(
    blocks=250,
    watches=10_000,
    crowd=1_000_000,
    deliveries=20_000,
    live_blocks=90,
    live_interval_s=2.0,
    watches_loaded=1_000_000,
    deposits=100_000,
    connections=64,
    reads_rate=2_000.0,
    reads_s=15.0,
    endpoints=1_000,
    isolation_rate=150.0,
    isolation_s=30.0,
    isolation_rounds=5,
    steady_s=15.0,
    processes_rounds=3,
    snapshot_minutes=0.5,
    seed=1,
)
QUICK = Sizes(
    blocks=20,
    watches=1_000,
    crowd=5_000,
    deliveries=960,
    live_blocks=12,
    live_interval_s=0.2,
    watches_loaded=20_000,
    deposits=500,
    connections=4,
    reads_rate=100.0,
    reads_s=0.5,
    endpoints=40,
    isolation_rate=80.0,
    isolation_s=1.0,
    isolation_rounds=1,
    steady_s=1.0,
    processes_rounds=1,
    snapshot_minutes=0.03,
    seed=1,
)
