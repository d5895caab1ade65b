"""Hearing nodes announce new heads over a WebSocket (`eth_subscribe`, `newHeads`).

What is heard is a hint. It wakes whoever polls, and the poll asks over HTTP as it always does: an announcement that is
late, wrong, doubled or missing costs at most one ordinary poll interval. So nothing here retries for truth's sake, and
no failing of a socket is a failing of its node. Three things are watched instead: that a stranger cannot fill our
memory, that a socket which is open but silent is opened anew, and that one which cannot be opened is tried ever more
seldom, and complained of once a minute at most.

Source: https://geth.ethereum.org/docs/interacting-with-geth/rpc/pubsub
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import NoReturn

import aiohttp
import msgspec
import structlog

from chains.adapter import HeadHint
from chains.model import Slug
from chains.node.naming import hide, one_line, secrets_in

log = structlog.get_logger(__name__)

OPEN_TIMEOUT_S = 10.0
"""For the connection and the subscription together."""
CLOSE_TIMEOUT_S = 1.0
"""How long a node may take to say goodbye."""
HEARTBEAT_S = 20.0
"""How often the node is pinged: a connection that died in between is noticed, and kept open by proxies that sweep."""
MESSAGE_BYTES_MAX = 64 * 1024
"""An announcement is a header, under 2 KB; a larger message is none."""
SILENCE_MIN_S = 60.0
SILENCE_BLOCKS = 10
"""No head for this long, or for this many block times, whichever is more: the socket is opened anew."""
PAUSE_MIN_S = 1.0
PAUSE_MAX_S = 60.0
COMPLAINT_INTERVAL_S = 60.0

_SUBSCRIBE = {"jsonrpc": "2.0", "id": 1, "method": "eth_subscribe", "params": ["newHeads"]}


def silence_limit_s(block_time_s: float) -> float:
    """How long a socket may say nothing of a chain with this block time."""
    return max(SILENCE_MIN_S, SILENCE_BLOCKS * block_time_s)


class SocketFailed(Exception):
    """The socket cannot be used, and why, without credentials."""


class HintBox:
    """The highest head announced since it was last asked: a burst, or several nodes' news of one block, is one hint."""

    def __init__(self) -> None:
        self._hint: HeadHint | None = None
        self._has_news = asyncio.Event()
        self._fault: BaseException | None = None

    @property
    def has_news(self) -> bool:
        """True while there is something that `next_hint` has not returned."""
        return self._has_news.is_set()

    def put(self, hint: HeadHint) -> None:
        """Announce a head."""
        if self._hint is None or hint.height >= self._hint.height:
            self._hint = hint
        self._has_news.set()

    def end(self, listener: asyncio.Task[NoReturn]) -> None:
        """A listener ended. Only a fault of ours ends one by itself; whoever waits is told."""
        if not listener.cancelled():
            self._fault = listener.exception()
            self._has_news.set()

    async def next_hint(self) -> HeadHint:
        """See `chains.adapter.HeadHints`."""
        while True:
            await self._has_news.wait()
            if self._fault is not None:
                raise self._fault
            hint, self._hint = self._hint, None
            self._has_news.clear()
            if hint is not None:
                return hint


class HeadSocket:
    """One node's announcements. `name` is fit for logs; the URL is not."""

    def __init__(
        self, chain: Slug, name: str, url: str, session: aiohttp.ClientSession, silence_limit_s: float
    ) -> None:
        self._chain = chain
        self._name = name
        self._url = url
        self._secrets = secrets_in(url)
        self._session = session
        self._silence_limit_s = silence_limit_s
        self._failures = 0
        self._complained_at: float | None = None
        self._has_complained = False

    async def listen(self, box: HintBox) -> NoReturn:
        """Put every announced head into `box`, opening the socket again whenever it ends, until cancelled."""
        while True:
            try:
                await self._hear(box)
            except SocketFailed as failure:
                self._complain(str(failure))
            pause_s = min(PAUSE_MIN_S * 2 ** min(self._failures, 8), PAUSE_MAX_S)
            self._failures += 1
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, no secret

    async def check(self) -> None:
        """Open the socket and subscribe, once. Raises `SocketFailed`."""
        await self._hear(None)

    async def _hear(self, box: HintBox | None) -> None:
        """Connect, subscribe and, where there is a box for them, hear announcements until the socket ends."""
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                socket = await self._session.ws_connect(
                    self._url,
                    timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_TIMEOUT_S),
                    heartbeat=HEARTBEAT_S,
                    max_msg_size=MESSAGE_BYTES_MAX,
                )
        except TimeoutError:
            raise SocketFailed(f"no connection in {OPEN_TIMEOUT_S:g} s") from None
        except aiohttp.WSServerHandshakeError as error:
            raise SocketFailed(f"HTTP {error.status} where a WebSocket was due") from None
        except (aiohttp.ClientError, OSError) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise SocketFailed(self._hidden(f"connection failed: {reason}")) from None
        async with socket:
            subscription = await self._subscribe(socket)
            if box is not None:
                await self._hear_heads(socket, subscription, box)

    async def _subscribe(self, socket: aiohttp.ClientWebSocketResponse) -> str:
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                await socket.send_str(msgspec.json.encode(_SUBSCRIBE).decode())
                while True:
                    message = await self._receive(socket)
                    if message.error is not None:
                        raise SocketFailed(self._hidden(f"eth_subscribe is refused: {_reason_in(message.error)}"))
                    if message.id == _SUBSCRIBE["id"]:
                        return msgspec.json.decode(message.result, type=str)
        except TimeoutError:
            raise SocketFailed(f"eth_subscribe is not answered in {OPEN_TIMEOUT_S:g} s") from None
        except (aiohttp.ClientError, OSError):
            raise SocketFailed("the connection broke off") from None
        except ValueError:
            raise SocketFailed("eth_subscribe is answered without a subscription") from None

    async def _hear_heads(self, socket: aiohttp.ClientWebSocketResponse, subscription: str, box: HintBox) -> None:
        loop = asyncio.get_running_loop()
        heard_at = loop.time()
        while True:
            try:
                async with asyncio.timeout_at(heard_at + self._silence_limit_s):
                    message = await self._receive(socket)
            except TimeoutError:
                raise SocketFailed(f"open, but no head in {self._silence_limit_s:g} s") from None
            try:
                hint = _hint_in(message, subscription)
            except ValueError:
                raise SocketFailed("an announcement without height and hash") from None
            if hint is not None:
                box.put(hint)
                heard_at = loop.time()
                self._note_head()

    async def _receive(self, socket: aiohttp.ClientWebSocketResponse) -> _Message:
        received = await socket.receive()
        if received.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSING, aiohttp.WSMsgType.CLOSED):
            raise SocketFailed(f"closed by the node (code {socket.close_code})")
        if received.type is aiohttp.WSMsgType.ERROR:
            raise SocketFailed(self._hidden(f"broken: {received.data or type(received.data).__name__}"))
        try:
            return _decode(received.data)
        except (ValueError, TypeError):
            raise SocketFailed("a message that is not JSON-RPC") from None

    def _note_head(self) -> None:
        if self._has_complained:
            log.info("announcements recovered", chain=self._chain, node=self._name)
        self._failures, self._has_complained = 0, False

    def _complain(self, reason: str) -> None:
        now = asyncio.get_running_loop().time()
        if self._complained_at is None or now - self._complained_at >= COMPLAINT_INTERVAL_S:
            self._complained_at, self._has_complained = now, True
            log.warning("no announcements, polling goes on", chain=self._chain, node=self._name, reason=reason)

    def _hidden(self, text: str) -> str:
        return one_line(hide(text, self._secrets))


@asynccontextmanager
async def listening(sockets: Sequence[HeadSocket]) -> AsyncIterator[HintBox]:
    """Listen on all of them for as long as the block lasts."""
    box = HintBox()
    listeners = [asyncio.create_task(socket.listen(box)) for socket in sockets]
    for listener in listeners:
        listener.add_done_callback(box.end)
    try:
        yield box
    finally:
        for listener in listeners:
            listener.cancel()
        await asyncio.gather(*listeners, return_exceptions=True)  # a fault was raised to whoever waited for a hint


class _Message(msgspec.Struct):
    """An answer or a notification; what is not ours is not looked into."""

    id: object = None
    result: msgspec.Raw = msgspec.Raw()
    error: object = None
    method: object = None
    params: msgspec.Raw = msgspec.Raw()


class _Notice(msgspec.Struct):
    subscription: str
    result: msgspec.Raw


class _Head(msgspec.Struct):
    number: str
    hash: str


_decode = msgspec.json.Decoder(_Message).decode


def _reason_in(error: object) -> str:
    message = error.get("message") if isinstance(error, dict) else error
    return str(message) if message else "no reason"


def _hint_in(message: _Message, subscription: str) -> HeadHint | None:
    """The head in a notification of our subscription; None in any other message. Raises ValueError where ours has none."""
    if message.method != "eth_subscription":
        return None
    notice = msgspec.json.decode(message.params, type=_Notice)
    if notice.subscription != subscription:
        return None
    head = msgspec.json.decode(notice.result, type=_Head)
    return HeadHint(int(head.number, 16), bytes.fromhex(head.hash.removeprefix("0x")))
