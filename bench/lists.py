"""How lists of entries are read among very many: `python -m bench.lists --entries 10000000`. It takes long, and gigabytes of
disk, so `make bench` leaves it out.

Every filter that the API has, every two of them, and each of these from the middle of the list on. Times are of one page in
its transaction, as the API's role, without HTTP. What a page looked at is counted by Postgres (`EXPLAIN ANALYZE`).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import combinations
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import uvloop
from sqlalchemy import text
from sqlalchemy.event import listen, remove
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from bench.installation import make_database, make_template
from bench.live import Spread, spread_of
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


class Look(msgspec.Struct):
    """What Postgres looked at for one page: rows of tables and of indexes, and pages of 8 kB."""

    answered: int
    rows: int = 0
    buffers: int = 0
    sequential: int = 0
    """Tables that were read through, but for those of a few dozen rows."""


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


async def look_at(engine: AsyncEngine, case: Case, *, is_generic: bool = False) -> Look:
    """What a page looks at, over all its statements: by the plans that Postgres makes once for all parameters, or by those
    that it makes for these."""
    said: list[tuple[str, Mapping[str, Any]]] = []

    def _note(*told: Any) -> None:  # noqa: ANN401 (what an event of SQLAlchemy tells)
        said.append((told[2], told[3]))

    async with transaction(engine) as connection:
        await speak_for(connection, TenantId(TENANT))
        listen(engine.sync_engine, "before_cursor_execute", _note)
        page = await ask(connection, case)
        remove(engine.sync_engine, "before_cursor_execute", _note)
        look = Look(len(page.entries))
        mode = "force_generic_plan" if is_generic else "force_custom_plan"
        await connection.execute(text(f"SET LOCAL plan_cache_mode = {mode}"))
        for statement, parameters in said:
            _add(look, await _explain(connection, statement, parameters))
    return look


async def _explain(connection: AsyncConnection, statement: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The statement is prepared, since only what is prepared has a plan for all parameters."""
    numbered = {name: f"${number}" for number, name in enumerate(parameters, 1)}
    raw: Any = (await connection.get_raw_connection()).driver_connection
    async with psycopg.AsyncClientCursor(raw) as cursor:
        await cursor.execute(f"PREPARE looked AS {statement % numbered}".encode())
        given = ", ".join(["%s"] * len(parameters))
        execute = f"EXECUTE looked({given})" if parameters else "EXECUTE looked"
        await cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {execute}".encode(), list(parameters.values()))
        row = await cursor.fetchone()
        await cursor.execute("DEALLOCATE looked")
    assert row is not None
    plan: dict[str, Any] = row[0][0]["Plan"]
    return plan


def _nodes(plan: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield plan
    for inner in plan.get("Plans", ()):
        yield from _nodes(inner)


_SMALL_TABLES = ("chains", "assets", "tenants")


def _add(look: Look, plan: Mapping[str, Any]) -> None:
    look.buffers += plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
    for node in _nodes(plan):
        if "Relation Name" not in node and node["Node Type"] != "Bitmap Index Scan":
            continue
        look.rows += round(_taken(node) * node["Actual Loops"])
        is_sequential = node["Node Type"].endswith("Seq Scan") and node["Relation Name"] not in _SMALL_TABLES
        look.sequential += is_sequential and node["Actual Loops"] > 0


def _taken(node: Mapping[str, Any]) -> float:
    removed = ("Rows Removed by Filter", "Rows Removed by Index Recheck")
    return float(node["Actual Rows"] + sum(node.get(name, 0) for name in removed))


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
        look = await look_at(engine, case)
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
