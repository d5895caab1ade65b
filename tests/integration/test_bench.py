"""`python -m bench` measures what it says: every row is there, with figures that are figures. Not how fast: that is for
people, on a quiet machine."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Mapping

import msgspec
import pytest

from bench.__main__ import PARTS, parse_arguments
from bench.report import Report

ROWS = {
    "a proof on one core": {"roots and blooms", "senders"},
    "reading at roots": {"in workers on all cores"},
    "following among many watches": {
        "a block",
        "a block, CPU of our processes",
        "follow process, at most",
        "largest worker, at most",
    },
    "following mainnet-sized blocks": {"bare loop", "structure", "bloom", "roots"},
    "mainnet-sized blocks once more, as jobs": {"bare loop", "replay", "backfill"},
    "the same beside replays, bare: alone": {
        f"{name}, {percentile}"
        for name in ("answered to received", "before that, mined to answered")
        for percentile in ("p50", "p99")
    },
    "delivering signed webhooks": {"bare loop", "dispatcher"},
    "one deposit in each live block": {
        "node requests a minute",
        "JSON-RPC calls a minute",
        *(
            f"{name}, {percentile}"
            for name in (
                "bare loop, answered to received",
                "answered to received",
                "  answered to committed",
                "  committed to received",
                "before that, mined to answered",
            )
            for percentile in ("p50", "p99")
        ),
    },
    "status reads beside a followed head, bare: an empty aiohttp handler": {
        f"by {name}, {pace}{row}"
        for name in ("id", "reference")
        for pace in ("100/s", "on and on")
        for row in (
            ": answered",
            ", p50",
            ", p99",
            ", CPU of the API for one",
            ", CPU of its sessions in Postgres",
            ", CPU of who asks",
        )
    },
    "loading watches, bare: COPY": {"bare loop", "POST /v1/watches"},
    "meanwhile a follower waits for its chain's row, bare: nobody loads": {"wait, p50", "wait, p99", "wait, longest"},
    "matching a block's 600 addresses, bare: 1,000 watches": {"with all loaded, p50", "with all loaded, p99"},
    "space, bare: the table alone, the API before": {"watches with indexes", "API process"},
}


WAITS = (
    "committed to first bytes, p50",
    "committed to first bytes, p99",
    "  the same, a newcomer's first event, p50",
    "  the same, a newcomer's first event, p99",
)
DRAINED = ("  CPU of the notifiers for one, µs", "  CPU of their sessions in Postgres, µs")
STRAIN = ("isolation", "cold", "steady", "processes", "snapshot")
"""Each of their runs starts processes of the product, which takes seconds; two of the five have nearly all of the code."""
STRAIN_ROWS = {
    "well endpoints beside bad ones, bare: without these": {*WAITS},
    "a full queue under a held snapshot, bare: without": {"under a held snapshot", *DRAINED},
}


def measure(*parts: str) -> Report:
    """A quick run of some parts."""
    command = [
        sys.executable,
        "-m",
        "bench",
        "--quick",
        "--json",
        *(word for part in parts for word in ("--only", part)),
    ]
    done = subprocess.run(command, capture_output=True, timeout=1700, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return msgspec.json.decode(done.stdout, type=Report)


def check_rows(report: Report, expected: Mapping[str, set[str]]) -> None:
    """Every row is there, with figures that are figures."""
    assert {section: {row.name for row in rows} for section, rows in report.sections.items()} == expected
    for row in (row for rows in report.sections.values() for row in rows):
        assert math.isfinite(row.ratio), row
        assert row.ratio > 0, row
        assert row.cpu_ms is None or row.cpu_ms > 0, row


@pytest.mark.timeout(1800)
def test_a_quick_run_measures_every_row() -> None:
    check_rows(measure(*(part for part in PARTS if part not in STRAIN)), ROWS)


@pytest.mark.timeout(1800)
def test_a_quick_run_measures_notifiers_under_strain() -> None:
    check_rows(measure("isolation", "snapshot"), STRAIN_ROWS)


def test_a_named_size_overrides_the_quick_ones() -> None:
    asked = parse_arguments(["--quick", "--blocks", "5", "--live-interval-s", "0.5"])
    assert (asked.sizes.blocks, asked.sizes.live_interval_s, asked.is_json) == (5, 0.5, False)


def test_no_more_live_blocks_are_asked_for_than_there_are_blocks() -> None:
    assert parse_arguments(["--blocks", "5"]).sizes.live_blocks == 5


def test_without_a_choice_every_part_is_measured_and_with_one_only_that() -> None:
    assert parse_arguments([]).parts == tuple(PARTS)
    assert parse_arguments(["--only", "live", "--only", "following"]).parts == ("following", "live")


def test_very_many_watches_are_told_of_step_by_step() -> None:
    command = [sys.executable, "-m", "bench.many", "--steps", "1000,12000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stderr
    assert [line.split(" after ")[0] for line in done.stdout.splitlines()] == ["1,000 watches", "12,000 watches"]
