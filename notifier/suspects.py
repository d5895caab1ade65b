"""Suspects, one at a time: what several workers in a row fell silent with (`ledger/suspects.py`).

The next is sent when it is known what became of the one before, and that is stored: had it killed this process, no other
would have been in its hands. A sweep finds whether there are any, and each claim finds anew which: by then another process
may be about to die of one. A receiver that does not answer may take a whole exchange's time, and must not delay all
others. So one that has been under way for long enough is passed by; long enough is twice as long each time that a worker
fell silent with it. Whatever is innocent comes to be alone, or is settled before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from ledger.claims import Claimed, DueFrom, EndpointRoom
from ledger.ids import DeliveryId
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
        """Those that had no turn yet."""
        self.may_be_more = False
        """Some were found, and whoever looks again may find some."""
        self.missed = set[DeliveryId]()
        """Those that a claim did not bring since the last sweep: their endpoint rests, say, or has a limit."""
        self.alone: Claimed | None = None
        """The one that is being sent, until its outcome is stored."""
        self.alone_until = 0.0

    def note_swept(self, found: Iterable[Suspect]) -> None:
        """Those that a sweep found: whatever was missed may be tried again."""
        self.missed.clear()
        self.note_found(found)

    def note_found(self, found: Iterable[Suspect]) -> None:
        """Those that may be claimed now. Of as many takeovers, those that had no turn yet come first."""
        places = {one.id: place for place, one in enumerate(self.found)}
        self.found = deque(sorted(found, key=lambda one: (one.takeovers, places.get(one.id, len(places)))))
        self.may_be_more = bool(self.found)

    def is_turn(self, now: float) -> bool:
        """Whether there may be any, and it is time for the next."""
        return self.may_be_more and (self.alone is None or now >= self.alone_until)

    def take_next(self, isolation: Isolation, now: float) -> Suspect | None:
        """The next to be claimed. One whose endpoint has no room is passed over."""
        while self.found:
            suspect = self.found.popleft()
            if suspect.id not in self.missed and isolation.may_begin((suspect.tenant_id, suspect.endpoint_id), now):
                return suspect
        self.may_be_more = False
        return None

    def note_claimed(self, suspect: Suspect, claimed: Claimed | None, now: float) -> None:
        """It is in our hands, or the claim did not bring it."""
        if claimed is None:
            self.missed.add(suspect.id)
            return
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
