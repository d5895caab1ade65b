"""Pages of live watches, the newest first, each of a bounded number of rows (`ledger/walks.py`).

Deleted watches stay, and may be nearly all that there are: of live ones, or of those of one scope, a page finds few by their
own index where a walk through everything comes by too few.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, select
from sqlalchemy.ext.asyncio import AsyncConnection

from chains.model import Address
from ledger.ids import TenantId, WatchId
from ledger.schema import watches
from ledger.walks import NEWEST_FIRST, Columns, split, walk, whole
from ledger.watches import WATCH_COLUMNS, WatchRow, watches_of


@dataclass(frozen=True, slots=True)
class WatchFilter:
    """Which live watches a reader wants; None admits all."""

    scopes: Sequence[str] | None = None
    address: Address | None = None
    reference: str | None = None


@dataclass(frozen=True, slots=True)
class WatchPage:
    """Watches, the newest first. `next_place` is None where there are no more; only that says so, not their number."""

    watches: list[WatchRow]
    next_place: WatchId | None


_Condition = Callable[[Columns], ColumnElement[bool]]


@dataclass(frozen=True, slots=True)
class _Asked:
    """One page of one tenant, with its conditions by name."""

    tenant_id: TenantId
    conditions: Mapping[str, _Condition]
    after: WatchId | None
    limit: int

    def admits(self, columns: Columns, *held: str) -> list[ColumnElement[bool]]:
        """The conditions but for the `held` ones."""
        return [condition(columns) for name, condition in self.conditions.items() if name not in held]

    def is_ahead(self, columns: Columns) -> list[ColumnElement[bool]]:
        """Behind the page before, in order."""
        return [] if self.after is None else [columns.id < self.after]

    def of_tenant(self, *held: str) -> Select[Any]:
        """The tenant's watches that fit the `held` conditions."""
        statement = select(*WATCH_COLUMNS).where(watches.c.tenant_id == self.tenant_id)
        return statement.where(*(self.conditions[name](watches.c) for name in held))


async def list_watches(
    connection: AsyncConnection,
    tenant_id: TenantId,
    wanted: WatchFilter,
    *,
    after: WatchId | None = None,
    limit: int,
) -> WatchPage:
    """A page of at most `limit` of the tenant's live watches, from behind `after` on."""
    asked = _Asked(tenant_id, _conditions_of(wanted), after, limit)
    if wanted.address is not None:
        return await _page_of(connection, tenant_id, *await _read(connection, asked, _on_address(asked)))
    held = ("reference",) if wanted.reference is not None else ()
    rows = asked.of_tenant(*held).where(*asked.is_ahead(watches.c))
    walked = walk(rows, NEWEST_FIRST, limit, lambda columns: asked.admits(columns, *held))
    found, last = await _read(connection, asked, walked)
    if len(found) < limit and last is not None:
        few, last_of_few = await _read(connection, asked, _in_scopes(asked, wanted.scopes))
        if last_of_few is None or not last_of_few.is_end:
            found, last = few, last_of_few
    return await _page_of(connection, tenant_id, found, last)


def _conditions_of(wanted: WatchFilter) -> dict[str, _Condition]:
    conditions: dict[str, _Condition] = {"live": lambda columns: columns.deleted_at.is_(None)}
    if wanted.scopes is not None:
        scopes = list(wanted.scopes)
        conditions["scopes"] = lambda columns: columns.scope.in_(scopes)
    if wanted.address is not None:
        address = wanted.address
        conditions["address"] = lambda columns: columns.address == address
    if wanted.reference is not None:
        reference = wanted.reference
        conditions["reference"] = lambda columns: columns.reference == reference
    return conditions


def _on_address(asked: _Asked) -> Select[Any]:
    """The page of the few watches on one address: one for each scope at most, since they are live."""
    rows = asked.of_tenant(*asked.conditions).where(*asked.is_ahead(watches.c))
    return walk(rows, NEWEST_FIRST, asked.limit)


def _in_scopes(asked: _Asked, scopes: Sequence[str] | None) -> Select[Any]:
    """The page of what is live, where that is little. One part for each scope: of several together an index has no order."""
    live = asked.of_tenant("live")
    parts = [live] if scopes is None else [live.where(watches.c.scope == scope) for scope in scopes]
    return whole(
        parts,
        (watches.c.scope, watches.c.address),
        NEWEST_FIRST,
        asked.limit,
        lambda columns: [*asked.admits(columns), *asked.is_ahead(columns)],
    )


async def _read(
    connection: AsyncConnection, asked: _Asked, statement: Select[Any]
) -> tuple[Sequence[Row[Any]], Row[Any] | None]:
    return split((await connection.execute(statement)).all(), asked.limit)


async def _page_of(
    connection: AsyncConnection, tenant_id: TenantId, rows: Sequence[Row[Any]], last: Row[Any] | None
) -> WatchPage:
    return WatchPage(await watches_of(connection, tenant_id, rows), None if last is None else WatchId(last.id))
