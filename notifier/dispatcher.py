"""Claim, send, settle: how deliveries leave.

Order. A lane is one endpoint and one subject. A claim (`ledger/lanes.py`) hands out at most one delivery of a lane at a
time, in feed order; so two events of one deposit can never be under way together, whatever this process does. Lanes do not
wait for each other: a deposit that cannot be told delays no other.

Leases, not transactions. A claim commits at once and no transaction is open while a merchant is asked. The lease is longer
than the longest exchange, and extended while one lasts. If this process is killed, the lease ends by itself and another
worker claims again: the merchant may then receive an event twice, with the same `webhook-id` and the same bytes. A worker
that was frozen past its lease cannot settle: the token is no longer its own, and the next heartbeat tells it to stop.

Isolation. Which delivery begins when is decided in `notifier/isolation.py`: slots are split by the endpoints' health, each
endpoint has a window, and what is slow leaves its slot.

Ahead. So that no slot waits for Postgres, the next deliveries are claimed while the present ones are sent, but only as long
as exchanges end. What was claimed and does not begin within a second is given back, and counts as no attempt.

Waking. After a commit that wrote events comes a hint (`ledger/hints.py`), and what became due is looked for at once. So it
is without one, now and then: retries become due, and hints get lost. And now and then every endpoint that is owed anything
is looked at (a sweep): leases end, and so do rests.

Settling is batched: outcomes of the last moments go to Postgres in one transaction. What a crash loses of them is sent
again after the lease, which the receiver recognises by its `webhook-id`.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

import structlog

from ledger.claims import Claimed
from ledger.database import UNAVAILABLE, Engine, transaction
from ledger.deliveries import Settled, Settlement, extend_leases, settle_deliveries
from ledger.direct import direct_transaction
from ledger.hints import listen
from ledger.secrets import SealBroken, SecretBox
from ledger.tally import Tally
from notifier.ahead import AHEAD_MAX_S
from notifier.backoff import ATTEMPTS_MAX, RETRY_AFTER_STATUS_CODES, parse_retry_after
from notifier.claiming import FAILING_INTERVAL_S, IDLE_INTERVAL_S, SUSPECT_INTERVAL_S, Claiming, wait_for_database
from notifier.errors import LeaseTooShort
from notifier.fairness import Key
from notifier.isolation import SLOTS, SLOW_AFTER_S, Exchange, Isolation
from notifier.metrics import LEASES_LOST
from notifier.outcome import AttemptError
from notifier.sender import AttemptResult, Sender, SendRequest
from notifier.settling import Result, Unsent, report, settlement_of
from notifier.tallying import keep_tally, tally_attempts

log = structlog.get_logger()

LEASE_S = 60.0
"""Longer than one exchange and a slow settle, with room for a paused machine."""

HEARTBEAT_S = 10.0
"""How often the leases of what is being sent are extended."""

HEARTBEATS_MISSED = 3
"""How many of them may fail before a lease ends while its exchange runs."""

BEAT_S = 0.05
"""How often slots are looked at for what is slow, while anything is under way, and the queue for what now has room."""

SLOW_SOONEST_S = min(SLOW_AFTER_S.values())

FORGET_INTERVAL_S = 5.0
"""How often endpoints that nothing is sent to are forgotten."""

SETTLE_INTERVAL_S = 0.015
"""How long outcomes gather before they are settled together."""

LOCKED_REST_S = 0.5
"""How long nothing more is sent to an endpoint whose row stays locked when something is to be settled: outcomes that cannot
be settled must not become so many that nothing is claimed for anybody."""

LOCKED_RETRY_S = 0.05
"""Pause after the endpoints of some outcomes were locked by others."""

SETTLE_MAX = 200
"""Outcomes of one settling: their deliveries are locked while it lasts."""

SETTLERS = 2
"""Settlings at once: one waits for the disk, the other for Postgres."""

SETTLE_BESIDE = SETTLE_MAX // 2
"""Outcomes that are worth a second settling beside the first."""

UNSETTLED_MAX = 6 * SLOTS
"""Outcomes that may wait to be settled before no more is claimed: who cannot say what became of a delivery makes no more."""


def require_lease(lease_s: float, exchange_s: float) -> None:
    """Raise `LeaseTooShort` when a lease could end while its own exchange still runs, although heartbeats fail: that would
    send everything slow twice."""
    spare_s = HEARTBEATS_MISSED * HEARTBEAT_S
    if lease_s < exchange_s + spare_s:
        raise LeaseTooShort(
            f"a lease of {lease_s:g} s is too short for exchanges of {exchange_s:g} s: it needs {spare_s:g} s more, for"
            f" {HEARTBEATS_MISSED} heartbeats"
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
        self.lease_s = lease_s
        self.idle_interval_s = idle_interval_s
        self.randomness = randomness
        self.may_sign = may_sign
        self.isolation = Isolation(slots)
        self.exchanges: dict[Exchange, asyncio.Task[None]] = {}
        """What is under way, the oldest first, and the task that is at it."""
        self.results: list[Result] = []
        """What is to be settled."""
        self.settling: list[Result] = []
        """What is being settled."""
        self.locked_since: dict[Key, float] = {}
        """Endpoints whose rows others had locked when something was to be settled, and since when."""
        self.is_settling_late = False
        """The last settling failed."""
        self.unsure: set[int] = set()
        """Claims (by `id`) whose settling failed: it may have been committed all the same."""
        self.tally = Tally()
        self.wake = asyncio.Event()
        self.claiming = Claiming(
            engine,
            secret_box,
            self.isolation,
            lease_s=lease_s,
            idle_interval_s=idle_interval_s,
            may_claim=self._may_claim,
            wake=self.wake,
        )
        self.is_over = False
        """Nothing is under way any more, and nothing will be."""

    async def run(self, stop: asyncio.Event) -> None:
        """Deliver until `stop` is set; then let what is in flight end and settle it. A fault of ours in any part ends
        the whole: a process that sends but cannot settle would send everything again and again."""
        async with asyncio.TaskGroup() as group:
            for _ in range(SETTLERS):
                group.create_task(self._settle_until_over())
            helpers = [
                group.create_task(listen(self.engine, self.claiming.hint)),
                group.create_task(self._wake_at(stop)),
                group.create_task(keep_tally(self.engine, self.tally)),
                group.create_task(self._beat()),
                group.create_task(self._keep_leases()),
                group.create_task(self.claiming.sweep()),
            ]
            async with asyncio.TaskGroup() as self.group:
                async with asyncio.TaskGroup() as claiming:
                    claiming.create_task(self._claim_until(stop))
                    claiming.create_task(self._claim_for_failing_until(stop))
                    claiming.create_task(self._claim_suspects_until(stop))
                self._give_back(0)
            self.is_over = True
            for helper in helpers:
                helper.cancel()

    async def _wake_at(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self.wake.set()

    async def _claim_until(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            self.wake.clear()
            self._give_back(AHEAD_MAX_S)
            found = await self.claiming.claim()
            self._begin()
            if not found:
                await self._wait_for_work()

    async def _claim_for_failing_until(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            await asyncio.sleep(FAILING_INTERVAL_S)
            if await self.claiming.claim_for_failing():
                self._begin()

    async def _claim_suspects_until(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            await asyncio.sleep(SUSPECT_INTERVAL_S)
            if await self.claiming.claim_suspect():
                self._begin()

    def _may_claim(self) -> bool:
        return self.may_sign() and self._can_settle()

    def _can_settle(self) -> bool:
        """Who cannot say what became of deliveries claims no more: it might claim the same again, and send it once more."""
        return not self.is_settling_late and len(self.results) + len(self.settling) < UNSETTLED_MAX

    def _give_back(self, waited_s: float) -> None:
        """Let others have what was claimed so long ago and has not begun: it was in no slot and is no attempt."""
        taken = self.isolation.take_back(time.monotonic() - waited_s)
        self.results.extend((claimed, Unsent.NOT_BEGUN) for claimed in taken)
        if taken:
            log.debug("claims given back", count=len(taken))

    def _begin(self) -> None:
        """Let begin what may."""
        while exchange := self.isolation.begin(time.monotonic()):
            self.group.create_task(self._send_while_any_may(exchange))

    async def _send_while_any_may(self, first: Exchange) -> None:
        """Send this delivery, and then whichever has its turn."""
        task = asyncio.current_task()
        exchange: Exchange | None = first
        while exchange is not None and task is not None:
            self.exchanges[exchange] = task
            try:
                result = await self._result(exchange)
            except asyncio.CancelledError:
                if not exchange.is_lost:
                    raise
                task.uncancel()
                self.isolation.end(exchange, time.monotonic(), None)
                self.results.append((exchange.waiting.claimed, self.sender.abandoned(exchange.began_at)))
            else:
                self._note(exchange, result)
            finally:
                del self.exchanges[exchange]
            exchange = self.isolation.begin(time.monotonic())

    def _note(self, exchange: Exchange, result: AttemptResult | Unsent) -> None:
        self.results.append((exchange.waiting.claimed, result))
        now = time.monotonic()
        if isinstance(result, Unsent) or result.error is AttemptError.ABANDONED:
            self.isolation.end(exchange, now, None)
        else:
            self.isolation.end(exchange, now, result.outcome, error=result.error, rest=rest_of(result))
        self.claiming.note_end()

    async def _result(self, exchange: Exchange) -> AttemptResult | Unsent:
        delivery, live_secrets, claimed_at = exchange.waiting
        if delivery.is_endpoint_gone:
            return Unsent.ENDPOINT_GONE
        if delivery.body is None:
            return Unsent.EVENT_RETIRED
        if delivery.attempts > ATTEMPTS_MAX:
            return Unsent.WORN_OUT
        if isinstance(live_secrets, SealBroken):
            return Unsent.SECRET_UNOPENED
        since_s = time.monotonic() - claimed_at
        if not self.may_sign() or since_s > self.lease_s - self.sender.limits.total_s - HEARTBEAT_S:
            return Unsent.NOT_BEGUN
        return await self.sender.send(SendRequest(delivery.url, delivery.event_id, delivery.body, live_secrets))

    async def _beat(self) -> None:
        """Let slow exchanges leave their slots, and the next begin."""
        forgot_at = 0.0
        while True:
            await asyncio.sleep(BEAT_S)
            now = time.monotonic()
            for exchange in self.exchanges:
                if exchange.began_at > now - SLOW_SOONEST_S:
                    break
                self.isolation.leave_slot(exchange, now)
            self._begin()
            if now - forgot_at >= FORGET_INTERVAL_S:
                self.isolation.forget(now)
                forgot_at = now
            if self.exchanges:
                self.wake.set()

    async def _keep_leases(self) -> None:
        """Extend the leases of what is being sent, and stop sending what is not ours any more."""
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            before = time.monotonic() - HEARTBEAT_S
            old = [exchange for exchange in self.exchanges if exchange.began_at <= before]
            if old or self.results or self.settling:
                await self._keep(old)

    async def _keep(self, exchanges: Sequence[Exchange]) -> None:
        known = *self.settling, *self.results
        claims = [exchange.waiting.claimed for exchange in exchanges] + [claimed for claimed, _ in known]
        try:
            async with transaction(self.engine) as connection:
                kept = await extend_leases(connection, claims, self.lease_s)
        except (*UNAVAILABLE, OSError) as error:
            log.warning("leases not extended", error=str(error).splitlines()[0])
            return
        for exchange in exchanges:
            task = self.exchanges.get(exchange)
            if task is not None and exchange.waiting.claimed.id not in kept:
                self._lose(exchange, task)

    def _lose(self, exchange: Exchange, task: asyncio.Task[None]) -> None:
        exchange.is_lost = True
        task.cancel()
        log.warning("lease lost", event_id=exchange.waiting.claimed.event_id, endpoint=exchange.key[1])

    async def _wait_for_work(self) -> None:
        """Until there is news, something was settled (its lane may have a next one), slots became free, or for a moment."""
        try:
            async with asyncio.timeout(self.idle_interval_s):
                await self.wake.wait()
        except TimeoutError:
            return

    async def _settle_until_over(self) -> None:
        while not self.is_over or self.results:
            if len(self.results) < SETTLE_MAX:
                await asyncio.sleep(SETTLE_INTERVAL_S)
            if self.results and (not self.settling or len(self.results) >= SETTLE_BESIDE):
                await self._settle()

    async def _settle(self) -> None:
        """Store outcomes in one transaction; they stay in memory until it has happened."""
        batch, self.results = self.results[:SETTLE_MAX], self.results[SETTLE_MAX:]
        self.settling += batch
        is_repeated = not self.unsure.isdisjoint(id(claimed) for claimed, _ in batch)
        settlements = [settlement_of(claimed, result, self.randomness()) for claimed, result in batch]
        try:
            async with direct_transaction(self.engine) as connection:
                settled = await settle_deliveries(connection, settlements, commits=True, is_repeated=is_repeated)
        except (*UNAVAILABLE, OSError) as error:
            self.is_settling_late = True
            self.unsure |= {id(claimed) for claimed, _ in batch}
            self._take_back(batch, batch)
            await wait_for_database(error)
            return
        self.is_settling_late = False
        left = {id(settlement.claimed) for settlement in settled.left}
        self.unsure -= {id(claimed) for claimed, _ in batch} - left
        self._take_back(batch, [one for one in batch if id(one[0]) in left])
        self._note_locked(batch, settled)
        self.wake.set()
        done = [
            (*one, settlement) for one, settlement in zip(batch, settlements, strict=True) if id(one[0]) not in left
        ]
        self._report(done, len(done) - len(settled.ids))
        if left:
            await asyncio.sleep(LOCKED_RETRY_S)

    def _take_back(self, batch: Sequence[Result], unsettled: Sequence[Result]) -> None:
        """These are being settled no more, and some of them still have to be."""
        ended = {id(one) for one in batch}
        self.settling = [one for one in self.settling if id(one) not in ended]
        self.results += unsettled

    def _note_locked(self, batch: Sequence[Result], settled: Settled) -> None:
        """Leave alone whose row others have locked: for a moment, or longer if it is longer than a settling takes."""
        now, locked = time.monotonic(), {(one.claimed.tenant_id, one.claimed.endpoint_id) for one in settled.left}
        for key in {(claimed.tenant_id, claimed.endpoint_id) for claimed, _ in batch} - locked:
            self.locked_since.pop(key, None)
        for key in locked:
            is_stuck = now - self.locked_since.setdefault(key, now) >= LOCKED_RETRY_S
            self.isolation.leave_alone(key, now + (LOCKED_REST_S if is_stuck else LOCKED_RETRY_S))

    def _report(self, done: Sequence[tuple[Claimed, AttemptResult | Unsent, Settlement]], lost: int) -> None:
        """Count what was settled, and look again whom it stood before."""
        for claimed, _, _ in done:
            self.isolation.look_again((claimed.tenant_id, claimed.endpoint_id))
            self.claiming.suspects.note_settled(claimed)
        report(done)
        told = [(claimed, result) for claimed, result, _ in done if not isinstance(result, Unsent)]
        tally_attempts(
            self.tally, [(one, result) for one, result in told if result.error is not AttemptError.ABANDONED]
        )
        if lost:
            LEASES_LOST.inc(lost)
            log.warning("leases lost", count=lost)


def rest_of(result: AttemptResult) -> timedelta | None:
    """How long a receiver asked to be left alone."""
    if result.status_code not in RETRY_AFTER_STATUS_CODES or result.retry_after is None:
        return None
    return parse_retry_after(result.retry_after, result.started_at)
