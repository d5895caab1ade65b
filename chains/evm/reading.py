"""From a node's bytes to a proven block. Pure, and picklable on both sides, so that it can run in another process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import msgspec

from chains.evm.carriers import carriers_of
from chains.evm.dialect import Dialect
from chains.evm.errors import ProofFailure
from chains.evm.header import header_ref, prove_header
from chains.evm.proof import Observed, observe_block, prove_block
from chains.evm.traces import InternalMove, RawTraces, settle_traces
from chains.evm.transfers import decode_spends, decode_transfers
from chains.evm.wire import (
    WireBlock,
    WireReceipt,
    bytes_of,
    decode_block,
    decode_header,
    decode_receipts,
    quantity_of,
)
from chains.model import (
    Address,
    Asset,
    Block,
    BlockHash,
    BlockRef,
    ChainId,
    FailedCheck,
    ProofLevel,
    TraceProof,
    Transfer,
    hex_of,
)

DECODER_VERSION = 1
"""Which transfers are found in a proven block. Goes up when a release finds others in the same block: then blocks that an
older one read may hold transfers that nobody saw."""

_NOBODY = "0x" + "00" * 20

Place = int | BlockHash
"""Which block was asked for: a height, or a hash."""


@dataclass(frozen=True, slots=True)
class ReadingRules:
    """What has to be known of a chain to read its blocks."""

    chain_id: ChainId
    proof: ProofLevel
    native: Asset
    tokens: Mapping[Address, Asset]
    """The allow-list by contract."""
    dialect: Dialect = Dialect.ETHEREUM
    is_proof_enforced: bool = True
    """Whether a block that fails a check is refused; otherwise it is read at the level that it reached."""
    traces_needed: int | None = None
    """How many hosts must tell the same internal value of a block; None: internal value is not read."""


@dataclass(frozen=True, slots=True)
class RawBlock:
    """What one node answered about one block: the `result` of the block with full transactions, and of its receipts; and
    what tracing nodes, on distinct hosts, answered about the same block."""

    block: bytes | msgspec.Raw
    receipts: bytes | msgspec.Raw
    node: str
    host: str
    rpc_calls: int
    traces: tuple[RawTraces, ...] = ()
    state_sync: bytes | msgspec.Raw | None = None
    """The `result` of `eth_getRawTransactionByBlockHashAndIndex` for Polygon's state sync, where the block has one."""


class BlocksMixed(ProofFailure):
    """The receipts all belong to one other block: the node changed its branch between the two calls."""


def read_block(rules: ReadingRules, place: Place, raw: RawBlock) -> Block:
    """The block, proven to the level of `rules`, its internal value settled, and decoded. Where proofs are only observed its
    `proof` is the level that it reached, and `failed_checks` says why.

    Raises `ProofFailure`: `BlocksMixed` where asking once more may help; `TracesRefused` where a tracing node failed, not
    the one that gave the block; `TracesDiffer` where tracing nodes contradict each other.
    """
    try:
        block, receipts = decode_block(raw.block, rules.dialect), decode_receipts(raw.receipts, rules.dialect)
        if block is None or receipts is None:
            raise ProofFailure("structure", "null in place of a block or of its receipts")
        ref = _placed(header_ref(block), place)
        _check_same_block(block, receipts)
        observed = _proven(rules, block, receipts, _state_sync_bytes(raw))
        internal, trace_proof = _internal(rules, block, receipts, raw.traces)
        carriers = list(carriers_of(block, receipts))
        transfers = decode_transfers(rules.chain_id, block, carriers, rules.tokens, rules.native, internal, trace_proof)
        spends = decode_spends(carriers)
        timestamp_s = quantity_of(block.timestamp)
    except ValueError as error:
        raise ProofFailure("structure", f"a field of the block is malformed: {error}") from error
    return Block(
        ref=ref,
        timestamp_s=timestamp_s,
        transfers=tuple(_not_above(observed.level, transfer) for transfer in transfers)
        if observed.failures
        else transfers,
        proof=observed.level,
        transaction_count=len(block.transactions),
        node=raw.node,
        host=raw.host,
        rpc_calls=raw.rpc_calls,
        answer_bytes=len(raw.block) + len(raw.receipts) + sum(len(traces.answer) for traces in raw.traces),
        spends=spends,
        trace_proof=trace_proof,
        untraced_count=_traceable_count(block) if rules.traces_needed is None else 0,
        failed_checks=tuple(FailedCheck(failure.check, failure.detail) for failure in observed.failures),
    )


def _proven(rules: ReadingRules, block: WireBlock, receipts: list[WireReceipt], state_sync: bytes | None) -> Observed:
    if not rules.is_proof_enforced:
        return observe_block(block, receipts, rules.proof, state_sync)
    prove_block(block, receipts, rules.proof, state_sync)
    return Observed(rules.proof, ())


def _not_above(level: ProofLevel, transfer: Transfer) -> Transfer:
    """A transfer with a level of its own, which says what of a proven block is less proven, in a block that reached less."""
    is_above = isinstance(transfer.proof, ProofLevel) and transfer.proof.rank > level.rank
    return replace(transfer, proof=None) if is_above else transfer


def _traceable_count(block: WireBlock) -> int:
    """The transactions with inner calls: all but Polygon's state sync, which is nobody's."""
    return sum(transaction.sender != _NOBODY or transaction.to != _NOBODY for transaction in block.transactions)


def _internal(
    rules: ReadingRules, block: WireBlock, receipts: list[WireReceipt], traces: tuple[RawTraces, ...]
) -> tuple[tuple[InternalMove, ...], TraceProof | None]:
    """What moved inside the block's transactions: nothing in a block without any, which no node need be asked about."""
    if rules.traces_needed is None or not block.transactions:
        return (), None
    return settle_traces(traces, block, receipts, rules.traces_needed)


def _state_sync_bytes(raw: RawBlock) -> bytes | None:
    if raw.state_sync is None:
        return None
    try:
        return bytes_of(msgspec.json.decode(raw.state_sync, type=str))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProofFailure("structure", f"the bytes of the state sync are malformed: {error}") from error


def read_ref(
    proof: ProofLevel,
    raw: bytes | msgspec.Raw,
    place: Place | None = None,
    dialect: Dialect = Dialect.ETHEREUM,
) -> BlockRef:
    """Place and hash in a header, the hash recomputed at `roots`. Raises `ProofFailure`."""
    try:
        header = decode_header(raw, dialect)
        if header is None:
            raise ProofFailure("structure", "null in place of a header")
        if proof is ProofLevel.ROOTS:
            prove_header(header)
        ref = header_ref(header)
    except ValueError as error:
        raise ProofFailure("structure", f"a field of the header is malformed: {error}") from error
    return ref if place is None else _placed(ref, place)


def _placed(ref: BlockRef, place: Place) -> BlockRef:
    """The block is the one that was asked for: a proof says only that it is *a* block."""
    if place not in (ref.height, ref.hash):
        asked = place if isinstance(place, int) else hex_of(place)
        raise ProofFailure("place", f"asked for block {asked}, got block {ref.height} {hex_of(ref.hash)}")
    return ref


def _check_same_block(block: WireBlock, receipts: list[WireReceipt]) -> None:
    hashes = {receipt.block_hash for receipt in receipts}
    if len(hashes) == 1 and block.hash not in hashes:
        raise BlocksMixed("structure", f"the receipts are of block {hashes.pop()}, not of {block.hash}")
