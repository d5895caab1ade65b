"""What a node's traces say about one block, in either form that nodes speak, as one value for each transaction. Pure.

- `debug_traceBlockByHash` with `callTracer`: a list with one tree of calls for each transaction. An entry is
  `{"txHash", "result"}` (go-ethereum since 1.12, Reth), `{"result"}` (older ones, Nethermind), or the bare tree. An entry
  with an error in place of a tree is a tracer that gave up: the answer is worth nothing then.
- `trace_block` (OpenEthereum's form: Erigon, Nethermind, Reth, Besu): a flat list of calls in pre-order, each with its
  place in the tree (`traceAddress`) and its transaction's (`transactionPosition`), and rewards that belong to none.

Only what moves value is kept, and the beginnings and ends of contracts; a frame that failed is left out with all that is
under it: the EVM undid it.

The two forms number their frames differently: OpenEthereum's leaves calls to precompiled contracts out unless they carry
value, callTracer has them all. A path is good for finding a frame in its own answer, not for comparing two.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import Struct, field

from chains.deep_json import decode_deep
from chains.evm.errors import ProofFailure

CREATIONS = frozenset({"CREATE", "CREATE2"})
MOVING = CREATIONS | {"CALL", "SELFDESTRUCT"}
KEEPING = frozenset({"DELEGATECALL", "STATICCALL", "CALLCODE"})
"""Their value, where a tracer names one, stays with the caller: what DELEGATECALL names is its parent's, CALLCODE pays
itself."""

_ZERO = frozenset({None, "0x0", "0x", "0x00"})


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame that moves value, as the node tells it: still in hex, its kind in callTracer's words."""

    path: str
    kind: str
    sender: str | None
    recipient: str | None
    value: str | None


@dataclass(frozen=True, slots=True)
class Trace:
    """One transaction's frames: the root, which is the transaction itself, and the frames inside that move value."""

    transaction_hash: str | None
    root: Frame
    has_failed: bool
    inner: list[Frame]
    short_lived: frozenset[str] = frozenset()
    """Addresses, in lower case, of contracts that were created and destroyed in it: whatever it sent them, nothing of that
    is left there when it is over."""


class _Call(Struct, gc=False):
    type: str | None = None
    sender: str | None = field(name="from", default=None)
    to: str | None = None
    value: str | None = None
    error: Any = None
    calls: list[_Call] | None = None


class _Entry(_Call, gc=False):
    """A tree of calls, or an object that holds one; `error` is the tree's own or the tracer's."""

    tx_hash: str | None = field(name="txHash", default=None)
    result: _Call | None = None


class _Action(Struct, rename="camel", gc=False):
    sender: str | None = field(name="from", default=None)
    to: str | None = None
    value: str | None = None
    call_type: str | None = None
    address: str | None = None
    refund_address: str | None = None
    balance: str | None = None


class _Outcome(Struct, gc=False):
    address: str | None = None


class _Row(Struct, rename="camel", gc=False):
    action: _Action
    block_hash: str
    trace_address: tuple[int, ...]
    type: str | None = None
    transaction_hash: str | None = None
    transaction_position: int | None = None
    result: _Outcome | None = None
    error: str | None = None


_decode_entries = msgspec.json.Decoder(list[_Entry] | None).decode
_decode_rows = msgspec.json.Decoder(list[_Row] | None).decode


def call_traces(answer: bytes | msgspec.Raw) -> list[Trace]:
    """The traces in the `result` of `debug_traceBlockByHash` with `callTracer`. Raises `ProofFailure("traces")`."""
    try:
        entries = decode_deep(_decode_entries, answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProofFailure("traces", f"the answer is malformed: {error}") from error
    if entries is None:
        raise ProofFailure("traces", "null in place of traces")
    return [_trace_of(index, entry) for index, entry in enumerate(entries)]


def flat_traces(answer: bytes | msgspec.Raw, block_hash: str) -> list[Trace]:
    """The traces in the `result` of `trace_block`, by `transactionPosition`. Raises `ProofFailure("traces")`."""
    try:
        rows = decode_deep(_decode_rows, answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProofFailure("traces", f"the answer is malformed: {error}") from error
    if rows is None:
        raise ProofFailure("traces", "null in place of traces")
    by_position: dict[int, list[_Row]] = {}
    for row in rows:
        if row.block_hash.lower() != block_hash.lower():
            raise ProofFailure("traces", f"a trace is of block {row.block_hash:.80}, not of {block_hash}")
        if row.type == "reward":
            continue
        if row.transaction_position is None:
            raise ProofFailure("traces", f"a trace of type {row.type!r:.80} belongs to no transaction")
        by_position.setdefault(row.transaction_position, []).append(row)
    if sorted(by_position) != list(range(len(by_position))):
        raise ProofFailure("traces", f"traces of {len(by_position)} transactions, which are not the first ones")
    return [_joined(position, by_position[position]) for position in range(len(by_position))]


def _trace_of(index: int, entry: _Entry) -> Trace:
    root = entry.result or entry
    if root.type is None or (entry.result is not None and entry.error):
        raise ProofFailure("traces", f"no trace of transaction {index}: {entry.error!r:.200}")
    frame = Frame("", root.type, root.sender, root.to, root.value)
    has_failed = bool(root.error)
    return _trace(entry.tx_hash, frame, has_failed, [] if has_failed else list(_kept(index, root)))


def _trace(transaction_hash: str | None, root: Frame, has_failed: bool, kept: list[Frame]) -> Trace:
    inner = [frame for frame in kept if frame.value not in _ZERO]
    created = {frame.recipient.lower() for frame in (root, *kept) if frame.kind in CREATIONS and frame.recipient}
    destroyed = {frame.sender.lower() for frame in kept if frame.kind == "SELFDESTRUCT" and frame.sender}
    return Trace(transaction_hash, root, has_failed, inner, frozenset(created & destroyed))


def _is_kept(kind: str | None, value: str | None) -> bool:
    """It moves value, or is the beginning or the end of a contract."""
    return kind in MOVING and (kind != "CALL" or value not in _ZERO)


def _kept(index: int, root: _Call) -> Iterator[Frame]:
    """The frames under `root` that are kept, in pre-order. A walk by hand: calls nest deeper than Python recurses."""
    levels = [iter(root.calls or ())]
    path = [-1]
    while levels:
        call = next(levels[-1], None)
        if call is None:
            levels.pop()
            path.pop()
            continue
        path[-1] += 1
        if call.error:
            continue
        if call.type in MOVING:
            if call.value is None:
                raise ProofFailure("traces", f"transaction {index}: a {call.type} without a value")
            if _is_kept(call.type, call.value):
                yield Frame(".".join(map(str, path)), call.type, call.sender, call.to, call.value)
        elif call.type not in KEEPING and call.value not in _ZERO:
            raise ProofFailure("traces", f"transaction {index}: an unknown kind of frame, {call.type!r:.80}, has value")
        if call.calls:
            levels.append(iter(call.calls))
            path.append(-1)


def _joined(position: int, rows: list[_Row]) -> Trace:
    """One transaction's rows as a trace: the root first, every other one after its parent."""
    root = rows[0]
    if root.trace_address:
        raise ProofFailure("traces", f"transaction {position}: the first trace is not the root")
    failed: dict[tuple[int, ...], bool] = {(): bool(root.error)}
    kept = []
    for row in rows[1:]:
        at = row.trace_address
        if at in failed or at[:-1] not in failed:
            raise ProofFailure("traces", f"transaction {position}: trace {list(at)!r:.80} is doubled or has no parent")
        failed[at] = failed[at[:-1]] or bool(row.error)
        if not failed[at]:
            frame = _frame_of(position, row)
            if frame is not None:
                kept.append(frame)
    return _trace(root.transaction_hash, _frame(root), failed[()], kept)


def _frame_of(position: int, row: _Row) -> Frame | None:
    """The row as a frame; None where it is not kept."""
    frame = _frame(row)
    if frame.kind in MOVING and frame.value is None:
        raise ProofFailure("traces", f"transaction {position}: a {frame.kind} without a value")
    if _is_kept(frame.kind, frame.value):
        return frame
    if frame.kind not in MOVING | KEEPING and frame.value not in _ZERO:
        raise ProofFailure("traces", f"transaction {position}: an unknown kind of frame, {frame.kind!r:.80}, has value")
    return None


def _frame(row: _Row) -> Frame:
    """The row in callTracer's words. Reth has called the end of a contract by its newer name; Nethermind makes up a root
    row for a transaction that ran no code, without a type and with the call type of a creation."""
    action, path = row.action, ".".join(map(str, row.trace_address))
    if row.type in ("suicide", "selfdestruct"):
        return Frame(path, "SELFDESTRUCT", action.address, action.refund_address, action.balance)
    if row.type == "create" or (row.type is None and action.call_type == "init"):
        created = row.result.address if row.result else None
        return Frame(path, "CREATE", action.sender, created, action.value)
    if row.type not in ("call", None):
        raise ProofFailure("traces", f"a trace of an unknown type, {row.type!r:.80}")
    return Frame(path, (action.call_type or "").upper(), action.sender, action.to, action.value)
