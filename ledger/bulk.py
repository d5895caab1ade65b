"""Many rows at once: COPY in, and one UPDATE over arrays. Never a statement per row.

Both take the columns' types from the table, so that a caller hands over plain Python values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import psycopg
from psycopg.sql import SQL, Identifier
from sqlalchemy import JSON, Table, TableValuedAlias, Text, Update, bindparam, cast, column, func, update
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import TypeEngine

NO_COPY = "chainbell_no_copy"
"""Mark in the `info` of a connection for whose role policies hold: Postgres takes no COPY from it."""


async def copy_rows(connection: AsyncConnection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append rows by COPY: every row has the same keys, which are columns of `table`; a key conflict raises. COPY goes past
    SQLAlchemy, so the driver's errors are translated here: callers know `DBAPIError` and its kinds only. The API, which
    tells of little at once, inserts instead."""
    if not rows:
        return
    if connection.info.get(NO_COPY):
        await connection.execute(table.insert(), rows)
        return
    names = list(rows[0])
    statement = SQL("COPY {} ({}) FROM STDIN").format(
        Identifier(table.name), SQL(", ").join(Identifier(name) for name in names)
    )
    raw = await connection.get_raw_connection()
    driver = raw.driver_connection
    if driver is None:
        raise RuntimeError("the connection has been closed by its pool")
    try:
        async with driver.cursor() as cursor, cursor.copy(statement) as copy:
            for row in rows:
                await copy.write_row([row[name] for name in names])
    except psycopg.Error as error:
        kind = OperationalError if isinstance(error, psycopg.OperationalError) else DBAPIError
        raise kind(f"COPY {table.name}", None, error) from error


def unnested(name: str, **types: TypeEngine[Any]) -> TableValuedAlias:
    """Arrays as rows: a table called `name` with one column for each keyword, whose values come in as the parameter
    `all_<column>`. One array parameter keeps a statement's text, and so its plan, the same for any number of rows."""
    arrays = [bindparam(f"all_{column}", type_=ARRAY(kind)) for column, kind in types.items()]
    return func.unnest(*arrays).table_valued(*types, name=name).render_derived()


def recordset(name: str, **types: TypeEngine[Any]) -> TableValuedAlias:
    """JSON as rows: a table called `name` with one column for each keyword, from a list of objects that comes in as text in
    the parameter `<name>_rows`. For rows of many columns: the driver passes on one text, and builds no array for each."""
    rows = cast(bindparam(f"{name}_rows", type_=Text), JSON)
    columns = [column(title, kind) for title, kind in types.items()]
    return func.json_to_recordset(rows).table_valued(*columns, name=name).render_derived(with_types=True)


def as_json(rows: Sequence[Any] | Mapping[str, Any]) -> str:
    """Rows as the text that a `recordset` takes."""
    return msgspec.json.encode(rows).decode()


def update_statement(table: Table, keys: Sequence[str], values: Sequence[str], counter: str) -> Update:
    """An UPDATE of many rows in one statement: arrays named by the columns come in as parameters, rows are found by
    `keys` and by `counter` still being one less than some earlier value (`previous`): compare-and-set for each row."""
    types = {name: table.c[name].type for name in (*keys, *values)}
    source = unnested("new", **types, previous=table.c[counter].type)
    found = [table.c[key] == source.c[key] for key in keys]
    return (
        update(table)
        .values({name: source.c[name] for name in values})
        .where(*found, table.c[counter] == source.c.previous)
    )


def array_parameters(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, list[Any]]:
    """Parameters of such a statement: one array for each column."""
    return {f"all_{name}": [row[name] for row in rows] for name in names}
