"""A process that commits entries' events as a follower does, and can be killed in the middle of it.

Run as a module with the database's URL. Each line on standard input is one transaction: a JSON list of `NewEvent`s. For each
that was committed a line comes back: the ids.
"""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime

import msgspec

from ledger.database import connect, transaction
from ledger.events import NewEvent, record_events

APPLICATION = "sink writer"
"""What Postgres knows it by."""


async def main(url: str) -> None:
    """Commit until standard input ends."""
    engine = connect(url, application=APPLICATION, pool_size=2)
    while line := await asyncio.to_thread(sys.stdin.buffer.readline):
        news = msgspec.json.decode(line, type=list[NewEvent])
        async with transaction(engine) as connection:
            ids = await record_events(connection, news, datetime.now(UTC))
        print(msgspec.json.encode(ids).decode(), flush=True)
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
