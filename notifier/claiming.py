"""What a process claims, and when: as soon as anything is due to endpoints that take it, at leisure for the others.

Four ways lead to a claim, and none of them waits for another.

- After a hint, and now and then, a **look** finds to whom something became due, and the claim is made in its transaction,
  for endpoints that accept and those that are unproven. It is what a webhook's delay is made of, so nothing else is in it.
- **Failing** endpoints are claimed for apart, some times a second. Their retries are spread over minutes and hours.
- **Suspects**, which several workers fell silent with, are claimed apart and alone (`notifier/suspects.py`).
- A **sweep** goes through all that are owed anything, resting, failing and full ones as well: it reads much, finds little,
  and claims nothing by itself.

Who has his turn, with how much room, is `notifier/isolation.py`'s business; the statements are in `ledger/owed.py` and
`ledger/claims.py`.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import Callable, Sequence

import structlog

from ledger.claims import EndpointRoom, ToSend, claim_to_send
from ledger.database import UNAVAILABLE, Connection, Engine
from ledger.direct import direct_transaction
from ledger.owed import LATE_COMMIT, START, find_fresh, find_owed
from ledger.secrets import SealBroken, SecretBox
from ledger.states import EndpointHealth
from ledger.suspects import find_suspects
from notifier.beginnings import Beginnings
from notifier.isolation import Isolation, Turns, Waiting
from notifier.left_out_secrets import LeftOutSecrets
from notifier.metrics import LEASES_EXPIRED
from notifier.suspects import Suspects, room_for

log = structlog.get_logger()

PROMPT = (EndpointHealth.ACCEPTING, EndpointHealth.UNPROVEN)
"""Endpoints that are claimed for as soon as something is due to them."""

FAILING_INTERVAL_S = 0.1
"""Pause between two claims for endpoints that fail: a retry that comes so much later is no worse."""

SUSPECT_INTERVAL_S = 0.02
"""Pause between two looks whether the outcome of a suspect is stored, and the next may be claimed."""

REFILL_AT = 3 / 4
"""How much of what the last claim left waiting may still be so when more is claimed: it must last for one claim, which takes
its turns with all that is being sent."""

HINTED_INTERVAL_S = 0.02
"""How long after a look a hint calls for another, even if much is waiting."""

LOOK_INTERVAL_S = 0.1
"""How often a dispatcher that is awake looks for what became due: retries do, without a hint."""

LOOK_BACK_MAX_S = 60.0
"""How far back a look goes: what became due earlier, before this process began, say, is for the sweep."""

SWEEP_MAX = 500
"""Endpoints of one step of a sweep: some milliseconds."""

SWEEP_STEP_S = 0.05
"""Pause between two steps of a sweep; between two sweeps it is the idle interval."""

SWEEP_REST = 10
"""The pause is at least so many times as long as the step took: under a snapshot that somebody holds it takes long."""

IDLE_INTERVAL_S = 0.5
"""Pause of an idle dispatcher between two looks at the queue that nobody hinted at: what a lost hint costs, and how late a
retry may be. The shortest wait before one is 5 s, of which jitter is more than this."""

DATABASE_RETRY_S = 1.0
"""Pause after the database did not answer."""


class Claiming:
    """One process's claims, and whom it finds to be owed anything."""

    def __init__(
        self,
        engine: Engine,
        secret_box: SecretBox,
        isolation: Isolation,
        *,
        lease_s: float,
        idle_interval_s: float,
        may_claim: Callable[[], bool],
        wake: asyncio.Event,
    ) -> None:
        """`wake` is set when there may be something to claim; while `may_claim` is False nothing is."""
        self.engine = engine
        self.secret_box = secret_box
        self.isolation = isolation
        self.lease_s = lease_s
        self.idle_interval_s = idle_interval_s
        self.may_claim = may_claim
        self.wake = wake
        self.beginnings = Beginnings()
        self.left_out_secrets = LeftOutSecrets(engine)
        self.suspects = Suspects()
        self.token = secrets.token_hex(8)
        self.claims = 0
        self.looked_at = -math.inf
        self.refill_at = 0.0
        self.is_hinted = False
        self.is_moving = False
        """Exchanges ended since the last claim."""

    def hint(self) -> None:
        """There is news."""
        self.is_hinted = True
        self.wake.set()

    def note_end(self) -> None:
        """An exchange is over: more may be claimed."""
        self.is_moving = True
        if self.isolation.owed and self._is_short():
            self.wake.set()

    async def claim(self) -> int:
        """Look who is owed anything, if it is time for that, and claim for those that do not fail; returns how many
        deliveries."""
        now = time.monotonic()
        is_look = self._is_time_to_look(now)
        if not is_look and not self._is_short():
            return 0
        count = await self._claim_for(PROMPT, now, is_look=is_look)
        self.refill_at = self.isolation.waiting[EndpointHealth.ACCEPTING] * REFILL_AT
        return count

    async def claim_for_failing(self) -> int:
        """Claim for those that fail; returns how many deliveries."""
        return await self._claim_for((EndpointHealth.FAILING,), time.monotonic())

    async def claim_suspect(self) -> int:
        """Claim the next suspect, if there is one and it is time for it; returns how many deliveries."""
        now = time.monotonic()
        if not self.may_claim() or not self.suspects.is_turn(now):
            return 0
        try:
            async with direct_transaction(self.engine) as connection:
                self.suspects.note_found(await find_suspects(connection, self.token))
                suspect = self.suspects.take_next(self.isolation, now)
                if suspect is None:
                    return 0
                found = await self._claim_rooms(connection, [room_for(suspect)])
        except (*UNAVAILABLE, OSError) as error:
            await wait_for_database(error)
            return 0
        self._let_wait(found, now)
        self.suspects.note_claimed(suspect, next(iter(found.claimed), None), now)
        return len(found.claimed)

    async def sweep(self) -> None:
        """Go through all that are owed anything, round and round, and note to whom something is due, until cancelled."""
        place = START
        while True:
            began_at = time.monotonic()
            if self.may_claim():
                try:
                    async with direct_transaction(self.engine) as connection:
                        if place == START:
                            self.suspects.note_swept(await find_suspects(connection, self.token))
                        owed, place = await find_owed(connection, place, SWEEP_MAX)
                except (*UNAVAILABLE, OSError) as error:
                    await wait_for_database(error)
                    continue
                self.beginnings.move_back(owed)
                self.isolation.note_owed(owed)
                if owed:
                    self.wake.set()
            took_s = time.monotonic() - began_at
            await asyncio.sleep(max(self.idle_interval_s if place == START else SWEEP_STEP_S, took_s * SWEEP_REST))

    async def _claim_for(self, healths: Sequence[EndpointHealth], now: float, *, is_look: bool = False) -> int:
        if not self.may_claim():
            return 0
        turns = None if is_look else self._take_turns(healths, now)
        if turns is not None and not turns.rooms:
            return 0
        try:
            # One transaction: when the secrets cannot be read, nothing was claimed and no attempt counted.
            async with direct_transaction(self.engine) as connection:
                if is_look:
                    await self._look(connection, now)
                turns = turns or self._take_turns(healths, now)
                found = await self._claim_turns(connection, turns, now)
        except (*UNAVAILABLE, OSError) as error:
            await wait_for_database(error)
            return 0
        if found is None:
            return 0
        self._let_wait(found, now)
        self.isolation.note_claimed(turns, found.claimed)
        await self.left_out_secrets.tell_of(found.left_out, now)
        return len(found.claimed)

    def _take_turns(self, healths: Sequence[EndpointHealth], now: float) -> Turns:
        turns = self.isolation.turns(now, is_moving=self.is_moving, healths=healths)
        if EndpointHealth.ACCEPTING in healths:
            self.is_moving = False
        return turns

    async def _claim_turns(self, connection: Connection, turns: Turns, now: float) -> ToSend | None:
        if not turns.rooms:
            return None
        rooms, unsure = self.beginnings.of(turns.rooms, now)
        found = await self._claim_rooms(connection, rooms, unsure)
        self.beginnings.note(found.due_from, now)
        return found

    async def _claim_rooms(
        self, connection: Connection, rooms: Sequence[EndpointRoom], unsure: Sequence[EndpointRoom] = ()
    ) -> ToSend:
        self.claims += 1
        token = f"{self.token}-{self.claims}"
        return await claim_to_send(connection, self.secret_box, rooms, lease_s=self.lease_s, token=token, unsure=unsure)

    def _is_short(self) -> bool:
        """Whether little of what was claimed still waits: claims are to be few and large."""
        return self.isolation.is_short or self.isolation.waiting[EndpointHealth.ACCEPTING] <= self.refill_at

    def _is_time_to_look(self, now: float) -> bool:
        """Whether to look for what became due: after a hint, even if much is waiting, for it may be for an endpoint that
        nothing is; and now and then."""
        since_s = now - self.looked_at
        return since_s >= LOOK_INTERVAL_S or (self.is_hinted and (self._is_short() or since_s >= HINTED_INTERVAL_S))

    async def _look(self, connection: Connection, now: float) -> None:
        self.is_hinted = False
        age_s = min(now - self.looked_at, LOOK_BACK_MAX_S) + LATE_COMMIT.total_seconds()  # once more
        self.isolation.note_owed(await find_fresh(connection, age_s))
        self.looked_at = now

    def _let_wait(self, found: ToSend, claimed_at: float) -> None:
        for key, secret in found.live.items():
            if isinstance(secret, SealBroken):
                log.error("secret cannot be opened", tenant=key[0], endpoint=key[1], error=str(secret))
        now = time.monotonic()
        for one in found.claimed:
            self.isolation.add(Waiting(one, found.live.get((one.tenant_id, one.endpoint_id), ()), claimed_at), now)
        LEASES_EXPIRED.labels("deliveries").inc(sum(one.is_taken_over for one in found.claimed))


async def wait_for_database(error: BaseException) -> None:
    """Say that the database did not answer, and give it time."""
    log.warning("database unavailable", error=str(error).splitlines()[0])
    await asyncio.sleep(DATABASE_RETRY_S)
