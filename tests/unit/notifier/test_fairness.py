"""Tenants among each other: lines, shares and places."""

from __future__ import annotations

from ledger.ids import EndpointId, TenantId
from notifier.fairness import Key, Line, guests_of, has_place, shared


def key(tenant: str, number: int = 0) -> Key:
    return TenantId(tenant), EndpointId(f"ep_{number}")


def test_a_line_lets_tenants_take_turns_and_within_one_its_endpoints() -> None:
    line = Line()
    for one in (key("a", 1), key("a", 2), key("a", 3), key("b", 1), key("b", 2), key("c", 1), key("a", 1)):
        line.add(one)
    taken = []
    while (first := line.first()) is not None:
        taken.append(first)
        line.take(first)
    assert taken == [key("a", 1), key("b", 1), key("c", 1), key("a", 2), key("b", 2), key("a", 3)]


def test_who_leaves_a_line_leaves_its_tenants_turn_to_the_next_endpoint() -> None:
    line = Line()
    for one in (key("a", 1), key("a", 2), key("b", 1)):
        line.add(one)
    line.discard(key("a", 1))
    line.discard(key("c", 1))
    assert list(line) == [key("a", 2), key("b", 1)]
    assert key("a", 1) not in line
    line.discard(key("a", 2))
    assert (list(line.firsts()), key("b", 1) in line) == ([key("b", 1)], True)


def test_shares_are_equal_where_all_want_more_and_small_wants_are_met() -> None:
    wanting = [(key("large", number), 4) for number in range(50)] + [(key("small"), 3), (key("middle"), 40)]
    rooms = {(one.tenant_id, one.endpoint_id): one.room for one in shared(wanting, 64)}
    of_tenant = {tenant: sum(room for of, room in rooms.items() if of[0] == tenant) for tenant in ("large", "middle")}
    assert rooms[key("small")] == 3
    assert of_tenant == {"large": 31, "middle": 30}
    assert sum(one.room for one in shared([(key("large", number), 4) for number in range(50)], 64)) in range(50, 65)


def test_guests_have_a_place_each_where_all_others_are_taken_and_no_tenant_has_all_of_theirs() -> None:
    assert guests_of(2) == 1
    assert has_place(64, 63, own=63)
    assert not has_place(64, 64, own=64)
    taken, owns = 64, list[int]()
    while has_place(64, taken, own=0):
        own = 0
        while has_place(64, taken, own):
            own, taken = own + 1, taken + 1
        owns.append(own)
    assert (owns, taken) == ([3, 2, 1, 1, 1], 64 + guests_of(64))
