"""What the ledger itself says of how things stand: the numbers behind the gauges of a process that only serves."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.schema import deliveries
from ledger.states import DeliveryState


@dataclass(frozen=True, slots=True)
class Backlog:
    """Deliveries that are not settled, of all tenants."""

    due: int
    held: int


async def count_backlog(connection: AsyncConnection, now: datetime) -> Backlog:
    """How many deliveries are due and how many are held. One of the statements that cross tenants; it reads partial
    indexes over unsettled deliveries only."""
    due = select(func.count()).where(deliveries.c.state == DeliveryState.PENDING.value, deliveries.c.due_at <= now)
    held = select(func.count()).where(deliveries.c.state == DeliveryState.HELD.value)
    row = (await connection.execute(select(due.scalar_subquery(), held.scalar_subquery()))).one()
    return Backlog(due=row[0], held=row[1])
