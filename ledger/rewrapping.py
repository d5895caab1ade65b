"""Sealing everything anew under the present master key, row by row, while all else goes on.

Each value is opened with the key that its header names and sealed with the present one. Only rows that nobody is changing at
this moment are taken, few at a time, so nobody waits; what was skipped is found by the next pass. A value that does not
open stays as it is, for its own refusal says what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, Table, and_, func, or_, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ledger.database import transaction
from ledger.endpoint_secrets import secret_place, signing_key_place
from ledger.idempotency import answer_place
from ledger.ids import EndpointId, TenantId
from ledger.master_keys import key_id_in
from ledger.schema import endpoint_secrets
from ledger.schema_access import idempotency_keys
from ledger.secrets import SealBroken, SealPlace, SecretBox

BATCH_MAX = 100
"""Rows of one transaction."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """A table with sealed columns, and where each of a row's values is sealed."""

    table: Table
    places: Mapping[str, Callable[[Row[Any]], SealPlace]]

    @property
    def key(self) -> tuple[Any, ...]:
        """The primary key's columns, in its order."""
        return tuple(self.table.primary_key.columns)


SEALED = (
    Sealed(
        endpoint_secrets,
        {
            "sealed": lambda row: secret_place(TenantId(row.tenant_id), EndpointId(row.endpoint_id), row.id),
            "sealed_signing_key": lambda row: signing_key_place(
                TenantId(row.tenant_id), EndpointId(row.endpoint_id), row.id
            ),
        },
    ),
    Sealed(idempotency_keys, {"sealed_body": lambda row: answer_place(TenantId(row.tenant_id), row.key)}),
)


async def count_old_rows(connection: AsyncConnection, box: SecretBox) -> int:
    """Rows with a value that is not sealed under the present master key. Crosses tenants."""
    total = 0
    for sealed in SEALED:
        counted = select(func.count()).select_from(sealed.table).where(_is_old(sealed, box))
        total += (await connection.execute(counted)).scalar_one()
    return total


async def rewrap(engine: AsyncEngine, box: SecretBox, note: Callable[[int], None]) -> int:
    """Seal everything anew; returns how many rows that were. `note` is told of each few. What `count_old_rows` counts
    afterwards does not open, or was sealed meanwhile by a process that has not got the new key yet."""
    rewrapped = 0
    while some := await _pass(engine, box, note):
        rewrapped += some
    return rewrapped


async def _pass(engine: AsyncEngine, box: SecretBox, note: Callable[[int], None]) -> int:
    """Look at every row once, those left out that somebody holds; returns how many were sealed anew."""
    rewrapped = 0
    for sealed in SEALED:
        after: tuple[str, ...] | None = ()
        while after is not None:
            async with transaction(engine) as connection:
                some, after = await _rewrap_rows(connection, box, sealed, after)
            rewrapped += some
            note(some)
    return rewrapped


async def _rewrap_rows(
    connection: AsyncConnection, box: SecretBox, sealed: Sealed, after: tuple[str, ...]
) -> tuple[int, tuple[str, ...] | None]:
    """Seal a few rows anew, from the one after `after` on; returns how many, and the last one's key. Crosses tenants."""
    statement = select(*sealed.key, *(sealed.table.c[name] for name in sealed.places)).where(_is_old(sealed, box))
    if after:
        statement = statement.where(tuple_(*sealed.key) > after)
    few = statement.order_by(*sealed.key).limit(BATCH_MAX).with_for_update(skip_locked=True)
    rows = (await connection.execute(few)).all()
    rewrapped = 0
    for row in rows:
        try:
            fresh = _sealed_anew(box, sealed, row)
        except SealBroken:
            continue  # it says so itself whenever it is needed
        is_it = and_(*(column == row._mapping[column.name] for column in sealed.key))
        await connection.execute(update(sealed.table).where(is_it).values(fresh))
        rewrapped += 1
    return rewrapped, tuple(rows[-1][: len(sealed.key)]) if rows else None


def _is_old(sealed: Sealed, box: SecretBox) -> Any:  # noqa: ANN401 (SQLAlchemy's own type of a condition)
    return or_(*(key_id_in(sealed.table.c[name]) != box.key_id for name in sealed.places))


def _sealed_anew(box: SecretBox, sealed: Sealed, row: Row[Any]) -> dict[str, bytes]:
    return {
        name: box.seal(box.open(row._mapping[name], place(row)), place(row))
        for name, place in sealed.places.items()
        if row._mapping[name] is not None
    }
