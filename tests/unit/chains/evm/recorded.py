"""Recorded blocks, as the JSON that a node answered: of Ethereum's mainnet, and of chains with other dialects."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from chains.evm.dialect import Dialect
from chains.evm.wire import WireBlock, WireReceipt, decode_block, decode_receipts

DATA = Path(__file__).parents[3] / "data"
MAINNET = DATA / "evm" / "ethereum-mainnet"
DIALECTS = {
    "ethereum-mainnet": Dialect.ETHEREUM,
    "arbitrum-mainnet": Dialect.ARBITRUM,
    "base-mainnet": Dialect.OP_STACK,
    "optimism-mainnet": Dialect.OP_STACK,
    "polygon-mainnet": Dialect.POLYGON,
}
"""The recorded chains, by folder."""
ELSEWHERE = sorted(
    (path.parents[1].name, int(path.parent.name))
    for chain in DIALECTS
    if chain != "ethereum-mainnet"
    for path in (DATA / "evm" / chain).glob("*/receipts.json.gz")
)
"""Blocks of other chains, with receipts: folder and height."""
ELSEWHERE_WITH_EXPECTED_TRANSFERS = [
    (chain, height)
    for chain, height in ELSEWHERE
    if (DATA / "evm" / chain / str(height) / "expected_token_transfers.json.gz").exists()
]

WITH_RECEIPTS = sorted(
    int(path.parent.name) for path in MAINNET.glob("*/receipts.json.gz") if (path.parent / "block.json.gz").exists()
)
WITHOUT_RECEIPTS = sorted(
    int(path.parent.name) for path in MAINNET.glob("*/block.json.gz") if not (path.parent / "receipts.json.gz").exists()
)
WITH_CALL_TRACES = sorted(int(path.parent.name) for path in MAINNET.glob("*/call_traces.json.gz"))
WITH_EXPECTED_TRANSFERS = sorted(int(path.parent.name) for path in MAINNET.glob("*/expected_token_transfers.json.gz"))


@dataclass
class Answer:
    """A node's answer for one block, as JSON values that a test may alter before it is decoded."""

    block: dict[str, Any]
    receipts: list[dict[str, Any]]
    dialect: Dialect = Dialect.ETHEREUM

    def decode(self) -> tuple[WireBlock, list[WireReceipt]]:
        """The answer as the adapter would read it."""
        block = decode_block(msgspec.json.encode(self.block), self.dialect)
        receipts = decode_receipts(msgspec.json.encode(self.receipts), self.dialect)
        assert block is not None
        assert receipts is not None
        return block, receipts


def read_json(path: Path) -> Any:  # noqa: ANN401 - JSON
    """The JSON in a file, compressed or not."""
    raw = path.read_bytes()
    return json.loads(gzip.decompress(raw) if path.suffix == ".gz" else raw)


def recorded_traces(height: int, chain: str = "ethereum-mainnet") -> Any:  # noqa: ANN401 - JSON
    """A fresh copy of what `callTracer` told of a recorded block: a tree of calls, or an object that holds one, for each
    transaction. None where it was not recorded."""
    file = DATA / "evm" / chain / str(height) / "call_traces.json.gz"
    return read_json(file) if file.exists() else None


def internal_moves(call: Any, *, is_root: bool = True) -> list[tuple[str, str, int]]:  # noqa: ANN401 - JSON
    """What a tree of calls moves under its root: from, to, amount. Written from the rule alone, for comparing with ours."""
    if call.get("error"):
        return []
    value = int(call.get("value") or "0x0", 16)
    moves = value > 0 and not is_root and call["type"] in ("CALL", "CREATE", "CREATE2", "SELFDESTRUCT")
    found = [(call["from"], call["to"], value)] if moves else []
    for inner in call.get("calls") or ():
        found += internal_moves(inner, is_root=False)
    return found


def recorded(height: int, chain: str = "ethereum-mainnet") -> Answer:
    """A fresh copy of a recorded block; without receipts where none were recorded."""
    folder = DATA / "evm" / chain / str(height)
    receipts = folder / "receipts.json.gz"
    block, rows = read_json(folder / "block.json.gz"), read_json(receipts) if receipts.exists() else []
    return Answer(block, rows, DIALECTS[chain])
