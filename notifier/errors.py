"""What can go wrong in telling merchants, split by what the caller does next.

    NotifierError
    |-- LeaseTooShort   refuse to start: deliveries would be sent twice
    `-- CannotSign      refuse the delivery: an id or a secret that Standard Webhooks cannot sign; nothing was sent

What a receiver does wrong is no exception: it is an attempt with an outcome (`notifier/outcome.py`). A URL or an
address that must not be called is `ledger.urls.UnsafeUrl`, and becomes a refused attempt.
"""

from __future__ import annotations


class NotifierError(Exception):
    """Anything that the notifier cannot do."""


class CannotSign(NotifierError):
    """An id or a secret that cannot be signed with; the text names the event, never the secret."""


class LeaseTooShort(NotifierError):
    """A lease that could end before the exchange it is for."""
