"""Which delivery begins next: nothing that one endpoint does keeps another's from beginning."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.claims import Claimed
from ledger.events import LATE_PRIORITY, LIVE_PRIORITY
from ledger.ids import DeliveryId, EndpointId, EventId, TenantId
from ledger.owed import Owed
from ledger.states import EndpointHealth, Outcome
from notifier.ahead import AHEAD, AHEAD_S
from notifier.fairness import guests_of
from notifier.isolation import (
    FORGOTTEN_AFTER_S,
    LINE_MAX,
    PAUSE_S,
    REST_MAX,
    SLOTS,
    SLOW_MAX,
    WINDOW_FIRST,
    WINDOW_MIN,
    Exchange,
    Isolation,
    Waiting,
)
from notifier.outcome import AttemptError

NOW = datetime(2026, 11, 26, tzinfo=UTC)
ACCEPTING, UNPROVEN, FAILING = EndpointHealth.ACCEPTING, EndpointHealth.UNPROVEN, EndpointHealth.FAILING


def claimed(endpoint: str, number: int, priority: int = LIVE_PRIORITY, tenant: str = "ten_a") -> Claimed:
    return Claimed(
        tenant_id=TenantId(tenant),
        id=DeliveryId(f"del_{endpoint}_{number}"),
        event_id=EventId(f"evt_{number}"),
        event_created_at=NOW,
        endpoint_id=EndpointId(endpoint),
        subject=f"dep_{number}",
        feed_position=number,
        priority=priority,
        attempts=1,
        lease_token="t",
        is_taken_over=False,
        body=b"{}",
        url="https://a.example",
        is_endpoint_gone=False,
    )


def owed(endpoint: str, health: EndpointHealth = ACCEPTING, tenant: str = "ten_a") -> Owed:
    return Owed(TenantId(tenant), EndpointId(endpoint), health)


def give(
    isolation: Isolation,
    endpoint: str,
    number: int = 1,
    health: EndpointHealth = ACCEPTING,
    *,
    priority: int = LIVE_PRIORITY,
    now: float = 0.0,
    tenant: str = "ten_a",
) -> None:
    """Let so many deliveries to an endpoint wait."""
    isolation.note_owed([owed(endpoint, health, tenant)])
    for index in range(number):
        isolation.add(Waiting(claimed(endpoint, index, priority, tenant), ("whsec_",), now), now)


def begin_all(isolation: Isolation, now: float = 0.0) -> list[Exchange]:
    """Begin what may."""
    begun = []
    while exchange := isolation.begin(now):
        begun.append(exchange)
    return begun


def endpoints_of(exchanges: list[Exchange]) -> Counter[str]:
    return Counter(exchange.key[1] for exchange in exchanges)


def widen(isolation: Isolation, endpoint: str) -> None:
    """Let an endpoint accept until its window is as wide as it gets."""
    for _ in range(SLOTS):
        give(isolation, endpoint)
        [exchange] = begin_all(isolation)
        isolation.end(exchange, 0.0, Outcome.ACCEPTED)


@pytest.mark.parametrize("bad", [UNPROVEN, FAILING])
def test_endpoints_that_hang_take_no_slot_of_those_that_accept(bad: EndpointHealth) -> None:
    isolation = Isolation()
    for number in range(100):
        give(isolation, f"bad_{number}", 5, bad)
    hanging = begin_all(isolation)
    assert len(hanging) == isolation.slots[bad] < SLOTS
    for number in range(SLOTS):
        give(isolation, f"good_{number}")
    assert len(begin_all(isolation)) == SLOTS


def test_one_endpoint_that_accepts_leaves_half_of_the_slots_to_the_next() -> None:
    isolation = Isolation()
    widen(isolation, "large")
    give(isolation, "large", 200)
    assert endpoints_of(begin_all(isolation)) == {"large": SLOTS // 2}
    give(isolation, "small", 2)
    assert endpoints_of(begin_all(isolation)) == {"small": 2}


def test_a_new_endpoint_gets_a_few_at_once_so_that_one_stuck_delivery_delays_no_other() -> None:
    isolation = Isolation()
    give(isolation, "new", 10, UNPROVEN)
    first, *others = begin_all(isolation)
    assert 1 + len(others) == WINDOW_FIRST[UNPROVEN] == 2
    isolation.end(others[0], 0.0, Outcome.ACCEPTED)
    assert len(begin_all(isolation)) == 2  # its place, and one that was earned
    assert first.key in isolation.standings


def test_a_slow_exchange_leaves_its_slot_until_so_many_are_slow() -> None:
    isolation = Isolation()
    slow = 0
    for round_ in range(100):
        for number in range(isolation.slots[FAILING]):
            give(isolation, f"bad_{round_}_{number}", 1, FAILING)
        begun = begin_all(isolation)
        for exchange in begun:
            isolation.leave_slot(exchange, 10.0)
        slow += sum(exchange.is_slow for exchange in begun)
    assert slow == SLOW_MAX[FAILING]
    assert isolation.taken[FAILING] == isolation.slots[FAILING]


def test_after_a_timeout_there_is_one_at_a_time_until_it_accepts() -> None:
    isolation = Isolation()
    widen(isolation, "shop")
    give(isolation, "shop", 100)
    first, *others = begin_all(isolation)
    isolation.end(first, 0.0, Outcome.RETRYABLE, error=AttemptError.TIMEOUT)
    assert isolation.standings[first.key].health is ACCEPTING
    assert begin_all(isolation) == []
    for exchange in others:
        isolation.end(exchange, 0.0, Outcome.RETRYABLE, error=AttemptError.TIMEOUT)
    assert begin_all(isolation) == []
    [probe] = begin_all(isolation, PAUSE_S)
    isolation.end(probe, PAUSE_S, Outcome.ACCEPTED)
    assert isolation.standings[first.key].health is ACCEPTING
    assert len(begin_all(isolation, PAUSE_S)) == 2


def test_one_timeout_of_an_endpoint_that_accepts_puts_it_behind_none_of_those_that_hang() -> None:
    isolation = Isolation()
    for number in range(isolation.slots[FAILING]):
        give(isolation, f"bad_{number}", 1, FAILING)
    begin_all(isolation)
    give(isolation, "shop", 3)
    exchanges = begin_all(isolation)
    isolation.end(exchanges[0], 0.0, Outcome.RETRYABLE, error=AttemptError.TIMEOUT)
    for exchange in exchanges[1:]:
        isolation.end(exchange, 0.0, Outcome.RETRYABLE)
    give(isolation, "shop", 1)
    assert isolation.standings[exchanges[0].key].health is FAILING  # three failures in a row, whatever kind
    give(isolation, "store", 1)
    [exchange] = begin_all(isolation)
    isolation.end(exchange, 0.0, Outcome.RETRYABLE, error=AttemptError.TIMEOUT)
    give(isolation, "store", 2)
    assert endpoints_of(begin_all(isolation)) == {"store": 1}


@pytest.mark.parametrize("timeouts", [1, 2])
def test_who_never_accepted_anything_fails_with_the_first_timeout_and_others_with_the_second(timeouts: int) -> None:
    isolation = Isolation()
    for health in (UNPROVEN, ACCEPTING):
        give(isolation, health, timeouts, health)
    for _ in range(timeouts):
        for exchange in begin_all(isolation, 1.0 + PAUSE_S):
            isolation.end(exchange, 1.0, Outcome.RETRYABLE, error=AttemptError.TIMEOUT)
    healths = {str(key[1]): standing.health for key, standing in isolation.standings.items()}
    assert healths == {"unproven": FAILING, "accepting": ACCEPTING if timeouts == 1 else FAILING}


def test_whom_others_saw_fail_is_asked_one_at_a_time_however_wide_its_window_is() -> None:
    """Its breaker may be half open: each claim would bring one more probe while the first is under way."""
    isolation = Isolation()
    widen(isolation, "shop")
    isolation.note_owed([owed("shop", FAILING)])
    assert rooms_of(isolation, is_moving=True) == {"shop": 1}
    give(isolation, "shop", 2, FAILING)
    assert len(begin_all(isolation)) == 1
    isolation.note_owed([owed("shop", FAILING)])
    assert rooms_of(isolation, is_moving=True) == {}


def test_whom_others_saw_fail_while_something_is_under_way_gets_nothing_beside_it() -> None:
    isolation = Isolation()
    widen(isolation, "shop")
    give(isolation, "shop", 1)
    [exchange] = begin_all(isolation)
    isolation.note_owed([owed("shop", FAILING)])
    assert rooms_of(isolation) == {}
    isolation.end(exchange, 0.0, Outcome.ACCEPTED)
    isolation.look_again(exchange.key)
    assert rooms_of(isolation)["shop"] > 1


def test_failing_endpoints_are_claimed_for_apart() -> None:
    isolation = Isolation()
    isolation.note_owed([owed("shop"), owed("new", UNPROVEN), owed("bad", FAILING)])
    prompt = isolation.turns(0.0, is_moving=False, healths=(ACCEPTING, UNPROVEN))
    calm = isolation.turns(0.0, is_moving=False, healths=(FAILING,))
    assert [{one.endpoint_id for one in turns.rooms} for turns in (prompt, calm)] == [{"shop", "new"}, {"bad"}]


def test_what_was_noted_during_one_of_two_claims_is_not_forgotten_by_the_other() -> None:
    isolation = Isolation()
    isolation.note_owed([owed("shop"), owed("bad", FAILING)])
    calm = isolation.turns(0.0, is_moving=False, healths=(FAILING,))
    isolation.look_again((TenantId("ten_a"), EndpointId("bad")))
    prompt = isolation.turns(0.0, is_moving=False, healths=(ACCEPTING,))
    isolation.note_claimed(prompt, [])
    isolation.note_claimed(calm, [])
    assert [key[1] for key in isolation.owed] == ["bad"]


def test_failures_that_are_answers_halve_the_window_and_three_in_a_row_are_a_failing_endpoint() -> None:
    isolation = Isolation()
    widen(isolation, "shop")
    give(isolation, "shop", 3)
    windows = []
    for exchange in begin_all(isolation):
        isolation.end(exchange, 0.0, Outcome.RETRYABLE)
        windows.append((isolation.standings[exchange.key].window, isolation.standings[exchange.key].health))
    assert windows == [(SLOTS // 2, ACCEPTING), (SLOTS // 4, ACCEPTING), (1, FAILING)]


def test_a_refusal_of_ours_says_nothing_of_the_endpoint() -> None:
    isolation = Isolation()
    give(isolation, "shop", 4)
    for exchange in begin_all(isolation):
        isolation.end(exchange, 0.0, Outcome.REFUSED, error=AttemptError.REFUSED_ADDRESS)
    standing = isolation.standings[TenantId("ten_a"), EndpointId("shop")]
    assert (standing.health, standing.window) == (ACCEPTING, WINDOW_MIN)


def test_an_endpoint_that_asks_to_be_left_alone_is_for_so_long_and_for_a_minute_at_most() -> None:
    isolation = Isolation()
    give(isolation, "shop", 4)
    give(isolation, "other", 1)
    first, second = isolation.begin(0.0), isolation.begin(0.0)
    assert first is not None
    assert second is not None
    isolation.end(first, 0.0, Outcome.RETRYABLE, rest=timedelta(hours=2))
    assert begin_all(isolation, 1.0) == []
    assert "shop" not in {one.endpoint_id for one in isolation.turns(1.0, is_moving=True).rooms}
    after = REST_MAX.total_seconds() + 1
    give(isolation, "shop", 1, now=after)
    assert endpoints_of(begin_all(isolation, after)) == {"shop": 2}  # half of the window that it had


def test_endpoints_take_turns_and_what_is_live_goes_before_what_is_late() -> None:
    isolation = Isolation(slots=4)
    give(isolation, "a", 2, priority=LATE_PRIORITY)
    give(isolation, "a", 2)
    give(isolation, "b", 2)
    begun = begin_all(isolation)
    assert [exchange.key[1] for exchange in begun] == ["a", "b", "a", "b"]
    assert {exchange.waiting.claimed.priority for exchange in begun} == {LIVE_PRIORITY}


def rooms_of(isolation: Isolation, *, is_moving: bool = False) -> dict[str, int]:
    return {one.endpoint_id: one.room for one in isolation.turns(0.0, is_moving=is_moving).rooms}


def test_tenants_take_turns_however_many_endpoints_each_has() -> None:
    isolation = Isolation(slots=4)
    for number in range(100):
        give(isolation, f"large_{number}", tenant="ten_large")
    give(isolation, "small", 3, tenant="ten_small")
    assert [exchange.key[1] for exchange in begin_all(isolation)] == ["large_0", "small", "large_1", "small"]


def test_what_a_claim_may_bring_is_shared_by_tenants_and_what_one_does_not_want_is_the_others() -> None:
    isolation = Isolation()
    isolation.note_owed([owed(f"large_{number}", tenant="ten_large") for number in range(1_000)])
    isolation.note_owed([owed("small", tenant="ten_small")])
    rooms: dict[str, int] = {one.endpoint_id: one.room for one in isolation.turns(0.0, is_moving=False).rooms}
    assert rooms["small"] == WINDOW_MIN
    assert sum(rooms.values()) == SLOTS
    alone = Isolation()
    alone.note_owed([owed(f"large_{number}", tenant="ten_large") for number in range(1_000)])
    assert sum(one.room for one in alone.turns(0.0, is_moving=False).rooms) == SLOTS


@pytest.mark.parametrize("health", list(EndpointHealth))
def test_where_one_tenant_has_all_places_with_receivers_that_hang_others_are_still_told(health: EndpointHealth) -> None:
    isolation, now = Isolation(), 10.0
    while True:  # what leaves its slot makes room for more, until no more may be slow
        for number in range(isolation.slots[health]):
            give(isolation, f"hang_{number}_{now}", 1, health, tenant="ten_hang")
        begun = begin_all(isolation, now)
        if not begun:
            break
        for exchange in begun:
            isolation.leave_slot(exchange, now + 1.0)
        now += 1.0
    isolation.take_back(now)
    in_hand = isolation.taken[health] + isolation.slow[health]
    assert in_hand == isolation.slots[health] + SLOW_MAX[health]
    for number in range(20):
        isolation.note_owed([owed("ep", health, f"ten_{number}")])
        turns = isolation.turns(now, is_moving=False, healths=[health])
        assert [(one.tenant_id, one.room) for one in turns.rooms] == [(f"ten_{number}", 1)]
        give(isolation, "ep", 1, health, tenant=f"ten_{number}")
        [exchange] = begin_all(isolation, now)
        assert (exchange.key[0], exchange.slot) == (f"ten_{number}", health)
        isolation.owed.clear()  # it was owed that one
        if number % 2:
            isolation.end(exchange, now, Outcome.ACCEPTED)
        else:
            isolation.leave_slot(exchange, now + 1.0)
            assert exchange.is_slow
    assert isolation.taken[health] == isolation.slots[health]


def test_more_is_claimed_ahead_only_while_exchanges_end_and_only_of_those_that_accept() -> None:
    isolation = Isolation()
    widen(isolation, "shop")
    isolation.note_owed([owed("shop")])
    assert rooms_of(isolation) == {"shop": SLOTS // 2}
    give(isolation, "shop")
    [exchange] = begin_all(isolation)
    isolation.end(exchange, 0.0, Outcome.ACCEPTED)
    assert rooms_of(isolation, is_moving=True) == {"shop": SLOTS // 2 * (1 + AHEAD)}
    assert rooms_of(isolation, is_moving=True) == {"shop": SLOTS // 2}  # nothing was accepted since


@pytest.mark.parametrize("took_s", [0.001, 0.05, 0.1, 0.2, 0.3, 0.7, 15.0])
def test_no_more_is_claimed_ahead_than_begins_in_time_with_one_that_takes_as_long(took_s: float) -> None:
    isolation = Isolation()
    now = 0.0
    for _ in range(2 * SLOTS):
        give(isolation, "shop")
        [exchange] = begin_all(isolation, now)
        now += took_s
        isolation.leave_slot(exchange, now)
        isolation.end(exchange, now, Outcome.ACCEPTED)
    isolation.note_owed([owed("shop")])
    at_once = SLOTS // 2
    [room] = rooms_of(isolation, is_moving=True).values()
    assert at_once * 2 <= room <= at_once * (1 + AHEAD)
    if room > at_once * 2:
        assert (room - at_once) / at_once * took_s <= AHEAD_S  # turns of the window until the last has begun
    assert (room == at_once * (1 + AHEAD)) == (took_s * AHEAD <= AHEAD_S)


def test_slots_that_are_kept_long_are_claimed_for_less_ahead_whoever_keeps_them() -> None:
    isolation, now = Isolation(), 0.0
    for number in range(4 * SLOTS):
        give(isolation, f"shop_{number}")
        [exchange] = begin_all(isolation, now)
        now += 0.2
        isolation.end(exchange, now, Outcome.ACCEPTED)
    isolation.note_owed([owed(f"shop_{number}") for number in range(4 * SLOTS)])
    assert sum(rooms_of(isolation, is_moving=True).values()) <= SLOTS * (1 + AHEAD_S / 0.2)


def test_what_a_claim_may_bring_for_an_endpoint_is_what_it_has_room_for() -> None:
    isolation = Isolation()
    give(isolation, "shop", 3)
    begin_all(isolation)
    assert rooms_of(isolation) == {"shop": WINDOW_MIN - 3}


def test_endpoints_share_what_a_claim_may_bring_and_none_is_passed_over_for_ever() -> None:
    isolation = Isolation()
    isolation.note_owed([owed(f"ep_{number:03}") for number in range(300)])
    turns: list[str] = []
    while len(turns) < 900:
        rooms = isolation.turns(0.0, is_moving=True).rooms
        assert {one.room for one in rooms} == {1}
        turns += [one.endpoint_id for one in rooms]
    assert set(Counter(turns[:900]).values()) == {3}


def test_endpoints_without_room_keep_no_other_from_its_turn() -> None:
    """Whatever the others are: full, resting, or failing while every slot of those that fail is taken."""
    isolation = Isolation()
    for number in range(isolation.slots[FAILING] + 20):
        give(isolation, f"bad_{number}", 1, FAILING)
    begin_all(isolation)
    isolation.note_owed([owed("shop")])
    for _ in range(3):
        assert rooms_of(isolation)["shop"] > 0


def test_endpoints_without_room_take_no_share() -> None:
    isolation = Isolation()
    widen(isolation, "shop")
    for number in range(500):
        isolation.note_owed([owed(f"bad_{number}", UNPROVEN)])
    isolation.note_owed([owed("shop")])
    assert rooms_of(isolation)["shop"] == SLOTS // 2


def test_however_long_the_line_is_each_endpoint_comes_to_its_turn() -> None:
    isolation = Isolation()
    for number in range(LINE_MAX + 50):
        isolation.note_owed([owed(f"bad_{number:05}", FAILING)])
    isolation.note_owed([owed("shop")])
    turns = [rooms_of(isolation) for _ in range(200)]
    assert any("shop" in rooms for rooms in turns)
    assert len({name for rooms in turns for name in rooms}) == LINE_MAX + 51


def test_many_that_wait_for_taken_slots_hide_nobody_behind_them() -> None:
    isolation = Isolation()
    for number in range(isolation.slots[FAILING]):
        give(isolation, f"slow_{number}", 1, FAILING)
    begin_all(isolation)
    for number in range(3 * LINE_MAX):
        isolation.note_owed([owed(f"bad_{number:05}", FAILING)])
    isolation.note_owed([owed("shop")])
    assert "shop" in {name for _ in range(5) for name in rooms_of(isolation)}


def test_what_was_settled_during_a_claim_keeps_its_endpoint_in_the_line() -> None:
    isolation = Isolation()
    isolation.note_owed([owed("shop")])
    turns_taken = isolation.turns(0.0, is_moving=False)
    isolation.look_again((TenantId("ten_a"), EndpointId("shop")))
    isolation.note_claimed(turns_taken, [])
    assert isolation.owed


def test_an_endpoint_leaves_the_line_when_a_claim_brings_less_than_there_was_room_for() -> None:
    isolation = Isolation()
    isolation.note_owed([owed("shop"), owed("other")])
    turns_taken = isolation.turns(0.0, is_moving=False)
    brought = [claimed("shop", number) for number in range(4)]
    isolation.note_claimed(turns_taken, brought)
    assert list(isolation.owed) == [(TenantId("ten_a"), EndpointId("shop"))]
    isolation.look_again((TenantId("ten_a"), EndpointId("other")))
    assert len(isolation.owed) == 2


def test_what_waited_too_long_is_taken_back_and_an_idle_endpoint_is_forgotten() -> None:
    isolation = Isolation()
    give(isolation, "shop", 6, now=0.0)
    begun = begin_all(isolation)
    give(isolation, "shop", 1, now=5.0)
    assert [one.feed_position for one in isolation.take_back(1.0)] == [4, 5]
    for exchange in begun:
        isolation.end(exchange, 5.0, Outcome.ACCEPTED)
    [last] = begin_all(isolation, 5.0)
    isolation.forget(1000.0)
    assert len(isolation.standings) == 1
    isolation.end(last, 6.0, Outcome.ACCEPTED)
    isolation.forget(6.0 + FORGOTTEN_AFTER_S + 1)
    assert isolation.standings == {}


STEPS = st.lists(
    st.tuples(st.sampled_from(["add", "begin", "slow", "accept", "fail", "hang", "back", "gone"]), st.integers(0, 99)),
    max_size=200,
)


@given(steps=STEPS)
def test_whatever_happens_the_counts_are_those_of_what_is_there(steps: list[tuple[str, int]]) -> None:
    isolation, under_way = Isolation(slots=8), list[Exchange]()
    for now, (step, number) in enumerate(steps):
        if step == "add":
            health, tenant = list(EndpointHealth)[number % 3], f"ten_{number % 5 % 2}"
            give(isolation, f"ep_{number % 5}", 1 + number % 4, health, now=float(now), tenant=tenant)
        elif step == "begin":
            under_way += begin_all(isolation, float(now))
        elif step == "back":
            isolation.take_back(float(now - number % 10))
        elif under_way:
            exchange = under_way[number % len(under_way)]
            if step == "slow":
                isolation.leave_slot(exchange, float(now))
                continue
            under_way.remove(exchange)
            outcome = {"accept": Outcome.ACCEPTED, "fail": Outcome.RETRYABLE, "hang": Outcome.RETRYABLE}.get(step)
            error = AttemptError.TIMEOUT if step == "hang" else None
            isolation.end(exchange, float(now), outcome, error=error)
        check(isolation, under_way)
    under_way += begin_all(isolation, 1000.0)
    while under_way:
        isolation.end(under_way.pop(), 1000.0, Outcome.ACCEPTED)
        under_way += begin_all(isolation, 1000.0)
    assert not any(standing.waiting for standing in isolation.standings.values()), "nothing waits for ever"


def check(isolation: Isolation, under_way: list[Exchange]) -> None:
    """That the books agree with what is there, and no limit is passed."""
    standings = isolation.standings
    for health in EndpointHealth:
        of_health = [standing for standing in standings.values() if standing.health is health]
        assert isolation.waiting[health] == sum(standing.waiting for standing in of_health)
        assert isolation.busy[health] == sum(standing.in_flight > 0 for standing in of_health)
        taken = [exchange for exchange in under_way if exchange.slot is health and not exchange.is_slow]
        assert isolation.taken[health] == len(taken) <= isolation.slots[health] + guests_of(isolation.slots[health])
        in_slots = [exchange.key[0] for exchange in under_way if exchange.slot is health]
        assert +isolation.under_way_of[health] == Counter(in_slots)
        for key in isolation.ready[health]:
            assert standings[key].health is health
            assert standings[key].waiting
    assert set(isolation.holding) == {key for key, standing in standings.items() if standing.waiting}
    assert Counter(exchange.key for exchange in under_way) == Counter(
        {key: standing.in_flight for key, standing in standings.items() if standing.in_flight}
    )
