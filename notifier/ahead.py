"""How much is claimed before it can begin: so that no slot waits for Postgres, and nothing is claimed to be given back.

A claim takes some tens of milliseconds, and an exchange with a receiver nearby two: what its slot sends next has to be here
already, several times over. With a receiver that takes a third of a second the same number would wait for longer than
anything may, and most of it would be given back, which costs as much as it did to claim it. So as many are claimed as can
begin in half of the time that they may wait, by how long the last exchanges took.
"""

from __future__ import annotations

from dataclasses import dataclass

AHEAD_MAX_S = 1.0
"""How long a claimed delivery may wait for a slot before it is given back: slots that hang must not hold what another
process could send."""

AHEAD_S = AHEAD_MAX_S / 2
"""In which time what is claimed ahead is to begin."""

AHEAD = 7
"""Deliveries at most that may be claimed before they can begin, in numbers of those that can. With three, slots stood empty
for half of the time at full rate."""


@dataclass(slots=True)
class Pace:
    """How long exchanges take."""

    took_s: float = 0.0
    """By the last ones, each of which counts for half."""

    def note(self, took_s: float) -> None:
        """One is over."""
        self.took_s = (self.took_s + took_s) / 2

    @property
    def ahead(self) -> int:
        """How many may be claimed for each that is under way."""
        return AHEAD if self.took_s * AHEAD <= AHEAD_S else max(1, int(AHEAD_S / self.took_s))
