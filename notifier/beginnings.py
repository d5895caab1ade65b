"""Where claims begin to read in what an endpoint is owed: where something still is.

What was settled leaves entries in the index that claims go by, and as long as anybody holds a snapshot from before (a dump,
a report), Postgres may not take them away. A claim that read an endpoint's deliveries from their beginning would step over
all that was delivered since, each time: a notifier at full rate had a fifth of its pace left after some minutes.

A beginning may be too early, which only costs time. It may be too late for what was committed long after it was due: that is
found by a sweep, which reads everything, and the beginning is moved back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from ledger.claims import DueFrom, EndpointRoom
from ledger.owed import Owed
from notifier.fairness import Key
from notifier.isolation import FORGOTTEN_AFTER_S

ASKED_INTERVAL_S = 0.25
"""How old a beginning may be before the next claim asks for a new one: as long as what was settled meanwhile is little."""


class _Known(NamedTuple):
    due_from: DueFrom
    asked_at: float


class Beginnings:
    """What one process knows of them. Times are of one monotonic clock, in seconds."""

    def __init__(self) -> None:
        self._known: dict[Key, _Known] = {}
        self._forgot_at = 0.0

    def of(self, rooms: Sequence[EndpointRoom], now: float) -> tuple[list[EndpointRoom], list[EndpointRoom]]:
        """Rooms with their beginnings, and those of them for which new ones are to be asked for."""
        placed, unsure = list[EndpointRoom](), list[EndpointRoom]()
        for room in rooms:
            known = self._known.get((room.tenant_id, room.endpoint_id))
            one = room if known is None else replace(room, due_from=known.due_from)
            placed.append(one)
            if known is None or known.asked_at < now - ASKED_INTERVAL_S:
                unsure.append(one)
        return placed, unsure

    def note(self, due_from: Mapping[Key, DueFrom], asked_at: float) -> None:
        """What was answered."""
        for key, found in due_from.items():
            self._known[key] = _Known(found, asked_at)
        if asked_at - self._forgot_at > FORGOTTEN_AFTER_S:
            self._known = {key: one for key, one in self._known.items() if one.asked_at > self._forgot_at}
            self._forgot_at = asked_at

    def move_back(self, swept: Iterable[Owed]) -> None:
        """What a sweep found due from earlier on."""
        for one in swept:
            known = self._known.get((one.tenant_id, one.endpoint_id))
            if known is not None:
                live, late = known.due_from
                earlier = DueFrom(min(live, one.live_from or live), min(late, one.late_from or late))
                self._known[one.tenant_id, one.endpoint_id] = known._replace(due_from=earlier)
