"""Asking one node for a block and its receipts: bytes only, nothing is believed or decoded here.

Block and receipts are asked in one batch, because only then is it likely that one machine behind a provider's balancer
answers both. A node that has no receipts by block is asked for them one by one, and that is remembered.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from chains.evm.reading import Place, RawBlock
from chains.model import hex_of
from chains.node.errors import MethodNotSupported, NodeGarbled, NodeLacks, NodeUnsettled, RpcError
from chains.node.jsonrpc import NULL, Call
from chains.node.pool import Upstream

Answer = msgspec.Raw | RpcError


class _Carrier(msgspec.Struct):
    hash: str


class _Body(msgspec.Struct):
    transactions: list[_Carrier]


_decode_body = msgspec.json.Decoder(_Body).decode


def described(place: Place) -> str:
    """The block as messages name it."""
    return f"block {place if isinstance(place, int) else hex_of(place)}"


def block_call(place: Place, *, has_transactions: bool) -> Call:
    """The call that asks for a block, with its transactions in full or by hash."""
    if isinstance(place, int):
        return ("eth_getBlockByNumber", [hex(place), has_transactions])
    return ("eth_getBlockByHash", [hex_of(place), has_transactions])


async def fetch_raw_block(upstream: Upstream, place: Place) -> RawBlock:
    """What the node says of a block and its receipts.

    Raises `NodeLacks` where it has no such block, `NodeUnsettled` where it has the block and not (yet) the receipts,
    or another `NodeError`.
    """
    if not upstream.has_block_receipts:
        return await _fetch_one_by_one(upstream, place)
    where = hex(place) if isinstance(place, int) else hex_of(place)
    block, receipts = await upstream.client.batch(
        [block_call(place, has_transactions=True), ("eth_getBlockReceipts", [where])]
    )
    present(upstream, block, place)
    if isinstance(receipts, MethodNotSupported):
        upstream.has_block_receipts = False
        return await _fetch_one_by_one(upstream, place)
    return _raw_block(upstream, present(upstream, block, place), _settled(upstream, receipts, place), rpc_calls=2)


async def _fetch_one_by_one(upstream: Upstream, place: Place) -> RawBlock:
    (answer,) = await upstream.client.batch([block_call(place, has_transactions=True)])
    block = present(upstream, answer, place)
    calls: list[Call] = [("eth_getTransactionReceipt", [row]) for row in _transaction_hashes(upstream, block)]
    answers = await upstream.client.batch(calls)
    receipts = _joined([_settled(upstream, answer, place) for answer in answers])
    return _raw_block(upstream, block, receipts, rpc_calls=1 + len(calls))


def present(upstream: Upstream, answer: Answer, place: Place) -> msgspec.Raw:
    """The block or header in an answer. Raises `NodeLacks` where the node says, in either way, that it has none."""
    if isinstance(answer, RpcError) and not answer.is_not_found:
        raise answer
    if isinstance(answer, RpcError) or answer == NULL:
        raise NodeLacks(upstream.name, f"has no {described(place)}")
    return answer


def _settled(upstream: Upstream, answer: Answer, place: Place) -> msgspec.Raw:
    """Receipts of a block that the node has. Absent ones are either late or pruned: in neither case an empty list."""
    if isinstance(answer, RpcError) and not answer.is_not_found:
        raise answer
    if isinstance(answer, RpcError) or answer == NULL:
        raise NodeUnsettled(upstream.name, "receipts_missing", f"has {described(place)}, but not all its receipts")
    return answer


def _raw_block(upstream: Upstream, block: msgspec.Raw, receipts: bytes | msgspec.Raw, rpc_calls: int) -> RawBlock:
    return RawBlock(block, receipts, upstream.name, upstream.host, rpc_calls)


def _transaction_hashes(upstream: Upstream, block: msgspec.Raw) -> list[str]:
    try:
        return [row.hash for row in _decode_body(block).transactions]
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise NodeGarbled(upstream.name, f"a block without transaction hashes: {error}") from None


def _joined(receipts: Sequence[msgspec.Raw]) -> bytes:
    return b"[" + b",".join(receipts) + b"]"
