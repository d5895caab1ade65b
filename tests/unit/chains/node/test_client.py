"""One node's client: what it sends, what it takes for an answer, and when it asks again."""

from __future__ import annotations

import time
from collections.abc import Callable

import aiohttp
import pytest

from chains.model import Slug
from chains.node.client import NodeClient
from chains.node.errors import (
    AnswerTooLarge,
    MethodNotSupported,
    NodeDenied,
    NodeError,
    NodeGarbled,
    NodeOverloaded,
    NodeTimeout,
    NodeUnreachable,
    RpcError,
)
from chains.node.jsonrpc import Call
from tests.fakes.node import (
    Exchange,
    RecordedNode,
    cut_json,
    delay,
    doubled_ids,
    half_body,
    html,
    refuse,
    short_batch,
    shuffled,
    status,
    wrong_ids,
)

BLOCK_AND_RECEIPTS: list[Call] = [("eth_getBlockByNumber", ["0x7", True]), ("eth_getBlockReceipts", ["0x7"])]


async def test_a_call_gives_the_result_as_raw_json(client: NodeClient) -> None:
    assert bytes(await client.call("eth_chainId")) == b'"0x1"'


async def test_an_absent_block_is_null(client: NodeClient) -> None:
    assert bytes(await client.call("eth_getBlockByNumber", ["0x8", True])) == b"null"


async def test_a_batch_is_one_request_and_its_answers_may_come_in_any_order(
    node: RecordedNode, client: NodeClient
) -> None:
    node.misbehave(shuffled)
    block, receipts = await client.batch(BLOCK_AND_RECEIPTS)
    assert not isinstance(block, RpcError)
    assert not isinstance(receipts, RpcError)
    assert bytes(block).startswith(b'{"hash":"0xaa')
    assert bytes(receipts).startswith(b'[{"transactionHash"')
    assert node.exchanges == 1


@pytest.mark.parametrize("trouble", [html, cut_json, wrong_ids, doubled_ids, short_batch])
async def test_an_answer_to_something_else_is_garbled_and_not_asked_again(
    node: RecordedNode, client: NodeClient, trouble: Exchange
) -> None:
    node.misbehave(trouble)
    with pytest.raises(NodeGarbled, match="node-a"):
        await client.batch(BLOCK_AND_RECEIPTS)
    assert node.exchanges == 1


@pytest.mark.parametrize("trouble", [html, cut_json, wrong_ids])
async def test_a_single_call_is_as_strict(node: RecordedNode, client: NodeClient, trouble: Exchange) -> None:
    node.misbehave(trouble)
    with pytest.raises(NodeGarbled):
        await client.call("eth_chainId")


@pytest.mark.parametrize("trouble", [status(500), status(503), status(429, Retry_After="0"), half_body])
async def test_a_failing_that_passes_is_asked_again_at_the_same_node(
    node: RecordedNode, client: NodeClient, trouble: Exchange
) -> None:
    node.misbehave(trouble, times=2)
    assert bytes(await client.call("eth_chainId")) == b'"0x1"'
    assert node.exchanges == 3


@pytest.mark.parametrize(
    ("trouble", "error"), [(status(500), NodeOverloaded), (status(429), NodeOverloaded), (half_body, NodeUnreachable)]
)
async def test_a_failing_that_stays_is_given_up_after_three_tries(
    node: RecordedNode, client: NodeClient, trouble: Exchange, error: type[NodeError]
) -> None:
    node.misbehave(trouble)
    with pytest.raises(error):
        await client.call("eth_chainId")
    assert node.exchanges == 3


async def test_retry_after_is_honoured(node: RecordedNode, client: NodeClient) -> None:
    node.misbehave(status(429, Retry_After="1"), times=1)
    started = time.monotonic()
    await client.call("eth_chainId")
    assert time.monotonic() - started >= 1.0


async def test_a_node_that_asks_for_long_patience_is_left_at_once(node: RecordedNode, client: NodeClient) -> None:
    node.misbehave(status(429, Retry_After="3600"))
    with pytest.raises(NodeOverloaded) as caught:
        await client.call("eth_chainId")
    assert caught.value.retry_after_s == 3600
    assert node.exchanges == 1


@pytest.mark.parametrize(
    ("until", "seconds"),
    [("Wed, 21 Oct 2015 07:30:00 GMT", 120.0), ("Wed, 21 Oct 2015 07:00:00 GMT", 0.0), ("tomorrow", None)],
)
async def test_retry_after_may_be_a_date_and_is_read_against_the_answers_own(
    node: RecordedNode, client: NodeClient, until: str, seconds: float | None
) -> None:
    node.misbehave(status(429, Retry_After=until, Date="Wed, 21 Oct 2015 07:28:00 GMT"))
    with pytest.raises(NodeOverloaded) as caught:
        await client.call("eth_chainId")
    assert caught.value.retry_after_s == seconds


@pytest.mark.parametrize("code", [401, 403])
async def test_a_denied_key_is_not_tried_again(node: RecordedNode, client: NodeClient, code: int) -> None:
    node.misbehave(status(code))
    with pytest.raises(NodeDenied, match=str(code)):
        await client.call("eth_chainId")
    assert node.exchanges == 1


async def test_redirects_are_not_followed(node: RecordedNode, client: NodeClient) -> None:
    node.misbehave(status(307, Location="/elsewhere"))
    with pytest.raises(NodeGarbled, match="HTTP 307"):
        await client.call("eth_chainId")
    assert node.exchanges == 1


async def test_a_hanging_node_times_out(node: RecordedNode, session: aiohttp.ClientSession) -> None:
    client = NodeClient(Slug("testnet"), "node-a", node.url, session, timeout_s=0.5)
    node.misbehave(delay(60.0))
    with pytest.raises(NodeTimeout, match=r"0\.5 s"):
        await client.call("eth_chainId")
    assert node.exchanges <= 1, "the time for all tries was used up by the first"


async def test_a_node_that_is_down_is_unreachable(node: RecordedNode, client: NodeClient) -> None:
    await node.stop()
    with pytest.raises(NodeUnreachable, match="connection failed"):
        await client.call("eth_chainId")


async def test_a_node_that_comes_back_is_reached_again(node: RecordedNode, client: NodeClient) -> None:
    port = int(node.url.rsplit(":", 1)[1])
    await node.stop()
    with pytest.raises(NodeUnreachable):
        await client.call("eth_chainId")
    await node.start(port)
    assert bytes(await client.call("eth_chainId")) == b'"0x1"'


async def test_an_answer_over_the_bound_is_not_read_to_its_end(
    node: RecordedNode, session: aiohttp.ClientSession
) -> None:
    client = NodeClient(Slug("testnet"), "node-a", node.url, session, answer_bytes_max=100)
    with pytest.raises(AnswerTooLarge, match="100 bytes"):
        await client.call("eth_getBlockByNumber", ["0x7", True])


async def test_a_json_rpc_error_carries_its_code_and_method(node: RecordedNode, client: NodeClient) -> None:
    node.misbehave(refuse(-32000, "execution\naborted"))
    with pytest.raises(RpcError, match=r"eth_chainId: execution aborted \(code -32000\)") as caught:
        await client.call("eth_chainId")
    assert caught.value.code == -32000
    assert node.exchanges == 1


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (-32601, "the method eth_foo does not exist/is not available"),
        (-32004, "nope"),
        (-32600, "Unsupported method: eth_foo on ETH_MAINNET"),
        (-32000, "method eth_foo is not whitelisted"),
    ],
)
async def test_an_unknown_method_has_an_error_of_its_own(
    node: RecordedNode, client: NodeClient, code: int, message: str
) -> None:
    node.misbehave(refuse(code, message))
    with pytest.raises(MethodNotSupported):
        await client.call("eth_chainId")


@pytest.mark.parametrize(("code", "message"), [(-32005, "rate limit exceeded"), (429, "compute units per second")])
async def test_a_rate_limit_inside_a_batch_asks_the_batch_again(
    node: RecordedNode, client: NodeClient, code: int, message: str
) -> None:
    node.misbehave(refuse(code, message), method="eth_getBlockReceipts", times=1)
    answers = await client.batch(BLOCK_AND_RECEIPTS)
    assert not any(isinstance(answer, RpcError) for answer in answers)
    assert node.exchanges == 2


async def test_too_many_results_is_no_rate_limit(node: RecordedNode, client: NodeClient) -> None:
    node.misbehave(refuse(-32005, "query returned more than 10000 results"))
    with pytest.raises(RpcError):
        await client.call("eth_getLogs", [{}])
    assert node.exchanges == 1


async def test_an_error_of_one_call_of_a_batch_stands_in_its_place(node: RecordedNode, client: NodeClient) -> None:
    node.unsupported.add("eth_getBlockReceipts")
    block, receipts = await client.batch(BLOCK_AND_RECEIPTS)
    assert not isinstance(block, RpcError)
    assert isinstance(receipts, MethodNotSupported)


async def test_a_node_without_batches_is_asked_call_by_call_from_then_on(
    node: RecordedNode, client: NodeClient
) -> None:
    node.batch_max = 0
    assert len(await client.batch(BLOCK_AND_RECEIPTS)) == 2
    assert node.exchanges == 3
    assert len(await client.batch(BLOCK_AND_RECEIPTS)) == 2
    assert node.exchanges == 5, "the refused batch was not tried again"


async def test_the_longest_batch_is_learnt(node: RecordedNode, client: NodeClient) -> None:
    node.batch_max = 3
    calls: list[Call] = [("eth_getBlockByNumber", [hex(n), False]) for n in range(8)]
    answers = await client.batch(calls)
    assert [bytes(answer) == b"null" for answer in answers if not isinstance(answer, RpcError)] == [True] * 7 + [False]
    assert client.batch_max == 4, "half of what was refused"
    await client.batch(calls)
    before = node.exchanges
    await client.batch(calls)
    assert (client.batch_max, node.exchanges - before) == (2, 4)


async def test_one_error_object_for_a_batch_is_an_error(node: RecordedNode, client: NodeClient) -> None:
    async def respond(*_: object) -> aiohttp.web.StreamResponse:
        return aiohttp.web.json_response({"jsonrpc": "2.0", "id": None, "error": {"code": -32603, "message": "oops"}})

    node.misbehave(Exchange(respond))
    with pytest.raises(RpcError, match="oops"):
        await client.batch(BLOCK_AND_RECEIPTS)
    assert client.batch_max > 1


async def test_a_json_rpc_error_in_an_http_error_is_understood(node: RecordedNode, client: NodeClient) -> None:
    async def respond(*_: object) -> aiohttp.web.StreamResponse:
        error = {"code": -32601, "message": "no such method"}
        return aiohttp.web.json_response({"jsonrpc": "2.0", "id": 1, "error": error}, status=400)

    node.misbehave(Exchange(respond))
    with pytest.raises(MethodNotSupported):
        await client.call("eth_foo")


async def test_the_key_in_the_url_is_in_no_message(node: RecordedNode, client: NodeClient) -> None:
    node.misbehave(refuse(-32000, "no route /v2/TOPSECRETKEY"), times=1)
    with pytest.raises(RpcError) as told:
        await client.call("eth_chainId")
    await node.stop()
    with pytest.raises(NodeUnreachable) as down:
        await client.call("eth_chainId")
    node_words = str(told.value) + repr(told.value.args) + told.value.detail
    assert "***" in node_words
    assert "TOPSECRETKEY" not in node_words + str(down.value)


async def test_requests_carry_no_cookies_and_ignore_the_proxies_of_the_environment(
    node: RecordedNode, client: NodeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def respond(*_: object) -> aiohttp.web.StreamResponse:
        return aiohttp.web.json_response(
            {"jsonrpc": "2.0", "id": 1, "result": "0x1"}, headers={"Set-Cookie": "a=b; Path=/"}
        )

    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    node.misbehave(Exchange(respond), times=1)
    await client.call("eth_chainId")
    await client.call("eth_chainId")
    assert not any("Cookie" in headers for headers in node.headers)


async def test_the_pace_bounds_calls_a_second(node: RecordedNode, session: aiohttp.ClientSession) -> None:
    client = NodeClient(Slug("testnet"), "node-a", node.url, session, rps=10)
    started = time.monotonic()
    for _ in range(8):
        await client.batch(BLOCK_AND_RECEIPTS)
    assert time.monotonic() - started >= 0.59, "16 calls: 10 at once, 6 more at 10 a second"


async def test_calls_are_counted_by_outcome(
    node: RecordedNode, client: NodeClient, count_of: Callable[..., float]
) -> None:
    def counted(method: str, outcome: str) -> float:
        labels = {"chain": "testnet", "node": "node-a", "method": method, "outcome": outcome}
        return count_of("chainbell_node_requests_total", **labels)

    before = [counted("eth_chainId", "overloaded"), counted("eth_getBlockReceipts", "unsupported")]
    node.misbehave(status(500), method="eth_chainId", times=1)
    node.unsupported.add("eth_getBlockReceipts")
    await client.call("eth_chainId")
    await client.batch(BLOCK_AND_RECEIPTS)
    after = [counted("eth_chainId", "overloaded"), counted("eth_getBlockReceipts", "unsupported")]
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 1]
