"""Metrics about nodes. `node` is the configured name or the host, never a URL."""

from __future__ import annotations

from prometheus_client import Counter

NODE_REQUESTS = Counter(
    "chainbell_node_requests_total",
    "JSON-RPC calls by outcome; each call of a batch counts.",
    ["chain", "node", "method", "outcome"],
)
PROOF_FAILURES = Counter(
    "chainbell_proof_failures_total",
    "Answers of a node that could not be proven, by the check that failed.",
    ["chain", "node", "check"],
)
