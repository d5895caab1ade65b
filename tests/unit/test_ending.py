"""Whoever connects to a fake that is about to end is hung up on."""

from __future__ import annotations

import asyncio
import gc
import socket
from contextlib import suppress
from urllib.parse import urlsplit

import pytest

from tests.fakes.receiver import running_receiver


@pytest.mark.parametrize("turns", range(5))
async def test_nothing_that_was_accepted_is_forgotten(turns: int) -> None:
    """It ends so many turns of the loop after somebody connected: when that is not seen yet, being accepted, or served."""
    loop = asyncio.get_running_loop()
    with socket.socket() as caller:
        async with running_receiver() as receiver:
            place = urlsplit(receiver.url)
            caller.connect((place.hostname, place.port))
            for _ in range(turns):
                await asyncio.sleep(0)
        caller.setblocking(False)
        async with asyncio.timeout(60):
            with suppress(ConnectionResetError):
                assert await loop.sock_recv(caller, 1) == b""
    gc.collect()
