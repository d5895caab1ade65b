"""Every refusal of a part of the input says what is wrong, and what would be right, in words of ours."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st

from api.app import ROUTES
from api.deliveries import DeliveryQuery
from api.endpoints import NewEndpoint, PauseOrder, RecoverOrder, ResumeOrder
from api.entries import EntryQuery
from api.inputs import NoFields
from api.problems import Refused
from api.reading import decode_body, decode_query
from api.watches import NewWatches

NOT_ONE_LINE = "it holds a line end or another control character; give one line of text"

FOREIGN = re.compile(r"`|Expected|Invalid|Object|regex|datetime|\bstr\b|\bint\b|enum")
"""Words of the JSON library's."""


def refusal(type_: Any, sent: dict[str, Any], *, is_query: bool) -> tuple[str, str]:  # noqa: ANN401
    """Pointer and sentence."""
    with pytest.raises(Refused) as refused:
        if is_query:
            decode_query(make_mocked_request("GET", f"/?{'&'.join(f'{k}={v}' for k, v in sent.items())}"), type_)
        else:
            decode_body(msgspec.json.encode(sent), type_)
    [error] = refused.value.errors
    return error.pointer, error.detail


@pytest.mark.parametrize(
    ("type_", "sent", "pointer", "sentence"),
    [
        (ResumeOrder, {"held": "newest"}, "/held", "'newest' is none of the choices: all, latest, discard"),
        (ResumeOrder, {"hold": "all"}, "/hold", "there is no field 'hold'; there are: held"),
        (RecoverOrder, {"since": "yesterday"}, "/since", "a time is written as in RFC 3339: 2026-11-01T00:00:00Z"),
        (RecoverOrder, {"until": None}, "/since", "it is missing, and has to be given"),
        (
            NewEndpoint,
            {"url": "x", "description": "a\x00b"},
            "/description",
            "it holds a NUL character, which cannot be kept",
        ),
        (
            PauseOrder,
            {"reason": "a\nb"},
            "/reason",
            NOT_ONE_LINE,
        ),
        (
            PauseOrder,
            {"reason": "a\u202eb"},
            "/reason",
            NOT_ONE_LINE,
        ),
        (NoFields, {"nope": 1}, "/nope", "there is no field 'nope'; there is none here"),
        (PauseOrder, {"reason": "a" * 201}, "/reason", "it has more than 200 characters"),
        (PauseOrder, {"reason": ""}, "/reason", "it is empty"),
        (PauseOrder, {"reason": 5}, "/reason", "it has to be a text, and is a whole number"),
        (NewEndpoint, {"url": "https://a.example/", "event_types": []}, "/event_types", "it is empty"),
        (NewEndpoint, {"url": None}, "/url", "it has to be a text, and is null"),
        (NewWatches, {"watches": {}}, "/watches", "it has to be a list, and is an object"),
        (
            NewWatches,
            {"watches": [{"chain": "a", "address": "b", "refrence": "c"}]},
            "/watches/0/refrence",
            "there is no field 'refrence'; there are: chain, address, reference, metadata, start_height",
        ),
        (
            NewWatches,
            {"watches": [{"chain": "a", "address": "b", "start_height": -1}]},
            "/watches/0/start_height",
            "it has to be at least 0",
        ),
    ],
)
def test_a_wrong_body_is_told_of_in_our_words(type_: Any, sent: dict[str, Any], pointer: str, sentence: str) -> None:  # noqa: ANN401
    assert refusal(type_, sent, is_query=False) == (pointer, sentence)


@pytest.mark.parametrize(
    ("type_", "sent", "pointer", "sentence"),
    [
        (
            DeliveryQuery,
            {"endpoint_id": "ep_1"},
            "/endpoint_id",
            "there is no parameter 'endpoint_id'; there are: limit, cursor, endpoint, state, event, entry; endpoint is"
            " meant?",
        ),
        (DeliveryQuery, {"limit": "many"}, "/limit", "it has to be a whole number"),
        (DeliveryQuery, {"limit": "1001"}, "/limit", "it has to be at most 1000"),
        (DeliveryQuery, {"endpoint": "evt_1"}, "/endpoint", "an endpoint's id begins with ep_"),
        (DeliveryQuery, {"event": "ep_1"}, "/event", "an event's id begins with evt_"),
        (DeliveryQuery, {"entry": "tst_1"}, "/entry", "the id of a deposit or withdrawal begins with dep_ or wdr_"),
        (
            EntryQuery,
            {"updated_since": "2026-11-01T00:00:00"},
            "/updated_since",
            "a time needs its zone: 2026-11-01T00:00:00Z",
        ),
        (
            EntryQuery,
            {"asset": "USDC"},
            "/asset",
            "an asset is named as in asset.id: eip155:1/slip44:60, or eip155:1/erc20: and the contract; never by its symbol",
        ),
    ],
)
def test_a_wrong_query_is_told_of_in_our_words(type_: Any, sent: dict[str, Any], pointer: str, sentence: str) -> None:  # noqa: ANN401
    assert refusal(type_, sent, is_query=True) == (pointer, sentence)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5) | st.just("a" * 5000),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
BODIES = sorted({route.body for route in ROUTES if route.body is not type(None)}, key=lambda type_: str(type_.__name__))


@given(st.sampled_from(BODIES), st.data())
def test_whatever_is_sent_no_word_of_the_library_is_answered(type_: Any, data: st.DataObject) -> None:  # noqa: ANN401
    fields = [field.encode_name for field in msgspec.structs.fields(type_)]
    sent = data.draw(st.dictionaries(st.sampled_from([*fields, "other"]), JSON, max_size=3) | JSON)
    try:
        decode_body(msgspec.json.encode(sent), type_)
    except Refused as refused:
        for error in refused.errors:
            assert not FOREIGN.search(re.sub(r"'[^']*'|\"[^\"]*\"", "", error.detail)), error.detail
