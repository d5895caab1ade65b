"""Value that moves inside transactions, as traces tell of it. Pure: nodes' answers in, movements out.

No commitment in a header covers a trace. What can be checked is checked: there is one trace for each transaction, its
root frame is the proven transaction, and it failed where the proven receipt says so. What cannot be checked is compared:
two tracing nodes on different hosts must tell the same movements of the whole block (`settle_traces`).

What counts (value above zero, in a frame that did not fail, under none that did):

- CALL, CREATE and CREATE2: from the caller to the callee or the created contract.
- SELFDESTRUCT: the balance goes to the beneficiary. To itself nothing moves: before EIP-6780, and in the transaction
  that created the contract, the value is burned instead.
- What goes to a contract that is created and destroyed in the same transaction is marked like what a contract leaves at
  its end (`is_destruction`): nothing of it is there when the transaction is over.
- Never the root frame: that is the transaction's own value, which the transaction itself proves.

**Value for a precompiled contract** is lost for ever. callTracer tells of it; `trace_block` of Reth and of Besu leaves those
calls out (paradigmxyz/revm-inspectors `builder/parity.rs`, hyperledger/besu `FlatTraceGenerator.java`), other nodes' does
not. Anybody can send some, so it must not hold a chain: where hosts are compared and one of them was asked for
`trace_block`, such movements are neither compared nor told.

**Transactions without a trace.** Polygon's state sync (`chains.evm.polygon`) is traced by some nodes and not by others
(Bor's option `borTraceEnabled`), so it counts as without a trace, and one that is there is not read.

**Arbitrum.** Deposits (0x64), submitted retryables (0x69) and ArbOS's own (0x6a) run no code, and have a root frame that
never tells of failure (OffchainLabs/nitro `arbos/tx_processor.go`). What a retryable's submission moves are made-up calls
inside that frame, from the zero address where value is minted. Transfers before and after a transaction
(`beforeEVMTransfers`, `afterEVMTransfers`) pay for gas, or move a retryable's value out of escrow to the account that
spends it at once: they are not read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from chains.evm.carrier import Carrier
from chains.evm.carriers import carriers_of
from chains.evm.envelope import type_of
from chains.evm.errors import ProofFailure
from chains.evm.frames import Frame, Trace, call_traces, flat_traces
from chains.evm.wire import WireBlock, WireReceipt, bytes_of, quantity_of
from chains.model import Address, TraceProof, hex_of

PRECOMPILED_MAX = 0x1FF
"""The last address that may be that of a precompiled contract: 0x01 to 0x11 are, and 0x100 (EIP-2537, RIP-7212); BNB Chain
has some from 0x64 on."""

_RUNS_NO_CODE = frozenset({0x64, 0x69, 0x6A})
"""Arbitrum's transactions whose root frame tells of no failure."""


class TraceMethod(StrEnum):
    """How a node was asked for a block's traces."""

    CALL_TRACER = "debug_traceBlockByHash"
    """With the tracer `callTracer`."""
    TRACE_BLOCK = "trace_block"


@dataclass(frozen=True, slots=True)
class RawTraces:
    """What one node answered about one block: the `result` alone."""

    method: TraceMethod
    answer: bytes | msgspec.Raw
    node: str
    host: str


@dataclass(frozen=True, slots=True)
class InternalMove:
    """One movement of native value inside a transaction, its root frame excluded."""

    transaction_index: int
    path: str
    """The frame's place in the answer that it was read from, e.g. `0.2.1`."""
    sender: Address
    recipient: Address
    amount_atomic: int
    is_destruction: bool = False
    """A contract destroyed itself and left this, or its own end in the same transaction took it from the contract that it
    went to."""


Moves = tuple[InternalMove, ...]


@dataclass(frozen=True, slots=True)
class _Group:
    """Hosts that tell the same, and what they tell."""

    moves: Moves
    hosts: set[str]


_Told = tuple[int, Address, Address, int]
"""A movement without its path, which another node may number differently."""


class TracesRefused(ProofFailure):
    """One node's traces are malformed, incomplete, or of something else: that node's own failure."""

    def __init__(self, node: str, host: str, detail: str) -> None:
        super().__init__("traces", detail)
        self.args = (node, host, detail)
        self.node = node
        self.host = host


class TracesDiffer(ProofFailure):
    """Nodes on different hosts tell different movements of one block, and no majority settles it."""

    def __init__(self, hosts: tuple[str, ...], detail: str) -> None:
        super().__init__("traces", detail)
        self.args = (hosts, detail)
        self.hosts = hosts


def read_traces(raw: RawTraces, block: WireBlock, receipts: list[WireReceipt]) -> Moves:
    """The internal movements of a proven block, in its order, by the word of one node.

    Raises `TracesRefused` when the answer is malformed or contradicts the block or its receipts.
    """
    carriers = list(carriers_of(block, receipts))
    try:
        is_tree = raw.method is TraceMethod.CALL_TRACER
        traces = call_traces(raw.answer) if is_tree else flat_traces(raw.answer, block.hash)
        return _moves_of(traces, carriers)
    except ProofFailure as failure:
        raise TracesRefused(raw.node, raw.host, failure.detail) from failure


def settle_traces(
    answers: Sequence[RawTraces], block: WireBlock, receipts: list[WireReceipt], needed: int
) -> tuple[Moves, TraceProof]:
    """The internal movements that `needed` hosts or more tell alike, and how far that proves them.

    More hosts may answer than are needed; where they differ, most of them decide, two at least, never a tie. Raises
    `TracesRefused` for an answer that is worth nothing, `TracesDiffer` for a contradiction that nobody settles, and
    `ProofFailure("traces")` when fewer hosts answered than are needed.
    """
    hosts = sorted({raw.host for raw in answers})
    if len(hosts) < max(needed, 1):
        raise ProofFailure("traces", f"{len(hosts)} hosts gave traces, {needed} have to")
    groups: dict[frozenset[tuple[_Told, int]], _Group] = {}
    for raw, moves in _comparable(answers, block, receipts):
        group = groups.setdefault(frozenset(_count(moves).items()), _Group(moves, set()))
        group.hosts.add(raw.host)
    ranked = sorted(groups.values(), key=lambda group: -len(group.hosts))
    agreeing = len(ranked[0].hosts)
    if len(ranked) > 1 and (agreeing < max(needed, 2) or agreeing == len(ranked[1].hosts)):
        raise TracesDiffer(tuple(hosts), _difference(ranked[0], ranked[1], block))
    return ranked[0].moves, TraceProof.AGREED if agreeing > 1 else TraceProof.TRACE


def _comparable(
    answers: Sequence[RawTraces], block: WireBlock, receipts: list[WireReceipt]
) -> list[tuple[RawTraces, Moves]]:
    """What each answer tells, without what only some nodes tell. Where all were asked for the same tree, that is all."""
    read = [(raw, read_traces(raw, block, receipts)) for raw in answers]
    is_whole = len(read) == 1 or all(raw.method is TraceMethod.CALL_TRACER for raw in answers)
    if is_whole:
        return read
    return [(raw, tuple(move for move in moves if not _is_precompiled(move.recipient))) for raw, moves in read]


def _is_precompiled(address: Address) -> bool:
    return 0 < int.from_bytes(address, "big") <= PRECOMPILED_MAX


def _moves_of(traces: list[Trace], carriers: list[Carrier]) -> Moves:
    traced = [carrier for carrier in carriers if carrier.is_traced()]
    if len(traces) not in (len(traced), len(carriers)):
        raise ProofFailure("traces", f"{len(traces)} traces for {len(traced)} transactions")
    if len(traces) == len(carriers):
        traces = [trace for trace, c in zip(traces, carriers, strict=True) if c.is_traced()]
    moves: list[InternalMove] = []
    for trace, carrier in zip(traces, traced, strict=True):
        _check_root(trace, carrier)
        if carrier.has_succeeded() is not False:
            frames = [frame for frame in trace.inner if not _is_burned(frame)]
            moves += [_move(carrier.index, frame, trace.short_lived) for frame in frames]
    return tuple(moves)


def _check_root(trace: Trace, carrier: Carrier) -> None:
    """The trace is of this transaction, and ended as its receipt says."""
    root, wire, index = trace.root, carrier.wire, carrier.index
    if trace.transaction_hash is not None and trace.transaction_hash.lower() != wire.hash.lower():
        raise ProofFailure("traces", f"trace {index} is of transaction {trace.transaction_hash:.80}, not {wire.hash}")
    has_succeeded = carrier.has_succeeded()
    if has_succeeded is trace.has_failed and not (trace.has_failed is False and type_of(wire) in _RUNS_NO_CODE):
        told = "failed" if trace.has_failed else "succeeded"
        raise ProofFailure("traces", f"transaction {index}: the trace says that it {told}, its receipt denies it")
    kind = "CREATE" if wire.to is None else "CALL"
    if root.kind != kind or root.sender is None or root.value is None:
        raise ProofFailure("traces", f"transaction {index}: its root frame is a {root.kind:.80}, or incomplete")
    claimed = (_address(index, root.sender), _amount(index, root.value))
    if claimed != (carrier.sender(), carrier.amount()):
        raise ProofFailure("traces", f"transaction {index}: its root frame has another sender or value")
    names_nobody = wire.to is None and trace.has_failed  # a creation that failed
    expected = carrier.recipient()
    is_told = expected is not None and not names_nobody
    if is_told and (root.recipient is None or _address(index, root.recipient) != expected):
        raise ProofFailure("traces", f"transaction {index}: its root frame has another recipient")


def _move(index: int, frame: Frame, short_lived: Collection[str]) -> InternalMove:
    if frame.sender is None or frame.recipient is None or frame.value is None:
        raise ProofFailure("traces", f"transaction {index}: frame {frame.path:.80} does not say from whom to whom")
    sender, recipient = _address(index, frame.sender), _address(index, frame.recipient)
    amount = _amount(index, frame.value)
    is_destruction = frame.kind == "SELFDESTRUCT" or frame.recipient.lower() in short_lived
    return InternalMove(index, frame.path, sender, recipient, amount, is_destruction)


def _is_burned(frame: Frame) -> bool:
    """A contract that names itself the beneficiary of its own end."""
    if frame.kind != "SELFDESTRUCT" or frame.sender is None or frame.recipient is None:
        return False
    return frame.sender.lower() == frame.recipient.lower()


def _address(index: int, text: str) -> Address:
    address = bytes_of(text)
    if len(address) != 20:
        raise ProofFailure("traces", f"transaction {index}: {text[:80]!r} is no address")
    return address


def _amount(index: int, text: str) -> int:
    amount = quantity_of(text)
    if not 0 <= amount < 1 << 256:
        raise ProofFailure("traces", f"transaction {index}: {text[:80]!r} is no amount")
    return amount


def _count(moves: Moves) -> Counter[_Told]:
    """How often each movement is told: neither order nor paths enter an identity."""
    return Counter((m.transaction_index, m.sender, m.recipient, m.amount_atomic) for m in moves)


def _difference(one: _Group, other: _Group, block: WireBlock) -> str:
    """The first movement that one side tells and the other does not."""
    counts = _count(one.moves), _count(other.moves)
    rows = [(*told, True) for told in counts[0] - counts[1]] + [(*told, False) for told in counts[1] - counts[0]]
    index, sender, recipient, amount, is_ones = min(rows)
    tellers, deniers = (one.hosts, other.hosts) if is_ones else (other.hosts, one.hosts)
    return (
        f"{_names(tellers)} and {_names(deniers)} differ about transaction {index} {block.transactions[index].hash}: "
        f"only {_names(tellers)} tells that {amount} went from {hex_of(sender)} to {hex_of(recipient)}"
    )


def _names(hosts: set[str]) -> str:
    return ", ".join(sorted(hosts))
