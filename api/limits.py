"""How often a key may ask: a bucket of tokens for each, filled steadily and emptied by requests.

Pure. The clock is an argument. A bucket belongs to what was *sent* as a key, its id and the hash of its secret, so nobody
empties another's bucket by knowing its id, which logs and tickets show. Each process counts by itself: behind a balancer a
key may ask as often as there are processes.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from math import ceil

from ledger.keys import KeyParts

RPS_PER_KEY = 200.0
"""Requests a second in the long run, unless the operator says otherwise."""

BURST_S = 2.0
"""So many seconds' worth of requests may come at once."""

BUCKETS_MAX = 10_000
"""Buckets that are remembered. The one that was not asked for longest is forgotten first, which is to say filled."""


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float


class Limits:
    """The buckets of one process."""

    def __init__(self, rps: float = RPS_PER_KEY) -> None:
        self._rps = rps
        self._size = max(1.0, rps * BURST_S)
        self._buckets: OrderedDict[KeyParts, _Bucket] = OrderedDict()

    def take(self, key: KeyParts, now: float) -> int:
        """Take a token for a request at `now` (seconds of a clock that only rises). Returns 0, or where there is none the
        whole seconds to wait until there is."""
        bucket = self._buckets.pop(key, None) or _Bucket(self._size, now)
        self._buckets[key] = bucket
        if len(self._buckets) > BUCKETS_MAX:
            self._buckets.popitem(last=False)
        bucket.tokens = min(self._size, bucket.tokens + (now - bucket.at) * self._rps)
        bucket.at = now
        if bucket.tokens < 1:
            return ceil((1 - bucket.tokens) / self._rps)
        bucket.tokens -= 1
        return 0
