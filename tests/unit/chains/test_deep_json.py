"""JSON that nests as deep as calls do, and deeper."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import msgspec
import pytest

from chains.deep_json import RECURSION_MAX, decode_deep
from chains.node.errors import NodeGarbled
from chains.node.jsonrpc import read_answer, read_answers

CALLS_DEEPEST = 1025


def nested(depth: int) -> bytes:
    """Lists in objects, as calls in calls are told."""
    return b'{"calls":[' * depth + b"]}" * depth


@pytest.fixture(autouse=True)
def default_limit() -> Iterator[None]:
    """Each test begins with the limit that a process begins with."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)
    yield
    sys.setrecursionlimit(before)


def test_the_limit_stays_where_nothing_is_deep() -> None:
    assert decode_deep(msgspec.json.decode, b"[1]") == [1]
    assert sys.getrecursionlimit() == 1000


def test_calls_at_their_deepest_are_decoded() -> None:
    with pytest.raises(RecursionError):
        msgspec.json.decode(nested(CALLS_DEEPEST))
    assert decode_deep(msgspec.json.decode, nested(CALLS_DEEPEST))
    assert sys.getrecursionlimit() == RECURSION_MAX


@pytest.mark.parametrize("answer", [nested(5000), b"[" * 10**6])
def test_what_is_deeper_than_any_chain_is_refused(answer: bytes) -> None:
    for _ in range(2):
        with pytest.raises(RecursionError):
            decode_deep(msgspec.json.decode, answer)


def test_a_node_may_answer_with_calls_at_their_deepest() -> None:
    reply = b'{"jsonrpc":"2.0","id":1,"result":' + nested(CALLS_DEEPEST) + b"}"
    assert bytes(read_answer("node", reply, "debug_traceBlockByHash", 1)) == nested(CALLS_DEEPEST)
    (answer,) = read_answers("node", b"[" + reply + b"]", ["debug_traceBlockByHash"], 1)
    assert isinstance(answer, msgspec.Raw)
    assert bytes(answer) == nested(CALLS_DEEPEST)


def test_a_node_that_answers_deeper_than_any_chain_is_garbled() -> None:
    reply = b'{"jsonrpc":"2.0","id":1,"result":' + nested(10**5) + b"}"
    with pytest.raises(NodeGarbled, match="malformed answer"):
        read_answer("node", reply, "debug_traceBlockByHash", 1)
    with pytest.raises(NodeGarbled, match="malformed answer"):
        read_answers("node", b"[" + reply + b"]", ["debug_traceBlockByHash"], 1)
