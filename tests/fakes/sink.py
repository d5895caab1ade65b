"""A merchant who keeps a record: id, sequence, time and signature of everything that came, in the order in which it came.

It can stand still at the moments between which a sender may die: before the connection is taken, before the request is
read, and before the answer.

async with running_sink(Random(1)) as sink:
    hold = sink.hold(Stage.BEFORE_ANSWER)           # the next request
    await hold.until_reached()
    ...                                             # hold.peer_port tells who waits
    hold.release()
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from random import Random

from aiohttp import web
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from tests.fakes.ending import end, stop_accepting

BACKLOG = 128
RECEIVE_BUFFER_BYTES = 64 * 1024
"""Of a request that nobody reads, the kernel takes about so much, and not the megabytes that it may grow to."""
ANSWER_DELAY_MAX_S = 0.02
"""Answers take up to this long, by chance: a kill then finds others under way too."""
REACHED_LIMIT_S = 120.0


class Stage(Enum):
    """Where a request can be made to wait."""

    BEFORE_READ = auto()
    """Its head has come; of its body no more than fits the buffers on the way."""
    BEFORE_ANSWER = auto()
    """It has been read whole."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """One request that was read whole."""

    endpoint_id: str
    event_id: str
    subject: str
    sequence: int
    timestamp: int
    """Seconds since 1970, as the sender signed them."""
    received_at: float
    """Seconds since 1970, when the last byte was read."""
    is_signed: bool
    body: bytes
    status: int
    """What it was answered, if the sender still listened."""


@dataclass(slots=True)
class Hold:
    """The next request waits at a stage until it is released."""

    stage: Stage
    peer_port: int = 0
    """The sender's, once it waits."""
    event_id: str = ""
    _reached: asyncio.Event = field(default_factory=asyncio.Event)
    _go: asyncio.Event = field(default_factory=asyncio.Event)

    async def until_reached(self) -> None:
        """Return when a request waits."""
        async with asyncio.timeout(REACHED_LIMIT_S):
            await self._reached.wait()

    def release(self) -> None:
        """Let it go on."""
        self._go.set()

    async def wait(self, request: web.BaseRequest) -> None:
        """The request's side of it."""
        assert request.transport is not None
        self.peer_port = request.transport.get_extra_info("peername")[1]
        self.event_id = request.headers["webhook-id"]
        self._reached.set()
        await self._go.wait()


class Sink:
    """One endpoint's server on a port of loopback. Made by `running_sink`."""

    def __init__(self, chance: Random, *, keeps_connections: bool) -> None:
        """Without kept connections, each request makes one of its own."""
        self.chance = chance
        self.keeps_connections = keeps_connections
        self.endpoint_id = ""
        self.secret = ""
        self.receipts: list[Receipt] = []
        self.refused_next = 0
        """So many of the next requests are answered 500."""
        self.is_busy = 0
        """Requests that wait for an answer."""
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        self.socket.bind(("127.0.0.1", 0))
        self.port: int = self.socket.getsockname()[1]
        self._held: Hold | None = None
        self._filler: socket.socket | None = None
        self._runner = web.ServerRunner(web.Server(self._handle, access_log=None), shutdown_timeout=0)
        self._site: web.SockSite | None = None

    @property
    def url(self) -> str:
        """Where it is told."""
        return f"http://127.0.0.1:{self.port}/hook"

    async def start(self) -> None:
        """Serve."""
        await self._runner.setup()
        await self.open()

    async def open(self) -> None:
        """Take connections, also those that already wait."""
        if self._filler is not None:
            self._filler.close()
            self._filler = None
        self._site = web.SockSite(self._runner, self.socket.dup(), backlog=BACKLOG)
        await self._site.start()

    async def shut(self, *, connects: bool) -> None:
        """Take no connection until `open`: callers connect to a queue that nobody serves, or, without `connects`, are not
        even answered, for the queue is full."""
        assert self._site is not None
        await stop_accepting(self._site)
        await self._site.stop()  # of a duplicate: the port itself stays ours
        self._site = None
        if connects:
            return
        self.socket.listen(0)  # Linux: a queue of one
        self._filler = socket.create_connection(("127.0.0.1", self.port))

    async def stop(self) -> None:
        """End, whatever waits."""
        await end(self._runner)
        self.socket.close()
        if self._filler is not None:
            self._filler.close()

    def hold(self, stage: Stage) -> Hold:
        """Make the next request wait at a stage."""
        self._held = Hold(stage)
        return self._held

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        held, self._held = self._held, None
        self.is_busy += 1
        try:
            if held is not None and held.stage is Stage.BEFORE_READ:
                await held.wait(request)
            try:
                body = await request.content.read()  # `request.read` has a limit
            except ConnectionError:
                return web.Response(status=400)  # to nobody: the sender is gone, and the request was not whole
            status = self._note(request, body)
            if held is not None and held.stage is Stage.BEFORE_ANSWER:
                await held.wait(request)
            await asyncio.sleep(self.chance.uniform(0.0, ANSWER_DELAY_MAX_S))
        finally:
            self.is_busy -= 1
        answer = web.Response(status=status)
        if not self.keeps_connections:
            answer.force_close()
        return answer

    def _note(self, request: web.BaseRequest, body: bytes) -> int:
        document = json.loads(body)
        status = 500 if self.refused_next > 0 else 204
        self.refused_next = max(0, self.refused_next - 1)
        self.receipts.append(
            Receipt(
                endpoint_id=self.endpoint_id,
                event_id=request.headers["webhook-id"],
                subject=document["data"]["id"],
                sequence=document["sequence"],
                timestamp=int(request.headers["webhook-timestamp"]),
                received_at=time.time(),
                is_signed=self._verifies(request, body),
                body=body,
                status=status,
            )
        )
        return status

    def _verifies(self, request: web.BaseRequest, body: bytes) -> bool:
        try:
            headers = {name.lower(): value for name, value in request.headers.items()}
            Webhook(self.secret).verify(body, headers, json_parse=False)
        except WebhookVerificationError:
            return False
        return True


@asynccontextmanager
async def running_sink(chance: Random, *, keeps_connections: bool = True) -> AsyncIterator[Sink]:
    """Serve until the block is left."""
    sink = Sink(chance, keeps_connections=keeps_connections)
    await sink.start()
    try:
        yield sink
    finally:
        await sink.stop()
