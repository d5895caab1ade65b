"""What can be wrong with an answer that a node gave, found without asking anybody else.

    ChainError
    `-- ProofFailure         do not use this answer: count the node as bad, ask the next one
        |-- BlocksMixed      ask the same node once more: it changed its branch between two calls
        |-- TracesRefused    the same, said of the node that gave traces
        `-- TracesDiffer     nodes tell different traces: ask another one, or hold

A failed proof says which check failed; it never says that the *chain* is wrong. When the answers of all nodes fail, our
model of that chain is wrong, and the caller holds it (`chains.errors.ChainHolds`).
"""

from __future__ import annotations

from chains.errors import ChainError


class ProofFailure(ChainError):
    """A node's answer contradicts itself or the commitments in its own header.

    `check` names the first check that failed, and is a metric label: `structure` (the answer is malformed or
    incomplete), `bloom`, `header_hash`, `transaction_hash`, `transactions_root`, `receipts_root`, `withdrawals_root`,
    `sender`, `traces`, `state`. `detail` is the rest of the sentence.
    """

    def __init__(self, check: str, detail: str) -> None:
        super().__init__(check, detail)  # as it was called, so that it can be pickled
        self.check = check
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.check}: {self.detail}"
