"""Suspects, one at a time: what several workers in a row fell silent with (`ledger/suspects.py`).

The next is sent when it is known what became of the one before, and that is stored: had it killed this process, no other
would have been in its hands. A receiver that does not answer may take a whole exchange's time, and must not delay all
others. So one that has been under way for long enough is passed by; long enough is twice as long each time that a worker
fell silent with it. Whatever is innocent comes to be alone, or is settled before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from ledger.claims import Claimed, DueFrom, EndpointRoom
from ledger.owed import SUSPECT_AFTER
from ledger.suspects import Suspect
from notifier.isolation import Isolation

ALONE_FIRST_S = 1.0
"""How long a suspect is alone at first: most receivers answer sooner."""

ALONE_MAX_S = 60.0
"""Longer than any exchange and its settling."""


class Suspects:
    """Those of one process. Times are of one monotonic clock, in seconds."""

    def __init__(self) -> None:
        self.found = deque[Suspect]()
        self.alone: Claimed | None = None
        """The one that is being sent, until its outcome is stored."""
        self.alone_until = 0.0

    def note_found(self, found: Iterable[Suspect]) -> None:
        """Those that may be claimed now. Of as many takeovers, those that had no turn yet come first."""
        waiting = {one.id for one in self.found}
        self.found = deque(sorted(found, key=lambda one: (one.takeovers, one.id not in waiting)))

    def take_turn(self, isolation: Isolation, now: float) -> Suspect | None:
        """The next to be claimed, if it is time for one. One whose endpoint has no room is passed over."""
        if self.alone is not None and now < self.alone_until:
            return None
        while self.found:
            suspect = self.found.popleft()
            if isolation.may_begin((suspect.tenant_id, suspect.endpoint_id), now):
                return suspect
        return None

    def note_claimed(self, suspect: Suspect, claimed: Claimed, now: float) -> None:
        """It is in our hands."""
        alone_s = ALONE_FIRST_S * 2 ** max(0, suspect.takeovers + claimed.is_taken_over - SUSPECT_AFTER)
        self.alone, self.alone_until = claimed, now + min(alone_s, ALONE_MAX_S)

    def note_settled(self, claimed: Claimed) -> None:
        """It is stored what became of a delivery."""
        if claimed is self.alone:
            self.alone = None


def room_for(suspect: Suspect) -> EndpointRoom:
    """What a claim asks for. It begins to read where the suspect is."""
    place = DueFrom(suspect.due_at, suspect.due_at)
    return EndpointRoom(suspect.tenant_id, suspect.endpoint_id, 1, place, suspect.id)
