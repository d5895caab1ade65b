"""A node that stands before a real one and spoils some of its answers: it lies, or lacks methods, when told to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec
from aiohttp import web

from tests.fakes.ending import end

Json = Any
Reply = dict[str, Json]


@dataclass
class ProxyNode:
    """Everything may be changed while it runs."""

    behind: str
    """URL of the real node."""
    session: aiohttp.ClientSession
    lies: dict[str, Callable[[Json], Json]] = field(default_factory=dict)
    """By method, what becomes of its result."""
    lacks: set[str] = field(default_factory=set)
    """Methods that it does not offer."""
    hangs: set[str] = field(default_factory=set)
    """Methods that it never answers."""
    calls: list[str] = field(default_factory=list)
    url: str = ""

    async def serve(self, request: web.Request) -> web.Response:
        """Ask the real node, and spoil what is to be spoilt."""
        body = await request.read()
        async with self.session.post(self.behind, data=body, headers={"Content-Type": "application/json"}) as response:
            answer = msgspec.json.decode(await response.read())
        asked = msgspec.json.decode(body)
        if self.hangs & {row["method"] for row in (asked if isinstance(asked, list) else [asked])}:
            await asyncio.Event().wait()
        if isinstance(asked, list):
            by_id = {reply["id"]: reply for reply in answer}
            spoilt: Json = [self._spoilt(row["method"], by_id[row["id"]]) for row in asked]
        else:
            spoilt = self._spoilt(asked["method"], answer)
        return web.Response(body=msgspec.json.encode(spoilt), content_type="application/json")

    def _spoilt(self, method: str, reply: Reply) -> Reply:
        self.calls.append(method)
        if method in self.lacks:
            error = {"code": -32601, "message": f"the method {method} does not exist/is not available"}
            return {"jsonrpc": "2.0", "id": reply["id"], "error": error}
        if method in self.lies and "result" in reply:
            return {**reply, "result": self.lies[method](reply["result"])}
        return reply


@asynccontextmanager
async def proxy_before(behind: str, host: str = "127.0.0.2") -> AsyncIterator[ProxyNode]:
    """A proxy on a free port of `host` before the node at `behind`."""
    async with aiohttp.ClientSession() as session:
        proxy = ProxyNode(behind, session)
        app = web.Application(client_max_size=16 * 1024 * 1024)
        app.router.add_post("/{path:.*}", proxy.serve)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, 0).start()
            proxy.url = f"http://{host}:{runner.addresses[0][1]}"
            yield proxy
        finally:
            await end(runner)
