"""Ids that are made once: their form, and their order."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

from ledger.ids import new_id, new_ids

NOW = datetime(2026, 11, 1, 12, 0, 0, 123_000, tzinfo=UTC)


def test_an_id_is_a_uuid_of_version_7_with_its_time() -> None:
    prefix, _, digits = new_id("wat", NOW).partition("_")
    uuid = UUID(digits)
    assert (prefix, uuid.version, uuid.variant) == ("wat", 7, "specified in RFC 4122")
    assert uuid.int >> 80 == int(NOW.timestamp() * 1000)


def test_ids_made_together_are_distinct_and_in_order() -> None:
    made = new_ids("wat", NOW, 5_000)
    assert made == sorted(set(made))
    assert len(made) == 5_000
    assert {UUID(one.partition("_")[2]).version for one in made} == {7}
    assert made[-1] < new_id("wat", NOW + timedelta(milliseconds=1))


def test_no_ids_are_none() -> None:
    assert new_ids("wat", NOW, 0) == []
