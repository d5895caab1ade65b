"""A node that stands on an abandoned branch: every answer of it was once true, of blocks that its chain has left since.

The branch is recorded from the real node in the moment before a reorg, with everything that can be asked of its blocks; from
the reorg on the lying node answers from the record: to it the abandoned branch is the chain.
"""

from __future__ import annotations

from typing import Any

from tests.fakes.liar import AbandonedBranch, Lie, LyingNode

Json = Any

_TRACER = {"tracer": "callTracer"}


async def record_branch(liar: LyingNode, depth: int) -> AbandonedBranch:
    """The newest `depth` blocks of the real node, before a reorg takes them away."""
    head = int(await liar.ask("eth_blockNumber"), 16)
    tags = {"latest": head} | {tag: await _height_of(liar, tag) for tag in ("safe", "finalized")}
    branch = AbandonedBranch(head - depth, head, tags)
    for height in range(head - depth + 1, head + 1):
        block = await liar.ask("eth_getBlockByNumber", hex(height), True)
        receipts = await liar.ask("eth_getBlockReceipts", hex(height))
        for place in (hex(height), block["hash"]):
            branch.blocks[place], branch.receipts[place] = block, receipts
        branch.traces[block["hash"]] = await liar.ask("debug_traceBlockByHash", block["hash"], _TRACER)
    return branch


async def _height_of(liar: LyingNode, tag: str) -> int | None:
    block = await liar.ask("eth_getBlockByNumber", tag, False)
    return None if block is None else int(block["number"], 16)


async def _stand_on_branch(node: LyingNode, method: str, params: list[Json], result: Json) -> Json:
    branch = node.abandoned
    match method:
        case _ if branch is None:
            return result
        case "eth_blockNumber":
            return hex(branch.head_height)
        case "eth_getBlockByNumber":
            return await _block_at(node, branch, params, result)
        case "eth_getBlockByHash":
            return _shaped(branch.blocks[params[0]], params) if params[0] in branch.blocks else _shared(branch, result)
        case "eth_getBlockReceipts":
            return branch.receipts[params[0]] if params[0] in branch.receipts else _shared(branch, result)
        case "debug_traceBlockByHash":
            return branch.traces.get(params[0], result)
        case _:
            return result


async def _block_at(node: LyingNode, branch: AbandonedBranch, params: list[Json], result: Json) -> Json:
    height = branch.tags.get(params[0]) if params[0] in branch.tags else int(params[0], 16)
    if height is None or height > branch.head_height:
        return None
    if height > branch.ancestor_height:
        return _shaped(branch.blocks[hex(height)], params)
    return result if params[0] not in branch.tags else await node.ask("eth_getBlockByNumber", hex(height), params[1])


def _shaped(block: Json, params: list[Json]) -> Json:
    """With its transactions, or with their hashes, as it was asked for."""
    return block if params[1] else {**block, "transactions": [row["hash"] for row in block["transactions"]]}


def _shared(branch: AbandonedBranch, result: Json) -> Json:
    """What both branches have; nothing of the blocks that only the chain has."""
    if not result:
        return result
    height = result["number"] if isinstance(result, dict) else result[0]["blockNumber"]
    return result if int(height, 16) <= branch.ancestor_height else None


STANDS_ON_A_BRANCH = Lie("stands on an abandoned branch", _stand_on_branch)
SWAYS_BETWEEN_BRANCHES = Lie("sways between two branches", _stand_on_branch, rate=0.5)
"""Two machines behind one name, of which one has not noticed the reorg."""
