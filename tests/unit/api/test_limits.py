"""A key's requests are let through as often as agreed, in bursts too, and nobody spends another's."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from api.limits import BUCKETS_MAX, BURST_S, Limits
from ledger.ids import KeyId
from ledger.keys import KeyParts

KEY = KeyParts(KeyId("a" * 16), b"right")


def test_a_burst_is_let_through_and_the_next_one_is_told_how_long_to_wait() -> None:
    limits = Limits(rps=8)
    assert [limits.take(KEY, 100.0) for _ in range(int(8 * BURST_S))] == [0] * 16
    assert limits.take(KEY, 100.0) == 1
    assert limits.take(KEY, 100.0625) == 1  # half a token is none, and a refused request costs none
    assert limits.take(KEY, 100.125) == 0
    assert limits.take(KEY, 100.125) == 1


def test_a_slow_rate_names_the_seconds_that_a_token_takes() -> None:
    limits = Limits(rps=0.1)
    assert limits.take(KEY, 0.0) == 0
    assert limits.take(KEY, 0.0) == 10
    assert limits.take(KEY, 4.0) == 6
    assert limits.take(KEY, 10.0) == 0


def test_who_knows_an_id_but_not_the_secret_spends_nothing_of_the_keys() -> None:
    limits = Limits(rps=1)
    forged = KeyParts(KEY.id, b"guessed")
    assert [limits.take(forged, 0.0) for _ in range(3)] == [0, 0, 1]
    assert limits.take(KEY, 0.0) == 0


def test_what_is_remembered_is_bounded_and_a_busy_key_is_not_forgotten() -> None:
    limits = Limits(rps=1)
    for number in range(BUCKETS_MAX * 2):
        limits.take(KeyParts(KeyId(str(number)), b""), 0.0)
        if number % 1000 == 0:
            limits.take(KEY, 0.0)
    assert len(limits._buckets) == BUCKETS_MAX
    assert limits.take(KEY, 0.0) == 1


@given(st.lists(st.floats(min_value=0, max_value=3), min_size=1, max_size=200), st.floats(min_value=0.5, max_value=50))
def test_never_more_than_the_burst_and_the_rate_allow(pauses: list[float], rps: float) -> None:
    limits, now, let_through = Limits(rps), 0.0, 0
    for pause in pauses:
        now += pause
        let_through += limits.take(KEY, now) == 0
    assert let_through <= max(1.0, rps * BURST_S) + rps * now + 1e-6
