"""What the API counts. The route is the operation's name, never a path with an id."""

from __future__ import annotations

from prometheus_client import Counter, Histogram

REQUESTS = Counter("chainbell_api_requests_total", "Requests answered, by route and status", ["route", "status"])
REQUEST_DURATION = Histogram(
    "chainbell_api_request_duration_seconds",
    "From the request's head to its answer, long polls left out",
    ["route"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
CONNECTIONS_CUT = Counter(
    "chainbell_api_connections_cut_total", "Connections that were refused or cut off, by reason", ["reason"]
)
