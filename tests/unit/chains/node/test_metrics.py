"""What others alert on is there before it happens, and every check that can fail is named."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import REGISTRY

from chains.node.metrics import PROOF_CHECKS, count_proofs_from_zero
from indexer.metrics import count_from_zero

CHAINS = Path(__file__).parents[4] / "chains"
PLACE_OF_CHECK = {
    "ProofFailure": 0,
    "_compare_root": 0,
    "NodeUnproven": 1,
    "NodeUnsettled": 1,
    "distrust": 2,
}
"""Which argument of a call names the check."""


def checks_in(tree: ast.AST) -> Iterator[str]:
    """The names of checks that calls in a module give."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        given = node.args[PLACE_OF_CHECK[name]] if name in PLACE_OF_CHECK else None
        if isinstance(given, ast.Constant):
            yield str(given.value)


def test_every_check_that_can_fail_is_counted_from_zero() -> None:
    used = {check for path in CHAINS.rglob("*.py") for check in checks_in(ast.parse(path.read_text()))}
    assert used == set(PROOF_CHECKS)
    count_proofs_from_zero("zero", ["node-a"])
    for check in PROOF_CHECKS:
        labels = {"chain": "zero", "node": "node-a", "check": check}
        assert REGISTRY.get_sample_value("chainbell_proof_failures_total", labels) == 0


def test_reorgs_and_blocks_of_a_chain_are_counted_from_zero() -> None:
    count_from_zero("zero")
    chain = {"chain": "zero"}
    assert REGISTRY.get_sample_value("chainbell_reorgs_total", chain) == 0
    assert REGISTRY.get_sample_value("chainbell_reorg_depth_blocks_count", chain) == 0
    assert REGISTRY.get_sample_value("chainbell_blocks_total", {**chain, "outcome": "committed"}) == 0
