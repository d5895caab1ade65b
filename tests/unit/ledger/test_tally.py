"""Attempts counted in windows: whose, when, how long; and what is told of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from ledger.endpoint_health import percentile_of
from ledger.ids import EndpointId, TenantId
from ledger.tally import DURATION_BOUNDS_MS, Tally

KEY = (TenantId("ten_a"), EndpointId("ep_1"))
NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)


def test_attempts_count_in_the_window_in_which_they_ended() -> None:
    tally = Tally()
    tally.note(KEY, NOON + timedelta(minutes=9, seconds=59), 30, is_accepted=True)
    tally.note(KEY, NOON + timedelta(minutes=10), 30, is_accepted=False)
    tally.note(KEY, NOON + timedelta(minutes=11), 30, is_accepted=True)
    seen = {began_at: (window.attempts, window.accepted) for (_, began_at), window in tally.take().items()}
    assert seen == {NOON: (1, 1), NOON + timedelta(minutes=10): (2, 1)}
    assert tally.take() == {}


def test_what_could_not_be_written_counts_with_what_came_since() -> None:
    tally = Tally()
    tally.note(KEY, NOON, 1, is_accepted=True)
    taken = tally.take()
    tally.note(KEY, NOON, 60_000, is_accepted=False)
    tally.put_back(taken)
    [window] = tally.take().values()
    assert (window.attempts, window.accepted) == (2, 1)
    assert (window.durations[0], window.durations[-1], sum(window.durations)) == (1, 1, 2)


@pytest.mark.parametrize(
    ("durations_ms", "share", "told"),
    [
        ([], 0.5, None),
        ([7], 0.5, 10),
        ([10], 0.5, 10),
        ([11], 0.95, 20),
        ([1] * 95 + [900] * 5, 0.5, 5),
        ([1] * 95 + [900] * 5, 0.95, 5),
        ([1] * 94 + [900] * 6, 0.95, 1_000),
        ([99_000], 0.5, DURATION_BOUNDS_MS[-1]),
    ],
)
def test_a_percentile_is_the_bound_that_so_many_stayed_within(
    durations_ms: list[int], share: float, told: int | None
) -> None:
    tally = Tally()
    for duration_ms in durations_ms:
        tally.note(KEY, NOON, duration_ms, is_accepted=True)
    windows = list(tally.take().values())
    assert percentile_of(windows[0].durations if windows else [], share) == told
