"""The notifier under strain: real processes beside bad merchants, at a steady pace, two at once, under a held snapshot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from bench.draining import Drained, DrainingTask
from bench.installation import fresh_database
from bench.isolation import IsolationTask, Waits
from bench.notifying import notifying
from bench.process import measured, serving
from bench.report import Row, drained_rows, middle_pair, waits_rows
from bench.sizes import Sizes

STEADY_ENDPOINTS = 40
STEADY_RATE = 200.0


class Strain:
    """The measurements of one run that need `chainbell notify` itself."""

    def __init__(self, sizes: Sizes, directory: Path, database_url: str, say: Callable[[str], None]) -> None:
        self.sizes = sizes
        self.directory = directory
        self.database_url = database_url
        self.say = say

    def isolation(self) -> list[Row]:
        """What the well endpoints notice of the others, in rounds with and without these."""
        rounds = self.sizes.isolation_rounds
        return waits_rows([self._isolated(f"round {n} of {rounds}", is_cold=False) for n in range(1, rounds + 1)])

    def cold(self) -> list[Row]:
        """The same where nothing is known of any of them, once."""
        return waits_rows([self._isolated("none of them known", is_cold=True)])

    def _isolated(self, what: str, *, is_cold: bool) -> tuple[Waits, Waits]:
        sizes = self.sizes
        self.say(f"{sizes.endpoints} endpoints, well and bad: {what}")
        task = IsolationTask("", sizes.endpoints, sizes.isolation_rate, sizes.isolation_s, sizes.seed, is_cold=is_cold)
        task.is_mixed = True
        alone = self._waits(task)
        task.has_bad = True
        return self._waits(task), alone

    def steady(self) -> list[Row]:
        """Two hundred events a second, from the commit to the first bytes, beside the same signed and posted from memory."""
        self.say(f"{STEADY_RATE:g} events a second")
        task = IsolationTask("", STEADY_ENDPOINTS, STEADY_RATE, self.sizes.steady_s, self.sizes.seed)
        bare = self._waits(task, is_bare=True)
        return waits_rows([(self._waits(task), bare)])

    def processes(self) -> list[Row]:
        """Two at one queue beside one."""
        pairs = []
        for number in range(1, self.sizes.processes_rounds + 1):
            self.say(f"one notifier, and two: round {number} of {self.sizes.processes_rounds}")
            one, two = (self._drained(count, deliveries=self.sizes.deliveries) for count in (1, 2))
            pairs.append((two, one))
        return drained_rows("two processes", *middle_pair(pairs))

    def snapshot(self) -> list[Row]:
        """A full queue while another session holds a snapshot, beside the same without."""
        minutes = self.sizes.snapshot_minutes
        self.say(f"a full queue for {minutes:g} minutes, and as long under a held snapshot")
        alone, held = (self._drained(1, seconds=minutes * 60, holds_snapshot=holds) for holds in (False, True))
        return drained_rows("under a held snapshot", held, alone)

    def _drained(
        self, processes: int, *, deliveries: int = 0, seconds: float = 0, holds_snapshot: bool = False
    ) -> Drained:
        with (
            serving("bench.merchants") as merchants_url,
            fresh_database(self.database_url, "strain") as database_url,
            notifying(self.directory, database_url, processes) as pids,
        ):
            task = DrainingTask(database_url, merchants_url, pids, deliveries, seconds, holds_snapshot)
            return msgspec.convert(measured("bench.draining", task), Drained)

    def _waits(self, task: IsolationTask, *, is_bare: bool = False) -> Waits:
        with serving("bench.merchants") as task.merchants_url, serving("bench.merchants") as task.bad_merchants_url:
            if is_bare:
                return msgspec.convert(measured("bench.isolation", task), Waits)
            with (
                fresh_database(self.database_url, "strain") as task.database_url,
                notifying(self.directory, task.database_url) as task.notify_pids,
            ):
                return msgspec.convert(measured("bench.isolation", task), Waits)
