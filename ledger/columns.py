"""What the tables of `ledger/schema.py` share: their registry, names for constraints, types, and checks over states."""

from __future__ import annotations

from enum import StrEnum

from sqlalchemy import CheckConstraint, DateTime, MetaData, Numeric

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

AMOUNT = Numeric(78, 0)
TIME = DateTime(timezone=True)

CHURNING = {"fillfactor": 70, "autovacuum_vacuum_scale_factor": 0.01, "autovacuum_vacuum_cost_delay": 0}
"""Storage of a table whose rows change all the time, and leave a dead one behind each time: room on each page for the next
version, and vacuum at 1 % and at full speed, keep it small."""

CLAIMED = CHURNING | {"fillfactor": 50}
"""Of the queue, whose rows are claimed a pageful at a time: with room for a next version of each the claim writes to none of
its indexes, with less to most of them for most rows."""


def one_of(column: str, members: type[StrEnum]) -> CheckConstraint:
    """A CHECK that admits exactly the members of an enum: Postgres mirrors `ledger/states.py`."""
    values = ", ".join(f"'{member.value}'" for member in members)
    return CheckConstraint(f"{column} IN ({values})", name=column)


def iff(column: str, state: str, members: tuple[StrEnum, ...]) -> CheckConstraint:
    """A CHECK that `column` is set exactly while `state` is one of `members`."""
    values = ", ".join(f"'{member.value}'" for member in members)
    return CheckConstraint(f"({column} IS NOT NULL) = ({state} IN ({values}))", name=column)
