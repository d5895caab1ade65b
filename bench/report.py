"""What was measured, as rows of one table: each beside the bare loop that did the least with the same parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
from rich.console import Console
from rich.table import Table

from bench.draining import Drained
from bench.following import FollowingUsage
from bench.isolation import Waits
from bench.live import Latency, Spread
from bench.reading import Reading
from bench.usage import Usage
from bench.watching import Watching

MIB = 1024 * 1024


class Row(msgspec.Struct):
    """One line: a figure and what it is compared with, in the same unit."""

    name: str
    figure: float
    baseline: float
    unit: str
    cpu_ms: float | None = None
    """CPU time of the measured process for each block or delivery, where it was counted."""
    workers_cpu_ms: float | None = None
    """The same of its workers, where it has any."""

    @property
    def ratio(self) -> float:
        """How many times as good, or as long, as the baseline."""
        return self.figure / self.baseline


class Report(msgspec.Struct):
    """One run: its sizes, and its rows by section."""

    sizes: dict[str, int | float]
    sections: dict[str, list[Row]]


def rate_rows(names: dict[str, Usage], baseline: Usage, unit: str) -> list[Row]:
    """Rows of throughput: more is better."""
    least = baseline.count / baseline.elapsed_s
    return [
        Row(name, usage.count / usage.elapsed_s, least, unit, usage.cpu_s * 1000 / usage.count)
        for name, usage in {"bare loop": baseline, **names}.items()
    ]


def following_rows(pairs: dict[str, tuple[FollowingUsage, FollowingUsage]]) -> list[Row]:
    """Rows of catch-up, each beside the bare loop that ran just before it, with what the workers did."""
    rows: list[Row] = []
    for name, (bare, usage) in pairs.items():
        baseline, row = rate_rows({name: usage}, bare, "blocks/s")
        row.workers_cpu_ms = usage.workers_cpu_s * 1000 / usage.count
        rows += [row] if rows else [baseline, row]
    return rows


def crowd_rows(few: FollowingUsage, many: FollowingUsage) -> list[Row]:
    """What a block costs, and how much memory following takes, among many watches and among few."""
    return [
        Row("a block", *_pair_of(many, few, lambda usage: usage.elapsed_s * 1000 / usage.count), "ms"),
        Row("a block, CPU of our processes", *_pair_of(many, few, _cpu_ms), "ms"),
        Row("follow process, at most", *_pair_of(many, few, lambda usage: usage.most_bytes / MIB), "MiB"),
        Row("largest worker, at most", *_pair_of(many, few, lambda usage: usage.worker_most_bytes / MIB), "MiB"),
    ]


def _pair_of(
    many: FollowingUsage, few: FollowingUsage, figure: Callable[[FollowingUsage], float]
) -> tuple[float, float]:
    return figure(many), figure(few)


def _cpu_ms(usage: FollowingUsage) -> float:
    return (usage.cpu_s + usage.workers_cpu_s) * 1000 / usage.count


def reading_sections(reading: Reading) -> dict[str, list[Row]]:
    """What a proof costs, and how it spreads."""
    decoding = reading.decoding_ms
    here, spread = reading.here, reading.spread
    return {
        "a proof on one core": [
            Row("roots and blooms", reading.roots_ms, decoding, "ms"),
            Row("senders", reading.senders_ms, decoding, "ms"),
        ],
        "reading at roots": [
            Row(
                "in workers on all cores",
                spread.count / spread.elapsed_s,
                here.count / here.elapsed_s,
                "blocks/s",
                spread.cpu_s * 1000 / spread.count,
                spread.workers_cpu_s * 1000 / spread.count,
            )
        ],
    }


def latency_rows(latency: Latency, baseline: Latency) -> list[Row]:
    """Rows of waiting and of asking: less is better. The parts are compared with the bare loop's whole way."""
    least = baseline.answered_to_received
    rows = _pair("bare loop, answered to received", least, least)
    rows += _pair("answered to received", latency.answered_to_received, least)
    if latency.answered_to_committed is not None and latency.committed_to_received is not None:
        rows += _pair("  answered to committed", latency.answered_to_committed, least)
        rows += _pair("  committed to received", latency.committed_to_received, least)
    rows += _pair("before that, mined to answered", latency.mined_to_answered, baseline.mined_to_answered)
    rows[0].cpu_ms = baseline.usage.cpu_s * 1000 / baseline.usage.count
    rows[2].cpu_ms = latency.usage.cpu_s * 1000 / latency.usage.count
    rows += [
        Row(
            "node requests a minute",
            latency.a_minute(latency.node_requests),
            baseline.a_minute(baseline.node_requests),
            "1/min",
        ),
        Row(
            "JSON-RPC calls a minute",
            latency.a_minute(latency.node_calls),
            baseline.a_minute(baseline.node_calls),
            "1/min",
        ),
    ]
    return rows


def middle_pair(pairs: Sequence[tuple[Drained, Drained]]) -> tuple[Drained, Drained]:
    """The pair in the middle by the ratio of what they did in a second."""
    return sorted(pairs, key=lambda pair: _a_second(pair[0]) / _a_second(pair[1]))[len(pairs) // 2]


def _a_second(drained: Drained) -> float:
    return drained.usage.count / drained.usage.elapsed_s


def drained_rows(name: str, drained: Drained, baseline: Drained) -> list[Row]:
    """How fast a queue was emptied, and what it took."""

    def _pair_of(figure: Callable[[Drained], float]) -> tuple[float, float]:
        return figure(drained), figure(baseline)

    def _cpu_us(one: Drained) -> float:
        return one.usage.cpu_s * 1e6 / one.usage.count

    def _database_cpu_us(one: Drained) -> float:
        return one.database_cpu_s * 1e6 / one.usage.count

    return [
        Row(name, *_pair_of(_a_second), "POSTs/s"),
        Row("  CPU of the notifiers for one, µs", *_pair_of(_cpu_us), "µs"),
        Row("  CPU of their sessions in Postgres, µs", *_pair_of(_database_cpu_us), "µs"),
    ]


def waits_rows(pairs: Sequence[tuple[Waits, Waits]]) -> list[Row]:
    """How long was waited beside how long would have been: of several pairs the one in the middle by the ratio of p99."""
    in_order = sorted(pairs, key=lambda pair: pair[0].later.p99_ms / pair[1].later.p99_ms)
    waits, baseline = in_order[len(pairs) // 2]
    rows = _pair("committed to first bytes", waits.later, baseline.later)
    rows += _pair("  the same, a newcomer's first event", waits.first, baseline.first)
    rows[0].cpu_ms = waits.cpu_s * 1000 / waits.events
    if len(pairs) > 1:
        for name, (beside, alone) in {"least": in_order[0], "largest": in_order[-1]}.items():
            rows.append(Row(f"  p99 of the pair with the {name} ratio", beside.later.p99_ms, alone.later.p99_ms, "ms"))
    if any(wait.missing for wait, _ in pairs):
        rows.append(Row("not received within a minute", waits.missing, waits.events, "events"))
    return rows


def watching_sections(watching: Watching) -> dict[str, list[Row]]:
    """Loading watches by the thousand, what a follower notices of it, and what they cost once they are there."""
    rates = {"POST /v1/watches": _in_thousands(watching.load)}
    idle, loading = watching.idle_wait, watching.loading_wait
    few, many = watching.match_few, watching.match_many
    return {
        "loading watches, bare: COPY": rate_rows(rates, _in_thousands(watching.bare), "1,000/s"),
        "meanwhile a follower waits for its chain's row, bare: nobody loads": [
            *_pair("wait", loading, idle),
            Row("wait, longest", watching.loading_wait_max_ms, idle.p99_ms, "ms"),
        ],
        "matching a block's 600 addresses, bare: 1,000 watches": _pair("with all loaded", many, few),
        "space, bare: the table alone, the API before": [
            Row("watches with indexes", watching.table_bytes / 1e6, watching.bare_bytes / 1e6, "MB"),
            Row("API process", watching.api_bytes / 1e6, watching.api_bytes_before / 1e6, "MB"),
        ],
    }


def _in_thousands(usage: Usage) -> Usage:
    return Usage(usage.count // 1000, usage.elapsed_s, usage.cpu_s)


def _pair(name: str, spread: Spread, baseline: Spread) -> list[Row]:
    return [
        Row(f"{name}, p50", spread.p50_ms, baseline.p50_ms, "ms"),
        Row(f"{name}, p99", spread.p99_ms, baseline.p99_ms, "ms"),
    ]


def print_report(report: Report, console: Console) -> None:
    """The table, for people."""
    sizes = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in report.sizes.items())
    table = Table(title="Chainbell beside a bare loop over the same parts", caption=sizes)
    table.add_column("what", no_wrap=True)
    for heading in ("figure", "bare loop", "ratio", "CPU ms", "workers"):
        table.add_column(heading, justify="right")
    for section, rows in report.sections.items():
        table.add_section()
        table.add_row(f"[bold]{section}[/bold]", f"[dim]{rows[0].unit}[/dim]", f"[dim]{rows[0].unit}[/dim]")
        for row in rows:
            cpu = f"{row.cpu_ms:.2f}" if row.cpu_ms is not None else ""
            more = f"{row.workers_cpu_ms:.2f}" if row.workers_cpu_ms is not None else ""
            table.add_row(row.name, f"{row.figure:,.1f}", f"{row.baseline:,.1f}", f"{row.ratio:.2f}", cpu, more)
    console.print(table)
