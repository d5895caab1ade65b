"""Asking a Polygon node for the one thing that no block shows: the bytes of its state sync (`chains.evm.polygon`).

At most one block in sixteen has one. Without it the transactions root cannot be recomputed, so a node that does not give it
fails the proof of that block.
"""

from __future__ import annotations

from dataclasses import replace

import msgspec

from chains.evm.polygon import STATE_SYNC
from chains.evm.reading import RawBlock
from chains.node.errors import NodeGarbled, RpcError
from chains.node.health import Upstream
from chains.node.jsonrpc import Call

_TYPE = hex(STATE_SYNC)
_NOTHING = (b"null", b'"0x"')


class _Carrier(msgspec.Struct):
    hash: str
    type: str | None = None


class _Body(msgspec.Struct):
    hash: str
    transactions: list[_Carrier]


_decode_body = msgspec.json.Decoder(_Body).decode


async def with_state_sync(upstream: Upstream, raw: RawBlock) -> RawBlock:
    """The same, with the bytes of the block's last transaction where that is a state sync. They are asked for by place and
    by hash, since nodes differ in which they offer. Raises a `NodeError`."""
    if f'"{_TYPE}"'.encode() not in bytes(raw.block):
        return raw
    try:
        block = _decode_body(raw.block)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise NodeGarbled(upstream.name, f"a block without transaction hashes: {error}") from None
    if not block.transactions or block.transactions[-1].type != _TYPE:
        return raw
    calls: list[Call] = [
        ("eth_getRawTransactionByBlockHashAndIndex", [block.hash, hex(len(block.transactions) - 1)]),
        ("eth_getRawTransactionByHash", [block.transactions[-1].hash]),
    ]
    answers = [answer for answer in await upstream.client.batch(calls) if not isinstance(answer, RpcError)]
    found = next((answer for answer in answers if bytes(answer) not in _NOTHING), None)
    return replace(raw, state_sync=found, rpc_calls=raw.rpc_calls + len(calls))
