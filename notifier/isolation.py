"""Isolation: which delivery begins next, so that no endpoint delays another's.

A sender of webhooks has one scarce thing, the exchanges that it has under way, and receivers that take them and do not give
them back. A single one that accepts connections and never answers would soon have all of them. What keeps it from that:

- **Slots by health.** Endpoints that accepted something lately, unproven ones and failing ones each have slots of their own.
  Failing ones can only wait for each other.
- **A window for each endpoint**: how many exchanges it may have under way. It begins at two or four, grows by one with all
  that it accepts, and shrinks when it fails: to half, and to one when it did not answer in time. It never grows beyond an
  equal share of the slots, counted as if one more endpoint were about to come: there is always room for the next.
- **Slow exchanges leave their slot.** What has been under way for a quarter of a second costs a socket and nothing else,
  so its slot goes to the next and it stays in a much larger room of its own. A slot is therefore never held for long.
- **Turns.** Claims take a share for each endpoint to which something is due, in a line that goes round; and of the endpoints
  that may begin, the one that waited longest does, with its oldest delivery, live ones first. Tenants take turns before
  their endpoints do, and have places left for them (`notifier/fairness.py`).
- **Rests.** A receiver that says `429` or `503` and for how long is left alone for so long, up to a minute.

This is one process's own memory of the last minute. What outlives it (`failures_consecutive`, `last_accepted_at`, and the
circuit breaker, `ledger/breaker.py`) is in Postgres and comes with each claim. Nothing here waits, asks or sends: the
dispatcher does, and says what came of it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import islice
from typing import NamedTuple

from ledger.claims import Claimed, EndpointRoom
from ledger.events import LIVE_PRIORITY
from ledger.ids import TenantId
from ledger.owed import Owed
from ledger.secrets import SealBroken
from ledger.states import EndpointHealth, Outcome
from notifier.ahead import Pace
from notifier.fairness import Key, Line, has_place, is_guest, shared
from notifier.outcome import AttemptError

SLOTS = 64
"""Exchanges of endpoints that accepted lately: throughput of one process falls beyond this, so more come from more
processes."""

CLAIM_MAX = 300
"""Deliveries of one claim and one health: Postgres is three times as fast with a hundred as with ten, and hardly faster
with more."""

UNPROVEN_SHARE = 1 / 4
FAILING_SHARE = 1 / 8
"""Slots of unproven and of failing endpoints, as shares of those of the others, which they come on top of."""

SLOW_AFTER_S = {EndpointHealth.ACCEPTING: 0.25, EndpointHealth.UNPROVEN: 0.1, EndpointHealth.FAILING: 0.1}
"""When an exchange leaves its slot. Of those that accept most answer sooner; of the others nobody knows, and they have fewer
slots."""

SLOW_MAX = {EndpointHealth.ACCEPTING: 256, EndpointHealth.UNPROVEN: 320, EndpointHealth.FAILING: 128}
"""Exchanges that may be under way outside the slots: a socket each, and no more in all than a process may have open where
nobody raised the limit of 1,024. When there are so many, the next slow ones keep their slots."""

WINDOW_MIN = 4
"""The window of an endpoint that accepted before, and the smallest share of the slots that one is held to: a burst does not
wait for one answer after the other."""

WINDOW_FIRST = {EndpointHealth.ACCEPTING: WINDOW_MIN, EndpointHealth.UNPROVEN: 2, EndpointHealth.FAILING: 1}
"""The window of an endpoint that nothing was sent to lately. Two for one that never accepted anything: one stuck delivery
delays no other, and many that are silent cannot fill the room for slow exchanges."""

FAILING_AFTER_FAILURES = 3
"""Failures in a row after which an endpoint counts as failing: a single one may be about the event."""

REST_MAX = timedelta(minutes=1)
"""How long we leave a receiver alone because it asked for that; the delivery that it answered so waits for longer, if it
said longer."""

PAUSE_S = 0.25
"""Between two exchanges with an endpoint that fails: until the first is settled, and its breaker perhaps open."""

FORGOTTEN_AFTER_S = 60.0
"""How long an endpoint that nothing is under way to is remembered."""

SILENT_AFTER_TIMEOUTS = 2
"""Timeouts in a row after which an endpoint that accepted before counts as failing. After the first it is asked one at a
time, and keeps its place: with those that fail it would stand behind hundreds that hang."""

LINE_MAX = 1_000
"""Endpoints of the line that are looked at for one claim."""


class Debt(NamedTuple):
    """What is known of an endpoint to which something is due."""

    stored: EndpointHealth
    """How it does by its row."""
    note: int
    """The number of the latest note that something is due."""


class Turns(NamedTuple):
    """What one claim is to bring."""

    rooms: list[EndpointRoom]
    note: int
    """The latest note that it can have seen."""


class Waiting(NamedTuple):
    """A claimed delivery that has not begun."""

    claimed: Claimed
    secrets: tuple[str, ...] | SealBroken
    """To sign it with."""
    claimed_at: float
    """Before its lease began."""


@dataclass(slots=True)
class Standing:
    """One endpoint, as this process knows it."""

    health: EndpointHealth
    window: int
    in_flight: int = 0
    failures: int = 0
    """In a row."""
    timeouts: int = 0
    """In a row."""
    live: deque[Waiting] = field(default_factory=deque)
    late: deque[Waiting] = field(default_factory=deque)
    """Claimed and not begun; late ones tell of the past, and go last."""
    is_moving: bool = False
    """It accepted something since the last claim."""
    rests_until: float = 0.0
    used_at: float = 0.0
    pace: Pace = field(default_factory=Pace)
    """Of what it accepts."""

    @property
    def waiting(self) -> int:
        """How many were claimed and have not begun."""
        return len(self.live) + len(self.late)

    @property
    def is_busy(self) -> bool:
        """Whether anything is under way, or claimed."""
        return self.in_flight + self.waiting > 0


@dataclass(slots=True, eq=False)
class Exchange:
    """A delivery that is being sent."""

    waiting: Waiting
    slot: EndpointHealth
    """Whose slots it began in: its endpoint's health may change meanwhile."""
    began_at: float
    is_slow: bool = False
    """It left its slot."""
    is_lost: bool = False
    """Its lease is another worker's."""

    @property
    def key(self) -> Key:
        """The endpoint."""
        return self.waiting.claimed.tenant_id, self.waiting.claimed.endpoint_id


class Isolation:
    """What is claimed, waits and is under way in one process. Times are of one monotonic clock, in seconds."""

    def __init__(self, slots: int = SLOTS) -> None:
        self.slots = {
            EndpointHealth.ACCEPTING: slots,
            EndpointHealth.UNPROVEN: max(1, int(slots * UNPROVEN_SHARE)),
            EndpointHealth.FAILING: max(1, int(slots * FAILING_SHARE)),
        }
        self.standings: dict[Key, Standing] = {}
        self.ready = {health: Line() for health in EndpointHealth}
        """Endpoints that may begin an exchange, in the order of their turns."""
        self.owed: dict[Key, Debt] = {}
        """Endpoints to which something is due."""
        self.notes = 0
        """How often one was noted: what a claim did not see was noted after it began."""
        self.lines = {health: Line() for health in EndpointHealth}
        """The same in the order of their turns. Who is no more owed, or changed sides, is noticed at its turn."""
        self.holding: dict[Key, None] = {}
        """Endpoints for which something is claimed and has not begun."""
        self.resting: set[Key] = set()
        """Endpoints that are left alone for a while."""
        self.taken: Counter[EndpointHealth] = Counter()
        """Slots that are."""
        self.waiting: Counter[EndpointHealth] = Counter()
        self.slow: Counter[EndpointHealth] = Counter()
        self.busy: Counter[EndpointHealth] = Counter()
        """Endpoints to which something is under way."""
        self.under_way_of = {health: Counter[TenantId]() for health in EndpointHealth}
        """Exchanges of each tenant, in slots of that health or out of them."""
        self.pace = Pace()
        """How long what is accepted keeps its slot."""

    def note_owed(self, found: Iterable[Owed]) -> None:
        """Something is due to these endpoints: they get their turns."""
        for one in found:
            self._line_up((one.tenant_id, one.endpoint_id), one.health)

    def look_again(self, key: Key) -> None:
        """Something may be due to an endpoint: what was settled may have stood before it."""
        standing, debt = self.standings.get(key), self.owed.get(key)
        known = debt.stored if debt else EndpointHealth.UNPROVEN
        self._line_up(key, standing.health if standing else known)

    def _line_up(self, key: Key, stored: EndpointHealth) -> None:
        self.notes += 1
        self.owed[key] = Debt(stored, self.notes)
        self.lines[self._health_of(key, stored)].add(key)

    def turns(
        self, now: float, *, is_moving: bool, healths: Collection[EndpointHealth] = tuple(EndpointHealth)
    ) -> Turns:
        """What to claim for endpoints of these healths: of each that has its turn as much as may begin or, while exchanges
        end (`is_moving`), as soon can. Endpoints share what there is; who had a turn is at the end of the line."""
        chosen = list[EndpointRoom]()
        for health in healths:
            most = self.slots[health] * (1 + self.pace.ahead if health is EndpointHealth.ACCEPTING else 1)
            places, in_hand = most if is_moving else self.slots[health], self.taken[health] + self.waiting[health]
            if places > in_hand:
                number = min(CLAIM_MAX, places - in_hand)
                chosen += shared(self._next_in_line(health, number, now, is_moving=is_moving), number)
            else:
                chosen += self._guests_in_line(health, most, in_hand, now)
        return Turns(chosen, self.notes)

    def _next_in_line(
        self, health: EndpointHealth, number: int, now: float, *, is_moving: bool
    ) -> list[tuple[Key, int]]:
        """So many endpoints of one health, those that waited longest for their turn and have room. Who was looked at is at
        the end of its line: it had its turn, or has no room."""
        line, found, looked_at = self.lines[health], list[tuple[Key, int]](), list[Key]()
        for _ in range(LINE_MAX):
            key = line.first()
            if key is None or len(found) == number:
                break
            line.take(key)
            looked_at.append(key)
            room = self._room(key, health, now, is_moving=is_moving)
            if room > 0:
                found.append((key, room))
        self._line_up_again(looked_at)
        return found

    def _guests_in_line(self, health: EndpointHealth, places: int, in_hand: int, now: float) -> list[EndpointRoom]:
        """One delivery for each tenant that has hardly any in hand, while others have all places."""
        line, chosen = self.lines[health], list[EndpointRoom]()
        if line.first() is None or not is_guest(places, in_hand, 0):
            return chosen
        own = Counter(self.under_way_of[health])
        for key in self.holding:
            own[key[0]] += self.standings[key].waiting
        for key in list(islice(line.firsts(), LINE_MAX)):
            if is_guest(places, in_hand + len(chosen), own[key[0]]):
                line.take(key)
                if self._room(key, health, now, is_moving=False) > 0:
                    chosen.append(EndpointRoom(*key, 1))
                self._line_up_again([key])
        return chosen

    def _line_up_again(self, keys: Iterable[Key]) -> None:
        """Put those that are still owed something at the end of the lines that they belong in now."""
        for key in keys:
            debt = self.owed.get(key)
            if debt is not None:
                self.lines[self._health_of(key, debt.stored)].add(key)

    def note_claimed(self, turns: Turns, claimed: Sequence[Claimed]) -> None:
        """What a claim brought: nothing more is due to whom it brought less than there was room for. But it may not have
        seen what was noted after it began: of what was settled meanwhile, say, which set free what stood behind."""
        brought = Counter((one.tenant_id, one.endpoint_id) for one in claimed)
        for one in turns.rooms:
            key = (one.tenant_id, one.endpoint_id)
            debt = self.owed.get(key)
            if debt is not None and debt.note <= turns.note and brought[key] < one.room:
                del self.owed[key]

    def _health_of(self, key: Key, stored: EndpointHealth) -> EndpointHealth:
        """By what this process saw; while it sees nothing, a failure that others saw counts as well."""
        standing = self.standings.get(key)
        if standing is None:
            return stored
        return stored if stored is EndpointHealth.FAILING and not standing.is_busy else standing.health

    def _room(self, key: Key, health: EndpointHealth, now: float, *, is_moving: bool) -> int:
        """Of an endpoint in the line of that health, if it still belongs there. Claimed ahead is only for those that have
        accepted something since the last claim. By its row an endpoint may rest that others saw fail: however wide its
        window is here, it gets one at a time."""
        debt = self.owed.get(key)
        if debt is None or self._health_of(key, debt.stored) is not health:
            return 0
        standing = self.standings.get(key)
        if standing is None:
            return WINDOW_FIRST[health]
        if standing.rests_until > now:
            return 0
        ahead = 1 + standing.pace.ahead if is_moving and standing.is_moving else 1
        standing.is_moving = False
        is_failing = EndpointHealth.FAILING in (health, debt.stored)
        window = WINDOW_FIRST[EndpointHealth.FAILING] if is_failing else self._window(standing) * ahead
        return window - standing.in_flight - standing.waiting

    def _window(self, standing: Standing) -> int:
        busy = max(1, self.busy[EndpointHealth.ACCEPTING])
        share = self.slots[EndpointHealth.ACCEPTING] // (busy + 1)
        return min(standing.window, max(WINDOW_MIN, share))

    def may_begin(self, key: Key, now: float) -> bool:
        """Whether one more would soon have its turn: with an endpoint that accepts it has, however much waits for it."""
        standing = self.standings.get(key)
        if standing is None:
            return True
        is_ready = standing.health is EndpointHealth.ACCEPTING or standing.in_flight + standing.waiting < self._window(
            standing
        )
        return standing.rests_until <= now and is_ready

    def add(self, waiting: Waiting, now: float) -> None:
        """Let a claimed delivery wait for its turn."""
        key = (waiting.claimed.tenant_id, waiting.claimed.endpoint_id)
        standing = self.standings.get(key)
        debt = self.owed.get(key)
        stored = debt.stored if debt else EndpointHealth.UNPROVEN
        if standing is None:
            standing = self.standings[key] = Standing(stored, WINDOW_FIRST[stored])
        elif not standing.is_busy:
            standing.health = self._health_of(key, stored)
            if standing.health is EndpointHealth.FAILING:
                standing.window = WINDOW_FIRST[EndpointHealth.FAILING]
        standing.used_at = now
        (standing.live if waiting.claimed.priority == LIVE_PRIORITY else standing.late).append(waiting)
        self.waiting[standing.health] += 1
        self.holding.setdefault(key)
        self._let_begin(key, standing, now)

    def _let_begin(self, key: Key, standing: Standing, now: float) -> None:
        if standing.waiting and standing.in_flight < self._window(standing) and standing.rests_until <= now:
            self.ready[standing.health].add(key)

    def begin(self, now: float) -> Exchange | None:
        """The next delivery to send, if a slot is free for one."""
        if self.resting:
            self._end_rests(now)
        for health, line in self.ready.items():
            key = line.first()
            if key is not None and self.taken[health] >= self.slots[health]:
                key = self._first_guest(health)
            if key is not None:
                return self._begin(key, health, now)
        return None

    def _first_guest(self, health: EndpointHealth) -> Key | None:
        """Of the endpoints that may begin while all slots are taken, the first of a tenant that has hardly any."""
        slots, taken, of_tenant = self.slots[health], self.taken[health], self.under_way_of[health]
        if not is_guest(slots, taken, 0):
            return None
        return next((key for key in self.ready[health].firsts() if is_guest(slots, taken, of_tenant[key[0]])), None)

    def _begin(self, key: Key, health: EndpointHealth, now: float) -> Exchange:
        standing = self.standings[key]
        self.ready[health].take(key)
        waiting = (standing.live or standing.late).popleft()
        self.waiting[health] -= 1
        if not standing.waiting:
            del self.holding[key]
        self.taken[health] += 1
        self.under_way_of[health][key[0]] += 1
        self.busy[health] += standing.in_flight == 0
        standing.in_flight += 1
        self._let_begin(key, standing, now)
        return Exchange(waiting, health, now)

    @property
    def is_short(self) -> bool:
        """Whether nothing that is claimed may begin, of endpoints that accept."""
        return self.ready[EndpointHealth.ACCEPTING].first() is None

    def leave_slot(self, exchange: Exchange, now: float) -> None:
        """Give the slot of a slow exchange to the next, if there is room for another slow one."""
        is_slow = exchange.began_at <= now - SLOW_AFTER_S[exchange.slot]
        if not is_slow or exchange.is_slow:
            return
        own = self.under_way_of[exchange.slot][exchange.key[0]]
        if has_place(SLOW_MAX[exchange.slot], self.slow[exchange.slot], own):
            exchange.is_slow = True
            self.slow[exchange.slot] += 1
            self.taken[exchange.slot] -= 1

    def end(
        self,
        exchange: Exchange,
        now: float,
        outcome: Outcome | None,
        *,
        error: AttemptError | None = None,
        rest: timedelta | None = None,
    ) -> None:
        """Note that an exchange is over, and how the endpoint did: no outcome where it was not asked. `rest` is how long it
        wants to be left alone."""
        key, standing = exchange.key, self.standings[exchange.key]
        if exchange.is_slow:
            self.slow[exchange.slot] -= 1
        else:
            self.taken[exchange.slot] -= 1
        self.under_way_of[exchange.slot][key[0]] -= 1
        standing.in_flight -= 1
        self.busy[standing.health] -= standing.in_flight == 0
        standing.used_at = now
        if outcome is not None:
            self._judge(key, standing, outcome, error)
        if outcome is Outcome.ACCEPTED:
            standing.pace.note(now - exchange.began_at)
            self.pace.note(min(now - exchange.began_at, SLOW_AFTER_S[EndpointHealth.ACCEPTING]))
        if rest is not None:
            self._rest(key, standing, now + min(rest, REST_MAX).total_seconds())
        elif standing.health is EndpointHealth.FAILING:
            self._rest(key, standing, now + PAUSE_S)
        self._let_begin(key, standing, now)

    def leave_alone(self, key: Key, until: float) -> None:
        """Begin and claim nothing more for an endpoint before that time."""
        standing = self.standings.get(key)
        if standing is not None:
            self._rest(key, standing, until)

    def _rest(self, key: Key, standing: Standing, until: float) -> None:
        standing.rests_until = max(standing.rests_until, until)
        self.resting.add(key)
        self.ready[standing.health].discard(key)

    def _end_rests(self, now: float) -> None:
        for key in list(self.resting):
            standing = self.standings.get(key)
            if standing is None or standing.rests_until <= now:
                self.resting.discard(key)
                if standing is not None:
                    self._let_begin(key, standing, now)

    def _judge(self, key: Key, standing: Standing, outcome: Outcome, error: AttemptError | None) -> None:
        """Open or close the window by one outcome, and let the endpoint change sides. A refusal is of our making and says
        nothing of the receiver."""
        if outcome is Outcome.REFUSED:
            return
        health = standing.health
        if outcome is Outcome.ACCEPTED:
            health, standing.failures, standing.timeouts = EndpointHealth.ACCEPTING, 0, 0
            standing.is_moving = True
            standing.window = min(standing.window + 1, self.slots[EndpointHealth.ACCEPTING])
        else:
            standing.failures += 1
            is_silent = error is AttemptError.TIMEOUT
            standing.window = 1 if is_silent else max(1, standing.window // 2)
            silent_max = SILENT_AFTER_TIMEOUTS if health is EndpointHealth.ACCEPTING else 1
            standing.timeouts = standing.timeouts + 1 if is_silent else 0
            if standing.timeouts >= silent_max or standing.failures >= FAILING_AFTER_FAILURES:
                health, standing.window = EndpointHealth.FAILING, 1
        if health is not standing.health:
            self._change_sides(key, standing, health)

    def _change_sides(self, key: Key, standing: Standing, health: EndpointHealth) -> None:
        before, standing.health = standing.health, health
        self.ready[before].discard(key)
        for counter, number in ((self.waiting, standing.waiting), (self.busy, int(standing.in_flight > 0))):
            counter[before] -= number
            counter[health] += number

    def take_back(self, before: float) -> list[Claimed]:
        """What was claimed at that time or before and has not begun: it is waiting no more."""
        taken: list[Claimed] = []
        for key in list(self.holding):
            standing, count = self.standings[key], len(taken)
            for queue in (standing.live, standing.late):
                while queue and queue[0].claimed_at <= before:
                    taken.append(queue.popleft().claimed)
            self.waiting[standing.health] -= len(taken) - count
            if not standing.waiting:
                self.ready[standing.health].discard(key)
                del self.holding[key]
        return taken

    def forget(self, now: float) -> None:
        """Forget endpoints that nothing was under way to for a while."""
        for key, standing in list(self.standings.items()):
            if not standing.is_busy and max(standing.used_at, standing.rests_until) < now - FORGOTTEN_AFTER_S:
                del self.standings[key]
        self.under_way_of = {health: +of_tenant for health, of_tenant in self.under_way_of.items()}
