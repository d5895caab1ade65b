"""What the ledger's functions hand around: rows as frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from chains.model import Address, AssetId, AssetKind, BlockHash, ChainId, LocatorKind, Slug, TransactionHash, TransferId
from ledger.ids import EntryId, Side, TenantId, WatchId
from ledger.states import ChainState, Disposition, EntryState, Origin


@dataclass(frozen=True, slots=True)
class Entry:
    """One deposit or withdrawal of one tenant, as its row stands. Columns are explained in `ledger/schema.py`."""

    tenant_id: TenantId
    id: EntryId
    side: Side
    state: EntryState
    sequence: int
    disposition: Disposition
    reasons: tuple[str, ...]
    origin: Origin
    chain_id: ChainId
    asset_id: AssetId
    amount_atomic: int
    sender: Address | None
    recipient: Address | None
    address: Address
    transfer_id: TransferId
    transaction_hash: TransactionHash | None
    transaction_index: int | None
    transaction_sender: Address | None
    transaction_nonce: int | None
    replaced_by: TransactionHash | None
    fee_atomic: int | None
    locator_kind: LocatorKind
    locator_path: str
    log_index: int | None
    block_height: int | None
    block_hash: BlockHash | None
    block_at: datetime | None
    proof: str
    agreed_by: int
    policy: str
    credit_at: str
    confirm_height: int | None
    watch_id: WatchId
    detected_at: datetime
    confirmed_at: datetime | None
    finalized_at: datetime | None
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class ChainStanding:
    """No more of a chain's row than the documents of its entries tell."""

    chain_id: ChainId
    slug: Slug
    livemode: bool
    native_asset_id: AssetId
    tip_height: int | None
    safe_height: int | None
    finalized_height: int | None
    proof_enforced: bool


@dataclass(frozen=True, slots=True)
class ChainRow:
    """A followed chain as its row stands: checkpoint, finality, and what operators see."""

    chain_id: ChainId
    slug: Slug
    profile: str
    livemode: bool
    native_asset_id: AssetId
    state: ChainState
    reason: str | None
    first_height: int | None
    tip_height: int | None
    tip_hash: BlockHash | None
    tip_at: datetime | None
    head_height: int | None
    safe_height: int | None
    finalized_height: int | None
    finalized_hash: BlockHash | None
    agreed_height: int | None
    accepted_reorg_height: int | None
    quorum: int
    proof: str
    proof_enforced: bool
    value_paths: tuple[str, ...]
    tracers: Mapping[str, str]
    """By host, the method by which it was seen to trace."""
    nodes: tuple[Mapping[str, Any], ...]
    heartbeat_at: datetime | None
    delayed_since: datetime | None
    audited_height: int | None = None
    missed_deposits: int = 0
    """Deposits that audits found missing, ever."""


Standing = ChainRow | ChainStanding


@dataclass(frozen=True, slots=True)
class AssetRow:
    """A listed asset."""

    asset_id: AssetId
    chain_id: ChainId
    symbol: str
    decimals: int
    kind: AssetKind
    contract: Address | None


@dataclass(frozen=True, slots=True)
class WatchLabel:
    """What an entry repeats of its watch: the tenant's own words for it."""

    id: WatchId
    reference: str | None
    metadata: Mapping[str, Any]
