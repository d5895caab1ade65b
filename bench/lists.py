"""How lists of entries are read among very many: `python -m bench.lists --entries 10000000`. It takes long, and gigabytes of
disk, so `make bench` leaves it out.

Every filter that the API has, every two of them, and each of these from the middle of the list on. Times are of one page in
its transaction, as the API's role, without HTTP. What a page looked at is counted by Postgres (`EXPLAIN ANALYZE`).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import combinations
from pathlib import Path
from typing import Any

import msgspec
import uvloop
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from bench.installation import make_database, make_template
from bench.live import Spread, spread_of
from bench.looking import Ask, look_at
from bench.many import scratch
from bench.volume import TENANT, address_of_watch, fill, hash_of, moment_of_entry, watch_count
from bench.watching import plain_url
from ledger.cursors import Place, microseconds_of
from ledger.database import connect_api, transaction
from ledger.embedded import embedded_postgres
from ledger.entry_lists import EntryFilter, EntryPage, list_entries
from ledger.ids import Side, TenantId
from ledger.states import EntryState
from ledger.tenancy import speak_for

PAGE = 100
TIMES = 30
DEPOSITS = EntryFilter(Side.DEPOSIT)


class Case(msgspec.Struct, frozen=True):
    """A page: of what, and from behind which place on."""

    wanted: EntryFilter
    after: Place | None = None


def values_of(count: int) -> dict[str, dict[str, Any]]:
    """For each filter what to ask for, by what it is like: of what there is much, little, or nothing."""
    customer = watch_count(count) // 2 // 20 * 20
    return {
        "chain": {"": "eip155:1", "with few": "eip155:10", "without any": "eip155:42161"},
        "address": {
            "of the treasury": address_of_watch(1),
            "of a shop": address_of_watch(2),
            "of a customer": address_of_watch(customer),
            "without any": bytes(20),
        },
        "reference": {"of one": f"order-{customer}", "of many": "shop", "of very many": "till", "of none": "nobody"},
        "state": {
            state: state
            for state in (EntryState.FINALIZED, EntryState.DETECTED, EntryState.DROPPED, EntryState.REORGED)
        },
        "asset": {
            "": "eip155:1/slip44:60",
            "EDGE": f"eip155:1/erc20:0x{3:a>40x}",
            "with few": f"eip155:1/erc20:0x{2:a>40x}",
            "without any": f"eip155:42161/erc20:0x{2:a>40x}",
        },
        "tx": {"": hash_of(count // 4), "that pays many": hash_of(0)},
        "since": {
            "the beginning": moment_of_entry(0),
            "an hour ago": moment_of_entry(count) - timedelta(hours=1),
            "now": moment_of_entry(count) + timedelta(days=1),
        },
    }


_FIELD_OF = {
    "chain": "chain_id",
    "address": "address",
    "reference": "reference",
    "state": "state",
    "asset": "asset_id",
    "tx": "transaction_hash",
    "since": "updated_since",
}


def cases_of(count: int) -> dict[str, Case]:
    """Every filter, every two, and all of that from the middle of the list on."""
    singles = {
        (name, f"{name} {kind}".strip()): {_FIELD_OF[name]: value}
        for name, values in values_of(count).items()
        for kind, value in values.items()
    }
    wanted = {"everything": DEPOSITS}
    wanted |= {label: replace(DEPOSITS, **given) for (_, label), given in singles.items()}
    for ((one, first), given), ((other, second), more) in combinations(singles.items(), 2):
        if one != other:
            wanted[f"{first}, {second}"] = replace(DEPOSITS, **given, **more)
    middle = (microseconds_of(moment_of_entry(count // 2)), "dep_5")
    return {name: Case(one) for name, one in wanted.items()} | {
        f"{name}, from the middle": Case(one, middle) for name, one in wanted.items()
    }


async def ask(connection: AsyncConnection, case: Case, limit: int = PAGE) -> EntryPage:
    """The page."""
    return await list_entries(connection, TenantId(TENANT), case.wanted, after=case.after, limit=limit)


def asking(case: Case) -> Ask:
    """The page, for `look_at`."""

    async def _ask(connection: AsyncConnection) -> int:
        return len((await ask(connection, case)).entries)

    return _ask


async def time_pages(engine: AsyncEngine, case: Case, times: int = TIMES) -> Spread:
    """How long the page takes, again and again."""
    took: list[float] = []
    for _ in range(times):
        async with transaction(engine) as connection:
            await speak_for(connection, TenantId(TENANT))
            began = time.perf_counter()
            await ask(connection, case)
            took.append(time.perf_counter() - began)
    return spread_of(took)


async def run(url: str, count: int, only: Sequence[str]) -> None:
    """Every case, one line for each."""
    engine = connect_api(url, pool_size=1)
    for name, case in cases_of(count).items():
        if only and name not in only:
            continue
        times = await time_pages(engine, case)
        look = await look_at(engine, TENANT, asking(case))
        print(
            f"{name}: {look.answered} answered, {look.rows:,} rows and {look.buffers:,} buffers looked at, "
            f"p50 {times.p50_ms:.1f} ms, p99 {times.p99_ms:.1f} ms",
            flush=True,
        )
    await engine.dispose()


def main() -> None:
    """Fill and print. What lies in `--keep` from before is used again."""
    parser = argparse.ArgumentParser(prog="python -m bench.lists", description=__doc__)
    parser.add_argument("--entries", type=int, default=10_000_000)
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="a case, by its name; may be repeated"
    )
    arguments = parser.parse_args()
    with scratch() as directory, embedded_postgres(Path(directory)) as server_url:
        make_template(server_url)
        url = make_database(server_url, "lists")
        fill(plain_url(url), arguments.entries)
        uvloop.run(run(url, arguments.entries, arguments.only))


if __name__ == "__main__":
    main()
