"""What the notifier counts. Few labels, never an endpoint, a tenant or a URL.

How many deliveries are due or held is not counted here: `/metrics` reads it from the ledger.
"""

from __future__ import annotations

from prometheus_client import Counter, Histogram

DELIVERIES = Counter(
    "chainbell_deliveries_total",
    "Attempts that were settled, by outcome: accepted, retryable or refused",
    ["outcome"],
)
DELIVERIES_EXHAUSTED = Counter(
    "chainbell_deliveries_exhausted_total",
    "Deliveries whose attempts were used up",
)
ATTEMPT_ERRORS = Counter(
    "chainbell_attempt_errors_total",
    "Attempts that failed without a usable status, by the word stored with them",
    ["error"],
)
ATTEMPT_DURATION = Histogram(
    "chainbell_attempt_duration_seconds",
    "Time of one whole exchange with a receiver",
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20),
)
DELIVERY_LATENCY = Histogram(
    "chainbell_delivery_latency_seconds",
    "From the commit of an event to its acceptance by an endpoint",
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200, 86400, 259200),
)
CLOCK_REFUSALS = Counter(
    "chainbell_clock_refusals_total",
    "Comparisons with the database's clock after which nothing was signed",
)
HOUSEKEEPING = Counter("chainbell_housekeeping_total", "Housekeeping jobs by how they ended", ["job", "outcome"])
