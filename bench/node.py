"""A node over a recorded chain: JSON-RPC by HTTP, batches included, every answer from ready bytes.

`python -m bench.node FILE [INTERVAL_S]`. Without an interval the head is the last block. With one, the head is the first
block until `POST /start`; from then on one more block is mined in each interval, and the node remembers when it first
named it to anybody: that is when it could first be seen.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import msgspec
from aiohttp import web

from bench.chain import START_HEIGHT, RecordedChain, bench_profile, load_chain
from bench.serving import serve_until_stdin_closes

SAFE_DEPTH = 32
FINALIZED_DEPTH = 64


class _Call(msgspec.Struct):
    id: int
    method: str
    params: list[Any] = []


class BlockTimes(msgspec.Struct):
    """When a live block came to be, was first named in an answer, and was first given whole, in seconds since 1970."""

    mined_at: float
    seen_at: float
    answered_at: float | None
    """The answer with its receipts was ready to be sent."""


class NodeTimes(msgspec.Struct):
    """What the node remembers of a live chain."""

    requests: int
    """HTTP requests since mining began."""
    calls: int
    """JSON-RPC calls in them."""
    blocks: dict[str, BlockTimes]
    """By height, every block that was named."""


class Node:
    """Answers about one chain."""

    def __init__(self, chain: RecordedChain, interval_s: float | None) -> None:
        self.blocks = chain.blocks
        self.headers = [_header_of(block) for block, _ in chain.blocks]
        self.chain_number = hex(int(bench_profile("off").chain_id.partition(":")[2]))
        self.interval_s = interval_s
        self.started_at: float | None = None
        self.seen_at: dict[int, float] = {}
        self.answered_at: dict[int, float] = {}
        self.requests = self.calls = 0
        self.decode = msgspec.json.Decoder(list[_Call] | _Call).decode

    def head(self) -> int:
        """Index of the newest block."""
        if self.interval_s is None:
            return len(self.blocks) - 1
        if self.started_at is None:
            return 0
        return min(len(self.blocks) - 1, int((time.time() - self.started_at) / self.interval_s))

    async def answer(self, request: web.Request) -> web.Response:
        """One call or a batch."""
        asked = self.decode(await request.read())
        head = self.head()
        self.requests += 1
        self.calls += 1 if isinstance(asked, _Call) else len(asked)
        if isinstance(asked, _Call):
            body = self._reply(asked, head)
        else:
            body = b"[" + b",".join([self._reply(call, head) for call in asked]) + b"]"
        return web.Response(body=body, content_type="application/json")

    def _reply(self, call: _Call, head: int) -> bytes:
        return b'{"jsonrpc":"2.0","id":%d,"result":%b}' % (call.id, self._result(call, head))

    def _result(self, call: _Call, head: int) -> bytes:
        if call.method == "eth_chainId":
            return f'"{self.chain_number}"'.encode()
        index = self._index(call.params[0], head)
        if not 0 <= index <= head:
            return b"null"
        self.seen_at.setdefault(index, time.time())
        if call.method == "eth_getBlockReceipts":
            self.answered_at.setdefault(index, time.time())
            return self.blocks[index][1]
        return self.blocks[index][0] if call.params[1] else self.headers[index]

    def _index(self, place: str, head: int) -> int:
        match place:
            case "latest":
                return head
            case "safe":
                return head - SAFE_DEPTH
            case "finalized":
                return head - FINALIZED_DEPTH
            case _:
                return int(place, 16) - START_HEIGHT

    async def start(self, _request: web.Request) -> web.Response:
        """Begin to mine."""
        self.started_at = time.time()
        self.requests = self.calls = 0
        return web.Response(text="ok")

    async def times(self, _request: web.Request) -> web.Response:
        """The times of every block that was mined and seen, and how often the node was asked."""
        began, interval_s = self.started_at or 0.0, self.interval_s or 0.0
        rows = {
            str(START_HEIGHT + index): BlockTimes(began + index * interval_s, seen_at, self.answered_at.get(index))
            for index, seen_at in self.seen_at.items()
        }
        return web.Response(body=msgspec.json.encode(NodeTimes(self.requests, self.calls, rows)))


def _header_of(block: bytes) -> bytes:
    """The block as a node gives it without full transactions."""
    fields = msgspec.json.decode(block)
    fields["transactions"] = [transaction["hash"] for transaction in fields["transactions"]]
    return msgspec.json.encode(fields)


def make_app(chain: RecordedChain, interval_s: float | None) -> web.Application:
    """JSON-RPC at `/`, and the two controls of a live chain."""
    node = Node(chain, interval_s)
    app = web.Application()
    app.router.add_post("/", node.answer)
    app.router.add_post("/start", node.start)
    app.router.add_get("/times", node.times)
    return app


if __name__ == "__main__":
    serve_until_stdin_closes(make_app(load_chain(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else None))
