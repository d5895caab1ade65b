"""What can be wrong with an answer that a node gave, found without asking anybody else.

    ChainError
    `-- ProofFailure    do not use this answer: count the node as bad, ask the next one

A failed proof says which check failed; it never says that the *chain* is wrong. When the answers of all nodes fail, our
model of that chain is wrong, and the caller holds it (`chains.errors.ChainHolds`).
"""

from __future__ import annotations

from chains.errors import ChainError


class ProofFailure(ChainError):
    """A node's answer contradicts itself or the commitments in its own header.

    `check` names the first check that failed, and is a metric label: `structure` (the answer is malformed or
    incomplete), `bloom`, `header_hash`, `transaction_hash`, `transactions_root`, `receipts_root`, `withdrawals_root`,
    `sender`. `detail` is the rest of the sentence.
    """

    def __init__(self, check: str, detail: str) -> None:
        super().__init__(f"{check}: {detail}")
        self.check = check
        self.detail = detail
