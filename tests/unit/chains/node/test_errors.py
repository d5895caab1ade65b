"""The tree of one node's failings, and which words of a node lead where in it."""

from __future__ import annotations

import pytest

from chains.node.errors import MethodNotSupported, NodeOverloaded, RpcError, rpc_error


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (-32001, "Resource not found"),
        (-39001, "Unknown block"),
        (-32000, "header not found"),
        (-32000, "unknown block"),
        (-32000, "finalized block not found"),
        (-32000, "receipts not found for block"),
    ],
)
def test_an_error_that_says_no_such_block_is_known_as_that(code: int, message: str) -> None:
    error = rpc_error("node-a", "eth_getBlockByNumber", code, message)
    assert isinstance(error, RpcError)
    assert error.is_not_found


@pytest.mark.parametrize("message", ["internal error", "missing trie node", "execution reverted"])
def test_any_other_error_is_not(message: str) -> None:
    error = rpc_error("node-a", "eth_getBlockByNumber", -32000, message)
    assert type(error) is RpcError
    assert not error.is_not_found


def test_method_not_found_is_not_block_not_found() -> None:
    assert isinstance(rpc_error("node-a", "m", -32601, "Method not found"), MethodNotSupported)


def test_words_about_a_rate_count_only_with_the_code_for_limits() -> None:
    assert isinstance(rpc_error("node-a", "m", -32005, "daily rate limit"), NodeOverloaded)
    assert type(rpc_error("node-a", "m", -32000, "could not generate rate")) is RpcError
