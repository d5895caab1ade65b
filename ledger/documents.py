"""What merchants and backends read: the JSON of entries, events and chains, as typed structs and pure functions.

The API's answers, the webhooks' bytes and the schemas in `/openapi.json` all come from here, so they cannot differ.
Amounts are strings, times are RFC 3339 in UTC, addresses and hashes are lower-case `0x` hex.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from chains.model import AssetId, hex_of
from ledger import words
from ledger.coverage import CoverageRange, Gap, Reading, gaps_of, lacking
from ledger.ids import EventId, Side
from ledger.model import AssetRow, ChainRow, Entry, Standing, WatchLabel
from ledger.states import ChainState

API_VERSION = "2026-11-01"
"""Date of the payload's shape. Fields are only ever added within one version."""


class AssetDocument(msgspec.Struct, frozen=True):
    """An asset: `id` is its CAIP-19 name. Decide by `id` or `contract`, never by `symbol`."""

    id: str
    symbol: str
    decimals: int
    contract: str | None
    kind: words.AssetWord


class TransactionDocument(msgspec.Struct, frozen=True):
    """The transaction that carries the transfer."""

    hash: str
    index: int


class LocatorDocument(msgspec.Struct, frozen=True):
    """Where inside its transaction the transfer sits."""

    kind: words.LocatorWord
    path: str
    log_index: int | None


class BlockDocument(msgspec.Struct, frozen=True):
    """The block that includes the transfer."""

    height: int
    hash: str
    timestamp: words.Time


class ConfirmationsDocument(msgspec.Struct, frozen=True):
    """How far the entry is from credit. The including block counts as 1. `required` is null where the policy waits for
    a finality tag; `credit_at` is the policy's own word: a count, `safe` or `finalized`."""

    current: int
    required: int | None
    credit_at: str
    finality: words.FinalityWord
    policy: str


class ProofDocument(msgspec.Struct, frozen=True):
    """How far the block proved itself (`roots`, `bloom`, `structure` or `off`), and how many hosts name it. What traces
    alone tell has levels of its own: `trace` (one host's word), `agreed` (two hosts told the same), `state` (the account's
    proven balances bear it out).

    `enforced` is there, and false, while the operator only observes proofs on this chain: then a block that fails one is
    told of all the same, at the level that it reached."""

    level: words.AnyProofWord
    agreed_by: int
    enforced: bool | UnsetType = UNSET


class WatchLabelDocument(msgspec.Struct, frozen=True):
    """The watch that matched, in the tenant's own words."""

    id: str
    reference: str | None
    metadata: dict[str, Any]


class EntryDocument(msgspec.Struct, frozen=True, tag_field="object"):
    """What a deposit and a withdrawal tell alike."""

    id: str
    state: words.EntryWord
    sequence: int
    livemode: bool
    disposition: words.DispositionWord
    reasons: list[words.ReasonWord]
    origin: words.OriginWord
    chain: str
    chain_id: str
    asset: AssetDocument
    amount_atomic: str
    amount: str
    sender: str | None = msgspec.field(name="from")
    recipient: str | None = msgspec.field(name="to")
    transaction: TransactionDocument | None
    transfer_id: str
    locator: LocatorDocument
    block: BlockDocument | None
    confirmations: ConfirmationsDocument
    proof: ProofDocument
    watch: WatchLabelDocument
    detected_at: words.Time
    confirmed_at: words.Time | None
    finalized_at: words.Time | None
    updated_at: words.Time
    replaced_by: str | None


class DepositDocument(EntryDocument, frozen=True, tag="deposit"):
    """A deposit."""


class FeeDocument(msgspec.Struct, frozen=True):
    """A fee in the native coin."""

    asset_id: str
    amount_atomic: str


class FailureDocument(msgspec.Struct, frozen=True):
    """Why a withdrawal moved nothing."""

    code: words.FailureWord
    detail: str


class WithdrawalDocument(EntryDocument, frozen=True, tag="withdrawal"):
    """A withdrawal: a deposit's fields, with the fee of its transaction and, where it failed, why."""

    fee: FeeDocument | None
    failure: FailureDocument | None


class NodeDocument(msgspec.Struct, frozen=True):
    """One node as last seen."""

    name: str
    state: words.NodeWord
    head: int | None
    reason: str | None
    latency_ms: int | None


class ChainDocument(msgspec.Struct, frozen=True):
    """A chain as operators and backends see it: a row of `status` and of `GET /v1/chains`. `value_paths` names what is read:
    `native`, `logs`, `validator_withdrawals`, and `traces` where nodes trace: value that contracts send on.
    `proof_enforced` is false where a block that fails its proof is taken at the level that it reached."""

    chain: str
    chain_id: str
    head: int | None
    tip: int | None
    lag_blocks: int | None
    lag_seconds: int | None
    safe: int | None
    finalized: int | None
    proof: words.ProofWord
    proof_enforced: bool
    quorum: int
    state: words.ChainWord
    reason: str | None
    value_paths: list[str]
    nodes: list[NodeDocument]


class CoverageRangeDocument(msgspec.Struct, frozen=True):
    """A run of committed blocks, both ends included, and what is true of each. `value_paths`, `assets` and `decoder` (the
    version of what reads transfers) are null for blocks from before that was recorded; `trace_proof` is null where nothing
    was traced; `agreed_by` counts hosts, at least."""

    from_height: int
    to_height: int
    proof: words.ProofWord
    trace_proof: words.TraceProofWord | None
    agreed_by: int
    value_paths: list[str] | None
    assets: list[str] | None
    decoder: int | None
    nodes: list[str]


class CoverageGapDocument(msgspec.Struct, frozen=True):
    """Heights, both ends included, that were not read; where `missing` names a value path or an asset, not for that."""

    from_height: int
    to_height: int
    missing: str | None


class CoverageDocument(msgspec.Struct, frozen=True, tag_field="object", tag="coverage"):
    """What of a chain is covered from one height to another, and what is not: of the value paths that are read now, and of
    the assets that are listed. A range that reaches beyond these heights is given whole."""

    chain: str
    chain_id: str
    from_height: int
    to_height: int
    ranges: list[CoverageRangeDocument]
    gaps: list[CoverageGapDocument]


class DifferenceDocument(msgspec.Struct, frozen=True):
    """An entry that is not as its block says: `missing`, `extra` or `changed`. `mended` is false for an extra one that was
    left, since what was read is not proven as well as it is."""

    kind: str
    mended: bool
    tenant: str
    id: str
    state: words.EntryWord
    address: str
    asset: str
    amount_atomic: str
    height: int | None
    transaction: str | None


class ChainNoticeDocument(msgspec.Struct, frozen=True, tag_field="object", tag="chain"):
    """What the operator is told of a chain: how it stands, and why it halted, what was decided, how late it is, or what an
    audit found."""

    chain: str
    chain_id: str
    tip: int | None
    finalized: int | None
    reason: str | UnsetType = UNSET
    runbook: str | UnsetType = UNSET
    halted_for: str | UnsetType | None = UNSET
    accept_reorg_to: int | UnsetType | None = UNSET
    delayed_since: words.Time | UnsetType = UNSET
    missed_deposits: int | UnsetType = UNSET


class TipDocument(msgspec.Struct, frozen=True):
    """A block that was or is the tip."""

    height: int
    hash: str


class ChainReorgDocument(msgspec.Struct, frozen=True, tag_field="object", tag="chain_reorg"):
    """A reorg that the ledger has gone through: `depth` blocks above the common ancestor were exchanged."""

    chain: str
    chain_id: str
    depth: int
    ancestor_height: int
    old_tip: TipDocument
    new_tip: TipDocument


Subject = TypeVar("Subject")


class EventDocument(msgspec.Struct, Generic[Subject], frozen=True, kw_only=True):
    """The body of a webhook and a row of the feed. `data` is the subject as it stood at this event."""

    id: str
    type: str
    api_version: str = API_VERSION
    timestamp: words.Time
    livemode: bool
    sequence: int | None
    previous_state: words.EntryWord | None
    data: Subject


def time_of(moment: datetime) -> str:
    """RFC 3339 in UTC, with microseconds only where there are some."""
    in_utc = moment if moment.tzinfo is UTC else moment.astimezone(UTC)
    return in_utc.isoformat().replace("+00:00", "Z")


def amount_of(amount_atomic: int, decimals: int) -> str:
    """An amount for people: plain decimal notation, no exponent, no trailing zeros."""
    whole, fraction = divmod(amount_atomic, 10**decimals)
    digits = f"{fraction:0{decimals}d}".rstrip("0") if decimals else ""
    return f"{whole}.{digits}" if digits else str(whole)


def asset_document(asset: AssetRow) -> AssetDocument:
    """An asset as JSON."""
    contract = hex_of(asset.contract) if asset.contract is not None else None
    return AssetDocument(asset.asset_id, asset.symbol, asset.decimals, contract, asset.kind)


def finality_of(entry: Entry, chain: Standing) -> str:
    """How final the entry's block is by the chain's tags: `none`, `safe` or `finalized`."""
    if entry.block_height is None:
        return "none"
    if chain.finalized_height is not None and entry.block_height <= chain.finalized_height:
        return "finalized"
    if chain.safe_height is not None and entry.block_height <= chain.safe_height:
        return "safe"
    return "none"


def _confirmations(entry: Entry, chain: Standing) -> ConfirmationsDocument:
    is_included = entry.block_height is not None and chain.tip_height is not None
    current = max(0, (chain.tip_height or 0) - (entry.block_height or 0) + 1) if is_included else 0
    required = int(entry.credit_at) if entry.credit_at.isdigit() else None
    return ConfirmationsDocument(current, required, entry.credit_at, finality_of(entry, chain), entry.policy)


def _block(entry: Entry) -> BlockDocument | None:
    if entry.block_height is None or entry.block_hash is None or entry.block_at is None:
        return None
    return BlockDocument(entry.block_height, hex_of(entry.block_hash), time_of(entry.block_at))


def _transaction(entry: Entry) -> TransactionDocument | None:
    if entry.transaction_hash is None or entry.transaction_index is None:
        return None
    return TransactionDocument(hex_of(entry.transaction_hash), entry.transaction_index)


def _common(entry: Entry, chain: Standing, asset: AssetRow, watch: WatchLabel) -> dict[str, Any]:
    return {
        "id": entry.id,
        "state": entry.state.value,
        "sequence": entry.sequence,
        "livemode": chain.livemode,
        "disposition": entry.disposition.value,
        "reasons": list(entry.reasons),
        "origin": entry.origin.value,
        "chain": chain.slug,
        "chain_id": chain.chain_id,
        "asset": asset_document(asset),
        "amount_atomic": str(entry.amount_atomic),
        "amount": amount_of(entry.amount_atomic, asset.decimals),
        "sender": hex_of(entry.sender) if entry.sender is not None else None,
        "recipient": hex_of(entry.recipient) if entry.recipient is not None else None,
        "transaction": _transaction(entry),
        "transfer_id": entry.transfer_id,
        "locator": LocatorDocument(entry.locator_kind.value, entry.locator_path, entry.log_index),
        "block": _block(entry),
        "confirmations": _confirmations(entry, chain),
        "proof": ProofDocument(entry.proof, entry.agreed_by, UNSET if chain.proof_enforced else False),
        "watch": WatchLabelDocument(watch.id, watch.reference, dict(watch.metadata)),
        "detected_at": time_of(entry.detected_at),
        "confirmed_at": time_of(entry.confirmed_at) if entry.confirmed_at else None,
        "finalized_at": time_of(entry.finalized_at) if entry.finalized_at else None,
        "updated_at": time_of(entry.updated_at),
        "replaced_by": hex_of(entry.replaced_by) if entry.replaced_by is not None else None,
    }


def entry_document(
    entry: Entry, chain: Standing, asset: AssetRow, watch: WatchLabel
) -> DepositDocument | WithdrawalDocument:
    """A deposit or withdrawal as JSON, as it stands against the chain's tip."""
    common = _common(entry, chain, asset, watch)
    if entry.side is Side.DEPOSIT:
        return DepositDocument(**common)
    fee = FeeDocument(chain.native_asset_id, str(entry.fee_atomic)) if entry.fee_atomic is not None else None
    failure = None
    if entry.state.value == "failed":
        failure = FailureDocument("reverted", "the transaction was included and failed: only its fee was spent")
    return WithdrawalDocument(**common, fee=fee, failure=failure)


AT_WORK = (ChainState.FOLLOWING.value, ChainState.CATCHING_UP.value)


def chain_document(chain: ChainRow, *, state: str, now: datetime) -> ChainDocument:
    """A chain as JSON; `state` is the row's own or `stopped` when its follower gave no sign of life."""
    lag_blocks = None
    if chain.head_height is not None and chain.tip_height is not None:
        lag_blocks = max(0, chain.head_height - chain.tip_height)
    lag_seconds = None if chain.tip_at is None else max(0, int((now - chain.tip_at).total_seconds()))
    if lag_blocks == 0 and state in AT_WORK and chain.delayed_since is None:
        lag_seconds = 0  # a quiet chain; with no follower at work nobody knows the head, and the tip just grows older
    nodes = [NodeDocument(n["name"], n["state"], n["head"], n["reason"], n.get("latency_ms")) for n in chain.nodes]
    return ChainDocument(
        chain=chain.slug,
        chain_id=chain.chain_id,
        head=chain.head_height,
        tip=chain.tip_height,
        lag_blocks=lag_blocks,
        lag_seconds=lag_seconds,
        safe=chain.safe_height,
        finalized=chain.finalized_height,
        proof=chain.proof,
        proof_enforced=chain.proof_enforced,
        quorum=chain.quorum,
        state=state,
        reason=chain.reason,
        value_paths=list(chain.value_paths),
        nodes=nodes,
    )


def gaps_by_need(
    ranges: Sequence[CoverageRange],
    readings: Mapping[int, Reading],
    needs: Sequence[str],
    from_height: int,
    to_height: int,
) -> list[tuple[Gap, str | None]]:
    """The heights in no range, and those that were not read for one of the needed value paths and assets, with its name."""
    found: list[tuple[Gap, str | None]] = [(gap, None) for gap in gaps_of(ranges, from_height, to_height)]
    for needed in needs:
        fitting = {version for version, one in readings.items() if needed in (*one.value_paths, *one.asset_ids)}
        found += [(gap, needed) for gap in lacking(ranges, fitting, from_height, to_height)]
    return found


def coverage_document(
    chain: ChainRow,
    from_height: int,
    to_height: int,
    ranges: Sequence[CoverageRange],
    readings: Mapping[int, Reading],
    asset_ids: Sequence[AssetId],
) -> CoverageDocument:
    """Coverage as JSON."""
    gaps = [
        CoverageGapDocument(gap.from_height, gap.to_height, missing)
        for gap, missing in gaps_by_need(ranges, readings, (*chain.value_paths, *asset_ids), from_height, to_height)
    ]
    return CoverageDocument(
        chain.slug,
        chain.chain_id,
        from_height,
        to_height,
        [range_document(one, readings) for one in ranges],
        gaps,
    )


def range_document(one: CoverageRange, readings: Mapping[int, Reading]) -> CoverageRangeDocument:
    """A range as JSON; `readings` are the chain's, by version."""
    reading = None if one.reading is None else readings.get(one.reading)
    return CoverageRangeDocument(
        one.from_height,
        one.to_height,
        one.proof,
        one.trace_proof,
        one.agreed_by,
        list(reading.value_paths) if reading else None,
        list(reading.asset_ids) if reading else None,
        reading.decoder if reading else None,
        list(one.nodes),
    )


def difference_document(kind: str, entry: Entry, *, is_mended: bool) -> DifferenceDocument:
    """A difference between the ledger and the chain as JSON."""
    return DifferenceDocument(
        kind=kind,
        mended=is_mended,
        tenant=entry.tenant_id,
        id=entry.id,
        state=entry.state.value,
        address=hex_of(entry.address),
        asset=entry.asset_id,
        amount_atomic=str(entry.amount_atomic),
        height=entry.block_height,
        transaction=hex_of(entry.transaction_hash) if entry.transaction_hash is not None else None,
    )


def event_body(
    *,
    event_id: EventId,
    event_type: str,
    now: datetime,
    livemode: bool,
    sequence: int | None,
    previous_state: str | None,
    data: object,
) -> bytes:
    """The exact bytes of an event: made once, stored, signed and sent as they are."""
    document = EventDocument(
        id=event_id,
        type=event_type,
        timestamp=time_of(now),
        livemode=livemode,
        sequence=sequence,
        previous_state=previous_state,
        data=data,
    )
    return msgspec.json.encode(document)
