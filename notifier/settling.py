"""What becomes of a delivery after its attempt, or without one, and what is counted and logged of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from enum import Enum, auto

import structlog
from structlog.typing import FilteringBoundLogger

from ledger.claims import Claimed
from ledger.deliveries import AttemptRow, Settlement
from ledger.states import DeliveryState, Fault, Outcome
from notifier.backoff import delay_before_next_attempt
from notifier.metrics import (
    ATTEMPT_DURATION,
    ATTEMPT_ERRORS,
    DELIVERIES,
    DELIVERIES_EXHAUSTED,
    DELIVERY_FAULTS,
    DELIVERY_LATENCY,
)
from notifier.outcome import FAULTS, AttemptError
from notifier.sender import AttemptResult

log = structlog.get_logger()

UNOPENED_RETRY = timedelta(minutes=1)
"""Pause before a delivery whose signing secret does not open is looked at again; it uses up no attempt."""


ABANDONED_RETRY = timedelta(minutes=1)
"""The same for the last attempt of a delivery, where we broke it off: no other comes after it in the schedule."""


class Unsent(Enum):
    """Why a claimed delivery was not sent."""

    ENDPOINT_GONE = auto()
    WORN_OUT = auto()
    """It was claimed as often as it may be, and its workers died each time."""
    EVENT_RETIRED = auto()
    """What it tells was dropped with its day."""
    SECRET_UNOPENED = auto()
    """Ours to mend, not the merchant's."""
    NOT_BEGUN = auto()
    """It waited too long for a slot, or we stop."""


Result = tuple[Claimed, AttemptResult | Unsent]


def settlement_of(claimed: Claimed, result: AttemptResult | Unsent, randomness: float) -> Settlement:
    """Decide what becomes of a delivery. `randomness`, 0 to 1, is the jitter of a retry."""
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
        randomness=randomness,
        now=result.started_at,
        status_code=result.status_code,
        retry_after=result.retry_after,
    )
    if result.error is AttemptError.ABANDONED:
        # We broke it off: it uses up no attempt, and exhausts nothing.
        wait = delay or ABANDONED_RETRY
        return Settlement(claimed, DeliveryState.PENDING, wait, attempt, is_given_back=True, is_blameless=True)
    if delay is None:
        return Settlement(claimed, DeliveryState.EXHAUSTED, attempt=attempt)
    return Settlement(claimed, DeliveryState.PENDING, delay, attempt)


_UNSENT_SETTLEMENTS: dict[Unsent, Callable[[Claimed], Settlement]] = {
    Unsent.ENDPOINT_GONE: lambda claimed: Settlement(claimed, DeliveryState.DISCARDED),
    Unsent.WORN_OUT: lambda claimed: Settlement(claimed, DeliveryState.FAULTED, fault=Fault.WORKERS_DIED),
    Unsent.EVENT_RETIRED: lambda claimed: Settlement(claimed, DeliveryState.FAULTED, fault=Fault.UNSIGNABLE),
    Unsent.SECRET_UNOPENED: lambda claimed: Settlement(
        claimed, DeliveryState.PENDING, UNOPENED_RETRY, is_given_back=True, fault=Fault.UNOPENED
    ),
    Unsent.NOT_BEGUN: lambda claimed: Settlement(claimed, DeliveryState.PENDING, is_given_back=True),
}


_DELIVERIES_BY_OUTCOME = {outcome: DELIVERIES.labels(outcome.value) for outcome in Outcome}


def report(done: Iterable[tuple[Claimed, AttemptResult | Unsent, Settlement]]) -> None:
    """Count and log what was settled."""
    told = log.bind()  # once: else it is made anew for each line
    for claimed, result, settlement in done:
        if settlement.state is DeliveryState.EXHAUSTED:
            DELIVERIES_EXHAUSTED.inc()
        if settlement.fault is not None:
            DELIVERY_FAULTS.labels(settlement.fault.value).inc()
            told.error("delivery could not be sent", delivery=claimed.id, fault=settlement.fault.value)
        if not isinstance(result, Unsent):
            _report_attempt(told, claimed, result)


def _report_attempt(told: FilteringBoundLogger, claimed: Claimed, result: AttemptResult) -> None:
    _DELIVERIES_BY_OUTCOME[result.outcome].inc()
    ATTEMPT_DURATION.observe(result.duration_ms / 1000)
    if result.error is not None:
        ATTEMPT_ERRORS.labels(result.error.value).inc()
    if result.outcome is Outcome.ACCEPTED:
        DELIVERY_LATENCY.observe(max(0.0, time.time() - claimed.event_created_at.timestamp()))
    told.info(
        "attempt finished",
        endpoint=claimed.endpoint_id,
        event_id=claimed.event_id,
        number=claimed.attempts,
        outcome=result.outcome.value,
        status=result.status_code,
        error=result.error.value if result.error else None,
        elapsed_ms=result.duration_ms,
    )
