"""What one attempt came to: accepted, retryable or refused, and the word for what went wrong.

Only a 2xx accepts. It accepts as soon as its status line is here, even if the rest of the answer is cut off or never
ends: the receiver has said that it took the event, and sending it again could only be a duplicate. A redirect is a
failure and is never followed. Every other status is retried, also 4xx: customers' firewalls answer 403 and 404 for
things that are mended an hour later. Refused is what no retry can mend.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from ledger.states import Fault, Outcome


class AttemptError(StrEnum):
    """Why an attempt failed when a status code alone does not say it; stored and shown to the merchant."""

    TIMEOUT = "timeout"
    """No status within the time limit."""
    DNS = "dns"
    """The host's name did not resolve."""
    CONNECT = "connect"
    """Nothing accepted the connection."""
    TLS = "tls"
    """No trusted TLS session: an expired or foreign certificate, mostly."""
    RESET = "reset"
    """The connection ended before a status came."""
    PROTOCOL = "protocol"
    """What came was not HTTP."""
    TOO_LARGE = "too_large"
    """The answer's headers are larger than we read."""
    REDIRECT = "redirect"
    """A 3xx; the endpoint's URL has to be the final one."""
    ABANDONED = "abandoned"
    """We broke it off: this process stood still or had no thread free to look the name up, or another had taken the delivery
    over. Says nothing of the receiver."""
    REFUSED_ADDRESS = "refused_address"
    """The URL leads to an address or port that webhooks never go to."""
    BAD_URL = "bad_url"
    """The URL is one that would not be accepted today."""
    BAD_HEADER = "bad_header"
    """A header could not be sent as it is."""
    UNSIGNABLE = "unsignable"
    """The event's id or the endpoint's secret cannot be signed with."""


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
