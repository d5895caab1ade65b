"""Whether this machine's clock is fit to sign by.

A signature carries the time of its attempt, and receivers refuse what is five minutes off. A notifier whose clock is wrong
would have every webhook refused, and all that anybody would see is that merchants answer 400. So it compares its clock with
the database's, by which everything else here goes, at start and every minute, and signs nothing while the two are more than
`SKEW_MAX_S` apart. Nothing is claimed meanwhile: deliveries wait as they are and burn no attempts.

Between two comparisons the monotonic clock vouches: a clock that is set, or a machine that was asleep, is seen before the
next signature, not up to a minute later.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import structlog

from ledger.database import UNAVAILABLE, Engine, database_now, transaction
from notifier.metrics import CLOCK_REFUSALS

log = structlog.get_logger()

SKEW_MAX_S = 30.0
"""A tenth of the five minutes that the public libraries allow: their receivers' own clocks may be wrong too."""

CHECK_INTERVAL_S = 60.0

RECHECK_INTERVAL_S = 2.0
"""How soon it is seen that a clock was mended."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The database's time, and what this machine's monotonic clock said before it was asked and after it had answered."""

    database_s: float
    """Seconds since 1970."""
    asked_at_s: float
    answered_at_s: float

    def skew_s(self, wall_s: float, monotonic_s: float) -> float:
        """By how much the wall clock is surely ahead of the database's (behind: less than 0) at this moment: what a slow
        answer leaves in doubt is no skew."""
        middle_s = (self.answered_at_s + self.asked_at_s) / 2
        doubt_s = (self.answered_at_s - self.asked_at_s) / 2
        ahead_s = wall_s - (self.database_s + monotonic_s - middle_s)
        return max(ahead_s - doubt_s, 0.0) if ahead_s > 0 else min(ahead_s + doubt_s, 0.0)


class ClockWatch:
    """Compares the clocks, and says whether webhooks may be signed now."""

    def __init__(
        self,
        engine: Engine,
        *,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`wall` and `monotonic` are clocks in seconds, for tests."""
        self._engine = engine
        self._wall = wall
        self._monotonic = monotonic
        self._compared: Comparison | None = None
        self._complained_at_s: float | None = None

    def may_sign(self) -> bool:
        """False while this clock is not known to be right: also before the first comparison."""
        return self._compared is not None and abs(self._skew_s(self._compared)) <= SKEW_MAX_S

    def _skew_s(self, compared: Comparison) -> float:
        return compared.skew_s(self._wall(), self._monotonic())

    async def check(self) -> None:
        """Compare the clocks once. While the database is away the last comparison holds: nothing can be claimed either."""
        try:
            async with transaction(self._engine) as connection:
                asked_at_s = self._monotonic()
                found = await database_now(connection)
                answered_at_s = self._monotonic()
        except (*UNAVAILABLE, OSError) as error:
            log.warning("clock not compared", error=str(error).splitlines()[0])
            return
        self._compared = Comparison(found.timestamp(), asked_at_s, answered_at_s)
        self._report(self._skew_s(self._compared))

    def _report(self, skew_s: float) -> None:
        """Say that nothing is signed, once a minute; and that it is again."""
        if abs(skew_s) > SKEW_MAX_S:
            CLOCK_REFUSALS.inc()
            now_s = self._monotonic()
            if self._complained_at_s is None or now_s - self._complained_at_s >= CHECK_INTERVAL_S:
                self._complained_at_s = now_s
                log.error("clock is wrong, nothing is signed", ahead_of_database_s=round(skew_s, 1), limit_s=SKEW_MAX_S)
        elif self._complained_at_s is not None:
            self._complained_at_s = None
            log.warning("clock is right again", ahead_of_database_s=round(skew_s, 1))

    async def keep(self, stop: asyncio.Event) -> None:
        """Compare every minute until `stop`, and every few seconds while the clock is not known to be right."""
        compared_at_s = self._monotonic() - CHECK_INTERVAL_S
        while not stop.is_set():
            if not self.may_sign() or self._monotonic() - compared_at_s >= CHECK_INTERVAL_S:
                compared_at_s = self._monotonic()
                await self.check()
            with suppress(TimeoutError):
                async with asyncio.timeout(RECHECK_INTERVAL_S):
                    await stop.wait()
