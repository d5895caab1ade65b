"""Who may take from an endpoint, or put something into its lanes, while others claim.

Two claims at one moment do not see each other's leases. Within a lane that does no harm: both want its first delivery, and
`SKIP LOCKED` gives that to one. But what is sent by hand and the first of its lane are two rows, and so are the first of a
lane and what a job has just put before it. Therefore each claim shares the locks of the endpoints that it takes from until
it commits, and to claim by hand, or to put something into a lane, it takes to have an endpoint's lock alone. Whoever has it
so knows that no claim is half done, and that the next one will see all.

A claim waits for nobody. It takes nothing of an endpoint whose lock it gets no share of, and nothing by hand where it is not
alone: that is for a later claim. A job waits for a moment (`CLAIMS_END_WITHIN`), and comes again. Endpoints share a few
locks, so that a claim does not need too many; whoever stands still with one of them stops a few endpoints, and not all,
until Postgres ends its session.
"""

from __future__ import annotations

from datetime import timedelta

import psycopg
from sqlalchemy import ARRAY, ColumnElement, Integer, Select, bindparam, case, cast, func, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import Text

from ledger.errors import ClaimUnfinished
from ledger.ids import EndpointId

CLAIMS_END_WITHIN = timedelta(milliseconds=200)
"""How long a job waits for claims that are half done. Each takes some milliseconds, and none begins meanwhile."""

_LANES = 0x6C61_6E65
"""First half of the advisory locks' numbers: "lane"."""

_LOCKS = 64
"""A power of two."""

_SHARED, _ALONE = "chainbell.claims_shared", "chainbell.claims_alone"
"""Settings that last as long as the transaction: the locks that this claim shares, and those that it has alone."""


def _lock_of(endpoint_id: ColumnElement[str]) -> ColumnElement[int]:
    return func.hashtext(endpoint_id).op("&")(bindparam(None, _LOCKS - 1, literal_execute=True))


def agree(endpoint_id: ColumnElement[str], due_by_hand: Select[tuple[str]]) -> Select[tuple[str, str]]:
    """Take the locks of these endpoints, or as many as can be had, and alone where something is due by hand. In a statement
    before the one that claims, which so sees what others did before."""
    wanted = select(_lock_of(endpoint_id).label("number")).distinct().cte("wanted")
    due = due_by_hand.cte("due_by_hand")
    is_due = wanted.c.number.in_(select(_lock_of(due.c.endpoint_id)))
    has_alone = case((is_due, func.pg_try_advisory_xact_lock(_LANES, wanted.c.number)), else_=False)
    shares = func.pg_try_advisory_xact_lock_shared(_LANES, wanted.c.number)
    got = select(wanted.c.number, has_alone.label("has_alone"), shares.label("shares")).cte("got")
    return select(
        func.set_config(_ALONE, _listed(got.c.number, got.c.has_alone), True),
        func.set_config(_SHARED, _listed(got.c.number, got.c.shares), True),
    )


def _listed(number: ColumnElement[int], condition: ColumnElement[bool]) -> ColumnElement[str]:
    return func.coalesce(cast(func.array_agg(number).filter(condition), Text), "{}")


def has_agreed(endpoint_id: ColumnElement[str]) -> ColumnElement[bool]:
    """Whether this claim may take anything of an endpoint."""
    return _has_lock(_SHARED, endpoint_id)


def is_alone(endpoint_id: ColumnElement[str]) -> ColumnElement[bool]:
    """Whether nobody else claims from an endpoint."""
    return _has_lock(_ALONE, endpoint_id)


def _has_lock(setting: str, endpoint_id: ColumnElement[str]) -> ColumnElement[bool]:
    """Read once in a statement, not for each row; there are none before the transaction agreed."""
    read = select(cast(func.nullif(func.current_setting(setting, True), ""), ARRAY(Integer))).scalar_subquery()
    return func.coalesce(_lock_of(endpoint_id) == func.any(cast(read, ARRAY(Integer))), False)


async def keep_claims_away(connection: AsyncConnection, endpoint_id: EndpointId) -> None:
    """Have no claim of an endpoint half done until the commit, so that the next one sees what is put into its lanes. Raises
    `ClaimUnfinished`."""
    limit_ms = int(CLAIMS_END_WITHIN.total_seconds() * 1000)
    lock = func.pg_advisory_xact_lock(_LANES, func.hashtext(endpoint_id).op("&")(_LOCKS - 1))
    try:
        async with connection.begin_nested():
            await connection.execute(select(func.set_config("lock_timeout", f"{limit_ms}ms", True)))
            await connection.execute(select(lock))
            await connection.execute(select(func.set_config("lock_timeout", "0", True)))
    except OperationalError as error:
        if isinstance(error.orig, psycopg.errors.LockNotAvailable):
            raise ClaimUnfinished(f"endpoint {endpoint_id}: a worker stands still in the middle of a claim") from error
        raise
