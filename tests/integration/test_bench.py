"""`python -m bench` measures what it says: every row is there, with figures that are figures. Not how fast: that is for
people, on a quiet machine."""

from __future__ import annotations

import math
import subprocess
import sys

import msgspec
import pytest

from bench.__main__ import parse_sizes
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
    "loading watches, bare: COPY": {"bare loop", "POST /v1/watches"},
    "meanwhile a follower waits for its chain's row, bare: nobody loads": {"wait, p50", "wait, p99", "wait, longest"},
    "matching a block's 600 addresses, bare: 1,000 watches": {"with all loaded, p50", "with all loaded, p99"},
    "space, bare: the table alone, the API before": {"watches with indexes", "API process"},
}


@pytest.mark.timeout(300)
def test_a_quick_run_measures_every_row() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--quick", "--json"], capture_output=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    report = msgspec.json.decode(done.stdout, type=Report)
    assert {section: {row.name for row in rows} for section, rows in report.sections.items()} == ROWS
    for row in (row for rows in report.sections.values() for row in rows):
        assert math.isfinite(row.ratio), row
        assert row.ratio > 0, row
        assert row.cpu_ms is None or row.cpu_ms > 0, row


def test_a_named_size_overrides_the_quick_ones() -> None:
    sizes, is_json = parse_sizes(["--quick", "--blocks", "5", "--live-interval-s", "0.5"])
    assert (sizes.blocks, sizes.live_interval_s, is_json) == (5, 0.5, False)


def test_no_more_live_blocks_are_asked_for_than_there_are_blocks() -> None:
    sizes, _ = parse_sizes(["--blocks", "5"])
    assert sizes.live_blocks == 5


@pytest.mark.timeout(120)
def test_very_many_watches_are_told_of_step_by_step() -> None:
    command = [sys.executable, "-m", "bench.many", "--steps", "1000,12000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert [line.split(" after ")[0] for line in done.stdout.splitlines()] == ["1,000 watches", "12,000 watches"]
