"""All measurements in one run, on loopback: `python -m bench`, or `make bench`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import msgspec
from rich.console import Console

from bench.chain import record_chain
from bench.delivering import DeliveringTask
from bench.following import BARE, FollowingTask, FollowingUsage
from bench.installation import make_database, make_template
from bench.live import Latency, LiveTask
from bench.many import scratch
from bench.past import PastTask
from bench.process import BenchFailed, measured, serving
from bench.reading import Reading, ReadingTask
from bench.report import (
    Report,
    Row,
    crowd_rows,
    following_rows,
    latency_rows,
    print_report,
    rate_rows,
    reading_sections,
    watching_sections,
)
from bench.sizes import FULL, QUICK, Sizes
from bench.status import measure_reads
from bench.strain import Strain
from bench.usage import Usage
from bench.watching import Watching, WatchingTask
from ledger.embedded import embedded_postgres

PROOFS = ("structure", "bloom", "roots")


WATCHES_FEW = 1_000
"""What a crowd of watches is compared with."""

READ_BLOCKS_MAX = 50
READ_ROUNDS = 5
REPORT_COLUMNS = 140
"""Where it is no terminal that is printed to: rich takes such for 80 columns wide, and leaves the figures out."""


class Bench:
    """One run: its database server, its chain, and what is said on the way."""

    def __init__(self, sizes: Sizes, directory: Path, database_url: str, say: Callable[[str], None]) -> None:
        self.sizes = sizes
        self.directory = directory
        self.database_url = database_url
        self.say = say

    @cached_property
    def chain(self) -> str:
        """Where the blocks are, made when they are first wanted."""
        self.say(f"making {self.sizes.blocks} blocks")
        chain = self.directory / "chain"
        record_chain(chain, self.sizes.blocks, self.sizes.seed)
        return str(chain)

    def following(self) -> list[Row]:
        """Catch-up from a node into Postgres at each level of proof."""
        pairs: dict[str, tuple[FollowingUsage, FollowingUsage]] = {}
        with serving("bench.node", self.chain) as node_url:
            for proof in PROOFS:
                self.say(f"following {self.sizes.blocks} blocks: {BARE}, {proof}")
                # The bare loop anew for each: what else the machine does changes by the minute.
                bare = self._followed("", node_url, BARE, 0, 0)
                pairs[proof] = bare, self._followed(f"following_{proof}", node_url, proof, self.sizes.watches, 0)
        return following_rows(pairs)

    def crowd(self) -> list[Row]:
        """The same at `roots`, among many watches that nobody pays."""
        with serving("bench.node", self.chain) as node_url:
            self.say(f"following among {WATCHES_FEW} watches")
            few = self._followed("few", node_url, PROOFS[-1], WATCHES_FEW, 0)
            self.say(f"following among {WATCHES_FEW + self.sizes.crowd} watches")
            many = self._followed("many", node_url, PROOFS[-1], WATCHES_FEW, self.sizes.crowd)
        return crowd_rows(few, many)

    def past(self) -> list[Row]:
        """The same blocks once more, as jobs do it."""
        pairs: dict[str, tuple[FollowingUsage, FollowingUsage]] = {}
        with serving("bench.node", self.chain) as node_url:
            for work in ("replay", "backfill"):
                self.say(f"{work} of {self.sizes.blocks} blocks: {BARE}, {PROOFS[-1]}")
                bare = self._followed("", node_url, BARE, 0, 0)
                sizes = self.sizes
                task = PastTask(node_url, self.chain, PROOFS[-1], sizes.blocks, "", sizes.watches, 0, sizes.seed, work)
                task.database_url = make_database(self.database_url, f"past_{work}")
                pairs[work] = bare, msgspec.convert(measured("bench.past", task), FollowingUsage)
        return following_rows(pairs)

    def _followed(self, name: str, node_url: str, proof: str, watches: int, crowd: int) -> FollowingUsage:
        task = FollowingTask(node_url, self.chain, proof, self.sizes.blocks, "", watches, crowd, self.sizes.seed)
        if proof != BARE:
            task.database_url = make_database(self.database_url, name)
        return msgspec.convert(measured("bench.following", task), FollowingUsage)

    def reading(self) -> dict[str, list[Row]]:
        """Proofs on one core and on all of them."""
        blocks = min(self.sizes.blocks, READ_BLOCKS_MAX)
        self.say(f"reading {blocks} blocks of 200 transactions and 400 logs")
        task = ReadingTask(blocks, READ_ROUNDS, self.sizes.seed)
        return reading_sections(msgspec.convert(measured("bench.reading", task), Reading))

    def delivering(self) -> list[Row]:
        """A full queue to one sink."""
        usages = []
        for name in ("", "delivering"):
            self.say(f"delivering {self.sizes.deliveries} webhooks: {name or BARE}")
            with serving("bench.sink") as sink_url:
                task = DeliveringTask(sink_url, self.sizes.deliveries)
                if name:
                    task.database_url = make_database(self.database_url, name)
                usages.append(msgspec.convert(measured("bench.delivering", task), Usage))
        baseline, dispatcher = usages
        return rate_rows({"dispatcher": dispatcher}, baseline, "POSTs/s")

    def live(self) -> list[Row]:
        """A chain that grows, from the node to the merchant."""
        baseline, chainbell = self._live(("", "live"))
        return latency_rows(chainbell, baseline)

    def live_beside(self) -> list[Row]:
        """The same beside replays of what was followed, one after the other, compared with the same alone."""
        alone, beside = self._live(("alone", "beside"))
        rows = ("answered to received", beside.answered_to_received, alone.answered_to_received)
        waits = ("before that, mined to answered", beside.mined_to_answered, alone.mined_to_answered)
        return [
            Row(f"{name}, {cut}", getattr(ours, f"{cut}_ms"), getattr(theirs, f"{cut}_ms"), "ms")
            for name, ours, theirs in (rows, waits)
            for cut in ("p50", "p99")
        ]

    def _live(self, names: tuple[str, str]) -> list[Latency]:
        latencies = []
        interval_s = self.sizes.live_interval_s
        for name in names:
            blocks = self.sizes.live_blocks if name else max(3, self.sizes.live_blocks // 4)
            self.say(f"{blocks} live blocks, one every {interval_s:g} s: {name or BARE}")
            with serving("bench.node", self.chain, str(interval_s)) as node_url, serving("bench.sink") as sink_url:
                task = LiveTask(node_url, sink_url, self.chain, blocks, interval_s, is_beside_past=name == "beside")
                if name:
                    task.database_url = make_database(self.database_url, name)
                latencies.append(msgspec.convert(measured("bench.live", task), Latency))
        return latencies

    def reads(self) -> list[Row]:
        """How deposits stand, asked again and again."""
        return measure_reads(self.sizes, self.chain, self.database_url, self.say)

    def watching(self) -> dict[str, list[Row]]:
        """Many watches, by REST."""
        self.say(f"loading {self.sizes.watches_loaded} watches")
        database_url = make_database(self.database_url, "watching")
        with serving("bench.api", database_url) as api_url:
            task = WatchingTask(database_url, api_url, self.sizes.watches_loaded, self.sizes.seed)
            return watching_sections(msgspec.convert(measured("bench.watching", task), Watching))


Part = Callable[[Bench, Strain], dict[str, list[Row]]]

PARTS: dict[str, Part] = {
    "reading": lambda bench, _: bench.reading(),
    "following": lambda bench, _: {"following mainnet-sized blocks": bench.following()},
    "crowd": lambda bench, _: {"following among many watches": bench.crowd()},
    "past": lambda bench, _: {"mainnet-sized blocks once more, as jobs": bench.past()},
    "delivering": lambda bench, _: {"delivering signed webhooks": bench.delivering()},
    "isolation": lambda _, strain: {"well endpoints beside bad ones, bare: without these": strain.isolation()},
    "cold": lambda _, strain: {"the same, nothing known of anybody": strain.cold()},
    "steady": lambda _, strain: {"200 events a second, bare: posted from memory": strain.steady()},
    "processes": lambda _, strain: {"two notifiers, bare: one": strain.processes()},
    "snapshot": lambda _, strain: {"a full queue under a held snapshot, bare: without": strain.snapshot()},
    "live": lambda bench, _: {"one deposit in each live block": bench.live()},
    "beside": lambda bench, _: {"the same beside replays, bare: alone": bench.live_beside()},
    "reads": lambda bench, _: {"status reads beside a followed head, bare: an empty aiohttp handler": bench.reads()},
    "watching": lambda bench, _: bench.watching(),
}
"""What can be measured, in the order in which it is."""


class Asked(msgspec.Struct):
    """What the command line asks for."""

    sizes: Sizes
    parts: tuple[str, ...]
    is_json: bool


def run(asked: Asked, say: Callable[[str], None]) -> Report:
    """Measure one thing after another. Raises `BenchFailed`."""
    with scratch() as directory:
        say("starting Postgres")
        with embedded_postgres(directory) as database_url:
            make_template(database_url)
            bench = Bench(asked.sizes, directory, database_url, say)
            strain = Strain(asked.sizes, directory, database_url, say)
            sections: dict[str, list[Row]] = {}
            for part in asked.parts:
                sections |= PARTS[part](bench, strain)
    return Report(msgspec.to_builtins(asked.sizes), sections)


def parse_arguments(arguments: list[str] | None = None) -> Asked:
    """The sizes and parts asked for on the command line, and whether JSON is wanted."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes: that everything runs, not how fast")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--only", action="append", choices=PARTS, help="one part; may be repeated. All by default")
    for field in msgspec.structs.fields(Sizes):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=field.type, help=f"{getattr(FULL, field.name)}")
    asked = parser.parse_args(arguments)
    chosen = {field: getattr(asked, field) for field in Sizes.__struct_fields__ if getattr(asked, field) is not None}
    sizes = msgspec.structs.replace(QUICK if asked.quick else FULL, **chosen)
    sizes.live_blocks = min(sizes.live_blocks, sizes.blocks)
    return Asked(sizes, tuple(part for part in PARTS if part in (asked.only or PARTS)), asked.json)


def main() -> None:
    """Measure and print."""
    asked = parse_arguments()
    complaints = Console(stderr=True)
    try:
        report = run(asked, lambda text: complaints.print(f"[dim]{text}[/dim]"))
    except BenchFailed as error:
        complaints.print(str(error), markup=False)
        sys.exit(1)
    if asked.is_json:
        sys.stdout.buffer.write(msgspec.json.encode(report))
    else:
        print_report(report, Console(width=None if sys.stdout.isatty() else REPORT_COLUMNS))


if __name__ == "__main__":
    main()
