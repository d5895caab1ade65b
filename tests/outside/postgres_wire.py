"""What stands between a process and Postgres: it passes everything on, and holds a chosen transaction at its commit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from enum import StrEnum

from sqlalchemy.engine import URL, make_url

_CHUNK_BYTES = 65_536
_COMMIT = b"COMMIT\x00"
"""As a client sends it, and as Postgres says that it was done."""


class Side(StrEnum):
    """Where a commit is held."""

    ASKED = "asked"
    """On its way to Postgres: nothing is committed."""
    DONE = "done"
    """On its way back: it is committed, and the process does not know."""


class PostgresWire:
    """A TCP port before a database."""

    def __init__(self, behind: URL) -> None:
        self._behind = behind
        self._marker = b""
        self._side = Side.ASKED
        self._held: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.caught = asyncio.Event()
        self.url = ""

    def hold(self, marker: str, side: Side) -> None:
        """Hold the next commit of a connection that has sent this text since."""
        self._marker, self._side = marker.encode(), side
        self.caught.clear()

    def let_go(self) -> None:
        """Postgres is told that the client of what was held is gone, as the kernel of a killed process tells it."""
        for writer in self._held:
            writer.close()
        self._held.clear()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, both ways."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with closing(writer):
            answers, questions = await self._connect()
            is_marked = asyncio.Event()
            with closing(questions), suppress(ConnectionError):
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._pump(reader, questions, questions, Side.ASKED, is_marked))
                    group.create_task(self._pump(answers, writer, questions, Side.DONE, is_marked))

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        query = self._behind.query
        host, port = query.get("host", self._behind.host), query.get("port", self._behind.port or 5432)
        if str(host).startswith("/"):
            return await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        return await asyncio.open_connection(str(host), int(str(port)))

    async def _pump(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        questions: asyncio.StreamWriter,
        side: Side,
        is_marked: asyncio.Event,
    ) -> None:
        while data := await source.read(_CHUNK_BYTES):
            if side is Side.ASKED and self._marker and self._marker in data:
                is_marked.set()
            if side is self._side and is_marked.is_set() and _COMMIT in data:
                self._marker = b""
                is_marked.clear()
                self._held.append(questions)
                self.caught.set()
                return
            sink.write(data)
            await sink.drain()
        sink.close()

    async def close(self) -> None:
        """End every connection."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def wire_before(database_url: str) -> AsyncIterator[PostgresWire]:
    """A wire to a database on a free port of this machine."""
    behind = make_url(database_url)
    wire = PostgresWire(behind)
    server = await asyncio.start_server(wire.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    there = behind.set(drivername="postgresql", host="127.0.0.1", port=port).difference_update_query(["host", "port"])
    wire.url = there.render_as_string(hide_password=False)
    try:
        yield wire
    finally:
        server.close()
        await wire.close()
