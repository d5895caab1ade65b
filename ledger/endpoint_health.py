"""An endpoint's health at a glance: what it is owed, and how its attempts went in the last hour and day.

Read by index, and no further than a merchant needs to know: the windows that workers have added up (`ledger/tally.py`), and
deliveries by state up to `COUNT_MAX`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import msgspec
from sqlalchemy import Row, Select, Subquery, bindparam, func, select, true
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.documents import time_of
from ledger.ids import EndpointId, TenantId
from ledger.schema import deliveries
from ledger.schema_health import endpoint_windows
from ledger.states import DeliveryState
from ledger.tally import DURATION_BOUNDS_MS, WINDOW
from ledger.words import Time

COUNT_MAX = 10_000
"""As far as deliveries are counted: whoever is owed more needs no exact number."""


class TrafficDocument(msgspec.Struct, frozen=True):
    """Attempts of the last hour, or day: how many, how many were accepted, and how long they took. Half of them took at
    most `p50_ms`, 95 % at most `p95_ms`; null where there were none."""

    attempts: int
    accepted: int
    accepted_share: float | None
    p50_ms: int | None
    p95_ms: int | None


class OwedDocument(msgspec.Struct, frozen=True):
    """Deliveries to the endpoint by state; 10,000 stands for that many or more. What is `faulted` is ours to mend.
    `oldest_at` is when the oldest of those was made that are pending or held."""

    pending: int
    held: int
    exhausted: int
    refused: int
    faulted: int
    oldest_at: Time | None


@dataclass(frozen=True, slots=True)
class Glance:
    """What is read of an endpoint beside its row."""

    owed: OwedDocument
    last_hour: TrafficDocument
    last_day: TrafficDocument


async def glance_at(connection: AsyncConnection, tenant_id: TenantId, endpoint_id: EndpointId, now: datetime) -> Glance:
    """How an endpoint does: at most some ten thousand index entries for each state, and the windows of a day."""
    windows = (await connection.execute(_windows_since(tenant_id, endpoint_id, now - timedelta(days=1)))).all()
    hour = [row for row in windows if row.began_at > now - timedelta(hours=1) - WINDOW]
    owed = await _count_owed(connection, tenant_id, endpoint_id)
    return Glance(owed, _traffic_of(hour), _traffic_of(windows))


def _windows_since(tenant_id: TenantId, endpoint_id: EndpointId, since: datetime) -> Select[Any]:
    return select(endpoint_windows).where(
        endpoint_windows.c.tenant_id == tenant_id,
        endpoint_windows.c.endpoint_id == endpoint_id,
        endpoint_windows.c.began_at > since - WINDOW,
    )


def _traffic_of(windows: Sequence[Row[Any]]) -> TrafficDocument:
    attempts = sum(window.attempts for window in windows)
    accepted = sum(window.accepted for window in windows)
    durations = [sum(counts) for counts in zip(*(window.durations for window in windows), strict=True)]
    share = round(accepted / attempts, 4) if attempts else None
    return TrafficDocument(attempts, accepted, share, percentile_of(durations, 0.5), percentile_of(durations, 0.95))


def percentile_of(durations: Sequence[int], share: float) -> int | None:
    """The bound within which so large a share of the attempts stayed; None where there were none."""
    reached = 0
    for bound_ms, count in zip(DURATION_BOUNDS_MS, durations, strict=False):
        reached += count
        if reached and reached >= share * sum(durations):
            return bound_ms
    return None


_COUNTED = (
    DeliveryState.PENDING,
    DeliveryState.HELD,
    DeliveryState.EXHAUSTED,
    DeliveryState.REFUSED,
    DeliveryState.FAULTED,
)


def _owed_in(state: DeliveryState, tenant_id: TenantId, endpoint_id: EndpointId) -> Subquery:
    """As many as are counted. The state is written into the statement: each index has only some of them, and that of all but
    the pending ones has them in the order of their making."""
    counted = select(deliveries.c.created_at).where(
        deliveries.c.tenant_id == tenant_id,
        deliveries.c.endpoint_id == endpoint_id,
        deliveries.c.state == bindparam(None, state.value, literal_execute=True),
    )
    if state is not DeliveryState.PENDING:
        counted = counted.order_by(deliveries.c.created_at)
    return counted.limit(COUNT_MAX).subquery(state.value)


def _owed_statement(tenant_id: TenantId, endpoint_id: EndpointId) -> Select[Any]:
    counted = [_owed_in(state, tenant_id, endpoint_id) for state in _COUNTED]
    pending, held, *others = [
        select(func.count().label("number"), func.min(one.c.created_at).label("oldest")).subquery() for one in counted
    ]
    numbers = [select(other.c.number).scalar_subquery() for other in others]
    oldest = func.least(pending.c.oldest, held.c.oldest)
    return select(pending.c.number, held.c.number, *numbers, oldest).select_from(pending.join(held, true()))


async def _count_owed(connection: AsyncConnection, tenant_id: TenantId, endpoint_id: EndpointId) -> OwedDocument:
    *counts, oldest = (await connection.execute(_owed_statement(tenant_id, endpoint_id))).one()
    numbers = {state.value: count for state, count in zip(_COUNTED, counts, strict=True)}
    return OwedDocument(**numbers, oldest_at=time_of(oldest) if oldest else None)
