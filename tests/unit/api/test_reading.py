"""Bad input is pointed at."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from urllib.parse import urlencode

import msgspec
import pytest
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st

from api.entries import EntryQuery
from api.problems import Code, Refused
from api.reading import _brackets_of, decode_body, decode_query
from api.watch_rows import METADATA_DEPTH_MAX, _check_metadata, _depth
from api.watches import NewWatches


class Inner(msgspec.Struct, forbid_unknown_fields=True):
    """A part."""

    size: int


class Outer(msgspec.Struct, forbid_unknown_fields=True):
    """A whole."""

    rows: list[Inner]
    named: dict[str, Inner] = {}


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        (b'{"rows":[{"size":1},{"size":"x"}]}', "/rows/1/size"),
        (b'{"rows":[{}]}', "/rows/0/size"),
        (b'{"rows":[{"size":1,"a/b~c":2}]}', "/rows/0/a~1b~0c"),
        (b'{"rows":{}}', "/rows"),
        (b'{"rows":[],"named":{"k":{"size":null}}}', "/named/*/size"),
        (b"{}", "/rows"),
        (b"[]", ""),
        (b"", "/rows"),
    ],
)
def test_a_pointer_leads_to_what_is_wrong(body: bytes, pointer: str) -> None:
    with pytest.raises(Refused) as refused:
        decode_body(body, Outer)
    assert refused.value.code is Code.INVALID_REQUEST
    assert refused.value.errors[0].pointer == pointer


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    try:
        assert isinstance(decode_body(body, NewWatches), NewWatches)
    except Refused as refused:
        assert refused.code in (Code.INVALID_JSON, Code.INVALID_REQUEST)


def nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels - 1):
        value = {"a": value}
    return value


@given(st.integers(1, 60))
def test_depth_counts_levels_of_containers(levels: int) -> None:
    assert _depth(nested(levels)) == levels
    assert _depth([nested(levels), [1]]) == levels + 1


def test_metadata_is_bounded_in_depth() -> None:
    _check_metadata(nested(METADATA_DEPTH_MAX), "/m")
    with pytest.raises(Refused):
        _check_metadata(nested(METADATA_DEPTH_MAX + 1), "/m")


@given(st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=5))
def test_metadata_is_refused_for_a_nul_and_nothing_else(metadata: dict[str, str]) -> None:
    has_nul = any("\x00" in text for pair in metadata.items() for text in pair)
    if has_nul:
        with pytest.raises(Refused, match="NUL"):
            _check_metadata(metadata, "/m")
    else:
        _check_metadata(metadata, "/m")


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'{"watches":[{"metadata":{"x":['])
def test_a_hostile_nesting_is_refused_whatever_the_recursion_limit(opening: bytes) -> None:
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(1_000_000)
    try:
        with pytest.raises(Refused, match="nested more than"):
            decode_body(opening * 500_000, NewWatches)
    finally:
        sys.setrecursionlimit(limit)


def test_brackets_in_strings_are_no_nesting() -> None:
    row = {"chain": "ethereum", "address": "0x" + "00" * 20, "reference": '[{"' * 50}
    body = msgspec.json.encode({"watches": [row] * 100})
    assert len(decode_body(body, NewWatches).watches) == 100


_TEXTS = st.text(alphabet="[]{}:, ab", max_size=6)
_VALUES: st.SearchStrategy[object] = st.recursive(
    st.none() | _TEXTS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXTS, inner, max_size=4)
)


@given(_VALUES)
def test_a_body_without_backslashes_has_the_brackets_that_a_closer_look_finds(value: object) -> None:
    body = msgspec.json.encode(value)
    assert b"\\" not in body
    assert _brackets_of(body) == _brackets_of(body + b"\\")


_ROW_OF = b'{"watches":[{"chain":"ethereum","address":"0x00","metadata":{%s}}]}'
_MANY_NAMES = b",".join(b'"n%d":1' % number for number in range(40_000))


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(_ROW_OF % (_MANY_NAMES + b',"twice":1,"twice":2'), id="a name is repeated at the end of many"),
        pytest.param(b"[]" * 65 + b'"' + b'\\"' * 60_000, id="each of many quotes is escaped in a text without an end"),
    ],
)
def test_no_body_keeps_the_process_from_others(body: bytes) -> None:
    # Either took more than ten seconds with these, and hours with a body of 5 MiB.
    started = time.thread_time()
    with pytest.raises(Refused):
        decode_body(body, NewWatches)
    assert time.thread_time() - started < 5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("state", "null"),
        ("updated_since", "null"),
        ("updated_since", "NULL"),
        ("updated_since", "0.5"),
        ("updated_since", "1700000000000"),
        ("updated_since", "2026-11-01"),
        ("updated_since", "2026-11-01T00:00:00"),
        ("limit", "0"),
    ],
)
def test_a_parameter_that_only_looks_like_a_value_is_refused_and_not_guessed_at(name: str, value: str) -> None:
    with pytest.raises(Refused) as refused:
        decode_query(make_mocked_request("GET", f"/v1/deposits?{name}={value}"), EntryQuery)
    assert [problem.pointer for problem in refused.value.errors] == [f"/{name}"]


_OFFSETS = st.integers(-1439, 1439)


@given(
    st.datetimes(datetime(2, 1, 1), datetime(9998, 12, 31)),  # noqa: DTZ001 (the zone is drawn beside it)
    st.sampled_from("Tt"),
    st.integers(6, 9),
    st.sampled_from(["Z", "z"]) | _OFFSETS,
)
def test_every_form_of_a_time_means_its_instant(naive: datetime, separator: str, digits: int, zone: str | int) -> None:
    minutes = zone if isinstance(zone, int) else 0
    text = f"{naive:%Y-%m-%d}".rjust(10, "0") + f"{separator}{naive:%H:%M:%S.%f}".ljust(digits + 10, "0")
    text += (
        zone
        if isinstance(zone, str)
        else f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02}:{abs(minutes) % 60:02}"
    )
    since = since_of(text)
    assert since == naive.replace(tzinfo=timezone(timedelta(minutes=minutes)))


@given(st.integers(0, 999_999), st.integers(0, 999))
def test_a_time_between_two_microseconds_is_never_the_one_before(microseconds: int, nanoseconds: int) -> None:
    """Of an entry of the microsecond before nobody can tell whether it changed since: it did not."""
    whole = datetime(2026, 11, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)
    since = since_of(f"2026-11-01T00:00:00.{microseconds:06}{nanoseconds:03}Z")
    assert since in (whole, whole + timedelta(microseconds=1))


def since_of(text: str) -> datetime | None:
    """What `updated_since` means by the API's reading."""
    request = make_mocked_request("GET", f"/v1/deposits?{urlencode({'updated_since': text})}")
    query: EntryQuery = decode_query(request, EntryQuery)
    return query.updated_since


@pytest.mark.parametrize(
    "text",
    [
        "2016-12-31T23:59:60Z",  # a leap second has no place among Postgres' times
        "2026-02-29T00:00:00Z",
        "2026-11-01T24:00:00Z",
        "2026-11-01T00:00Z",
        "2026-11-01 00:00:00Z",
        "2026-11-01T00:00:00.Z",
        "2026-11-01T00:00:00,5Z",
        "2026-11-01T00:00:00+24:00",
        "2026-11-01T00:00:00+00:60",
        "0000-01-01T00:00:00Z",
        "10000-01-01T00:00:00Z",
        "9999-12-31T23:59:59.9999999Z",
    ],
)
def test_what_is_no_instant_is_refused(text: str) -> None:
    with pytest.raises(Refused) as refused:
        since_of(text)
    assert [problem.pointer for problem in refused.value.errors] == ["/updated_since"]


def test_a_reference_may_be_the_word_null() -> None:
    assert decode_query(make_mocked_request("GET", "/v1/deposits?reference=null"), EntryQuery).reference == "null"
