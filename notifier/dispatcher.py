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

Settling is batched: outcomes of the last moments go to Postgres in one transaction. What a crash loses of them is sent
again after the lease, which the receiver recognises by its `webhook-id`.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from enum import Enum, auto

import structlog

from ledger.database import UNAVAILABLE, Engine, transaction
from ledger.deliveries import (
    AttemptRow,
    Claimed,
    Settlement,
    claim_due_deliveries,
    find_live_secrets,
    settle_deliveries,
)
from ledger.secrets import SealBroken, SecretBox
from ledger.states import DeliveryState, Outcome
from notifier.backoff import ATTEMPTS_MAX, delay_before_next_attempt
from notifier.errors import LeaseTooShort
from notifier.metrics import (
    ATTEMPT_DURATION,
    ATTEMPT_ERRORS,
    DELIVERIES,
    DELIVERIES_EXHAUSTED,
    DELIVERY_LATENCY,
)
from notifier.sender import AttemptResult, Sender, SendRequest

log = structlog.get_logger()

SLOTS = 64
"""Deliveries in flight: throughput of one process falls beyond this, so more come from more processes."""

CLAIM_MAX = 64
"""Deliveries of one claim."""

LEASE_S = 60.0
"""Longer than one exchange and a slow settle, with room for a paused machine."""

SETTLE_MARGIN_S = 15.0
"""What has to remain of a lease after the longest exchange."""

SETTLE_INTERVAL_S = 0.005
"""How long outcomes gather before they are settled together."""

IDLE_INTERVAL_S = 0.1
"""Pause of an idle dispatcher between two looks at the queue."""

DATABASE_RETRY_S = 1.0
"""Pause after the database did not answer."""

UNSETTLED_MAX = 4 * SLOTS
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


Result = tuple[Claimed, AttemptResult | Unsent]
Secrets = tuple[str, ...] | SealBroken


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
        randomness: Callable[[], float] = random.random,
    ) -> None:
        """Raises `LeaseTooShort`. `randomness` gives the jitter, 0 to 1."""
        require_lease(lease_s, sender.limits.total_s)
        self.engine = engine
        self.sender = sender
        self.secret_box = secret_box
        self.lease_s = lease_s
        self.randomness = randomness
        self.token = secrets.token_hex(8)
        self.slots = self.free = slots
        self.progress = asyncio.Event()
        self.results: list[Result] = []

    async def run(self, stop: asyncio.Event) -> None:
        """Deliver until `stop` is set; then let what is in flight end and settle it. A fault of ours in any part ends
        the whole: a process that sends but cannot settle would send everything again and again."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._settle_until_stopped(stop))
            while not stop.is_set():
                self.progress.clear()
                claimed = await self._claim()
                for delivery, live_secrets in claimed:
                    self.free -= 1
                    group.create_task(self._send(delivery, live_secrets))
                if not claimed:
                    await self._wait_for_work()

    async def _claim(self) -> list[tuple[Claimed, Secrets]]:
        """Lease what is due, as far as slots are free, with the secrets to sign it."""
        if self.free <= 0 or len(self.results) >= UNSETTLED_MAX:
            return []
        limit = min(self.free, CLAIM_MAX)
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
        return [(delivery, live.get((delivery.tenant_id, delivery.endpoint_id), ())) for delivery in claimed]

    async def _send(self, delivery: Claimed, live_secrets: Secrets) -> None:
        self.results.append((delivery, await self._result(delivery, live_secrets)))
        self.free += 1
        self.progress.set()

    async def _result(self, delivery: Claimed, live_secrets: Secrets) -> AttemptResult | Unsent:
        if delivery.is_endpoint_gone:
            return Unsent.ENDPOINT_GONE
        if delivery.attempts > ATTEMPTS_MAX:
            return Unsent.WORN_OUT
        if isinstance(live_secrets, SealBroken):
            return Unsent.SECRET_UNOPENED
        return await self.sender.send(SendRequest(delivery.url, delivery.event_id, delivery.body, live_secrets))

    async def _wait_for_work(self) -> None:
        """Until something ended since the last look (its lane may have a next one, its slot is free), or for a moment."""
        try:
            await asyncio.wait_for(self.progress.wait(), IDLE_INTERVAL_S)
        except TimeoutError:
            return

    async def _settle_until_stopped(self, stop: asyncio.Event) -> None:
        while not stop.is_set() or self.free < self.slots or self.results:
            await asyncio.sleep(SETTLE_INTERVAL_S)
            if self.results:
                await self._settle()

    async def _settle(self) -> None:
        """Store the outcomes so far in one transaction; they stay in memory until it has happened."""
        batch = self.results[:]
        settlements = [self._settlement(claimed, result) for claimed, result in batch]
        try:
            async with transaction(self.engine) as connection:
                settled = await settle_deliveries(connection, self.token, settlements)
        except (*UNAVAILABLE, OSError) as error:
            log.warning("database unavailable", error=str(error).splitlines()[0])
            await asyncio.sleep(DATABASE_RETRY_S)
            return
        del self.results[: len(batch)]
        self.progress.set()
        _report(batch, settlements)
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
    Unsent.WORN_OUT: lambda claimed: Settlement(claimed, DeliveryState.EXHAUSTED),
    Unsent.SECRET_UNOPENED: lambda claimed: Settlement(
        claimed, DeliveryState.PENDING, UNOPENED_RETRY, is_given_back=True
    ),
}


def _report(batch: Sequence[Result], settlements: Sequence[Settlement]) -> None:
    """Count and log what was settled."""
    for (claimed, result), settlement in zip(batch, settlements, strict=True):
        if settlement.state is DeliveryState.EXHAUSTED:
            DELIVERIES_EXHAUSTED.inc()
        if not isinstance(result, Unsent):
            _report_attempt(claimed, result)


def _report_attempt(claimed: Claimed, result: AttemptResult) -> None:
    DELIVERIES.labels(result.outcome.value).inc()
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
