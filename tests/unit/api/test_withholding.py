"""A tenant hears that a node fails, and neither where it is nor what it says."""

from __future__ import annotations

import pytest

from api.withholding import NODES_FAIL, told_names, without_words

NODES = (
    {"name": "10.0.0.7", "host": "10.0.0.7", "reason": "Connect call failed"},
    {"name": "archive", "host": "node.example", "reason": None},
    {"name": "node.example-2", "host": "node.example", "reason": None},
    {"name": "from-before.example", "reason": None},
)


def test_a_node_has_its_own_name_unless_that_is_its_host() -> None:
    assert list(told_names(NODES).values()) == ["node-1", "archive", "node-3", "node-4"]


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        (
            "ethereum: block 7: no node answered: 10.0.0.7: Connect call failed; archive: HTTP 500",
            "ethereum: block 7: no node answered",
        ),
        (
            "ethereum: block 7: no node's answer can be proven (bloom, place): gone.example: it said: no node answered: x",
            "ethereum: block 7: no node's answer can be proven (bloom, place)",
        ),
        ("ethereum: traces differ; traced by archive, node.example", f"ethereum: {NODES_FAIL}"),
        ("10.0.0.7 contradicts the others", NODES_FAIL),
        ("a reorg went below the finalized block 10", "a reorg went below the finalized block 10"),
        ("ethereum: the archived part of 110.0.0.78", "ethereum: the archived part of 110.0.0.78"),
    ],
)
def test_of_a_sentence_the_part_before_what_nodes_say_is_told(reason: str, told: str) -> None:
    assert without_words(reason, NODES) == told
