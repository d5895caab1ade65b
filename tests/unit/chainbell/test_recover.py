"""What `chainbell recover` understands, and what it says of the rest."""

from __future__ import annotations

import pytest

from chainbell.cli.recover import _read_order
from chainbell.errors import UsageError
from ledger.holding import Only

NOTHING: dict[str, str | None] = dict.fromkeys(("endpoint", "since", "until", "event", "entry"))
SINCE = "2026-01-02T00:00:00Z"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "name one of --since, --event and --entry"),
        ({"event": "evt_1", "entry": "dep_1"}, "name one of --since, --event and --entry"),
        ({"since": SINCE}, "--since needs an --endpoint"),
        ({"event": "evt_1", "until": SINCE}, "--until belongs to --since"),
        ({"endpoint": "ep_1", "since": SINCE, "until": "2026-01-01T00:00:00Z"}, "swap them"),
        ({"endpoint": "ep_1", "since": "yesterday"}, "is not a time"),
        ({"endpoint": "ep_1", "since": "2026-01-02T00:00:00"}, "has no zone"),
        ({"endpoint": "ep_1", "since": "0001-01-01T00:00:00+14:00"}, "is not within the years"),
    ],
)
def test_what_cannot_be_meant_is_refused(given: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        _read_order(**{**NOTHING, **given}, only=None)


def test_a_range_means_what_failed_and_a_name_means_all_unless_something_else_is_said() -> None:
    by_time = _read_order(**{**NOTHING, "endpoint": "ep_1", "since": SINCE}, only=None)
    assert by_time.asked == {"since": "2026-01-02T00:00:00Z", "until": None, "only": "failed"}
    assert _read_order(**{**NOTHING, "event": "evt_1"}, only=None).asked == {"event_id": "evt_1", "only": "all"}
    missing = _read_order(**{**NOTHING, "entry": "dep_1"}, only=Only.MISSING)
    assert missing.asked == {"entry_id": "dep_1", "only": "missing"}
