"""The notifier under strain: real processes beside bad merchants, at a steady pace, two at once, under a held snapshot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from bench.installation import fresh_database
from bench.isolation import IsolationTask, Waits
from bench.notifying import notifying
from bench.process import measured, serving
from bench.report import Row, waits_rows
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
        sizes, pairs = self.sizes, []
        for number in range(1, sizes.isolation_rounds + 1):
            self.say(f"{sizes.endpoints} endpoints, well and bad: round {number} of {sizes.isolation_rounds}")
            task = IsolationTask(
                "", sizes.endpoints, sizes.isolation_rate, sizes.isolation_s, sizes.seed, is_mixed=True
            )
            alone = self._waits(task)
            pairs.append((self._waits(msgspec.structs.replace(task, has_bad=True)), alone))
        return waits_rows(pairs)

    def steady(self) -> list[Row]:
        """Two hundred events a second, from the commit to the first bytes, beside the same signed and posted from memory."""
        self.say(f"{STEADY_RATE:g} events a second")
        task = IsolationTask("", STEADY_ENDPOINTS, STEADY_RATE, self.sizes.steady_s, self.sizes.seed)
        bare = self._waits(task, is_bare=True)
        return waits_rows([(self._waits(task), bare)])

    def _waits(self, task: IsolationTask, *, is_bare: bool = False) -> Waits:
        with serving("bench.merchants") as task.merchants_url:
            if is_bare:
                return msgspec.convert(measured("bench.isolation", task), Waits)
            with (
                fresh_database(self.database_url, "strain") as task.database_url,
                notifying(self.directory, task.database_url) as task.notify_pids,
            ):
                return msgspec.convert(measured("bench.isolation", task), Waits)
