"""How far two clocks are surely apart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from notifier.clock import Comparison

DAYS = st.floats(min_value=-1e7, max_value=1e7)
SECONDS = st.floats(min_value=0, max_value=1000)


@pytest.mark.parametrize(
    ("wall_s", "skew_s"), [(1000, 0), (1031, 30), (1001, 0), (999, 0), (969, -30), (4601, 3600)]
)  # fmt: skip
def test_half_of_the_time_that_the_answer_took_is_no_skew(wall_s: float, skew_s: float) -> None:
    compared = Comparison(database_s=1000, asked_at_s=49, answered_at_s=51)
    assert compared.skew_s(wall_s, monotonic_s=50) == skew_s


def test_between_two_comparisons_the_monotonic_clock_vouches() -> None:
    compared = Comparison(database_s=1000, asked_at_s=50, answered_at_s=50)
    assert compared.skew_s(1055, monotonic_s=105) == 0
    assert compared.skew_s(1055 + 3600, monotonic_s=105) == 3600
    assert compared.skew_s(1055 - 3600, monotonic_s=105) == -3600


@given(DAYS, SECONDS, SECONDS, st.floats(min_value=0, max_value=1))
def test_a_right_clock_is_never_said_to_be_wrong_however_slow_the_answer(
    monotonic_s: float, took_s: float, later_s: float, share: float
) -> None:
    """The database took its time somewhere between question and answer."""
    compared = Comparison(1e9, monotonic_s, monotonic_s + took_s)
    wall_s = 1e9 + took_s * (1 - share) + later_s
    assert abs(compared.skew_s(wall_s, monotonic_s + took_s + later_s)) < 1e-3


@given(DAYS, SECONDS, st.floats(min_value=-1e6, max_value=1e6))
def test_a_wrong_clock_is_found_less_what_the_answer_leaves_in_doubt(
    monotonic_s: float, took_s: float, wrong_s: float
) -> None:
    compared = Comparison(1e9, monotonic_s, monotonic_s + took_s)
    found_s = compared.skew_s(1e9 + took_s / 2 + wrong_s, monotonic_s + took_s)
    assert abs(found_s - wrong_s) <= took_s / 2 + 1e-3
    assert abs(found_s) <= abs(wrong_s) + 1e-3
