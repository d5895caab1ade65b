"""What one attempt came to: accepted, retryable or refused, and the word for what went wrong.

Only a 2xx accepts. It accepts as soon as its status line is here, even if the rest of the answer is cut off or never
ends: the receiver has said that it took the event, and sending it again could only be a duplicate. A redirect is a
failure and is never followed. Every other status is retried, also 4xx: customers' firewalls answer 403 and 404 for
things that are mended an hour later. Refused is what no retry can mend.
"""

from __future__ import annotations

from typing import NamedTuple

from ledger.states import AttemptError as AttemptError
from ledger.states import Fault, Outcome

REFUSALS = frozenset(
    {AttemptError.REFUSED_ADDRESS, AttemptError.BAD_URL, AttemptError.BAD_HEADER, AttemptError.UNSIGNABLE}
)
"""Errors that no retry can mend."""

FAULTS = {AttemptError.BAD_HEADER: Fault.BAD_HEADER, AttemptError.UNSIGNABLE: Fault.UNSIGNABLE}
"""Those of them that are ours: nothing was asked of the receiver, and it has failed at nothing."""


class Judgement(NamedTuple):
    """An attempt's outcome and the error that is stored with it."""

    outcome: Outcome
    error: AttemptError | None


def judge(status_code: int | None, error: AttemptError | None) -> Judgement:
    """Judge an attempt by the status that came, if one did, and by the error that ended it, if one did.

    Raises `ValueError` when there is neither, which would be a programming error.
    """
    if status_code is None:
        if error is None:
            raise ValueError("an attempt ends with a status code or with an error")
        return Judgement(Outcome.REFUSED if error in REFUSALS else Outcome.RETRYABLE, error)
    if 200 <= status_code <= 299:
        return Judgement(Outcome.ACCEPTED, None)
    if 300 <= status_code <= 399:
        return Judgement(Outcome.RETRYABLE, AttemptError.REDIRECT)
    return Judgement(Outcome.RETRYABLE, None)
