"""What a chain says, in values an accountant can read.

A chain is a list of blocks, each naming its parent by hash. A block carries transactions; a transaction moves assets.
One movement of one asset is a *transfer*: it takes no side, it knows nothing of tenants, and it keeps its identity
(`transfer_id`) whatever block its transaction lands in.

Money is an `int` in the asset's smallest unit (wei, satoshi). Addresses and hashes are raw `bytes` here and lower-case
`0x` hex wherever a person or a program outside reads them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from itertools import pairwise
from typing import NewType

ChainId = NewType("ChainId", str)
"""CAIP-2 name of a chain, e.g. `eip155:1`."""

Slug = NewType("Slug", str)
"""The operator's short name of a configured chain, e.g. `ethereum`."""

AssetId = NewType("AssetId", str)
"""CAIP-19 name of an asset, e.g. `eip155:1/slip44:60` or `eip155:1/erc20:0xa0b8...` (lower case)."""

TransferId = NewType("TransferId", str)
"""`tr_` and 40 hex digits: the identity of a transfer for ever, with no block in it."""

BlockHash = bytes
Address = bytes
TransactionHash = bytes


class ProofLevel(StrEnum):
    """How far a block proved itself, weakest first; what each checks is in `chains/evm/proof.py`."""

    OFF = "off"
    STRUCTURE = "structure"
    BLOOM = "bloom"
    ROOTS = "roots"

    @property
    def rank(self) -> int:
        """Higher is stronger."""
        return list(ProofLevel).index(self)


class TraceProof(StrEnum):
    """How far a transfer that only a trace tells of is proven, weakest first. No header commits to traces."""

    TRACE = "trace"
    """One node's word."""
    AGREED = "agreed"
    """Tracing nodes on two hosts gave the same transfers for the whole block."""
    STATE = "state"
    """The account's balances at the block and at its parent, proven against both state roots (EIP-1186), differ by exactly
    what the block's transfers say."""


class ValuePath(StrEnum):
    """Which kinds of movement are read of a chain."""

    NATIVE = "native"
    LOGS = "logs"
    VALIDATOR_WITHDRAWALS = "validator_withdrawals"
    TRACES = "traces"
    """Value that contracts send on. Only where a node traces; the others are read of every EVM chain."""


class LocatorKind(StrEnum):
    """By which path of its transaction or block a transfer was seen."""

    NATIVE = "native"
    LOG = "log"
    TRACE = "trace"
    VALIDATOR_WITHDRAWAL = "validator_withdrawal"
    TRANSACTION = "transaction"
    """A failed transaction: it moved nothing but its fee."""
    OUTPUT = "output"


class AssetKind(StrEnum):
    """What sort of thing an asset is."""

    NATIVE = "native"
    FUNGIBLE = "fungible"


@dataclass(frozen=True, slots=True)
class BlockRef:
    """A block's place in its chain: enough to link blocks, nothing else."""

    height: int
    hash: BlockHash
    parent_hash: BlockHash


@dataclass(frozen=True, slots=True)
class Asset:
    """A native coin or an allow-listed token contract. The scale (`decimals`) belongs to the asset, not to amounts."""

    id: AssetId
    symbol: str
    decimals: int
    kind: AssetKind
    contract: Address | None = None
    is_unindexed: bool = False
    """The token's `Transfer` keeps its three arguments in the data (an old form): one topic, 96 bytes of data."""
    wraps_without_transfer: bool = False
    """The token wraps the native coin and tells of it by `Deposit` and `Withdrawal` alone (WETH9), not by `Transfer`."""
    is_fee_on_transfer: bool = False
    """Less may arrive than `Transfer` says: its entries are told and not credited."""
    is_rebasing: bool = False
    """Balances change without a transfer: its entries are told and not credited."""


@dataclass(frozen=True, slots=True)
class Locator:
    """Where inside its transaction a transfer sits. An attribute, never part of an identity.

    `path` is the log's ordinal within its transaction, a trace path, or a validator withdrawal's index; `log_index` is
    the block-wide index of the log, which may change when the transaction lands in another block.
    """

    kind: LocatorKind
    path: str = ""
    log_index: int | None = None


@dataclass(frozen=True, slots=True)
class Transaction:
    """The on-chain carrier of transfers, as far as the ledger needs it."""

    hash: TransactionHash
    index: int
    sender: Address
    nonce: int | None
    """Its sender's nonce; None where its hash does not commit to one, so that nothing can take its place."""
    fee_atomic: int | None
    """Fee in the native coin's smallest unit; None where it cannot be derived from proven data."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """One movement of one asset, as it was included in one block.

    `has_failed` marks a transaction that was included and failed: it moved nothing, `amount_atomic` is what it would
    have moved in the native coin, and only its sender cares (a failed withdrawal).
    `transaction` is None for a validator withdrawal, which no transaction carries; `sender` of such is None too.
    """

    chain_id: ChainId
    asset_id: AssetId
    sender: Address | None
    recipient: Address | None
    amount_atomic: int
    locator: Locator
    transaction: Transaction | None
    has_failed: bool = False
    proof: ProofLevel | TraceProof | None = None
    """Where it is not proven as its block is; None: as its block."""
    n: int = 0
    """How many equal movements of its transaction came before it."""
    is_destruction: bool = False
    """By its trace a contract destroyed itself and left this, which tracers are known to tell of where it never was; or it
    went to a contract that the same transaction created and destroyed, and is there no more."""

    @property
    def id(self) -> TransferId:
        """Its identity for ever. Worked out when it is asked for: of a block's transfers few concern anybody, and the hash
        was most of what each of them cost."""
        return transfer_id_of(self.chain_id, self, self.n)


@dataclass(frozen=True, slots=True)
class FailedCheck:
    """A check that a block failed and was not refused for, since the operator only observes."""

    check: str
    """Which one: a metric's label."""
    detail: str


@dataclass(frozen=True, slots=True)
class Block:
    """A proven and decoded block: its place, its time, and the transfers of known assets that it carries."""

    ref: BlockRef
    timestamp_s: int
    """Seconds since 1970-01-01 UTC, as in the header."""
    transfers: Sequence[Transfer]
    proof: ProofLevel
    transaction_count: int
    node: str
    """Name of the node that supplied it."""
    host: str
    """Host of that node: agreement is counted over hosts."""
    rpc_calls: int = 1
    traced_by: tuple[str, ...] = ()
    """Names of the nodes whose traces were read; none where none were, or where there is nothing to trace."""
    answer_bytes: int = 0
    """Size of the node's answers that it was read from."""
    spends: bytes = b""
    """The nonces that its transactions spend (`chains.spends`)."""
    trace_proof: TraceProof | None = None
    """How far what its traces tell is proven, as a whole; None where none were read."""
    untraced_count: int = 0
    """Transactions whose inner calls were not read: none where there is nothing to trace."""
    failed_checks: tuple[FailedCheck, ...] = ()
    """Why it did not reach the level that was asked for, where proofs are only observed."""


@dataclass(frozen=True, slots=True)
class Outline:
    """A block's place, and what can be told of it without reading it."""

    ref: BlockRef
    may_move: bool = True
    """False where its header excludes that it moved the asset that was asked about."""


@dataclass(frozen=True, slots=True)
class Holding:
    """What one account holds of one asset after one block."""

    amount_atomic: int
    is_proven: bool
    """Against the state root of that block; else it is one node's word."""
    nonce: int | None
    """How many transactions the account has sent, told with the native coin alone; a contract's counts what it created."""
    has_code: bool | None
    """Whether the account has code, told with the native coin alone: a contract, or one that lends its code (EIP-7702)."""
    host: str
    """Whose answer it is."""


@dataclass(frozen=True, slots=True)
class Movement:
    """A transfer before it has its identity: what `identify_transfers` numbers and names."""

    asset_id: AssetId
    sender: Address | None
    recipient: Address | None
    amount_atomic: int
    locator: Locator
    transaction: Transaction | None
    has_failed: bool = False
    proof: ProofLevel | TraceProof | None = None
    is_destruction: bool = False


def hex_of(value: bytes) -> str:
    """Lower-case `0x` hex of an address or hash."""
    return "0x" + value.hex()


def transfer_id_of(chain_id: ChainId, movement: Movement | Transfer, n: int) -> TransferId:
    """Identity of the `n`-th (from 0) equal movement of one transaction (DESIGN: identity has no block in it).

    A validator withdrawal has no transaction: its index, which the consensus layer never reuses (EIP-4895), stands in.
    A failed transaction that carries no native value is keyed by the transaction alone. One that carries value has the
    identity which its native movement would have had, so that the same entry goes on if a reorg makes it succeed.
    """
    carrier = movement.transaction.hash.hex() if movement.transaction else f"withdrawal:{movement.locator.path}"
    if movement.has_failed and movement.amount_atomic == 0:
        fields = [chain_id, carrier, "transaction"]
    else:
        fields = [
            chain_id,
            carrier,
            movement.asset_id,
            movement.sender.hex() if movement.sender else "",
            movement.recipient.hex() if movement.recipient else "",
            str(movement.amount_atomic),
            str(n),
        ]
    return TransferId("tr_" + sha256("|".join(fields).encode()).hexdigest()[:40])


def identify_transfers(chain_id: ChainId, movements: Iterable[Movement]) -> tuple[Transfer, ...]:
    """Give every movement of a block its identity: equal movements of one transaction are numbered in their order of
    appearance, whoever watches them."""
    seen: dict[tuple[object, ...], int] = {}
    transfers = []
    for m in movements:
        carrier = m.transaction.hash if m.transaction else m.locator.path
        key = (carrier, m.asset_id, m.sender, m.recipient, m.amount_atomic)
        n = seen.get(key, 0)
        seen[key] = n + 1
        transfers.append(
            Transfer(
                chain_id,
                m.asset_id,
                m.sender,
                m.recipient,
                m.amount_atomic,
                m.locator,
                m.transaction,
                m.has_failed,
                m.proof,
                n,
                m.is_destruction,
            )
        )
    return tuple(transfers)


def is_linked(refs: Sequence[BlockRef]) -> bool:
    """True when each ref is the child of the one before it."""
    return all(b.parent_hash == a.hash and b.height == a.height + 1 for a, b in pairwise(refs))
