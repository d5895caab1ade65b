"""What a dispatcher sees of endpoints, written down every few seconds: off the way of every delivery."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta

import structlog

from ledger.claims import Claimed
from ledger.database import UNAVAILABLE, Engine, transaction
from ledger.states import Outcome
from ledger.tally import Tally, add_up
from notifier.outcome import FAULTS
from notifier.sender import AttemptResult

log = structlog.get_logger()

INTERVAL_S = 5.0
"""How old the figures of an endpoint's health may be, and what a killed process has not counted."""


def tally_attempts(tally: Tally, ended: Sequence[tuple[Claimed, AttemptResult]]) -> None:
    """Count attempts that were settled, but for those that failed by us."""
    for claimed, result in ended:
        if result.error in FAULTS:
            continue
        ended_at = result.started_at + timedelta(milliseconds=result.duration_ms)
        key = (claimed.tenant_id, claimed.endpoint_id)
        tally.note(key, ended_at, result.duration_ms, is_accepted=result.outcome is Outcome.ACCEPTED)


async def keep_tally(engine: Engine, tally: Tally) -> None:
    """Write what was counted, until cancelled; and then what is left."""
    try:
        while True:
            await asyncio.sleep(INTERVAL_S)
            await write_tally(engine, tally)
    finally:
        await write_tally(engine, tally)


async def write_tally(engine: Engine, tally: Tally) -> None:
    """Add it up in the ledger; where that cannot be reached, it counts with what comes next."""
    seen = tally.take()
    if not seen:
        return
    try:
        async with transaction(engine) as connection:
            await add_up(connection, seen)
    except (*UNAVAILABLE, OSError) as error:
        tally.put_back(seen)
        log.warning("health not written", error=str(error).splitlines()[0])
