"""What a tenant is told of the operator's nodes: that there are so many and how each does, not where they are or what they
say. A node's host is the operator's, and a node's words are a stranger's. So it is where tenants have an address of their
own (`api.operator_listen`); where they share the operator's, `/metrics` names nodes to whoever asks. Pure.

A node is called what the operator calls it; one without a name by its place, `node-1`. Of a sentence that goes on to
quote nodes the beginning is told, which says what is wrong; for how each of them failed the operator is asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ledger.ids import OPS_TENANT, TenantId
from ledger.model import ChainRow

NODE_FAILS = "the node fails; the operator sees how"
NODES_FAIL = "nodes of the chain fail; the operator sees how"
ANOTHER = "another node"
"""One that has read blocks and is not configured any more."""

_VERDICT = re.compile(r"no node(?:'s answer can be proven \([a-z_, ]*\)| has it| answered)(?=: )")
"""Where `chains/node/pool.py` goes on with what each node said."""


def may_see_nodes(tenant_id: TenantId, *, is_for_tenants: bool) -> bool:
    """True for the operator, and for all where the service is not for tenants alone."""
    return tenant_id == OPS_TENANT or not is_for_tenants


def told_names(nodes: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What tenants call each node, by its name: the same, unless that tells its host."""
    return {
        str(node["name"]): f"node-{place}" if _host_of(node) in node["name"].lower() else str(node["name"])
        for place, node in enumerate(nodes, 1)
    }


def without_hosts(chain: ChainRow) -> ChainRow:
    """The chain as tenants see it: its nodes without host and words, and its reason without theirs."""
    names = told_names(chain.nodes)
    nodes = tuple(
        {**node, "name": names[node["name"]], "reason": None if node["reason"] is None else NODE_FAILS}
        for node in chain.nodes
    )
    reason = None if chain.reason is None else without_words(chain.reason, chain.nodes)
    return replace(chain, nodes=nodes, reason=reason)


def without_words(reason: str, nodes: Iterable[Mapping[str, Any]]) -> str:
    """The part of a sentence that comes before the words of nodes, or before any name of one."""
    verdict = _VERDICT.search(reason)
    kept = reason[: verdict.end()] if verdict else reason
    names = {str(node[key]) for node in nodes for key in ("name", "host") if node.get(key)}
    places = [found.start() for name in names if (found := _whole(name).search(kept))]
    if not places:
        return kept
    before, _, _ = kept[: min(places)].rpartition(": ")
    return f"{before}: {NODES_FAIL}" if before else NODES_FAIL


def _host_of(node: Mapping[str, Any]) -> str:
    """A row of before hosts were written down has names alone: each is taken for a host."""
    return str(node.get("host") or node["name"]).lower()


def _whole(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w-]){re.escape(name)}(?![\w-])", re.IGNORECASE)
