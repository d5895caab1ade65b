"""When a delivery is tried again: a fixed schedule, spread by jitter, that bends to a receiver's `Retry-After`.

The first hour is dense, because payments care about minutes; the last attempts reach over three days, because people
repair servers on Mondays. Jitter keeps deliveries that failed together from coming back together. Retry times are rows
in Postgres, never timers in memory: this module only computes them.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

SCHEDULE: tuple[timedelta, ...] = (
    timedelta(0),
    timedelta(seconds=5),
    timedelta(seconds=30),
    timedelta(minutes=2),
    timedelta(minutes=10),
    timedelta(minutes=30),
    timedelta(hours=1),
    timedelta(hours=2),
    timedelta(hours=5),
    timedelta(hours=10),
    timedelta(hours=14),
    timedelta(hours=20),
    timedelta(hours=24),
)
"""How long each attempt waits after the one before it; the first is due at once."""

ATTEMPTS_MAX = len(SCHEDULE)
JITTER = 0.2
"""The largest share by which a wait is made shorter or longer."""

RETRY_AFTER_MAX = timedelta(hours=6)
RETRY_AFTER_STATUS_CODES = frozenset({429, 503})
"""Answers whose `Retry-After` is honoured (RFC 6585, section 4; RFC 9110, section 10.2.3)."""


def delay_before_next_attempt(
    attempts_made: int,
    *,
    randomness: float,
    now: datetime,
    status_code: int | None = None,
    retry_after: str | None = None,
) -> timedelta | None:
    """How long to wait after the attempt numbered `attempts_made` failed; None when attempts are exhausted.

    `randomness` is a number from 0 to 1 that the caller draws. `retry_after` is the header as it came; with 429 and
    503 it lengthens the wait up to six hours and never shortens it.
    """
    if attempts_made >= ATTEMPTS_MAX:
        return None
    scheduled = SCHEDULE[attempts_made] * (1 + JITTER * (2 * randomness - 1))
    if status_code not in RETRY_AFTER_STATUS_CODES or retry_after is None:
        return scheduled
    asked = parse_retry_after(retry_after, now)
    return scheduled if asked is None else max(scheduled, min(asked, RETRY_AFTER_MAX))


def parse_retry_after(text: str, now: datetime) -> timedelta | None:
    """A `Retry-After` header as a wait from `now`: seconds or an HTTP date. None when it is neither."""
    text = text.strip()
    if text.isascii() and text.isdigit():
        return timedelta(seconds=int(text[:9]))
    try:
        at = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    if at.tzinfo is None:  # RFC 9110 dates are in GMT; the parser leaves "-0000" without a zone
        at = at.replace(tzinfo=UTC)
    return max(at - now, timedelta(0))
