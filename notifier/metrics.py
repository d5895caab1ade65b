"""What the notifier counts. Few labels, never an endpoint, a tenant or a URL.

How many deliveries are due or held is not counted here: `/metrics` reads it from the ledger.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from ledger.states import Fault, Outcome
from notifier.outcome import AttemptError

DELIVERIES = Counter(
    "chainbell_deliveries_total",
    "Attempts that were settled, by outcome: accepted, retryable or refused",
    ["outcome"],
)
DELIVERIES_EXHAUSTED = Counter(
    "chainbell_deliveries_exhausted_total",
    "Deliveries whose attempts were used up",
)
DELIVERY_FAULTS = Counter(
    "chainbell_delivery_faults_total",
    "Deliveries that could not be sent by a fault of ours, each time they were tried",
    ["fault"],
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
LEASES_LOST = Counter(
    "chainbell_leases_lost_total",
    "Deliveries whose lease ended before this process could settle them: the receiver may have them twice",
)
SECRETS_LEFT_OUT = Counter(
    "chainbell_secrets_left_out_total",
    "Claims of deliveries that were signed without a valid secret of their endpoint, for it does not open",
)
HOUSEKEEPING = Counter("chainbell_housekeeping_total", "Housekeeping jobs by how they ended", ["job", "outcome"])
LEASES_EXPIRED = Counter(
    "chainbell_leases_expired_total",
    "Leases that ended with nobody's word and that nobody took over: freed by housekeeping",
    ["of"],
)
LIVE_ROWS = Gauge(
    "chainbell_database_live_rows", "Live rows, as Postgres estimates", ["table"], multiprocess_mode="livemostrecent"
)
DEAD_ROWS = Gauge(
    "chainbell_database_dead_rows",
    "Dead rows that vacuum has yet to take away, as Postgres estimates",
    ["table"],
    multiprocess_mode="livemostrecent",
)
OLDEST_SNAPSHOT = Gauge(
    "chainbell_database_oldest_snapshot_seconds",
    "Age of the oldest transaction that vacuum has to wait for, by what holds it: session or prepared",
    ["holder"],
    multiprocess_mode="livemostrecent",
)
HELD_BACK = Gauge(
    "chainbell_database_vacuum_held_back_transactions",
    "The same in transactions, also of slot and standby, for which there is no time",
    ["holder"],
    multiprocess_mode="livemostrecent",
)
PARTITION_DAYS = Gauge(
    "chainbell_database_partition_days_ahead",
    "Days after today for which a table has a partition",
    ["table"],
    multiprocess_mode="livemostrecent",
)

# Present at 0 from the start: a rate over a series that is born at 1 misses the first.
for outcome in Outcome:
    DELIVERIES.labels(outcome.value)
for fault in Fault:
    DELIVERY_FAULTS.labels(fault.value)
for error in AttemptError:
    ATTEMPT_ERRORS.labels(error.value)
