"""A dispatcher as a process of its own, to be killed. Run as a module, with the database's URL, and the lease and the time
limit of an exchange in seconds."""

from __future__ import annotations

import asyncio
import sys

from ledger.database import connect
from ledger.secrets import SecretBox
from notifier.dispatcher import Dispatcher
from notifier.sender import Sender, TimeLimits
from tests.integration.notifier.conftest import LOOPBACK, MASTER_KEY


async def main(url: str, lease_s: float, exchange_s: float) -> None:
    """Deliver for ever."""
    engine = connect(url, application="dispatcher", pool_size=3)
    async with Sender(LOOPBACK, version="test", limits=TimeLimits(total_s=exchange_s)) as sender:
        await Dispatcher(engine, sender, SecretBox(MASTER_KEY), lease_s=lease_s).run(asyncio.Event())


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], *map(float, sys.argv[2:])))
