"""Pages of entries, each read by an index that fits what is asked for, whatever Postgres believes of the table.

What a reader asks for may be frequent, or rare, or two frequent things that never meet. Statistics tell the first two apart,
mostly, and the third never. So the way to a page is chosen here, and is one of two.

- A *set* is read whole and sorted: the entries of one transaction, or those of one address or reference where a look ahead
  finds that they are few.
- A *walk* follows an index in the list's own order (`ledger/walks.py`). Where it does not fill the page and a look ahead
  finds that one of the conditions is rare, it walks by that. Else the page ends, short as it is.

So no page looks at more than a bounded number of rows, and `next_place` alone says whether there may be more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, FromClause, Select, case, false, select, true, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from chains.model import Address, ChainId, TransactionHash
from ledger.cursors import Place, microseconds_of, moment_of
from ledger.ids import Side, TenantId
from ledger.model import Entry
from ledger.rows import entry_from
from ledger.schema import entries, watches
from ledger.states import EntryState
from ledger.walks import IS_PAGE, Columns, Order, are_few, in_text, split, walk


@dataclass(frozen=True, slots=True)
class EntryFilter:
    """Which entries of one side a reader wants; None admits all."""

    side: Side
    chain_id: ChainId | None = None
    address: Address | None = None
    reference: str | None = None
    state: EntryState | None = None
    asset_id: str | None = None
    transaction_hash: TransactionHash | None = None
    updated_since: datetime | None = None
    """With it the list is in order of change, the oldest first; without, of detection, the newest first."""


@dataclass(frozen=True, slots=True)
class EntryPage:
    """Entries in the list's order. `next_place` is None where there are no more; only that says so, not their number."""

    entries: list[Entry]
    next_place: Place | None


_Condition = Callable[[Columns], ColumnElement[bool]]
_Statement = Select[Any]

_HELD = (("watch",), ("address",), ("state", "asset"), ("state", "chain"), ("asset",), ("chain",), ("state",))
"""Conditions that an index holds in order of detection, the narrowest first. What is finalized is nearly everything: no
index of `state` has it, and every list comes by it soon."""

_HELD_BY_CHANGE = (("asset",), ("chain",), ("state",))
"""The same in order of change."""

_WHOSE = ("watch", "address", "reference")
"""Of these there are few entries, nearly always: without an index in the list's order they are looked for as a set first."""

_SETS = (*_WHOSE, "state", "asset", "chain")
"""What may be rare enough to be read whole."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """One page of one tenant. `conditions` are by name: `watch` where the reference is that of one watch, else `reference`;
    `final` for the state that nearly every entry is in, `state` for any other."""

    tenant_id: TenantId
    side: Side
    conditions: Mapping[str, _Condition]
    reference: str | None
    since: datetime | None
    after: Place | None
    limit: int

    @property
    def moment(self) -> str:
        """The column that the list is ordered by, before the id."""
        return "detected_at" if self.since is None else "updated_at"

    def admits(self, columns: Columns, *held: str) -> list[ColumnElement[bool]]:
        """The conditions but for the `held` ones."""
        return [condition(columns) for name, condition in self.conditions.items() if name not in held]

    def is_ahead(self, columns: Columns) -> list[ColumnElement[bool]]:
        """Behind the page before, in order. One bound alone: of two an index begins at one, and steps to the other."""
        moment = columns[self.moment]
        reached = None if self.after is None else moment_of(int(self.after[0]))
        if self.since is not None and (reached is None or reached < self.since):
            return [moment >= self.since]
        if self.after is None:
            return []
        position, place = tuple_(moment, columns.id), tuple_(reached, str(self.after[1]))
        return [position < place if self.since is None else position > place]

    @property
    def order(self) -> Order:
        """The list's order."""
        return Order((self.moment, "id"), is_rising=self.since is not None)

    def of_tenant(self, *held: str) -> _Statement:
        """The tenant's entries of the side that fit the `held` conditions."""
        statement = select(entries).where(entries.c.tenant_id == self.tenant_id, entries.c.side == self.side.value)
        return statement.where(*(self.conditions[name](entries.c) for name in held))


async def list_entries(
    connection: AsyncConnection, tenant_id: TenantId, wanted: EntryFilter, *, after: Place | None = None, limit: int
) -> EntryPage:
    """A page of at most `limit` of the tenant's entries, in the order that `EntryFilter` says, from behind `after` on."""
    if _excludes_everything(wanted):
        return EntryPage([], None)
    conditions = await _conditions_of(connection, tenant_id, wanted)
    if conditions is None:
        return EntryPage([], None)
    asked = _Asked(tenant_id, wanted.side, conditions, wanted.reference, wanted.updated_since, after, limit)
    if "transaction" in conditions:
        return await _read(connection, asked, _set(asked, "transaction"))
    held = _held_by_index(asked)
    likely = [] if held and held[0] in _WHOSE else [name for name in _WHOSE if name in conditions]
    if rare := await _find_rare(connection, asked, likely):
        return await _read(connection, asked, _set(asked, rare))
    page = await _read(connection, asked, _walk(asked, *held))
    if len(page.entries) == limit or page.next_place is None:
        return page
    others = [name for name in _SETS if name in conditions and name not in (*likely, *held)]
    rare = await _find_rare(connection, asked, others)
    if rare is None:
        return page
    return await _read(connection, asked, _set(asked, rare) if rare in _WHOSE else _walk(asked, rare))


async def _read(connection: AsyncConnection, asked: _Asked, statement: _Statement) -> EntryPage:
    rows, last = split((await connection.execute(statement)).all(), asked.limit)
    place = None if last is None else (microseconds_of(last._mapping[asked.moment]), last.id)
    return EntryPage([entry_from(row) for row in rows], place)


async def _conditions_of(
    connection: AsyncConnection, tenant_id: TenantId, wanted: EntryFilter
) -> dict[str, _Condition] | None:
    """What an entry has to be; None where no watch has the reference."""
    conditions: dict[str, _Condition] = {}
    if wanted.asset_id is not None:
        conditions["asset"] = _is("asset_id", wanted.asset_id)
    if wanted.chain_id is not None and wanted.asset_id is None:
        conditions["chain"] = _is("chain_id", wanted.chain_id)
    if wanted.state is not None:
        is_final = wanted.state is EntryState.FINALIZED
        conditions["final" if is_final else "state"] = _is("state", in_text(wanted.state.value))
    if wanted.address is not None:
        conditions["address"] = _is("address", wanted.address)
    if wanted.transaction_hash is not None:
        conditions["transaction"] = _is("transaction_hash", wanted.transaction_hash)
    if wanted.reference is not None:
        two = list(await connection.scalars(_named(tenant_id, wanted.reference).limit(in_text(2))))
        if not two:
            return None
        several = _has_reference(tenant_id, wanted.reference)
        conditions |= {"watch": _is("watch_id", two[0])} if len(two) == 1 else {"reference": several}
    return conditions


def _excludes_everything(wanted: EntryFilter) -> bool:
    """True for an asset of another chain. An asset's name begins with its chain's (CAIP-19), so an asset and its own chain
    say no more than the asset."""
    if wanted.chain_id is None or wanted.asset_id is None:
        return False
    return not wanted.asset_id.startswith(f"{wanted.chain_id}/")


def _is(name: str, value: object) -> _Condition:
    return lambda columns: columns[name] == value


def _named(tenant_id: TenantId, reference: str | None) -> Select[tuple[str]]:
    """Of a range that is one value, since that has an order: to find two of what looks frequent, Postgres would begin at the
    table's start, and they may all be at its end."""
    is_it = watches.c.reference.between(reference, reference)
    return select(watches.c.id).where(watches.c.tenant_id == tenant_id, is_it).order_by(watches.c.reference)


def _has_reference(tenant_id: TenantId, reference: str) -> _Condition:
    """By one look at each entry's own watch: the watches of that name may be many."""

    def _of_watch(columns: Columns) -> ColumnElement[bool]:
        own = select(watches.c.reference).where(watches.c.tenant_id == tenant_id, watches.c.id == columns.watch_id)
        return own.scalar_subquery() == reference

    return _of_watch


def _held_by_index(asked: _Asked) -> tuple[str, ...]:
    """The conditions that an index in the list's order holds."""
    known = _HELD if asked.since is None else _HELD_BY_CHANGE
    return next((held for held in known if asked.conditions.keys() >= set(held)), ())


async def _find_rare(connection: AsyncConnection, asked: _Asked, names: Sequence[str]) -> str | None:
    """The first of these conditions that few entries fit."""
    for name in names:
        if (await connection.execute(select(_are_few(asked, name)))).scalar_one():
            return name
    return None


def _are_few(asked: _Asked, name: str) -> ColumnElement[bool]:
    """Whether few entries fit, by index alone."""
    few = are_few(_everything(asked, name))
    if name == "reference":
        return case((are_few(_named(asked.tenant_id, asked.reference).subquery()), few), else_=false())
    return few


def _everything(asked: _Asked, name: str) -> FromClause:
    """All entries that fit one condition. OFFSET 0 keeps Postgres from another way to them."""
    if name != "reference":
        return asked.of_tenant(name).offset(in_text(0)).subquery("looked")
    named = _named(asked.tenant_id, asked.reference).subquery("named")
    own = asked.of_tenant().where(entries.c.watch_id == named.c.id).offset(in_text(0)).lateral("own")
    return select(own).select_from(named.join(own, true())).subquery("looked")


def _set(asked: _Asked, name: str) -> _Statement:
    """The page from what fits one condition, read whole."""
    looked = _everything(asked, name).c
    admitted = (*asked.admits(looked, name), *asked.is_ahead(looked))
    return select(*looked, IS_PAGE).where(*admitted).order_by(*asked.order.of(looked)).limit(in_text(asked.limit + 1))


def _walk(asked: _Asked, *held: str) -> _Statement:
    """The page by an index that has the list's order and holds the `held` conditions."""
    rows = asked.of_tenant(*held).where(*asked.is_ahead(entries.c))
    is_held = not asked.conditions.keys() - set(held)
    return walk(rows, asked.order, asked.limit, None if is_held else lambda columns: asked.admits(columns, *held))
