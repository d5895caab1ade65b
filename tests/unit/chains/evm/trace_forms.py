"""Traces for tests: frames made up, and one block's traces in the forms that nodes give them, turned into each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from chains.evm.traces import RawTraces, TraceMethod
from chains.model import Address, hex_of
from tests.unit.chains.evm.factories import ALICE, BOB

Json = dict[str, Any]
CAROL: Address = bytes.fromhex("ca" * 20)
DAVE: Address = bytes.fromhex("da" * 20)
_CREATIONS = ("CREATE", "CREATE2")


def frame(
    kind: str = "CALL",
    sender: Address = BOB,
    to: Address | None = CAROL,
    value: int | None = 0,
    *calls: object,
    **more: object,
) -> Json:
    """A frame as callTracer tells it."""
    told: dict[str, Any] = {"type": kind, "from": hex_of(sender), "gas": "0x1", "gasUsed": "0x1", "input": "0x"}
    told |= {"to": hex_of(to)} if to is not None else {}
    told |= {"value": hex(value)} if value is not None else {}
    told |= {"calls": list(calls)} if calls else {}
    return told | more


def root(*calls: object, **more: object) -> dict[str, Any]:
    """The root frame of the transaction that `make_transaction` makes."""
    return frame("CALL", ALICE, BOB, 0, *calls, **more)


def raw_traces(answer: object, host: str = "one", method: TraceMethod = TraceMethod.CALL_TRACER) -> RawTraces:
    """What a node on `host` answered."""
    return RawTraces(method, msgspec.json.encode(answer), f"{host}-node", host)


def flat_form(trees: list[Json], block_hash: str) -> list[Json]:
    """Trees of calls, bare or in their entries, as `trace_block` tells them."""
    rows = []
    for position, entry in enumerate(trees):
        for path, call in _walk(entry.get("result", entry), []):
            rows.append(_row(path, call) | {"transactionPosition": position, "blockHash": block_hash})
    return rows


def tree_form(rows: list[Json]) -> list[Json]:
    """Another indexer's flattened traces (decimal numbers, an absent path at the root) as trees of calls."""
    trees: dict[int, Json] = {}
    for row in rows:
        call = {"type": row["type"], "from": row.get("from"), "to": row.get("to"), "calls": []}
        call["value"] = hex(int(row.get("value", "0")))
        call |= {"error": row["error"]} if "error" in row else {}
        position, path = int(row.get("transactionIndex", "0")), [int(at) for at in row.get("traceAddress", [])]
        if not path:
            trees[position] = call
            continue
        parent = trees[position]
        for at in path[:-1]:
            parent = parent["calls"][at]
        assert len(parent["calls"]) == path[-1]
        parent["calls"].append(call)
    return [trees[position] for position in sorted(trees)]


def _walk(call: Json, path: list[int]) -> Iterator[tuple[list[int], Json]]:
    yield path, call
    for at, inner in enumerate(call.get("calls") or []):
        yield from _walk(inner, [*path, at])


def _row(path: list[int], call: Json) -> Json:
    row: Json = {"traceAddress": path, "subtraces": len(call.get("calls") or []), "result": None}
    row |= {"error": call["error"]} if "error" in call else {}
    kind = call["type"]
    if kind == "SELFDESTRUCT":
        action = {"address": call["from"], "refundAddress": call["to"], "balance": call["value"]}
        return row | {"type": "suicide", "action": action}
    action = {"from": call["from"], "value": call.get("value", "0x0")}
    if kind in _CREATIONS:
        result = None if "error" in call else {"address": call["to"], "code": "0x", "gasUsed": "0x0"}
        return row | {"type": "create", "action": action, "result": result}
    return row | {"type": "call", "action": action | {"to": call["to"], "callType": kind.lower()}}
