"""What workers see of endpoints: counted in memory in windows of ten minutes, and added up in the ledger every few seconds.

Nobody counts attempts to answer a question: a merchant has millions. What a killed worker had not written yet is missing
from these figures and from nothing else.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from operator import itemgetter

import msgspec
from sqlalchemy import Integer, Text, delete, func, select
from sqlalchemy.dialects.postgresql import ARRAY, aggregate_order_by, insert
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.bulk import recordset
from ledger.columns import TIME
from ledger.ids import EndpointId, TenantId
from ledger.schema_health import endpoint_windows

WINDOW = timedelta(minutes=10)
WINDOWS_KEPT = timedelta(days=2)
"""They are deleted after that; the longest question is about one day."""

DURATION_BOUNDS_MS = (
    5,
    10,
    20,
    30,
    50,
    75,
    100,
    150,
    200,
    300,
    500,
    750,
    1_000,
    1_500,
    2_000,
    3_000,
    5_000,
    10_000,
    20_000,
)
"""Upper bounds of what is told apart; what took longer counts as the last."""

Key = tuple[TenantId, EndpointId]


@dataclass(slots=True)
class Window:
    """Attempts at one endpoint within ten minutes."""

    attempts: int = 0
    accepted: int = 0
    durations: list[int] = field(default_factory=lambda: [0] * len(DURATION_BOUNDS_MS))


class Tally:
    """What one worker has seen and not written yet."""

    def __init__(self) -> None:
        self._windows: dict[tuple[Key, datetime], Window] = {}

    def note(self, key: Key, ended_at: datetime, duration_ms: int, *, is_accepted: bool) -> None:
        """Count an attempt."""
        place = key, _began_at(ended_at)
        window = self._windows.get(place)
        if window is None:
            window = self._windows[place] = Window()
        window.attempts += 1
        window.accepted += is_accepted
        window.durations[min(bisect_left(DURATION_BOUNDS_MS, duration_ms), len(DURATION_BOUNDS_MS) - 1)] += 1

    def take(self) -> Mapping[tuple[Key, datetime], Window]:
        """All of it, and begin anew."""
        taken, self._windows = self._windows, {}
        return taken

    def put_back(self, taken: Mapping[tuple[Key, datetime], Window]) -> None:
        """What could not be written counts with what came since."""
        for place, window in taken.items():
            other = self._windows.setdefault(place, Window())
            other.attempts += window.attempts
            other.accepted += window.accepted
            other.durations = [a + b for a, b in zip(other.durations, window.durations, strict=True)]


def _began_at(moment: datetime) -> datetime:
    seconds = int(moment.timestamp())
    return datetime.fromtimestamp(seconds - seconds % int(WINDOW.total_seconds()), UTC)


_seen = recordset(
    "seen",
    tenant_id=Text(),
    endpoint_id=Text(),
    began_at=TIME,
    attempts=Integer(),
    accepted=Integer(),
    durations=ARRAY(Integer()),
)
_new = insert(endpoint_windows).from_select(list(_seen.c.keys()), select(_seen))
_pair = (
    func.unnest(endpoint_windows.c.durations, _new.excluded.durations)
    .table_valued("ours", "theirs", with_ordinality="place", name="pair")
    .render_derived()
)
_summed = select(func.array_agg(aggregate_order_by(_pair.c.ours + _pair.c.theirs, _pair.c.place)))
_add_up = _new.on_conflict_do_update(
    index_elements=[endpoint_windows.c.tenant_id, endpoint_windows.c.endpoint_id, endpoint_windows.c.began_at],
    set_={
        "attempts": endpoint_windows.c.attempts + _new.excluded.attempts,
        "accepted": endpoint_windows.c.accepted + _new.excluded.accepted,
        "durations": _summed.scalar_subquery(),
    },
)


async def add_up(connection: AsyncConnection, seen: Mapping[tuple[Key, datetime], Window]) -> None:
    """Write what a worker has seen. Workers write at one time: so in one order. Crosses tenants."""
    rows = [
        {
            "tenant_id": key[0],
            "endpoint_id": key[1],
            "began_at": began_at,
            "attempts": window.attempts,
            "accepted": window.accepted,
            "durations": window.durations,
        }
        for (key, began_at), window in sorted(seen.items(), key=itemgetter(0))
    ]
    await connection.execute(_add_up, {"seen_rows": msgspec.json.encode(rows).decode()})


async def delete_old_windows(connection: AsyncConnection, before: datetime) -> int:
    """Delete windows that began before a time; returns how many. Crosses tenants."""
    result = await connection.execute(delete(endpoint_windows).where(endpoint_windows.c.began_at < before))
    return result.rowcount
