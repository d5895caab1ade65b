"""Tenants among each other: no number of endpoints that one has keeps another's from their turn.

- **Turns.** A line lets tenants take turns, and within one its endpoints do. Whoever has a thousand endpoints stands in it
  as one.
- **Shares.** What a claim may bring is divided among the tenants that are owed anything. What one does not want is the
  others', so that one alone may have all.
- **Guests.** Places that are taken for long (receivers that hang) would help nobody by turns. So there are some more, for
  tenants that have hardly any: less than half of what is left of them, counted for each, so that there is one for the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ledger.claims import EndpointRoom
from ledger.ids import EndpointId, TenantId

Key = tuple[TenantId, EndpointId]

GUEST_SHARE = 1 / 8
"""Places of guests, as a share of those that they come on top of."""


class Line:
    """Endpoints in the order of their turns."""

    def __init__(self) -> None:
        self._tenants: dict[TenantId, dict[Key, None]] = {}

    def __iter__(self) -> Iterator[Key]:
        return (key for keys in self._tenants.values() for key in keys)

    def __contains__(self, key: Key) -> bool:
        return key in self._tenants.get(key[0], ())

    def add(self, key: Key) -> None:
        """Who stands in the line already keeps its place."""
        keys = self._tenants.get(key[0])
        if keys is None:
            self._tenants[key[0]] = {key: None}
        else:
            keys.setdefault(key)

    def discard(self, key: Key) -> None:
        """It has no turn any more; its tenant keeps its own."""
        keys = self._tenants.get(key[0], {})
        keys.pop(key, None)
        if not keys:
            self._tenants.pop(key[0], None)

    def first(self) -> Key | None:
        """Whose turn it is."""
        for keys in self._tenants.values():
            return next(iter(keys))
        return None

    def firsts(self) -> Iterator[Key]:
        """Of each tenant the endpoint whose turn it is. The line must not change meanwhile."""
        return (next(iter(keys)) for keys in self._tenants.values())

    def take(self, key: Key) -> None:
        """It has its turn, and leaves the line; its tenant's next one is after those of the others."""
        keys = self._tenants.pop(key[0])
        del keys[key]
        if keys:
            self._tenants[key[0]] = keys


def guests_of(places: int) -> int:
    """How many more there are for guests."""
    return max(1, int(places * GUEST_SHARE))


def is_guest(places: int, taken: int, own: int) -> bool:
    """Whether a tenant that has so many (`own`) may have one of the guests' places, where so many are taken in all."""
    return 2 * own < guests_of(places) - max(0, taken - places)


def has_place(places: int, taken: int, own: int) -> bool:
    """Whether such a tenant may have one more."""
    return taken < places or is_guest(places, taken, own)


def shared(wanting: Sequence[tuple[Key, int]], free: int) -> Iterator[EndpointRoom]:
    """Rooms out of what is free: the same for each tenant, and for each of its endpoints, but no more than it wants."""
    tenants: dict[TenantId, list[tuple[Key, int]]] = {}
    for key, wanted in wanting:
        tenants.setdefault(key[0], []).append((key, wanted))
    by_want = sorted(tenants.values(), key=lambda endpoints: sum(wanted for _, wanted in endpoints))
    for number, endpoints in enumerate(by_want):
        rooms = list(_shared_by_endpoints(endpoints, free // (len(by_want) - number)))
        free -= sum(one.room for one in rooms)
        yield from rooms


def _shared_by_endpoints(wanting: Sequence[tuple[Key, int]], free: int) -> Iterator[EndpointRoom]:
    share = max(1, free // max(1, len(wanting)))
    for key, wanted in wanting:
        room = min(wanted, share, free)
        if room > 0:
            free -= room
            yield EndpointRoom(*key, room)
