"""The first half of `make soak SEEDS=200`: many scenarios of lying nodes, with a record of every one.

Each seed is one scenario (`tests/integration/lying_scenarios.py`): one liar or two, two to four lies each, stalls among
them, beside two honest hosts, one, or none. A line of JSON for each goes to `soak.jsonl`, a table to standard output. It
never stops in silence: a seed that fails is printed with the command that plays it again, the others are played all the
same, and the exit status is 1. What failed once belongs in `lying_scenarios.FOUND`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import structlog
from sqlalchemy import create_engine, make_url

from ledger.embedded import embedded_postgres
from tests.fixtures.postgres import FAST, cluster_directory, make_template, new_database
from tests.integration.lying_scenarios import Figures, Open, Scenario, opener, scenario_of, side_by_side


def main() -> int:
    """Play the seeds that the command line asks for; the exit status."""
    parser = argparse.ArgumentParser(prog="soak", description="Play many scenarios of lying nodes.")
    parser.add_argument("--seeds", type=int, default=200, help="how many, from --first on")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, help="only this one")
    parser.add_argument("--record", type=Path, default=Path("soak.jsonl"))
    options = parser.parse_args()
    seeds = range(options.first, options.first + options.seeds) if options.seed is None else [options.seed]
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    began = time.monotonic()
    with _databases() as open_world:
        soak = _Soak(options.record, len(seeds))
        asyncio.run(side_by_side([scenario_of(seed) for seed in seeds], open_world, soak.note))
    print(table(soak.found, soak.failed, time.monotonic() - began))
    return 1 if soak.failed else 0


class _Soak:
    """What was played so far."""

    def __init__(self, record: Path, count: int) -> None:
        self.record = record
        self.count = count
        self.found: list[Figures] = []
        self.failed: list[int] = []

    def note(self, scenario: Scenario, figures: Figures | Exception) -> None:
        """Write one line of the record; say at once what failed."""
        is_right = isinstance(figures, Figures) and figures.is_right
        row = {"seed": scenario.seed, "scenario": scenario.name, "is_right": is_right}
        if isinstance(figures, Figures):
            self.found.append(figures)
            row |= {
                "told": dict(figures.told), "entries": figures.entries, "missed": figures.missed,
                "invented": figures.invented, "taken_back": figures.taken_back, "cycles": figures.cycles,
                "holds": figures.holds, "longest_wait": figures.longest_wait,
                "duration_s": round(figures.duration_s, 1),
            }  # fmt: skip
        else:
            row["error"] = "".join(traceback.format_exception(figures))
        with self.record.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if not is_right:
            self.failed.append(scenario.seed)
            print(f"FAILED {scenario.name}: {row}\n  play it again: make soak SEED={scenario.seed}", file=sys.stderr)
        played = len(self.found) + sum(1 for seed in self.failed if seed not in {f.scenario.seed for f in self.found})
        print(f"{played} of {self.count}", end="\r", file=sys.stderr, flush=True)


def table(found: Sequence[Figures], failed: Sequence[int], duration_s: float) -> str:
    """The figures of a run, as docs/soak.md has them."""
    told = sum((one.told for one in found), Counter[str]())
    entries, missed = sum(one.entries for one in found), sum(one.missed for one in found)
    guarded = [one for one in found if one.scenario.honest >= 2]
    rows: list[tuple[str, object]] = [
        ("seeds played", len({one.scenario.seed for one in found} | set(failed))),
        ("seeds that failed", ", ".join(map(str, sorted(failed))) or "none"),
        ("seeds with two liars", sum(len(one.scenario.liars) == 2 for one in found)),
        ("seeds with fewer than two honest hosts", len(found) - len(guarded)),
        ("lies told", told.total()),
        ("entries compared with the chain", entries),
        ("recall", f"{100 * (1 - missed / max(1, entries)):.3f} %"),
        ("invented", sum(one.invented for one in found)),
        ("credited and taken back", sum(one.taken_back for one in found)),
        ("cycles of the follower", sum(one.cycles for one in found)),
        ("cycles that held, in all", sum(one.holds for one in found)),
        ("cycles that held, beside two honest hosts", sum(one.holds for one in guarded)),
        ("longest wait in cycles, beside two honest hosts", max((one.longest_wait for one in guarded), default=0)),
        ("longest wait in cycles, with fewer",
         max((one.longest_wait for one in found if one.scenario.honest < 2), default=0)),
        ("longest scenario", f"{max((one.duration_s for one in found), default=0):.0f} s"),
        ("duration", f"{duration_s / 60:.0f} min"),
    ]  # fmt: skip
    lies = [f"| {name} | {count} |" for name, count in sorted(told.items(), key=lambda row: -row[1])]
    figures = [f"| {name} | {value} |" for name, value in rows]
    return "\n".join(["| | |", "|---|---|", *figures, "", "| lie | told |", "|---|---|", *lies])


@contextmanager
def _databases() -> Iterator[Open]:
    """A server of its own for as long as the block lasts."""
    with cluster_directory() as directory, embedded_postgres(directory, settings=FAST) as url:
        admin = create_engine(make_url(url).set(database="postgres"), isolation_level="AUTOCOMMIT")
        try:
            yield opener(partial(new_database, url, admin, make_template(url, admin)))
        finally:
            admin.dispose()


if __name__ == "__main__":
    sys.exit(main())
