"""Asking one node for a block and its receipts: bytes only, nothing is believed or decoded here.

Block and receipts are asked in one batch, because only then is it likely that one machine behind a provider's balancer
answers both. A node that has no receipts by block is asked for them one by one, and that is remembered.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from chains.evm.errors import ProofFailure
from chains.evm.reading import Place, RawBlock
from chains.evm.traces import RawTraces, TraceMethod
from chains.evm.wire import bytes_of, quantity_of
from chains.model import BlockRef, hex_of
from chains.node.client import Bounds
from chains.node.errors import MethodNotSupported, NodeGarbled, NodeLacks, NodeUnsettled, RpcError
from chains.node.health import Upstream
from chains.node.jsonrpc import NULL, Call
from chains.node.naming import one_line

Answer = msgspec.Raw | RpcError


class _Carrier(msgspec.Struct):
    hash: str


class _Body(msgspec.Struct):
    transactions: list[_Carrier]


class _TracedTransaction(msgspec.Struct):
    result: msgspec.Raw = msgspec.Raw()
    type: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()


class _Outline(msgspec.Struct, rename="camel"):
    number: str
    hash: str
    parent_hash: str
    transactions: list[msgspec.Raw]


_decode_body = msgspec.json.Decoder(_Body).decode
_decode_traced = msgspec.json.Decoder(list[_TracedTransaction]).decode
_decode_outline = msgspec.json.Decoder(_Outline).decode

TRACE_BOUNDS = Bounds(timeout_s=30.0, answer_bytes_max=128 * 1024 * 1024)
"""The traces of a full block take a node seconds and are several times as large as the block."""

RECENT_BLOCKS = 8
"""As far back from its head a node is looked through for a block that it must be able to trace."""

_NOBODY = b'"0x0000000000000000000000000000000000000000"'
"""Sender and recipient of Polygon's state sync, which some of its nodes trace and others do not. No signed transaction
is from that address."""

_NO_STATE = re.compile(
    r"historical state|missing trie node|state .*not available|no state|pruned|reexec", re.IGNORECASE
)
"""What nodes say of a block that they could trace if they still had the state before it."""


@dataclass(frozen=True, slots=True)
class Outline:
    """A block's place and how many transactions it has that every tracer traces, as a node claims."""

    ref: BlockRef
    traced_count: int


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


async def fetch_traces(upstream: Upstream, method: TraceMethod, ref: BlockRef) -> RawTraces:
    """What the node says of every transaction's calls in a block that has transactions.

    Raises `NodeLacks` where it does not know the block, or has no state to trace it by; a block with transactions and no
    trace at all is what a node says of a block that it does not have (yet). Raises another `NodeError`.
    """
    by_hash: list[object] = [hex_of(ref.hash), {"tracer": "callTracer"}]
    params = by_hash if method is TraceMethod.CALL_TRACER else [hex(ref.height)]
    try:
        answer = await upstream.client.call(method.value, params, TRACE_BOUNDS)
    except RpcError as error:
        if error.is_not_found or _NO_STATE.search(error.detail):
            raise NodeLacks(upstream.name, error.detail) from None
        raise
    if _is_nothing(answer):
        raise NodeLacks(upstream.name, f"{method.value}: has no traces of {described(ref.height)}")
    lacking = _untraced_reason(answer)
    if lacking is not None:
        raise NodeLacks(upstream.name, f"{method.value}: cannot trace {described(ref.height)}: {lacking}")
    if method is TraceMethod.TRACE_BLOCK and hex_of(ref.hash).encode() not in bytes(answer).lower():
        raise NodeLacks(upstream.name, f"{method.value}: has another block in the place of {described(ref.hash)}")
    return RawTraces(method, answer, upstream.name, upstream.host)


async def fetch_recent_ref(upstream: Upstream) -> BlockRef | None:
    """A recent block of the node's own that has transactions, as it claims; None where it has had none lately. Raises a
    `NodeError`."""
    newest = await upstream.client.call("eth_getBlockByNumber", ["latest", False])
    if newest == NULL:
        raise NodeLacks(upstream.name, "names no newest block")
    head = outline_of(upstream, newest)
    heights = range(max(0, head.ref.height - RECENT_BLOCKS), head.ref.height)
    answers = await upstream.client.batch([block_call(height, has_transactions=False) for height in heights])
    outlines = [
        outline_of(upstream, answer) for answer in answers if not isinstance(answer, RpcError) and answer != NULL
    ]
    return next((outline.ref for outline in reversed([head, *outlines]) if outline.traced_count), None)


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


def _is_nothing(answer: msgspec.Raw) -> bool:
    return answer == NULL or (len(answer) < 8 and bytes(answer).strip() == b"[]")


def _untraced_reason(answer: msgspec.Raw) -> str | None:
    """Why the node could not trace one of the transactions, where it says so in place of a trace: it has thrown away the
    state before the block. None where each has its trace, and where that is for others to find out."""
    if b'"error"' not in bytes(answer):
        return None
    try:
        rows = _decode_traced(answer)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    # Some give the bare frame, without a result around it: its error is that the transaction failed.
    refused = (bytes(row.error) for row in rows if not (bytes(row.result) or bytes(row.type)) and bytes(row.error))
    return next((one_line(error.decode()) for error in refused), None)


def outline_of(upstream: Upstream, block: bytes | msgspec.Raw) -> Outline:
    """Enough of a block to ask other nodes about it. Raises `NodeGarbled`."""
    try:
        row = _decode_outline(block)
        ref = BlockRef(quantity_of(row.number), bytes_of(row.hash), bytes_of(row.parent_hash))
    except (msgspec.DecodeError, UnicodeDecodeError, ProofFailure) as error:
        raise NodeGarbled(upstream.name, f"a block without its place: {error}") from None
    return Outline(ref, sum(bytes(transaction).count(_NOBODY) < 2 for transaction in row.transactions))


def _transaction_hashes(upstream: Upstream, block: msgspec.Raw) -> list[str]:
    try:
        return [row.hash for row in _decode_body(block).transactions]
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise NodeGarbled(upstream.name, f"a block without transaction hashes: {error}") from None


def _joined(receipts: Sequence[msgspec.Raw]) -> bytes:
    return b"[" + b",".join(receipts) + b"]"
