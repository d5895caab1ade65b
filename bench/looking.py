"""What Postgres looks at for a page of a list, counted by itself: `EXPLAIN (ANALYZE, BUFFERS)` of each of its statements."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

import msgspec
import psycopg
from sqlalchemy import text
from sqlalchemy.event import listen, remove
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ledger.database import transaction
from ledger.ids import TenantId
from ledger.tenancy import speak_for

Ask = Callable[[AsyncConnection], Awaitable[int]]
"""Ask for a page, and say how many rows it has."""


class Look(msgspec.Struct):
    """What Postgres looked at for one page: rows of tables and of indexes, and pages of 8 kB."""

    answered: int
    rows: int = 0
    buffers: int = 0
    sequential: int = 0
    """Tables that were read through, but for empty ones and those of a few dozen rows."""


async def look_at(engine: AsyncEngine, tenant_id: str, ask: Ask, *, is_generic: bool = False) -> Look:
    """What a page looks at, over all its statements: by the plans that Postgres makes once for all parameters, or by those
    that it makes for these."""
    said: list[tuple[str, Mapping[str, Any]]] = []

    def _note(*told: Any) -> None:  # noqa: ANN401 (what an event of SQLAlchemy tells)
        said.append((told[2], told[3]))

    async with transaction(engine) as connection:
        await speak_for(connection, TenantId(tenant_id))
        listen(engine.sync_engine, "before_cursor_execute", _note)
        look = Look(await ask(connection))
        remove(engine.sync_engine, "before_cursor_execute", _note)
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
        rows = round(_taken(node) * node["Actual Loops"])
        look.rows += rows
        is_sequential = node["Node Type"].endswith("Seq Scan") and node["Relation Name"] not in _SMALL_TABLES
        look.sequential += is_sequential and rows > 0


def _taken(node: Mapping[str, Any]) -> float:
    removed = ("Rows Removed by Filter", "Rows Removed by Index Recheck")
    return float(node["Actual Rows"] + sum(node.get(name, 0) for name in removed))
