"""What was measured, as rows of one table: each beside the bare loop that did the least with the same parts."""

from __future__ import annotations

import msgspec
from rich.console import Console
from rich.table import Table

from bench.live import Latency, Spread
from bench.usage import Usage
from bench.watching import Watching


class Row(msgspec.Struct):
    """One line: a figure and what it is compared with, in the same unit."""

    name: str
    figure: float
    baseline: float
    unit: str
    cpu_ms: float | None = None
    """CPU time of the measured process for each block or delivery, where it was counted."""

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


def latency_rows(latency: Latency, baseline: Latency) -> list[Row]:
    """Rows of waiting: less is better. The parts are compared with the bare loop's whole way."""
    cpu_ms = latency.usage.cpu_s * 1000 / latency.usage.count
    least = baseline.seen_to_received
    rows = _pair("bare loop, seen to received", least, least)
    rows += _pair("seen to received", latency.seen_to_received, least)
    if latency.seen_to_committed is not None and latency.committed_to_received is not None:
        rows += _pair("  seen to committed", latency.seen_to_committed, least)
        rows += _pair("  committed to received", latency.committed_to_received, least)
    rows += _pair("before that, mined to seen", latency.mined_to_seen, baseline.mined_to_seen)
    rows[0].cpu_ms = baseline.usage.cpu_s * 1000 / baseline.usage.count
    rows[2].cpu_ms = cpu_ms
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
    for heading in ("figure", "bare loop", "ratio", "CPU ms each"):
        table.add_column(heading, justify="right")
    for section, rows in report.sections.items():
        table.add_section()
        table.add_row(f"[bold]{section}[/bold]", f"[dim]{rows[0].unit}[/dim]", f"[dim]{rows[0].unit}[/dim]")
        for row in rows:
            cpu = f"{row.cpu_ms:.2f}" if row.cpu_ms is not None else ""
            table.add_row(row.name, f"{row.figure:,.1f}", f"{row.baseline:,.1f}", f"{row.ratio:.2f}", cpu)
    console.print(table)
