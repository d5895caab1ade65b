"""Which ending of an attempt is accepted, retried or refused."""

from __future__ import annotations

import pytest

from ledger.states import Outcome
from notifier.outcome import REFUSALS, AttemptError, Judgement, judge


@pytest.mark.parametrize("status_code", [200, 201, 202, 204, 299])
@pytest.mark.parametrize("error", [None, AttemptError.TIMEOUT, AttemptError.RESET])
def test_any_2xx_accepts_even_when_the_rest_of_the_answer_never_came(
    status_code: int, error: AttemptError | None
) -> None:
    assert judge(status_code, error) == Judgement(Outcome.ACCEPTED, None)


@pytest.mark.parametrize("status_code", [300, 301, 302, 303, 304, 307, 308, 399])
def test_a_redirect_is_a_failure_that_is_retried(status_code: int) -> None:
    assert judge(status_code, None) == Judgement(Outcome.RETRYABLE, AttemptError.REDIRECT)


@pytest.mark.parametrize(
    "status_code", [100, 101, 400, 401, 403, 404, 410, 413, 422, 429, 500, 502, 503, 504, 599, 999]
)
def test_every_other_status_is_retried(status_code: int) -> None:
    assert judge(status_code, None) == Judgement(Outcome.RETRYABLE, None)


@pytest.mark.parametrize("error", list(AttemptError))
def test_without_a_status_the_error_decides(error: AttemptError) -> None:
    expected = Outcome.REFUSED if error in REFUSALS else Outcome.RETRYABLE
    assert judge(None, error) == Judgement(expected, error)


def test_refusals_are_what_no_retry_can_mend() -> None:
    assert {str(error) for error in REFUSALS} == {"refused_address", "bad_url", "bad_header", "unsignable"}


def test_an_attempt_that_ended_with_nothing_is_a_programming_error() -> None:
    with pytest.raises(ValueError, match="status code or with an error"):
        judge(None, None)
