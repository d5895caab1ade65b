"""The schedule of attempts, its jitter, and how far a receiver's Retry-After bends it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from notifier.backoff import ATTEMPTS_MAX, SCHEDULE, delay_before_next_attempt, parse_retry_after

NOW = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)


def delay(
    attempts_made: int, randomness: float = 0.5, *, status_code: int | None = None, retry_after: str | None = None
) -> timedelta | None:
    return delay_before_next_attempt(
        attempts_made, randomness=randomness, now=NOW, status_code=status_code, retry_after=retry_after
    )


def test_the_thirteen_attempts_are_spread_over_77_hours() -> None:
    seconds = [0, 5, 30, 120, 600, 1800, 3600, 7200, 18000, 36000, 50400, 72000, 86400]
    assert [step.total_seconds() for step in SCHEDULE] == seconds
    assert sum(seconds) / 3600 == pytest.approx(76.7, abs=0.1)
    assert [delay(made) for made in range(ATTEMPTS_MAX)] == list(SCHEDULE)


@pytest.mark.parametrize("made", [13, 14, 100])
def test_after_the_thirteenth_attempt_the_delivery_is_exhausted(made: int) -> None:
    assert delay(made) is None
    assert delay(made, status_code=503, retry_after="60") is None


@given(st.integers(min_value=1, max_value=12), st.floats(min_value=0, max_value=1))
def test_jitter_stays_within_a_fifth(made: int, randomness: float) -> None:
    waited = delay(made, randomness)
    assert waited is not None
    assert SCHEDULE[made] * 0.8 <= waited <= SCHEDULE[made] * 1.2


def test_jitter_uses_its_whole_range() -> None:
    assert delay(1, 0.0) == timedelta(seconds=4)
    assert delay(1, 1.0) == timedelta(seconds=6)


@pytest.mark.parametrize("status_code", [429, 503])
@pytest.mark.parametrize(
    ("retry_after", "expected"),
    [
        ("600", timedelta(minutes=10)),
        (" 600 ", timedelta(minutes=10)),
        ("1", timedelta(seconds=5)),
        ("0", timedelta(seconds=5)),
        ("999999", timedelta(hours=6)),
        ("9" * 400, timedelta(hours=6)),
        (format_datetime(NOW + timedelta(minutes=7), usegmt=True), timedelta(minutes=7)),
        ("Sun, 01 Nov 2026 12:07:00 -0000", timedelta(minutes=7)),
        (format_datetime(NOW - timedelta(days=1), usegmt=True), timedelta(seconds=5)),
        (format_datetime(NOW + timedelta(days=30), usegmt=True), timedelta(hours=6)),
        ("-5", timedelta(seconds=5)),
        ("soon", timedelta(seconds=5)),
        ("", timedelta(seconds=5)),
        ("1.5", timedelta(seconds=5)),
        ("٦٠٠", timedelta(seconds=5)),
    ],
)
def test_retry_after_is_honoured_between_the_schedule_and_six_hours(
    status_code: int, retry_after: str, expected: timedelta
) -> None:
    assert delay(1, status_code=status_code, retry_after=retry_after) == expected


def test_retry_after_never_shortens_a_wait_that_is_longer_than_six_hours() -> None:
    assert delay(9, status_code=503, retry_after="99999") == timedelta(hours=10)


@pytest.mark.parametrize("status_code", [None, 200, 400, 403, 500, 502])
def test_retry_after_of_other_answers_is_not_asked(status_code: int | None) -> None:
    assert delay(1, status_code=status_code, retry_after="600") == timedelta(seconds=5)


@given(st.text(max_size=40))
def test_any_header_text_is_a_wait_or_nothing(text: str) -> None:
    asked = parse_retry_after(text, NOW)
    assert asked is None or asked >= timedelta(0)
