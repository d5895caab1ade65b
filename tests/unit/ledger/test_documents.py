"""What merchants and operators read, as pure functions."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chains.model import AssetId, ChainId, Slug
from ledger.chains import HEARTBEAT_TIMEOUT, chain_state_of
from ledger.documents import amount_of, chain_document, event_body, time_of
from ledger.ids import EventId, new_id, uuid7_hex
from ledger.model import ChainRow
from ledger.states import ChainState

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)


def chain(head: int) -> ChainRow:
    """A chain with its tip at 10, an hour old."""
    return ChainRow(
        ChainId("eip155:1"), Slug("ethereum"), "ethereum", True, AssetId("coin"), ChainState.FOLLOWING, None, 0, 10,
        b"t", NOW - timedelta(hours=1), head, None, None, None, 10, None, 1, "roots", True, (), {}, (), NOW, None,
    )  # fmt: skip


@given(st.integers(0, 2**256 - 1) | st.sampled_from([0, 1, 2**256 - 1]), st.integers(0, 255))
def test_an_amount_is_plain_and_exact(amount_atomic: int, decimals: int) -> None:
    text = amount_of(amount_atomic, decimals)
    assert Decimal(text).scaleb(decimals) == amount_atomic or len(text) > 27
    whole, _, fraction = text.partition(".")
    assert int(whole + fraction.ljust(decimals, "0")) == amount_atomic
    assert "e" not in text.lower()
    assert not fraction.endswith("0")


@pytest.mark.parametrize(
    ("amount_atomic", "decimals", "text"),
    [(1_500_000, 6, "1.5"), (0, 18, "0"), (1, 18, "0." + "0" * 17 + "1"), (7, 0, "7"), (10**18, 18, "1")],
)
def test_amounts_as_people_write_them(amount_atomic: int, decimals: int, text: str) -> None:
    assert amount_of(amount_atomic, decimals) == text


@pytest.mark.parametrize(
    ("head", "state", "lag_seconds"),
    [(10, "following", 0), (12, "following", 3600), (10, "stopped", 3600), (10, "holding", 3600), (10, "halted", 3600)],
)
def test_a_quiet_chain_has_no_lag_but_one_that_nobody_follows_grows_old(
    head: int, state: str, lag_seconds: int
) -> None:
    assert chain_document(chain(head), state=state, now=NOW).lag_seconds == lag_seconds


@pytest.mark.parametrize("state", [ChainState.FOLLOWING, ChainState.HOLDING, ChainState.CATCHING_UP])
def test_a_follower_without_a_sign_of_life_is_shown_as_stopped_whatever_it_said_last(state: ChainState) -> None:
    row = replace(chain(10), state=state)
    assert chain_state_of(row, NOW + HEARTBEAT_TIMEOUT) is state
    assert chain_state_of(row, NOW + HEARTBEAT_TIMEOUT + timedelta(seconds=1)) is ChainState.STOPPED
    halted = replace(row, state=ChainState.HALTED)
    assert chain_state_of(halted, NOW + timedelta(days=1)) is ChainState.HALTED


def test_an_events_body_is_the_contracts() -> None:
    body = event_body(
        event_id=EventId("evt_1"), event_type="deposit.confirmed", now=NOW, livemode=True, sequence=2,
        previous_state="detected", data={"id": "dep_1"},
    )  # fmt: skip
    assert list(json.loads(body)) == [
        "id", "type", "api_version", "timestamp", "livemode", "sequence", "previous_state", "data",
    ]  # fmt: skip


def test_times_are_utc() -> None:
    assert time_of(NOW) == "2026-11-01T12:00:00Z"


_OFFSETS = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))


_LIMITS = datetime(1, 1, 3), datetime(9999, 12, 29)  # noqa: DTZ001 (of any zone)


@given(st.datetimes(*_LIMITS, timezones=_OFFSETS))
def test_a_time_is_read_back_to_the_microsecond(moment: datetime) -> None:
    text = time_of(moment)
    assert text.endswith("Z")
    assert datetime.fromisoformat(text) == moment


def test_ids_are_uuids_of_version_7_in_order_of_time_and_hold_no_dot() -> None:
    value = uuid7_hex(NOW, b"\xff" * 10)
    assert (value[12], value[16]) == ("7", "b")
    assert int(value[:12], 16) == int(NOW.timestamp() * 1000)
    assert uuid7_hex(NOW, b"\xff" * 10) < uuid7_hex(NOW + timedelta(milliseconds=1), b"\x00" * 10)
    assert "." not in new_id("evt", NOW)
