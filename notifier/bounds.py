"""How much one answer may weigh: 16 KiB for everything that a receiver sends in one exchange.

The body alone is easily bounded where it is read. But HTTP has more places that may go on without end, and none of them
is a body: interim answers (`100 Continue`), empty lines before the status, extensions of a chunk, trailers. Left to the
time limit, one receiver could keep the whole process parsing for 20 seconds. So bytes are counted where they come from
the socket, before anything parses them.
"""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler

EXCHANGE_BYTES_MAX = 16 * 1024
"""What is taken of one answer: status, headers, framing and body together."""


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
        self._received += len(data)
        super().data_received(data[:room] if len(data) > room else data)
        if len(data) > room:
            # The reader has been woken and runs before this does, so what came in time is still read.
            self._loop.call_soon(self._leave)

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
