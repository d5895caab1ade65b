"""The second half of `make soak SEEDS=200`: notifiers that die at each point of a delivery, in many combinations.

Each seed is one scenario (`tests/outside/sink_proof.py`) with four points, two of them by turns and two by chance. A line of
JSON for each goes to `soak-sink.jsonl`, a table to standard output. As in `tests/soak.py`, a seed that fails is printed with
the command that plays it again, the others are played all the same, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import structlog

from tests.fixtures.cluster import own_cluster
from tests.outside.sink_accidents import points_of
from tests.outside.sink_proof import Figures, play_seed
from tests.outside.sink_world import sink_world

BY_CHANCE = 2
"""Points of a seed beside the two that it has by turns."""

SEEDS_OF_A_WORLD = 20
"""Then a new one is made, with a new Postgres; and after a seed that failed, which leaves nobody knows what behind."""


def main() -> int:
    """Play the seeds that the command line asks for; the exit status."""
    parser = argparse.ArgumentParser(prog="soak_sink", description="Kill notifiers at each point of a delivery.")
    parser.add_argument("--seeds", type=int, default=200, help="how many, from --first on")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, help="only this one")
    parser.add_argument("--record", type=Path, default=Path("soak-sink.jsonl"))
    options = parser.parse_args()
    seeds = list(range(options.first, options.first + options.seeds) if options.seed is None else [options.seed])
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    began = time.monotonic()
    soak = _Soak(options.record, seeds)
    while soak.left:
        with tempfile.TemporaryDirectory(prefix="chainbell-soak-sink-") as directory:
            asyncio.run(soak.play_in_a_world(Path(directory)))
    print(table(soak.found, soak.failed, time.monotonic() - began))
    return 1 if soak.failed else 0


class _Soak:
    """What was played so far, and what is left."""

    def __init__(self, record: Path, seeds: Sequence[int]) -> None:
        self.record = record
        self.left = list(seeds)
        self.found: list[Figures] = []
        self.failed: list[int] = []

    async def play_in_a_world(self, directory: Path) -> None:
        """The next seeds, until one fails or the world has had enough."""
        with own_cluster() as cluster:
            async with sink_world(directory, cluster) as world:
                for _ in range(min(SEEDS_OF_A_WORLD, len(self.left))):
                    seed = self.left.pop(0)
                    try:
                        figures = await play_seed(world, seed, points_of(seed, by_chance=BY_CHANCE))
                    except Exception:  # noqa: BLE001 - whatever it is, it is that seed's failing, and goes into the record
                        self._note(seed, {"error": traceback.format_exc()}, is_right=False)
                        return
                    self.found.append(figures)
                    self._note(seed, asdict(figures), is_right=figures.is_right)

    def _note(self, seed: int, row: dict[str, object], *, is_right: bool) -> None:
        """Write one line of the record; say at once what failed."""
        row = {"seed": seed, "is_right": is_right, "points": list(points_of(seed, by_chance=BY_CHANCE)), **row}
        with self.record.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if not is_right:
            self.failed.append(seed)
            print(f"FAILED seed {seed}: {row}\n  play it again: make soak SEED={seed}", file=sys.stderr)
        print(f"{len(self.left)} left", end="\r", file=sys.stderr, flush=True)


def table(found: Sequence[Figures], failed: Sequence[int], duration_s: float) -> str:
    """The figures of a run, as docs/soak.md has them."""
    points = Counter(point for one in found for point in one.points)
    rows: list[tuple[str, object]] = [
        ("seeds played", len({one.seed for one in found} | set(failed))),
        ("seeds that failed", ", ".join(map(str, sorted(failed))) or "none"),
        ("events committed", sum(one.events for one in found)),
        ("deliveries owed", sum(one.deliveries for one in found)),
        ("requests that came whole", sum(one.receipts for one in found)),
        ("of them refused by the sink", sum(one.refused for one in found)),
        ("of them again after a lease was lost", sum(one.duplicates for one in found)),
        ("leases lost", sum(one.leases_lost for one in found)),
        ("leases that notifiers counted as ended", sum(one.leases_counted for one in found)),
        ("leases that nobody knew of", sum(one.leases_unknown for one in found)),
        ("longest scenario", f"{max((one.duration_s for one in found), default=0):.0f} s"),
        ("duration", f"{duration_s / 60:.0f} min"),
    ]
    figures = [f"| {name} | {value} |" for name, value in rows]
    played = [f"| {name} | {count} |" for name, count in sorted(points.items(), key=lambda row: -row[1])]
    return "\n".join(["| | |", "|---|---|", *figures, "", "| point | played |", "|---|---|", *played])


if __name__ == "__main__":
    sys.exit(main())
