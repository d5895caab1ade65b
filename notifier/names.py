"""Looking names up, so that name servers that never answer keep nobody else's names waiting.

A lookup is the system's own (`getaddrinfo`): it blocks a thread, and cannot be taken back. Where a name server is silent it
lasts for half a minute, though whoever asked has long given up. So threads are what has to be shared:

- **One thread for each name.** Who asks for a name that is being looked up joins in, also after others gave up.
- **Rooms by what is known.** Names that answered lately have threads of their own, which others cannot take; so have names
  that nobody knows yet; and those that hung have a few, and wait for each other.
- **What never got a thread is our fault**, not the receiver's (`NotLookedUp`): unless it hung before.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

Lookup = Callable[[str, int], Sequence[str]]
"""Blocking: the addresses of a host name; raises `OSError` when there are none."""


class Known(StrEnum):
    """What is known of a name."""

    ANSWERED = "answered"
    """In time, the last time: with addresses, or that there are none."""
    NOTHING = "nothing"
    HUNG = "hung"


THREADS = {Known.ANSWERED: 64, Known.NOTHING: 128, Known.HUNG: 16}
"""Lookups at once. A process that begins anew knows nothing of any name, so there are most for these."""

NAMES_MAX = 10_000
"""Names of which something is remembered."""


class NotLookedUp(OSError):
    """No thread was free for a name in time: nobody asked its name server."""


@dataclass(slots=True, eq=False)
class _Asked:
    """A lookup that waits for a thread, or has one."""

    host: str
    port: int
    known: Known
    found: asyncio.Future[Sequence[str]]
    askers: int = 0
    began_at: float | None = None


class Names:
    """The names of one process's endpoints."""

    def __init__(self, lookup: Lookup, timeout_s: float) -> None:
        """`timeout_s` bounds the wait for one lookup, a thread for it included."""
        self._lookup = lookup
        self._timeout_s = timeout_s
        self._known: dict[str, Known] = {}
        self._asked: dict[str, _Asked] = {}
        self._waiting: dict[Known, deque[_Asked]] = {known: deque() for known in Known}
        self._busy: Counter[Known] = Counter()

    async def find(self, host: str, port: int) -> Sequence[str]:
        """The addresses of a name. Raises `OSError` where there are none, or no answer in time, and `NotLookedUp`."""
        asked = self._asked.get(host) or self._ask(host, port)
        asked.askers += 1
        try:
            await asyncio.wait((asked.found,), timeout=self._timeout_s)
        finally:
            asked.askers -= 1
        if asked.found.done():
            return asked.found.result()
        if asked.began_at is None and asked.known is not Known.HUNG:
            raise NotLookedUp(f"no thread was free to look {host} up within {self._timeout_s} s")
        self._note(host, Known.HUNG)
        raise socket.gaierror(socket.EAI_AGAIN, f"no answer for {host} within {self._timeout_s} s")

    def _ask(self, host: str, port: int) -> _Asked:
        known = self._known.get(host, Known.NOTHING)
        asked = self._asked[host] = _Asked(host, port, known, asyncio.get_running_loop().create_future())
        self._waiting[known].append(asked)
        self._begin(known, asked)
        return asked

    def _begin(self, known: Known, latest: _Asked | None = None) -> None:
        """Give free threads to those that waited longest and that somebody still asks for."""
        waiting = self._waiting[known]
        while waiting and self._busy[known] < THREADS[known]:
            asked = waiting.popleft()
            if asked.askers == 0 and asked is not latest:
                del self._asked[asked.host]
                continue
            self._busy[known] += 1
            asked.began_at = time.monotonic()
            loop = asyncio.get_running_loop()
            # A daemon: a process that ends does not wait for a name server.
            threading.Thread(target=self._run, args=(asked, loop), name="endpoint-dns", daemon=True).start()

    def _run(self, asked: _Asked, loop: asyncio.AbstractEventLoop) -> None:
        found: Sequence[str] | Exception
        try:
            found = self._lookup(asked.host, asked.port)
        except Exception as error:  # noqa: BLE001 - whatever it is, who asked is to have it
            found = error
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(self._end, asked, found)

    def _end(self, asked: _Asked, found: Sequence[str] | Exception) -> None:
        elapsed_s = time.monotonic() - (asked.began_at or 0.0)
        self._note(asked.host, Known.ANSWERED if elapsed_s <= self._timeout_s else Known.HUNG)
        del self._asked[asked.host]
        self._busy[asked.known] -= 1
        if asked.askers and isinstance(found, Exception):
            asked.found.set_exception(found)
        elif asked.askers and not isinstance(found, Exception):
            asked.found.set_result(found)
        self._begin(asked.known)

    def _note(self, host: str, known: Known) -> None:
        self._known.pop(host, None)
        self._known[host] = known
        if len(self._known) > NAMES_MAX:
            del self._known[next(iter(self._known))]
