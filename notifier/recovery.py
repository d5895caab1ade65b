"""Work on jobs about deliveries, beside the sending: a batch at a time, each job in its turn."""

from __future__ import annotations

import asyncio

import structlog

from ledger.database import Engine, database_now, transaction
from ledger.errors import JobTaken
from ledger.recovery import claim_recovery, step_recovery

log = structlog.get_logger()

IDLE_S = 1.0
PAUSE_S = 0.05
"""Between two batches: at most 10,000 deliveries a second, which leaves Postgres to what is new."""


async def keep_recovering(engine: Engine, stop: asyncio.Event) -> None:
    """Do what jobs there are until `stop`. A failing is said, and the next turn is the remedy: the lease ends by itself."""
    while not stop.is_set():
        try:
            has_worked = await recover_once(engine)
        except Exception as error:  # noqa: BLE001 (a database that is away for a while must not end the sending)
            log.error("recovery failed", error=repr(error).splitlines()[0])
            has_worked = False
        try:
            await asyncio.wait_for(stop.wait(), PAUSE_S if has_worked else IDLE_S)
        except TimeoutError:
            continue


async def recover_once(engine: Engine) -> bool:
    """Take the job whose turn it is and do its next batch; False where there is none."""
    async with transaction(engine) as connection:
        job = await claim_recovery(connection, await database_now(connection))
    if job is None:
        return False
    try:
        async with transaction(engine) as connection:
            await step_recovery(connection, job, await database_now(connection))
    except JobTaken as error:
        log.info("recovery was taken over", reason=str(error))
    return True
