"""The sink proof's verdict: each thing that may go wrong is seen."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.fakes.sink import Receipt
from tests.outside.sink_checks import Key, Owed, faults

EVENTS = ("evt_1", "evt_2")
OWED = [
    Owed("ep_a", event_id, "dep_1", number, b"body", 100.5, "delivered", 1) for number, event_id in enumerate(EVENTS, 1)
]
RECEIPTS = [Receipt("ep_a", row.event_id, row.subject, row.sequence, 101, 101.2, True, row.body, 204) for row in OWED]
PROMISED: set[Key] = {row.key for row in OWED}


def test_what_came_once_in_order_and_signed_is_right() -> None:
    assert faults(PROMISED, OWED, RECEIPTS, {}, {}) == []


def test_what_came_again_after_a_lost_lease_is_right() -> None:
    again = [replace(OWED[0], attempts=2), OWED[1]]
    assert faults(PROMISED, again, [*RECEIPTS, RECEIPTS[0]], {OWED[0].key: 1}, {}) == []


def test_what_came_again_after_a_refusal_is_right() -> None:
    again = [replace(OWED[0], attempts=2), OWED[1]]
    assert faults(PROMISED, again, [replace(RECEIPTS[0], status=500), *RECEIPTS], {}, {}) == []


def test_what_was_claimed_and_not_known_of_came_once() -> None:
    again = [replace(OWED[0], attempts=2), OWED[1]]
    assert faults(PROMISED, again, RECEIPTS, {}, {OWED[0].key: 1}) == []
    [fault] = faults(PROMISED, again, [*RECEIPTS, RECEIPTS[0]], {}, {OWED[0].key: 1})
    assert "came 2 times, for which there are 1 reasons" in fault


@pytest.mark.parametrize(
    ("owed", "receipts", "word"),
    [
        (OWED, RECEIPTS[:1], "never came"),
        (OWED, [replace(RECEIPTS[0], status=500), RECEIPTS[1]], "never came"),
        (OWED[:1], RECEIPTS, "owed to nobody"),
        ([*OWED, replace(OWED[0], event_id="evt_3")], RECEIPTS, "was not committed"),
        (OWED, [*RECEIPTS, replace(RECEIPTS[1], event_id="evt_3", sequence=3)], "came and was not committed"),
        ([replace(OWED[0], state="pending"), OWED[1]], RECEIPTS, "is pending"),
        (OWED, [replace(RECEIPTS[0], is_signed=False), RECEIPTS[1]], "does not hold"),
        (OWED, [replace(RECEIPTS[0], body=b"other"), RECEIPTS[1]], "other bytes"),
        (OWED, [replace(RECEIPTS[0], timestamp=99), RECEIPTS[1]], "was signed for"),
        (OWED, [replace(RECEIPTS[0], timestamp=102), RECEIPTS[1]], "was signed for"),
        (OWED, RECEIPTS[::-1], "in the order"),
        ([replace(OWED[0], attempts=2), OWED[1]], [*RECEIPTS, RECEIPTS[0]], "there are 1 reasons"),
        (OWED, [*RECEIPTS, RECEIPTS[0]], "was counted 1 times"),
    ],
)  # fmt: skip
def test_a_fault_is_seen(owed: list[Owed], receipts: list[Receipt], word: str) -> None:
    assert any(word in fault for fault in faults(PROMISED, owed, receipts, {}, {}))
