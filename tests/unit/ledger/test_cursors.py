"""Cursors are read back, and nothing else is."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.cursors import (
    InvalidCursor,
    Place,
    cursor_key_of,
    decode_cursor,
    encode_cursor,
    microseconds_of,
    moment_of,
)
from ledger.ids import TenantId

KEY = cursor_key_of(bytes(32))
TENANT = TenantId("ten_1")
PLACES = st.lists(st.integers(-(2**62), 2**62) | st.text(max_size=40), max_size=3).map(tuple)


@given(PLACES)
def test_a_place_is_read_back(place: Place) -> None:
    assert decode_cursor(KEY, TENANT, "list", encode_cursor(KEY, TENANT, "list", place)) == place


@given(PLACES, st.integers(0, 200), st.sampled_from("AQgw_-9"))
def test_a_changed_cursor_is_refused(place: Place, position: int, character: str) -> None:
    cursor = encode_cursor(KEY, TENANT, "list", place)
    position %= len(cursor) - 1  # the last character may hold unused bits
    changed = cursor[:position] + character + cursor[position + 1 :]
    if changed != cursor:
        with pytest.raises(InvalidCursor):
            decode_cursor(KEY, TENANT, "list", changed)


@given(st.text(max_size=500))
def test_any_text_is_refused(text: str) -> None:
    with pytest.raises(InvalidCursor):
        decode_cursor(KEY, TENANT, "list", text)


def test_a_cursor_is_good_for_its_tenant_list_and_key_only() -> None:
    cursor = encode_cursor(KEY, TENANT, "list", (1, "a"))
    for key, tenant, name in (
        (KEY, TenantId("ten_2"), "list"),
        (KEY, TENANT, "other"),
        (cursor_key_of(b"\x01" * 32), TENANT, "list"),
    ):
        with pytest.raises(InvalidCursor):
            decode_cursor(key, tenant, name, cursor)


@given(st.datetimes(timezones=st.just(UTC)))
def test_times_lose_no_microsecond(moment: datetime) -> None:
    assert moment_of(microseconds_of(moment)) == moment
