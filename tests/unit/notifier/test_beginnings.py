"""Where claims begin to read."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from ledger.claims import DueFrom, EndpointRoom
from ledger.ids import EndpointId, TenantId
from ledger.owed import Owed
from ledger.states import EndpointHealth
from notifier.beginnings import ASKED_INTERVAL_S, Beginnings
from notifier.isolation import FORGOTTEN_AFTER_S

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
SHOP = TenantId("ten_a"), EndpointId("ep_shop")
ROOM = EndpointRoom(*SHOP, 4)


def at(minutes: int) -> datetime:
    return NOON + timedelta(minutes=minutes)


def beginning_of(beginnings: Beginnings, now: float) -> tuple[DueFrom | None, bool]:
    """Where a claim of the shop would begin, and whether it would ask anew."""
    [room], unsure = beginnings.of([ROOM], now)
    return room.due_from, unsure == [room]


def test_what_is_not_known_is_asked_for_and_all_is_read() -> None:
    assert beginning_of(Beginnings(), 0.0) == (None, True)


def test_what_is_known_is_used_and_asked_for_again_after_a_while() -> None:
    beginnings = Beginnings()
    beginnings.note({SHOP: DueFrom(at(1), at(2))}, 10.0)
    assert beginning_of(beginnings, 10.0 + ASKED_INTERVAL_S) == (DueFrom(at(1), at(2)), False)
    assert beginning_of(beginnings, 10.1 + ASKED_INTERVAL_S) == (DueFrom(at(1), at(2)), True)


def test_a_sweep_moves_a_beginning_back_and_never_forward() -> None:
    beginnings = Beginnings()
    beginnings.note({SHOP: DueFrom(at(1), at(2))}, 10.0)
    beginnings.move_back([Owed(*SHOP, EndpointHealth.ACCEPTING, at(3), None)])
    assert beginning_of(beginnings, 10.0) == (DueFrom(at(1), at(2)), False)
    beginnings.move_back([Owed(*SHOP, EndpointHealth.ACCEPTING, at(0), at(-1))])
    assert beginning_of(beginnings, 10.0) == (DueFrom(at(0), at(-1)), False)
    beginnings.move_back([Owed(TenantId("ten_a"), EndpointId("ep_other"), EndpointHealth.ACCEPTING, at(0), None)])
    assert beginning_of(beginnings, 10.0)[0] == DueFrom(at(0), at(-1))


def test_endpoints_that_nothing_is_claimed_for_are_forgotten() -> None:
    beginnings = Beginnings()
    beginnings.note({SHOP: DueFrom(at(1), at(2))}, 10.0)
    other = TenantId("ten_a"), EndpointId("ep_other")
    for round_ in range(1, 4):
        beginnings.note({other: DueFrom(at(1), at(2))}, 10.0 + 2 * round_ * FORGOTTEN_AFTER_S)
    assert beginning_of(beginnings, 10.0) == (None, True)
