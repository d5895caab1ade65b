"""Claim, send, settle: how deliveries leave.

Order. A lane is one endpoint and one subject. The claim (`ledger/deliveries.py`) hands out at most one delivery of a lane
at a time, in feed order; so two events of one deposit can never be under way together, whatever this process does. Lanes
do not wait for each other: a deposit that cannot be told delays no other.

Leases, not transactions. A claim commits at once and no transaction is open while a merchant is asked. The lease is longer
than the longest exchange, and this process gives up on its own deliveries when it stops. If it is killed, the lease ends by
itself and another worker claims again: the merchant may then receive an event twice, with the same `webhook-id` and the same
bytes. A worker that was frozen past its lease cannot settle: the token is no longer its own.

Isolation. A number of slots bounds what is in flight; each is free again after the exchange's time limit at the latest.
Sharing the slots out by endpoint health is not done yet.

Ahead. So that no slot waits for Postgres, the next deliveries are claimed while the present ones are sent, but only as long
as exchanges end. What was claimed and does not get a slot within a second is given back, and counts as no attempt.

Waking. After a commit that wrote events comes a hint (`ledger/hints.py`), and the queue is looked at at once. So it is
without one, now and then: retries become due, leases end, hints get lost.

Settling is batched: outcomes of the last moments go to Postgres in one transaction. What a crash loses of them is sent
again after the lease, which the receiver recognises by its `webhook-id`.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import timedelta
from enum import Enum, auto
from typing import NamedTuple

import structlog

from ledger.database import UNAVAILABLE, Engine, transaction
from ledger.deliveries import (
    AttemptRow,
    Claimed,
    Settlement,
    claim_due_deliveries,
    settle_deliveries,
)
from ledger.endpoint_secrets import find_live_secrets
from ledger.hints import listen
from ledger.secrets import SealBroken, SecretBox
from ledger.states import DeliveryState, Fault, Outcome
from ledger.tally import Tally
from notifier.backoff import ATTEMPTS_MAX, delay_before_next_attempt
from notifier.errors import LeaseTooShort
from notifier.metrics import (
    ATTEMPT_DURATION,
    ATTEMPT_ERRORS,
    DELIVERIES,
    DELIVERIES_EXHAUSTED,
    DELIVERY_FAULTS,
    DELIVERY_LATENCY,
)
from notifier.outcome import FAULTS
from notifier.sender import AttemptResult, Sender, SendRequest
from notifier.tallying import keep_tally, tally_attempts

log = structlog.get_logger()

SLOTS = 64
"""Deliveries in flight: throughput of one process falls beyond this, so more come from more processes."""

CLAIM_MAX = 200
"""Deliveries of one claim: Postgres is three times as fast with a hundred as with ten, and hardly faster with more."""

AHEAD = 3.0
"""Deliveries that may be claimed before there is a slot for them, in numbers of slots. They are begun within milliseconds
while exchanges end; when none does, none is claimed ahead."""

REFILL_AT = 1.5
"""How few of those may be left, in numbers of slots, before more are claimed: they must last for one claim, which takes its
turns with all that is being sent."""

AHEAD_MAX_S = 1.0
"""How long a claimed delivery may wait for a slot before it is given back: slots that hang must not hold what another
process could send."""

LEASE_S = 60.0
"""Longer than one exchange and a slow settle, with room for a paused machine."""

SETTLE_MARGIN_S = 15.0
"""What has to remain of a lease after the longest exchange."""

SETTLE_INTERVAL_S = 0.005
"""How long outcomes gather before they are settled together."""

SETTLE_MAX = 200
"""Outcomes of one settling: their deliveries are locked while it lasts."""

IDLE_INTERVAL_S = 0.5
"""Pause of an idle dispatcher between two looks at the queue that nobody hinted at: what a lost hint costs, and how late a
retry may be. The shortest wait before one is 5 s, of which jitter is more than this."""

DATABASE_RETRY_S = 1.0
"""Pause after the database did not answer."""

UNSETTLED_MAX = 6 * SLOTS
"""Outcomes that may wait to be settled before no more is claimed: who cannot say what became of a delivery makes no more."""

UNOPENED_RETRY = timedelta(minutes=1)
"""Pause before a delivery whose signing secret does not open is looked at again; it uses up no attempt."""


class Unsent(Enum):
    """Why a claimed delivery was not sent."""

    ENDPOINT_GONE = auto()
    WORN_OUT = auto()
    """It was claimed as often as it may be, and its workers died each time."""
    SECRET_UNOPENED = auto()
    """Ours to mend, not the merchant's."""
    NOT_BEGUN = auto()
    """It waited too long for a slot, or we stop."""


Result = tuple[Claimed, AttemptResult | Unsent]
Secrets = tuple[str, ...] | SealBroken


class Waiting(NamedTuple):
    """A claimed delivery that no slot has begun with."""

    claimed: Claimed
    secrets: Secrets
    claimed_at: float
    """By this process's monotonic clock, before the lease began."""


def require_lease(lease_s: float, exchange_s: float) -> None:
    """Raise `LeaseTooShort` when a lease could end while its own exchange still runs: that would send everything slow
    twice."""
    if lease_s < exchange_s + SETTLE_MARGIN_S:
        raise LeaseTooShort(
            f"a lease of {lease_s:g} s is too short for exchanges of {exchange_s:g} s: it needs {SETTLE_MARGIN_S:g} s more"
        )


class Dispatcher:
    """One process's share of delivering. Any number may run at once."""

    def __init__(
        self,
        engine: Engine,
        sender: Sender,
        secret_box: SecretBox,
        *,
        slots: int = SLOTS,
        lease_s: float = LEASE_S,
        idle_interval_s: float = IDLE_INTERVAL_S,
        randomness: Callable[[], float] = random.random,
        may_sign: Callable[[], bool] = lambda: True,
    ) -> None:
        """Raises `LeaseTooShort`. `randomness` gives the jitter, 0 to 1. While `may_sign` is False nothing is claimed."""
        require_lease(lease_s, sender.limits.total_s)
        self.engine = engine
        self.sender = sender
        self.secret_box = secret_box
        self.lease_s = lease_s
        self.idle_interval_s = idle_interval_s
        self.randomness = randomness
        self.may_sign = may_sign
        self.token = secrets.token_hex(8)
        self.slots = slots
        self.in_flight = 0
        self.ended = 0
        """Exchanges that ended since the last claim."""
        self.is_drained = False
        """The last claim found less than it asked for."""
        self.waiting: deque[Waiting] = deque()
        self.results: list[Result] = []
        self.tally = Tally()
        self.wake = asyncio.Event()
        self.is_over = False
        """Nothing is under way any more, and nothing will be."""

    async def run(self, stop: asyncio.Event) -> None:
        """Deliver until `stop` is set; then let what is in flight end and settle it. A fault of ours in any part ends
        the whole: a process that sends but cannot settle would send everything again and again."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._settle_until_over())
            helpers = [
                group.create_task(listen(self.engine, self.wake.set)),
                group.create_task(self._wake_at(stop)),
                group.create_task(keep_tally(self.engine, self.tally)),
            ]
            async with asyncio.TaskGroup() as exchanges:
                await self._claim_until(stop, exchanges)
                self._give_back(0)
            self.is_over = True
            for helper in helpers:
                helper.cancel()

    async def _wake_at(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self.wake.set()

    async def _claim_until(self, stop: asyncio.Event, exchanges: asyncio.TaskGroup) -> None:
        while not stop.is_set():
            self.wake.clear()
            self._give_back(AHEAD_MAX_S)
            wanted = self._wanted()
            claimed = await self._claim(wanted) if wanted else []
            self.waiting.extend(claimed)
            while self.waiting and self.in_flight < self.slots:
                self.in_flight += 1
                exchanges.create_task(self._send_while_any_waits(self.waiting.popleft()))
            self.is_drained = len(claimed) < wanted
            if len(claimed) < max(wanted, 1):
                await self._wait_for_work()

    def _wanted(self) -> int:
        """How many to claim now: what slots are free and, while exchanges end, what can be begun soon. Nothing as long as
        enough is waiting, so that claims are few and large; nor when too much is unsettled."""
        if not self.may_sign() or len(self.results) >= UNSETTLED_MAX or len(self.waiting) > self.slots * REFILL_AT:
            return 0
        ahead = int(self.slots * AHEAD) if self.ended else 0
        return max(0, min(CLAIM_MAX, self.slots + ahead - self.in_flight - len(self.waiting)))

    async def _claim(self, limit: int) -> list[Waiting]:
        """Lease what is due, with the secrets to sign it."""
        self.ended, claimed_at = 0, time.monotonic()
        try:
            # One transaction: when the secrets cannot be read, nothing was claimed and no attempt counted.
            async with transaction(self.engine) as connection:
                claimed = await claim_due_deliveries(connection, limit=limit, lease_s=self.lease_s, token=self.token)
                keys = sorted({(delivery.tenant_id, delivery.endpoint_id) for delivery in claimed})
                live = await find_live_secrets(connection, self.secret_box, keys)
        except (*UNAVAILABLE, OSError) as error:
            log.warning("database unavailable", error=str(error).splitlines()[0])
            await asyncio.sleep(DATABASE_RETRY_S)
            return []
        for key, found in live.items():
            if isinstance(found, SealBroken):
                log.error("secret cannot be opened", tenant=key[0], endpoint=key[1], error=str(found))
        return [
            Waiting(delivery, live.get((delivery.tenant_id, delivery.endpoint_id), ()), claimed_at)
            for delivery in claimed
        ]

    def _give_back(self, waited_s: float) -> None:
        """Let others have what was claimed so long ago and has not begun: it was in no slot and is no attempt."""
        before, given_back = time.monotonic() - waited_s, 0
        while self.waiting and self.waiting[0].claimed_at <= before:
            self.results.append((self.waiting.popleft().claimed, Unsent.NOT_BEGUN))
            given_back += 1
        if given_back:
            log.info("claims given back", count=given_back)

    async def _send_while_any_waits(self, next_one: Waiting) -> None:
        """The work of one slot: this delivery, and then whichever waits."""
        while True:
            self.results.append((next_one.claimed, await self._result(next_one)))
            self.ended += 1
            if not self.is_drained and len(self.waiting) <= self.slots * REFILL_AT:
                self.wake.set()
            if not self.waiting:
                break
            next_one = self.waiting.popleft()
        self.in_flight -= 1

    async def _result(self, waiting: Waiting) -> AttemptResult | Unsent:
        delivery, live_secrets = waiting.claimed, waiting.secrets
        if delivery.is_endpoint_gone:
            return Unsent.ENDPOINT_GONE
        if delivery.attempts > ATTEMPTS_MAX:
            return Unsent.WORN_OUT
        if isinstance(live_secrets, SealBroken):
            return Unsent.SECRET_UNOPENED
        since_s = time.monotonic() - waiting.claimed_at
        if not self.may_sign() or since_s > self.lease_s - self.sender.limits.total_s - SETTLE_MARGIN_S:
            return Unsent.NOT_BEGUN
        return await self.sender.send(SendRequest(delivery.url, delivery.event_id, delivery.body, live_secrets))

    async def _wait_for_work(self) -> None:
        """Until there is news, something was settled (its lane may have a next one), slots became free, or for a moment."""
        try:
            async with asyncio.timeout(self.idle_interval_s):
                await self.wake.wait()
        except TimeoutError:
            return

    async def _settle_until_over(self) -> None:
        while not self.is_over or self.results:
            await asyncio.sleep(SETTLE_INTERVAL_S)
            if self.results:
                await self._settle()

    async def _settle(self) -> None:
        """Store the outcomes so far in one transaction; they stay in memory until it has happened."""
        batch = self.results[:SETTLE_MAX]
        settlements = [self._settlement(claimed, result) for claimed, result in batch]
        try:
            async with transaction(self.engine) as connection:
                settled = await settle_deliveries(connection, self.token, settlements)
        except (*UNAVAILABLE, OSError) as error:
            log.warning("database unavailable", error=str(error).splitlines()[0])
            await asyncio.sleep(DATABASE_RETRY_S)
            return
        del self.results[: len(batch)]
        self.wake.set()
        _report(batch, settlements)
        tally_attempts(self.tally, [(one, result) for one, result in batch if not isinstance(result, Unsent)])
        if len(settled) < len(batch):
            log.warning("leases lost", count=len(batch) - len(settled))

    def _settlement(self, claimed: Claimed, result: AttemptResult | Unsent) -> Settlement:
        """Decide what becomes of a delivery after its attempt, or without one."""
        if isinstance(result, Unsent):
            return _UNSENT_SETTLEMENTS[result](claimed)
        attempt = AttemptRow(
            result.started_at,
            result.duration_ms,
            result.outcome,
            result.status_code,
            result.error.value if result.error else None,
            result.response_excerpt,
        )
        if result.outcome is Outcome.ACCEPTED:
            return Settlement(claimed, DeliveryState.DELIVERED, attempt=attempt)
        if result.error in FAULTS:
            return Settlement(claimed, DeliveryState.FAULTED, attempt=attempt, fault=FAULTS[result.error])
        if result.outcome is Outcome.REFUSED:
            return Settlement(claimed, DeliveryState.REFUSED, attempt=attempt)
        delay = delay_before_next_attempt(
            claimed.attempts,
            randomness=self.randomness(),
            now=result.started_at,
            status_code=result.status_code,
            retry_after=result.retry_after,
        )
        if delay is None:
            return Settlement(claimed, DeliveryState.EXHAUSTED, attempt=attempt)
        return Settlement(claimed, DeliveryState.PENDING, delay, attempt)


_UNSENT_SETTLEMENTS: dict[Unsent, Callable[[Claimed], Settlement]] = {
    Unsent.ENDPOINT_GONE: lambda claimed: Settlement(claimed, DeliveryState.DISCARDED),
    Unsent.WORN_OUT: lambda claimed: Settlement(claimed, DeliveryState.FAULTED, fault=Fault.WORKERS_DIED),
    Unsent.SECRET_UNOPENED: lambda claimed: Settlement(
        claimed, DeliveryState.PENDING, UNOPENED_RETRY, is_given_back=True, fault=Fault.UNOPENED
    ),
    Unsent.NOT_BEGUN: lambda claimed: Settlement(claimed, DeliveryState.PENDING, is_given_back=True),
}


_DELIVERIES_BY_OUTCOME = {outcome: DELIVERIES.labels(outcome.value) for outcome in Outcome}


def _report(batch: Sequence[Result], settlements: Sequence[Settlement]) -> None:
    """Count and log what was settled."""
    for (claimed, result), settlement in zip(batch, settlements, strict=True):
        if settlement.state is DeliveryState.EXHAUSTED:
            DELIVERIES_EXHAUSTED.inc()
        if settlement.fault is not None:
            DELIVERY_FAULTS.labels(settlement.fault.value).inc()
            log.error("delivery could not be sent", delivery=claimed.id, fault=settlement.fault.value)
        if not isinstance(result, Unsent):
            _report_attempt(claimed, result)


def _report_attempt(claimed: Claimed, result: AttemptResult) -> None:
    _DELIVERIES_BY_OUTCOME[result.outcome].inc()
    ATTEMPT_DURATION.observe(result.duration_ms / 1000)
    if result.error is not None:
        ATTEMPT_ERRORS.labels(result.error.value).inc()
    if result.outcome is Outcome.ACCEPTED:
        DELIVERY_LATENCY.observe(max(0.0, time.time() - claimed.event_created_at.timestamp()))
    log.info(
        "attempt finished",
        endpoint=claimed.endpoint_id,
        event_id=claimed.event_id,
        number=claimed.attempts,
        outcome=result.outcome.value,
        status=result.status_code,
        error=result.error.value if result.error else None,
        elapsed_ms=result.duration_ms,
    )
