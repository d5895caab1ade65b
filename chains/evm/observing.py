"""Where proofs are only observed: what failed is counted, logged once a minute for each check, and shown with its node.

For a new chain whose quirks nobody knows yet. Each block is checked as far as it can be, taken whatever the checks say as
long as it can be decoded, and told at the level that it really reached. It is a way to learn what a chain does, not
one to follow a chain for money: a node that leaves a deposit out is told of, and believed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import structlog

from chains.model import FailedCheck, Slug
from chains.node.metrics import PROOF_FAILURES
from chains.node.naming import one_line

log = structlog.get_logger(__name__)

COMPLAINT_INTERVAL_S = 60.0
"""A check that goes on failing is logged this often."""

SHOWN_FOR_S = 600.0
"""A node is shown with its last failed check for so long."""


class ProofObserver:
    """Tells of the checks that failed on one chain and were not enforced."""

    def __init__(self, chain: Slug, clock: Callable[[], float] = time.monotonic) -> None:
        """Nothing has failed yet."""
        self._chain = chain
        self._clock = clock
        self._complained_at: dict[str, float] = {}
        self._failed: dict[str, tuple[float, str]] = {}

    def note(self, node: str, failures: Iterable[FailedCheck], subject: str) -> None:
        """What failed in a node's answer about `subject` that was taken all the same."""
        for failure in failures:
            PROOF_FAILURES.labels(self._chain, node, failure.check).inc()
            now, detail = self._clock(), one_line(failure.detail)
            self._failed[node] = (now, f"not enforced: {failure.check}: {detail}")
            last = self._complained_at.get(failure.check)
            if last is None or now - last >= COMPLAINT_INTERVAL_S:
                self._complained_at[failure.check] = now
                log.warning(
                    "proof failed, not enforced",
                    chain=self._chain,
                    node=node,
                    subject=subject,
                    check=failure.check,
                    reason=detail,
                )

    def reason_of(self, node: str) -> str | None:
        """What last failed in this node's answers, as operators see it; None where nothing did lately."""
        failed_at, reason = self._failed.get(node, (0.0, ""))
        return reason if reason and self._clock() - failed_at < SHOWN_FOR_S else None
