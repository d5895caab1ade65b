"""What is wrong with an input is told whole: every part of every row."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st

from api.entries import EntryQuery
from api.problems import ERRORS_MAX, Code, Refused, problem_document
from api.reading import decode_body, decode_query
from api.watches import NewWatches

GOOD: dict[str, object] = {"chain": "ethereum", "address": "0x" + "00" * 20}


def refusal(*rows: object) -> Refused:
    """Of a call with these rows."""
    with pytest.raises(Refused) as refused:
        decode_body(msgspec.json.encode({"watches": rows}), NewWatches)
    return refused.value


def test_every_fault_of_every_row_is_told_where_it_is() -> None:
    refused = refusal(
        {"chain": 1, "address": None, "adress": "0x"},
        GOOD,
        "0x12",
        {"reference": "a\x00", **GOOD, "start_height": 1.5, "metadata": []},
        {},
    )
    said = {
        "/watches/0/chain": "it has to be a text, and is a whole number",
        "/watches/0/address": "it has to be a text, and is null",
        "/watches/0/adress": "there is no field 'adress'; there are: chain, address, reference, metadata, start_height",
        "/watches/2": "it has to be an object, and is a text",
        "/watches/3/reference": "it holds a NUL character, which cannot be kept",
        "/watches/3/start_height": "it has to be a whole number or null, and is a number",
        "/watches/3/metadata": "it has to be an object or null, and is a list",
        "/watches/4/chain": "it is missing, and has to be given",
        "/watches/4/address": "it is missing, and has to be given",
    }
    assert {error.pointer: error.detail for error in refused.errors} == said
    assert refused.errors_total == len(refused.errors) == len(said)
    assert refused.detail == "/watches/0/chain: it has to be a text, and is a whole number; and 8 more"


@pytest.mark.parametrize("more", [-1, 0, 1, 500])
def test_of_very_many_faults_the_first_are_shown_and_all_are_counted(more: int) -> None:
    count = ERRORS_MAX + more
    refused = refusal(GOOD, *[{**GOOD, "chain": 7}] * count, GOOD)
    document = problem_document(refused, "req_1")
    assert document.errors is not msgspec.UNSET
    shown = [error.pointer for error in document.errors]
    assert shown == [f"/watches/{index}/chain" for index in range(1, min(count, ERRORS_MAX) + 1)]
    assert document.errors_total == count


def test_of_more_rows_than_a_call_takes_none_is_looked_at() -> None:
    refused = refusal(*[1] * 10_001)
    assert [(error.pointer, error.detail) for error in refused.errors] == [
        ("/watches", "it has more than 10000 entries")
    ]


@pytest.mark.parametrize("name", ["a`b", "a - at `$.b`", "", "~/", "\u2028"])
def test_an_unknown_field_is_pointed_at_whatever_its_name(name: str) -> None:
    pointer = name.replace("~", "~0").replace("/", "~1")
    assert [error.pointer for error in refusal({**GOOD, name: 1}).errors] == [f"/watches/0/{pointer}"]


def test_a_name_that_is_given_twice_hides_no_fault() -> None:
    for first, second in ((b"5", b'"x"'), (b'"x"', b"5")):
        body = b'{"watches":[{"chain":' + first + b',"chain":' + second + b',"address":"0x"}]}'
        with pytest.raises(Refused) as refused:
            decode_body(body, NewWatches)
        assert [error.pointer for error in refused.value.errors] == ["/watches/0/chain"]


@pytest.mark.parametrize("body", [b"[", b'{"watches":[1,', b'{"watches":5}x'])
def test_what_is_cut_off_is_no_json_even_where_its_beginning_is_wrong(body: bytes) -> None:
    with pytest.raises(Refused) as refused:
        decode_body(body, NewWatches)
    assert refused.value.code is Code.INVALID_JSON


def test_every_parameter_of_a_query_that_is_wrong_is_told() -> None:
    with pytest.raises(Refused) as refused:
        decode_query(make_mocked_request("GET", "/v1/deposits?limit=x&state=new&chain=ethereum&side=in"), EntryQuery)
    assert {error.pointer for error in refused.value.errors} == {"/limit", "/state", "/side"}


_SCALARS: st.SearchStrategy[object] = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
_ROWS: st.SearchStrategy[Any] = _SCALARS | st.fixed_dictionaries(
    {},
    optional={
        "chain": st.just("ethereum") | _SCALARS,
        "address": st.just("0x") | _SCALARS,
        "reference": _SCALARS,
        "metadata": st.dictionaries(st.text(), _SCALARS, max_size=2) | _SCALARS,
        "start_height": _SCALARS,
        "x": _SCALARS,
    },
)


@given(st.lists(_ROWS, min_size=1, max_size=6))
def test_a_row_is_told_of_exactly_when_it_would_be_refused_alone(rows: list[Any]) -> None:
    def _told(sent: list[Any]) -> set[int]:
        try:
            decode_body(msgspec.json.encode({"watches": sent}), NewWatches)
        except Refused as refused:
            return {int(error.pointer.split("/")[2]) for error in refused.errors}
        return set()

    assert _told(rows) == {index for index, row in enumerate(rows) if _told([row])}
