"""Very many watches, once: `python -m bench.many --steps 1000,1000000,10000000`. It takes long, and gigabytes of disk, so
`make bench` leaves it out.

They are made as the API makes them, 10,000 in a transaction, but without HTTP. At each step: how long it took until there,
the size of the table and its indexes, the memory of this process, and the time to match a block's addresses.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random

import psycopg
import uvloop
from sqlalchemy.ext.asyncio import AsyncEngine

from bench.chain import bench_profile
from bench.installation import add_tenant, add_watches, ledger_at, make_database, make_template, register
from bench.live import Spread
from bench.usage import measure_usage
from bench.watching import WATCHES_A_CALL, plain_url, time_matches
from chains.model import Address
from ledger.embedded import embedded_postgres, remove_embedded_postgres
from ledger.ids import TenantId


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory for one run. Not below one of mode 0700: where this runs as root, the database's user enters it."""
    directory = Path(tempfile.mkdtemp(prefix="chainbell-bench-"))
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        remove_embedded_postgres(directory)
        shutil.rmtree(directory)


def addresses_at(first: int, count: int) -> list[Address]:
    """The watches from `first` on; the same every time."""
    random = Random(f"many {first}")
    return [random.randbytes(20) for _ in range(count)]


async def load(engine: AsyncEngine, tenant_id: TenantId, first: int, until: int) -> None:
    """Make watches up to the number `until`."""
    for start in range(first, until, WATCHES_A_CALL):
        await add_watches(engine, tenant_id, addresses_at(start, min(WATCHES_A_CALL, until - start)))


def table_mb(url: str) -> tuple[float, float]:
    """Of the table alone, and with its indexes."""
    with psycopg.connect(plain_url(url)) as connection:
        query = "SELECT pg_relation_size('watches') / 1e6, pg_total_relation_size('watches') / 1e6"
        row = connection.execute(query).fetchone()
    assert row is not None
    return float(row[0]), float(row[1])


def say_step(count: int, elapsed_s: float, sizes_mb: tuple[float, float], match: Spread) -> None:
    """One line for people."""
    table, whole = sizes_mb
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    print(
        f"{count:,} watches after {elapsed_s:,.1f} s: table {table:,.0f} MB, with indexes {whole:,.0f} MB; "
        f"match p50 {match.p50_ms:.1f} ms, p99 {match.p99_ms:.1f} ms; this process {peak_mb:,.0f} MB",
        flush=True,
    )


async def run(url: str, steps: Sequence[int]) -> None:
    """Step by step in one ledger."""
    async with ledger_at(url) as engine:
        await register(engine, "roots")
        tenant_id, _ = await add_tenant(engine, "acme", [])
        hit = addresses_at(0, min(WATCHES_A_CALL, steps[0]))
        elapsed_s, count = 0.0, 0
        for step in steps:
            with measure_usage(step) as usage:
                await load(engine, tenant_id, count, step)
            elapsed_s, count = elapsed_s + usage.elapsed_s, step
            match = await time_matches(engine, bench_profile("off").chain_id, hit)
            say_step(count, elapsed_s, table_mb(url), match)


def main() -> None:
    """Load and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.many", description=__doc__)
    parser.add_argument("--steps", default="1000,1000000,10000000", help="numbers of watches, at least 1000, rising")
    steps = [int(step) for step in parser.parse_args().steps.split(",")]
    with scratch() as directory, embedded_postgres(directory) as server_url:
        make_template(server_url)
        uvloop.run(run(make_database(server_url, "many"), steps))


if __name__ == "__main__":
    main()
