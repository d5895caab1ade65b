"""What becomes of a delivery after its attempt."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from ledger.claims import Claimed
from ledger.ids import DeliveryId, EndpointId, EventId, TenantId
from ledger.states import DeliveryState, Outcome
from notifier.backoff import ATTEMPTS_MAX
from notifier.outcome import AttemptError
from notifier.sender import AttemptResult
from notifier.settling import settlement_of

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def claimed(attempts: int) -> Claimed:
    return Claimed(
        tenant_id=TenantId("ten_a"),
        id=DeliveryId("del_1"),
        event_id=EventId("evt_1"),
        event_created_at=NOW,
        endpoint_id=EndpointId("ep_1"),
        subject="dep_1",
        feed_position=1,
        priority=0,
        attempts=attempts,
        lease_token="t",
        is_taken_over=False,
        body=b"{}",
        url="https://a.example/",
        is_endpoint_gone=False,
    )


def failed(error: AttemptError) -> AttemptResult:
    return AttemptResult(NOW, 20, Outcome.RETRYABLE, None, error, None, None)


@pytest.mark.parametrize("attempts", [1, ATTEMPTS_MAX])
def test_what_we_broke_off_uses_up_no_attempt_and_exhausts_nothing(attempts: int) -> None:
    settlement = settlement_of(claimed(attempts), failed(AttemptError.ABANDONED), 0.5)
    assert (settlement.state, settlement.is_given_back, settlement.is_blameless) == (DeliveryState.PENDING, True, True)
    assert settlement.delay is not None
    assert settlement.delay > timedelta(0)
    assert settlement.attempt is not None


def test_the_last_attempt_that_fails_exhausts() -> None:
    settlement = settlement_of(claimed(ATTEMPTS_MAX), failed(AttemptError.RESET), 0.5)
    assert (settlement.state, settlement.is_given_back) == (DeliveryState.EXHAUSTED, False)
