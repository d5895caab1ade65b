"""How much one answer may weigh: 16 KiB for everything that a receiver sends in one exchange.

The body alone is easily bounded where it is read. But HTTP has more places that may go on without end, and none of them
is a body: interim answers (`100 Continue`), empty lines before the status, extensions of a chunk, trailers. Left to the
time limit, one receiver could keep the whole process parsing for 20 seconds. So bytes are counted where they come from
the socket, before anything parses them.

What a receiver says without being asked is no answer. A connection on which it did so is not used again: the next request
would be taken for answered before it was read, and its webhook for accepted.
"""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler

EXCHANGE_BYTES_MAX = 16 * 1024
"""What is taken of one answer: status, headers, framing and body together."""


_NO_CONTENT = b"204"
_STATUS_CODE = slice(9, 12)
"""Where it stands in `HTTP/1.1 204 No Content`."""
_END_OF_HEAD = b"\r\n\r\n"


class AnswerTooLarge(aiohttp.ClientError):
    """A receiver sent more than `EXCHANGE_BYTES_MAX`; the connection is gone."""


class BoundedResponse(ResponseHandler):
    """aiohttp's end of one connection, which leaves when an answer has reached the limit."""

    _received = 0

    def set_response_params(self, **parameters: Any) -> None:  # noqa: ANN401 (aiohttp's own arguments)
        """aiohttp's word that the next request is about to be written: its answer is counted from zero."""
        self._received = 0
        super().set_response_params(**parameters)

    def data_received(self, data: bytes) -> None:
        """Parse what is within the limit. What is over it is not looked at, and ends the connection."""
        room = EXCHANGE_BYTES_MAX - self._received
        is_first = self._received == 0
        self._received += len(data)
        taken = data[:room] if len(data) > room else data
        if is_first and data[_STATUS_CODE] == _NO_CONTENT:
            taken = self._without_content(taken)
        super().data_received(taken)
        if len(data) > room:
            # The reader has been woken and runs before this does, so what came in time is still read.
            self._loop.call_soon(self._leave)

    def is_connected(self) -> bool:
        """aiohttp's question before a connection is used again."""
        return super().is_connected() and not self.should_close

    def _without_content(self, data: bytes) -> bytes:
        """The head of a `204`, which has no body (RFC 9110, section 15.3.5). There are servers that send one, or the end of
        one in chunks: taken for the next answer it would spoil the one that they gave."""
        head, end, rest = data.partition(_END_OF_HEAD)
        if rest:
            self.force_close()
        return head + end

    def _leave(self) -> None:
        if self.transport is None:
            return
        error = AnswerTooLarge(f"the answer has more than {EXCHANGE_BYTES_MAX} bytes")
        if self._payload is not None:
            self._payload.set_exception(error)
        if self._exception is None:  # else the parser has refused it already, for a reason of its own
            self.set_exception(error)
        self.transport.abort()


def make_bounded_response(loop: asyncio.AbstractEventLoop) -> ResponseHandler:
    """What a connector makes for each connection."""
    return BoundedResponse(loop)
