"""A node that lies: a proxy before a real node, whose answers are true but for the lies that it was given.

    async with lying_node(anvil.url, host="127.0.0.2", lies=[DROP_A_LOG, LAG], seed=7) as liar:
        ... liar.url is a node like any other ...
        liar.lies = ()      # it comes to its senses

A lie looks at one JSON-RPC call and its true result and says what the node answers instead, or breaks the exchange as a
whole. Lies are drawn from what nodes were seen to do: answers cut short, of other blocks, of a minute ago, of nobody. What
a lie chooses (which log, which receipt) comes from the seed, so that a failing run can be run again.
"""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from random import Random
from typing import Any

import aiohttp
from aiohttp import web

from tests.fakes.ending import end

Json = Any

STALL_S = 30.0
"""Longer than any client waits."""


@dataclass(frozen=True)
class AbandonedBranch:
    """The blocks above `ancestor_height` as they were, and what the node called safe and final then."""

    ancestor_height: int
    head_height: int
    tags: dict[str, int | None]
    blocks: dict[str, Json] = field(default_factory=dict)
    """By height and by hash, both as the hexadecimal text in which they are asked for."""
    receipts: dict[str, Json] = field(default_factory=dict)
    traces: dict[str, Json] = field(default_factory=dict)


@dataclass
class LyingNode:
    """The proxy. `lies` may be changed at any time."""

    upstream_url: str
    session: aiohttp.ClientSession
    random: Random
    lies: Sequence[Lie] = ()
    url: str = ""
    told: dict[str, int] = field(default_factory=dict)
    """How often each lie was told."""
    abandoned: AbandonedBranch | None = None
    """What the node may stand on after a reorg."""
    tracing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Anvil is asked for one trace at a time (`chainbell.demo.anvil`): proxies before the same one share this."""

    async def ask(self, method: str, *params: object) -> Json:
        """The real node's result; None for its errors."""
        answer = await self._pass_on({"jsonrpc": "2.0", "id": 1, "method": method, "params": list(params)})
        return answer.get("result")

    async def _pass_on(self, asked: Json) -> Json:
        calls = asked if isinstance(asked, list) else [asked]
        is_trace = any(call["method"] == "debug_traceBlockByHash" for call in calls)
        async with (
            self.tracing if is_trace else nullcontext(),
            self.session.post(self.upstream_url, json=asked) as response,
        ):
            return await response.json()

    def note(self, lie: Lie) -> None:
        """Count a lie that was told."""
        self.told[lie.name] = self.told.get(lie.name, 0) + 1

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Ask the real node, and answer as the lies have it."""
        asked = json.loads(await request.read())
        answers = await self._pass_on(asked)
        calls = asked if isinstance(asked, list) else [asked]
        for call, answer in zip(calls, answers if isinstance(answers, list) else [answers], strict=True):
            for lie in self.lies:
                if lie.result is not None and ("result" in answer or self.abandoned is not None):
                    await self._bend(lie, call, answer)
        for lie in self.lies:
            if lie.exchange is not None and self.random.random() < lie.rate:
                self.note(lie)
                return await lie.exchange(self, answers)
        return web.json_response(answers)

    async def _bend(self, lie: Lie, call: Json, answer: Json) -> None:
        if self.random.random() >= lie.rate or lie.result is None:
            return
        bent = await lie.result(self, call["method"], call["params"], copy.deepcopy(answer.get("result")))
        if bent != answer.get("result"):
            answer.pop("error", None)
            answer["result"] = bent
            self.note(lie)


Result = Callable[[LyingNode, str, list[Json], Json], Awaitable[Json]]
Exchange = Callable[[LyingNode, Json], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Lie:
    """One way to lie: by a call's result, or by the whole exchange; `rate` of the times that it could."""

    name: str
    result: Result | None = None
    exchange: Exchange | None = None
    rate: float = 1.0


@asynccontextmanager
async def lying_node(
    upstream_url: str,
    *,
    host: str = "127.0.0.1",
    lies: Sequence[Lie] = (),
    seed: int = 0,
    tracing: asyncio.Lock | None = None,
) -> AsyncIterator[LyingNode]:
    """Run a proxy on a loopback address of its own: agreement is counted over hosts."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as session:
        node = LyingNode(upstream_url, session, Random(seed), lies, tracing=tracing or asyncio.Lock())
        runner = web.ServerRunner(web.Server(node.handle, access_log=None), shutdown_timeout=0.1)
        await runner.setup()
        try:
            site = web.TCPSite(runner, host, 0)
            await site.start()
            node.url = f"http://{host}:{runner.addresses[0][1]}"
            yield node
        finally:
            await end(runner)


# --- receipts and logs ------------------------------------------------------------------------------------------------


def _about_receipts(change: Callable[[LyingNode, list[Json]], Json]) -> Result:
    async def _bent(node: LyingNode, method: str, _params: list[Json], result: Json) -> Json:
        if method != "eth_getBlockReceipts" or not result:
            return result
        return change(node, result)

    return _bent


def _drop_log(node: LyingNode, receipts: list[Json]) -> Json:
    carrying = [receipt for receipt in receipts if receipt["logs"]]
    if carrying:
        logs = node.random.choice(carrying)["logs"]
        logs.pop(node.random.randrange(len(logs)))
    return receipts


def _drop_log_neatly(node: LyingNode, receipts: list[Json]) -> Json:
    """Also number the others anew, and leave blooms to be recomputed by nobody."""
    for index, log in enumerate(log for receipt in _drop_log(node, receipts) for log in receipt["logs"]):
        log["logIndex"] = hex(index)
    return receipts


def _drop_last_receipt(_node: LyingNode, receipts: list[Json]) -> Json:
    return receipts[:-1]


def _no_receipts(_node: LyingNode, _receipts: list[Json]) -> Json:
    return []


def _null_receipts(_node: LyingNode, _receipts: list[Json]) -> Json:
    return None


def _no_logs(_node: LyingNode, receipts: list[Json]) -> Json:
    for receipt in receipts:
        receipt["logs"], receipt["logsBloom"] = [], "0x" + "00" * 256
    return receipts


def _change_amount(node: LyingNode, receipts: list[Json]) -> Json:
    logs = [log for receipt in receipts for log in receipt["logs"] if len(log["data"]) == 66]
    if logs:
        log = node.random.choice(logs)
        log["data"] = f"0x{int(log['data'], 16) + 1_000_000:064x}"
    return receipts


def _change_status(node: LyingNode, receipts: list[Json]) -> Json:
    receipt = node.random.choice(receipts)
    receipt["status"] = "0x0" if receipt["status"] == "0x1" else "0x1"
    return receipts


def _change_created_address(_node: LyingNode, receipts: list[Json]) -> Json:
    for receipt in receipts:
        if receipt.get("contractAddress"):
            receipt["contractAddress"] = "0x" + "11" * 20
    return receipts


async def _swap_receipts(node: LyingNode, method: str, params: list[Json], result: Json) -> Json:
    """The receipts of the block before, said to be this one's."""
    if method != "eth_getBlockReceipts" or not result:
        return result
    other = await node.ask(method, hex(max(0, int(result[0]["blockNumber"], 16) - 1)))
    for receipt in other or []:
        receipt["blockHash"], receipt["blockNumber"] = result[0]["blockHash"], result[0]["blockNumber"]
        for log in receipt["logs"]:
            log["blockHash"], log["blockNumber"] = result[0]["blockHash"], result[0]["blockNumber"]
    return other


# --- blocks -----------------------------------------------------------------------------------------------------------


def _about_blocks(change: Callable[[LyingNode, Json], Json]) -> Result:
    async def _bent(node: LyingNode, method: str, _params: list[Json], result: Json) -> Json:
        if method not in ("eth_getBlockByNumber", "eth_getBlockByHash") or not result:
            return result
        return change(node, result)

    return _bent


def _full(block: Json) -> list[Json]:
    return [row for row in block["transactions"] if isinstance(row, dict)]


def _drop_transaction(node: LyingNode, block: Json) -> Json:
    if block["transactions"]:
        block["transactions"].pop(node.random.randrange(len(block["transactions"])))
    return block


def _change_value(node: LyingNode, block: Json) -> Json:
    if _full(block):
        row = node.random.choice(_full(block))
        row["value"] = hex(int(row["value"], 16) + 10**18)
    return block


def _change_sender(node: LyingNode, block: Json) -> Json:
    if _full(block):
        node.random.choice(_full(block))["from"] = "0x" + "22" * 20
    return block


def _change_recipient(node: LyingNode, block: Json) -> Json:
    paid = [row for row in _full(block) if row["to"]]
    if paid:
        node.random.choice(paid)["to"] = "0x" + "33" * 20
    return block


def _change_hash_label(_node: LyingNode, block: Json) -> Json:
    """Another name for the block, in all of its transactions too."""
    block["hash"] = "0x" + "44" * 32
    for row in _full(block):
        row["blockHash"] = block["hash"]
    return block


def _null_block(_node: LyingNode, _block: Json) -> Json:
    return None


async def _drop_transaction_with_receipt(node: LyingNode, method: str, _params: list[Json], result: Json) -> Json:
    """The last transaction of every block never was, and neither was its receipt."""
    if method == "eth_getBlockReceipts" and result:
        return result[:-1]
    if method in ("eth_getBlockByNumber", "eth_getBlockByHash") and result and result["transactions"]:
        result["transactions"] = result["transactions"][:-1]
    return result


def _truncate(count: int) -> Result:
    """Lists end after a round number, as though there were no more."""

    async def _bent(_node: LyingNode, method: str, _params: list[Json], result: Json) -> Json:
        if method == "eth_getBlockReceipts" and result:
            return result[:count]
        return result

    return _bent


# --- traces -----------------------------------------------------------------------------------------------------------


def _about_traces(change: Callable[[LyingNode, list[Json]], Json]) -> Result:
    async def _bent(node: LyingNode, method: str, _params: list[Json], result: Json) -> Json:
        if method != "debug_traceBlockByHash" or not result:
            return result
        return change(node, result)

    return _bent


def _frames(traces: list[Json]) -> list[Json]:
    return [trace.get("result", trace) for trace in traces]


def _hide_moves(_node: LyingNode, traces: list[Json]) -> Json:
    for frame in _frames(traces):
        frame.pop("calls", None)
    return traces


def _invent_move(node: LyingNode, traces: list[Json]) -> Json:
    """A contract pays whoever sent the transaction."""
    frame = node.random.choice(_frames(traces))
    made = {
        "type": "CALL", "from": frame.get("to") or frame["from"], "to": frame["from"], "value": hex(10**17),
        "gas": "0x0", "gasUsed": "0x0", "input": "0x",
    }  # fmt: skip
    frame.setdefault("calls", []).append(made)
    return traces


def _change_move(_node: LyingNode, traces: list[Json]) -> Json:
    for frame in _frames(traces):
        for call in frame.get("calls", ()):
            call["value"] = hex(int(call.get("value", "0x0"), 16) + 1)
    return traces


def _drop_trace(_node: LyingNode, traces: list[Json]) -> Json:
    return traces[:-1]


async def _null_traces(_node: LyingNode, method: str, _params: list[Json], result: Json) -> Json:
    """By whichever method it is asked: else the other one would tell the truth."""
    return None if method in ("debug_traceBlockByHash", "trace_block") else result


# --- heads ------------------------------------------------------------------------------------------------------------


def _height(text: str) -> int | None:
    return int(text, 16) if text.startswith("0x") and len(text) < 66 else None


def lag(blocks: int) -> Lie:
    """The node has not got the newest blocks yet."""

    async def _bent(node: LyingNode, method: str, params: list[Json], result: Json) -> Json:
        head = int(await node.ask("eth_blockNumber"), 16) - blocks
        if method == "eth_blockNumber":
            return hex(max(0, head))
        if method == "eth_getBlockByNumber" and params[0] == "latest":
            return await node.ask(method, hex(max(0, head)), params[1])
        if method in ("eth_getBlockByNumber", "eth_getBlockReceipts"):
            height = _height(params[0])
            return None if height is not None and height > head else result
        return result

    return Lie(f"lag {blocks}", _bent)


def lag_behind_own_head(blocks: int) -> Lie:
    """The node names its newest block, and does not have it: another machine behind the same name."""

    async def _bent(node: LyingNode, method: str, params: list[Json], result: Json) -> Json:
        if method in ("eth_getBlockByNumber", "eth_getBlockReceipts") and params[0] != "latest":
            height, head = _height(params[0]), int(await node.ask("eth_blockNumber"), 16)
            return None if height is not None and height > head - blocks else result
        return result

    return Lie(f"lag {blocks} behind its own head", _bent)


async def _false_head(_node: LyingNode, method: str, params: list[Json], result: Json) -> Json:
    if method == "eth_blockNumber":
        return hex(int(result, 16) + 1000)
    if method == "eth_getBlockByNumber" and params[0] == "latest" and result:
        result["number"], result["hash"] = hex(int(result["number"], 16) + 1000), "0x" + "55" * 32
    return result


async def _false_finality(node: LyingNode, method: str, params: list[Json], result: Json) -> Json:
    """What is newest is safe and final at once."""
    if method == "eth_getBlockByNumber" and params[0] in ("safe", "finalized"):
        return await node.ask(method, "latest", params[1])
    return result


async def _foreign_finality(_node: LyingNode, method: str, params: list[Json], result: Json) -> Json:
    """A final block that nobody else has ever seen."""
    if method == "eth_getBlockByNumber" and params[0] in ("safe", "finalized") and result:
        result["hash"] = "0x" + "66" * 32
    return result


# --- exchanges --------------------------------------------------------------------------------------------------------


def _status(status: int, body: str, content_type: str = "text/html") -> Exchange:
    async def _answer(_node: LyingNode, _answers: Json) -> web.StreamResponse:
        return web.Response(status=status, text=body, content_type=content_type)

    return _answer


async def _stall(_node: LyingNode, answers: Json) -> web.StreamResponse:
    await asyncio.sleep(STALL_S)
    return web.json_response(answers)


async def _half_a_body(_node: LyingNode, answers: Json) -> web.StreamResponse:
    body = json.dumps(answers)
    return web.Response(text=body[: len(body) // 2], content_type="application/json")


async def _wrong_ids(_node: LyingNode, answers: Json) -> web.StreamResponse:
    for answer in answers if isinstance(answers, list) else [answers]:
        answer["id"] = int(answer["id"]) + 100_000
    return web.json_response(answers)


async def _other_order(node: LyingNode, answers: Json) -> web.StreamResponse:
    if isinstance(answers, list):
        node.random.shuffle(answers)
    return web.json_response(answers)


async def _short_batch(_node: LyingNode, answers: Json) -> web.StreamResponse:
    return web.json_response(answers[:-1] if isinstance(answers, list) else answers)


LIES: tuple[Lie, ...] = (
    Lie("drops a log", _about_receipts(_drop_log)),
    Lie("drops a log and numbers the others anew", _about_receipts(_drop_log_neatly)),
    Lie("drops the last receipt", _about_receipts(_drop_last_receipt)),
    Lie("drops a transaction", _about_blocks(_drop_transaction)),
    Lie("drops a transaction and its receipt", _drop_transaction_with_receipt),
    Lie("truncates receipts", _truncate(1)),
    Lie("answers no receipts", _about_receipts(_no_receipts), rate=0.7),
    Lie("answers null for receipts", _about_receipts(_null_receipts), rate=0.7),
    Lie("answers no logs", _about_receipts(_no_logs)),
    Lie("answers null for blocks", _about_blocks(_null_block), rate=0.5),
    Lie("swaps the receipts of two blocks", _swap_receipts),
    Lie("changes an amount in a log", _about_receipts(_change_amount)),
    Lie("changes a status", _about_receipts(_change_status)),
    Lie("changes a created address", _about_receipts(_change_created_address)),
    Lie("changes a value", _about_blocks(_change_value)),
    Lie("changes a sender", _about_blocks(_change_sender)),
    Lie("changes a recipient", _about_blocks(_change_recipient)),
    Lie("changes a block's hash", _about_blocks(_change_hash_label)),
    Lie("hides what contracts sent on", _about_traces(_hide_moves)),
    Lie("invents what a contract sent on", _about_traces(_invent_move)),
    Lie("changes what contracts sent on", _about_traces(_change_move)),
    Lie("drops a trace", _about_traces(_drop_trace)),
    Lie("answers null for traces", _null_traces, rate=0.7),
    lag(3),
    lag_behind_own_head(2),
    Lie("claims a head that is not there", _false_head),
    Lie("claims that all is final", _false_finality),
    Lie("claims a final block of another chain", _foreign_finality),
    Lie("answers 429", exchange=_status(429, "slow down"), rate=0.5),
    Lie("answers 503", exchange=_status(503, "no backend"), rate=0.5),
    Lie("answers HTML with 200", exchange=_status(200, "<html>maintenance</html>"), rate=0.5),
    Lie("answers half a body", exchange=_half_a_body, rate=0.5),
    Lie("answers with wrong ids", exchange=_wrong_ids, rate=0.5),
    Lie("answers in another order", exchange=_other_order),
    Lie("answers a short batch", exchange=_short_batch, rate=0.5),
)
"""Every way to lie about blocks, receipts, traces and heads."""

STALLS = Lie("stalls", exchange=_stall, rate=0.2)
"""Says nothing for longer than anybody waits: a scenario with it takes minutes."""
