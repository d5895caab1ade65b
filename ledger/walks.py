"""What all pages of lists share: a page looks at a bounded number of rows, whatever was asked for.

A *walk* follows an index in the list's own order, from where the page before ended. What the index does not hold is compared
row by row, for at most `LOOKED_MAX` rows. Where that does not fill the page, it ends short, and leads on from where the
walk stood still. That an answer may be short, and even empty, is what AIP-158 (google.aip.dev/158) has of pages too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    CTE,
    BindParameter,
    ColumnElement,
    FromClause,
    Row,
    Select,
    bindparam,
    cast,
    false,
    func,
    literal,
    not_,
    null,
    select,
    true,
    union_all,
)
from sqlalchemy.sql import ColumnCollection

LOOKED_MAX = 10_000
"""Rows that a page may look at: ten of the largest pages."""

Columns = ColumnCollection[str, Any]
Admits = Callable[[Columns], Sequence[ColumnElement[bool]]]
"""The conditions that a row has to fit, of whatever has its columns."""

IS_PAGE, IS_END = false().label("is_end"), true().label("is_end")


@dataclass(frozen=True, slots=True)
class Order:
    """What a list is ordered by, its rows' ids last. All of it falls, or all rises."""

    names: tuple[str, ...]
    is_rising: bool = False

    def of(self, columns: Columns) -> list[ColumnElement[Any]]:
        """For ORDER BY."""
        return [columns[name] if self.is_rising else columns[name].desc() for name in self.names]


NEWEST_FIRST = Order(("id",))
"""By ids that were made in the order of time."""


def in_text(value: str | int) -> BindParameter[Any]:
    """A value in the statement's own text. With a parameter, a plan for all parameters could not tell that an index has this
    state, and would be made for pages of a tenth of the table."""
    return bindparam(None, value, literal_execute=True)


def are_few(looked: FromClause) -> ColumnElement[bool]:
    """Whether a look ahead, no further than `LOOKED_MAX`, sees the end of these rows."""
    some = select(literal(1)).select_from(looked).limit(in_text(LOOKED_MAX + 1)).subquery()
    return select(func.count()).select_from(some).scalar_subquery() <= LOOKED_MAX


def walk(rows: Select[Any], order: Order, limit: int, admits: Admits | None = None) -> Select[Any]:
    """The page of what an index has in order: `rows` is that, from behind the page before on. With `admits`, of no more than
    `LOOKED_MAX` of them. `split` reads it."""
    rows = rows.order_by(*order.of(rows.selected_columns))
    if admits is None:
        return rows.add_columns(IS_PAGE).limit(in_text(limit + 1))
    looked = rows.limit(in_text(LOOKED_MAX)).subquery("looked").c
    page = select(*looked).where(*admits(looked)).order_by(*order.of(looked)).limit(in_text(limit + 1))
    return _with_end(page.cte("page"), rows, order, limit)


def _with_end(page: CTE, rows: Select[Any], order: Order, limit: int) -> Select[Any]:
    """The page, and where it is not full, the last of the rows that were looked at, if they were as many as a page may look
    at. Both are of one snapshot: found by a later statement, that row would be another whenever somebody wrote meanwhile."""
    is_short = select(func.count()).select_from(page).scalar_subquery() <= limit
    place = [
        column if column.name in order.names else cast(null(), column.type).label(column.name)
        for column in rows.selected_columns
    ]
    end = (
        rows.with_only_columns(*place, IS_END)
        .where(is_short)
        .offset(in_text(LOOKED_MAX - 1))
        .limit(in_text(1))
        .subquery("last")
    )
    both = union_all(select(page, IS_PAGE), select(end)).subquery("found")
    return select(both).order_by(both.c.is_end, *order.of(both.c))


def whole(
    parts: Sequence[Select[Any]], found_in: Sequence[ColumnElement[Any]], order: Order, limit: int, admits: Admits
) -> Select[Any]:
    """The page from the rows of all `parts`, read whole and sorted, where they are few; else an end and no more.

    `found_in` is the order in which an index has a part. In that order, and no further than `LOOKED_MAX`, it is not looked
    for through the whole table, however frequent Postgres believes it to be."""
    few = [part.order_by(*found_in).limit(in_text(LOOKED_MAX + 1)) for part in parts]
    looked = union_all(*(select(part.subquery()) for part in few)).cte("looked")
    are_few = select(func.count()).select_from(looked).scalar_subquery() <= LOOKED_MAX
    fitting = select(*looked.c, IS_PAGE).where(are_few, *admits(looked.c))
    page = fitting.order_by(*order.of(looked.c)).limit(in_text(limit + 1)).subquery("page")
    nothing = [cast(null(), column.type).label(column.name) for column in looked.c]
    both = union_all(select(page), select(*nothing, IS_END).where(not_(are_few))).subquery("found")
    return select(both).order_by(both.c.is_end, *order.of(both.c))


def split(rows: Sequence[Row[Any]], limit: int) -> tuple[Sequence[Row[Any]], Row[Any] | None]:
    """The page's rows, and the one that the next page begins behind; None where there are no more."""
    found = [row for row in rows if not row.is_end]
    if len(found) > limit:
        return found[:limit], found[limit - 1]
    return found, next((row for row in rows if row.is_end), None)
