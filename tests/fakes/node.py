"""An Ethereum node on loopback that serves recorded blocks, and misbehaves when told to.

    async with RecordedNode({19000001: (block, receipts)}) as node:
        node.misbehave(drop_one_log, method="eth_getBlockReceipts", times=1)

Troubles come in two kinds. One changes what a call answers (`drop_one_log`, `empty_list`, `null`, `refuse(...)`, or any
function of the result). The other changes the HTTP exchange (`html`, `status(...)`, `half_body`, `wrong_ids`,
`shuffled`, `short_batch`, `delay(...)`). The same call may meet several; each is used `times` times, or for ever.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiohttp import web

from tests.fakes.ending import end

Json = Any
Answer = Callable[[Json], Json]
"""Changes the result of one call; gets its own copy."""
Reply = dict[str, Json]


@dataclass(frozen=True)
class Exchange:
    """A trouble of the HTTP exchange: from the request, its replies and whether it is a batch it makes the response."""

    respond: Callable[[web.Request, list[Reply], bool], Awaitable[web.StreamResponse]]


class Refusal(Exception):
    """Answer this JSON-RPC error in place of a result."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass
class Trouble:
    """One standing order to misbehave."""

    act: Answer | Exchange
    method: str | None
    height: int | None
    times: int | None

    def takes(self, method: str, height: int | None) -> bool:
        """True when this call is to be spoilt; counts it."""
        if self.method not in (None, method) or self.height not in (None, height) or self.times == 0:
            return False
        if self.times is not None:
            self.times -= 1
        return True


@dataclass
class RecordedNode:
    """A node that knows `blocks`: by height, `eth_getBlockByNumber(.., true)` and `eth_getBlockReceipts` as recorded.

    Everything may be changed while it runs. `head` is the newest height it admits to; `safe` and `finalized` are None
    where it has no such tag; `batch_max` refuses longer batches, 0 all of them.
    """

    blocks: Mapping[int, tuple[Json, Json]]
    chain_id: int = 1
    traces: Mapping[int, Json] = field(default_factory=dict)
    """By height, what `callTracer` tells of the block; a node without any does not offer the method."""
    head: int | None = None
    safe: int | None = None
    finalized: int | None = None
    batch_max: int = 1000
    unsupported: set[str] = field(default_factory=set)
    extra: dict[str, Callable[..., Json]] = field(default_factory=dict)
    """Methods that it offers besides; called with the parameters, they answer or raise `Refusal`."""
    host: str = "127.0.0.1"
    calls: list[tuple[str, Json]] = field(default_factory=list)
    """Every call received, in order."""
    exchanges: int = 0
    """HTTP requests received."""
    headers: list[dict[str, str]] = field(default_factory=list)
    """The headers of each of them."""
    url: str = ""
    _troubles: list[Trouble] = field(default_factory=list)
    _runner: web.AppRunner | None = None

    async def __aenter__(self) -> RecordedNode:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self, port: int = 0) -> None:
        """Listen on a free port of `host`, or on `port`."""
        app = web.Application(client_max_size=16 * 1024 * 1024)
        app.router.add_post("/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, self.host, port).start()
        self.url = f"http://{self.host}:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        """Stop listening: the node is down."""
        if self._runner:
            await end(self._runner)

    def misbehave(
        self,
        act: Answer | Exchange,
        *,
        method: str | None = None,
        height: int | None = None,
        times: int | None = None,
    ) -> Trouble:
        """Spoil the next `times` calls (None: all) of `method` about `height` (None: any)."""
        trouble = Trouble(act, method, height, times)
        self._troubles.append(trouble)
        return trouble

    def behave(self) -> None:
        """Forget all troubles."""
        self._troubles.clear()

    def calls_of(self, method: str) -> int:
        """How often `method` was called."""
        return sum(1 for called, _ in self.calls if called == method)

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self.exchanges += 1
        self.headers.append(dict(request.headers))
        asked = msgspec.json.decode(await request.read())
        is_batch = isinstance(asked, list)
        if is_batch and len(asked) > self.batch_max:
            return _json({"jsonrpc": "2.0", "id": None, "error": {"code": -32600, "message": "batch not supported"}})
        requests = asked if is_batch else [asked]
        exchange = self._exchange_trouble(requests)
        replies = [self._reply(row) for row in requests]
        return (
            await exchange.respond(request, replies, is_batch)
            if exchange
            else _json(replies if is_batch else replies[0])
        )

    def _exchange_trouble(self, requests: Sequence[Reply]) -> Exchange | None:
        for trouble in self._troubles:
            for row in requests:
                act = trouble.act
                if isinstance(act, Exchange) and trouble.takes(row["method"], self._height_of(row)):
                    return act
        return None

    def _reply(self, row: Reply) -> Reply:
        method, params = row["method"], row["params"]
        self.calls.append((method, params))
        try:
            result = self._result(method, params)
            for trouble in self._troubles:
                act = trouble.act
                if not isinstance(act, Exchange) and trouble.takes(method, self._height_of(row)):
                    result = act(copy.deepcopy(result))
        except Refusal as refusal:
            error = {"code": refusal.code, "message": refusal.message}
            return {"jsonrpc": "2.0", "id": row["id"], "error": error}
        return {"jsonrpc": "2.0", "id": row["id"], "result": result}

    def _result(self, method: str, params: Sequence[Json]) -> Json:
        answers: dict[str, Callable[..., Json]] = {
            "eth_chainId": lambda: hex(self.chain_id),
            "eth_blockNumber": lambda: hex(self._head()),
            "eth_getBlockByNumber": self._block,
            "eth_getBlockByHash": self._block,
            "eth_getBlockReceipts": self._receipts,
            "eth_getTransactionReceipt": self._receipt,
            "eth_getBalance": lambda _address, _height: "0x0",
            "eth_getLogs": lambda _filter: [],
            "web3_clientVersion": lambda: "Recorded/1",
            **({"debug_traceBlockByHash": self._traces} if self.traces else {}),
            **self.extra,
        }
        if method not in answers or method in self.unsupported:
            raise Refusal(-32601, f"the method {method} does not exist/is not available")
        return answers[method](*params)

    def _head(self) -> int:
        return max(self.blocks) if self.head is None else self.head

    def _block(self, place: str, is_full: bool) -> Json:
        height = self._height(place)
        if height is None or height not in self.blocks or height > self._head():
            return None
        block = self.blocks[height][0]
        return block if is_full else {**block, "transactions": [row["hash"] for row in block["transactions"]]}

    def _receipts(self, place: str) -> Json:
        height = self._height(place)
        if height is None or height not in self.blocks or height > self._head():
            return None
        return self.blocks[height][1]

    def _receipt(self, transaction_hash: str) -> Json:
        rows = (row for _, receipts in self.blocks.values() for row in receipts)
        return next((row for row in rows if row["transactionHash"] == transaction_hash), None)

    def _traces(self, block_hash: str, config: Json) -> Json:
        height = self._height(block_hash)
        if config.get("tracer") != "callTracer":
            raise Refusal(-32000, f"no tracer {config!r}")
        if height is None or height > self._head():
            raise Refusal(-32000, f"block {block_hash} not found")
        if height not in self.traces:
            raise Refusal(-32000, "required historical state unavailable (reexec=128)")
        return self.traces[height]

    def _height(self, place: str) -> int | None:
        """The height that a tag, a number or a hash names; None where it names none."""
        if place in ("safe", "finalized"):
            height = self.safe if place == "safe" else self.finalized
            if height is None:
                raise Refusal(-39001, "Unknown block")
            return height
        if place == "latest":
            return self._head()
        if len(place) == 66:
            return next((height for height, (block, _) in self.blocks.items() if block["hash"] == place), None)
        return int(place, 16)

    def _height_of(self, row: Reply) -> int | None:
        place = row["params"][0] if row["params"] else None
        if not isinstance(place, str) or row["method"] not in _BY_PLACE:
            return None
        try:
            return self._height(place)
        except Refusal:
            return None


_BY_PLACE = frozenset(
    {"eth_getBlockByNumber", "eth_getBlockByHash", "eth_getBlockReceipts", "debug_traceBlockByHash", "trace_block"}
)


def drop_one_log(receipts: Json) -> Json:
    """Receipts without the last log of the first receipt that has any: what a lagging log index answers."""
    for receipt in receipts:
        if receipt["logs"]:
            receipt["logs"].pop()
            break
    return receipts


def empty_list(_: Json) -> Json:
    """No receipts at all, and HTTP 200."""
    return []


def null(_: Json) -> Json:
    """No such thing (yet)."""
    return None


def refuse(code: int, message: str) -> Answer:
    """A JSON-RPC error in place of the result."""

    def act(_: Json) -> Json:
        raise Refusal(code, message)

    return act


def status(code: int, **headers: str) -> Exchange:
    """HTTP `code`; headers as `Retry_After="1"`."""

    async def respond(_: web.Request, _replies: list[Reply], _is_batch: bool) -> web.StreamResponse:
        return web.Response(status=code, headers={name.replace("_", "-"): value for name, value in headers.items()})

    return Exchange(respond)


def delay(seconds: float) -> Exchange:
    """The right answer, late."""

    async def respond(_: web.Request, replies: list[Reply], is_batch: bool) -> web.StreamResponse:
        await asyncio.sleep(seconds)
        return _json(replies if is_batch else replies[0])

    return Exchange(respond)


async def _html(_: web.Request, _replies: list[Reply], _is_batch: bool) -> web.StreamResponse:
    return web.Response(text="<html><body>Welcome</body></html>", content_type="text/html")


async def _half_body(request: web.Request, replies: list[Reply], is_batch: bool) -> web.StreamResponse:
    """Promises the whole answer, sends half of it and hangs up."""
    whole = msgspec.json.encode(replies if is_batch else replies[0])
    response = web.StreamResponse(headers={"Content-Length": str(len(whole))})
    await response.prepare(request)
    await response.write(whole[: len(whole) // 2])
    if request.transport:
        request.transport.close()
    return response


async def _cut_json(_: web.Request, replies: list[Reply], is_batch: bool) -> web.StreamResponse:
    whole = msgspec.json.encode(replies if is_batch else replies[0])
    return web.Response(body=whole[: len(whole) // 2])


async def _wrong_ids(_: web.Request, replies: list[Reply], is_batch: bool) -> web.StreamResponse:
    foreign = [{**reply, "id": reply["id"] + 1_000_000} for reply in replies]
    return _json(foreign if is_batch else foreign[0])


async def _doubled_ids(_: web.Request, replies: list[Reply], _is_batch: bool) -> web.StreamResponse:
    return _json([replies[0] for _ in replies])


async def _shuffled(_: web.Request, replies: list[Reply], _is_batch: bool) -> web.StreamResponse:
    return _json(replies[::-1])


async def _short_batch(_: web.Request, replies: list[Reply], _is_batch: bool) -> web.StreamResponse:
    return _json(replies[:-1])


html = Exchange(_html)
"""HTTP 200 and a web page: a captive portal, a wrong URL."""
half_body = Exchange(_half_body)
cut_json = Exchange(_cut_json)
"""Half the answer, with the length of half the answer."""
wrong_ids = Exchange(_wrong_ids)
doubled_ids = Exchange(_doubled_ids)
"""The first answer in the place of every other."""
shuffled = Exchange(_shuffled)
"""The answers of a batch in another order, as JSON-RPC allows."""
short_batch = Exchange(_short_batch)


def _json(body: Json) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), content_type="application/json")
