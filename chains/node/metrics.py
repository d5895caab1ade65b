"""Metrics about nodes. `node` is the configured name or the host, never a URL."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import Counter

NODE_REQUESTS = Counter(
    "chainbell_node_requests_total",
    "JSON-RPC calls by outcome; each call of a batch counts.",
    ["chain", "node", "method", "outcome"],
)
PROOF_CHECKS = (
    *(
        "structure",
        "bloom",
        "header_hash",
        "transaction_hash",
        "transactions_root",
        "receipts_root",
        "withdrawals_root",
    ),
    *("sender", "traces", "state", "place", "receipts_missing", "chain_id"),
)
"""Every check that a node's answer can fail."""

PROOF_FAILURES = Counter(
    "chainbell_proof_failures_total",
    "Answers of a node that could not be proven, by the check that failed.",
    ["chain", "node", "check"],
)


def count_proofs_from_zero(chain: str, nodes: Iterable[str]) -> None:
    """Show each check of each node at 0: a series that is born at 1 hides its first failure from `increase()`, and that is
    the one to hear of."""
    for node in nodes:
        for check in PROOF_CHECKS:
            PROOF_FAILURES.labels(chain, node, check)
