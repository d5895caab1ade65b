"""A chain in memory behind the `ChainAdapter` protocol: branches are lists of blocks, a test switches between them."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field, replace
from hashlib import sha256

from chains.adapter import NodeHead, NodeStatus
from chains.errors import BlockNotFound, ChainHolds, NodeUnavailable
from chains.model import (
    Asset,
    AssetId,
    AssetKind,
    Block,
    BlockHash,
    BlockRef,
    ChainId,
    Holding,
    Locator,
    LocatorKind,
    Movement,
    Outline,
    ProofLevel,
    Transaction,
    Transfer,
    identify_transfers,
)
from chains.node.newheads import HintBox
from chains.packing import pack
from chains.spends import Spend, pack_spends

CHAIN_ID = ChainId("eip155:31337")
COIN = Asset(AssetId(f"{CHAIN_ID}/slip44:60"), "ETH", 18, AssetKind.NATIVE)
TOKEN = Asset(AssetId(f"{CHAIN_ID}/erc20:0x{'aa' * 20}"), "TST", 6, AssetKind.FUNGIBLE, bytes.fromhex("aa" * 20))
LATE_TOKEN = Asset(AssetId(f"{CHAIN_ID}/erc20:0x{'bb' * 20}"), "LTE", 6, AssetKind.FUNGIBLE, bytes.fromhex("bb" * 20))
"""One that an operator lists some day."""
START_S = 1_700_000_000


def address(number: int) -> bytes:
    """A made-up address."""
    return number.to_bytes(20, "big")


def payment(
    name: str,
    recipient: bytes,
    amount_atomic: int = 1_000,
    *,
    sender: bytes = b"\x09" * 20,
    asset: Asset = COIN,
    has_failed: bool = False,
    nonce: int | None = None,
) -> Movement:
    """A transaction called `name` that moves something, sent by whom it moves it from; without `nonce` nothing can take its
    place."""
    carrier = Transaction(sha256(name.encode()).digest(), 0, sender, nonce, 21_000)
    kind = LocatorKind.TRANSACTION if has_failed else LocatorKind.NATIVE
    return Movement(asset.id, sender, recipient, amount_atomic, Locator(kind), carrier, has_failed)


def _moved(transfer: Transfer, address: bytes) -> int:
    """By how much a transfer changes what the address holds."""
    if transfer.has_failed:
        return 0
    return transfer.amount_atomic * ((transfer.recipient == address) - (transfer.sender == address))


def _spends_of(movements: Sequence[Movement]) -> bytes:
    carriers = {m.transaction.hash: m.transaction for m in movements if m.transaction is not None}
    return pack_spends(Spend(t.sender, t.nonce, t.hash) for t in carriers.values() if t.nonce is not None)


@dataclass(frozen=True)
class Change:
    """Something that the state knows from a height on and no block tells of: a hidden deposit (above zero), an invented one
    (below), or an `approve()`, which is a transaction that moves only its fee."""

    height: int
    address: bytes
    asset_id: AssetId
    amount_atomic: int
    is_transaction: bool = False


@dataclass
class FakeChain:
    """One branch at a time: `blocks[height]` up to the head. `fork` starts another branch from a height."""

    host: str = "node-a"
    other_hosts: dict[str, FakeChain] = field(default_factory=dict)
    start_s: int = START_S
    blocks: list[Block] = field(default_factory=list)
    safe: int | None = None
    finalized: int | None = None
    is_down: bool = False
    fetched: list[int] = field(default_factory=list)
    asked_at: list[float] = field(default_factory=list)
    """When the head was asked for, by the loop's clock."""
    announcements: HintBox = field(default_factory=HintBox)
    fetched_ahead: list[int] = field(default_factory=list)
    tracers: dict[str, str] = field(default_factory=dict)
    proven: list[set[bytes]] = field(default_factory=list)
    """The watched addresses of each call for balances."""
    unlisted: set[AssetId] = field(default_factory=set)
    """Assets whose movements nobody reads."""
    aside: dict[str, str] = field(default_factory=dict)
    """Hosts that are asked after the others, and why."""
    listed: tuple[Asset, ...] = (COIN, TOKEN)
    pruned_below: int = 0
    """The node has thrown away what is below this height."""
    contradiction: str | None = None
    """What the balances say against the traces."""
    opening: dict[tuple[bytes, AssetId], int] = field(default_factory=dict)
    """What accounts held before the first block."""
    changes: list[Change] = field(default_factory=list)
    lies: dict[tuple[bytes, AssetId], int] = field(default_factory=dict)
    """By how much this host's word on what is held differs from what is; it proves nothing that it lies about."""
    has_proofs: bool = True
    """Whether native value is told with proofs."""
    state_from: int = 0
    """Below this height nobody has the state any more."""
    coded: set[bytes] = field(default_factory=set)
    """Addresses with code."""
    asked_holdings: list[tuple[int, int]] = field(default_factory=list)
    """The height and the number of accounts of each question."""

    def mine(self, *movements: Movement, count: int = 1, salt: str = "") -> BlockRef:
        """Add a block with these movements, then `count - 1` empty ones; returns the head."""
        for index in range(count):
            height = len(self.blocks)
            parent = self.blocks[-1].ref.hash if self.blocks else b"\x00" * 32
            block_hash = sha256(parent + f"{height}{salt}".encode() + repr(movements).encode()).digest()
            transfers = identify_transfers(CHAIN_ID, movements if index == 0 else ())
            ref = BlockRef(height, block_hash, parent)
            timestamp_s = self.start_s + height * 12
            self.blocks.append(
                Block(
                    ref,
                    timestamp_s,
                    transfers,
                    ProofLevel.ROOTS,
                    len(transfers),
                    self.host,
                    self.host,
                    spends=_spends_of(movements if index == 0 else ()),
                )
            )
        return self.blocks[-1].ref

    def drop_to(self, height: int) -> None:
        """Forget every block above `height`: what is mined next is another branch."""
        del self.blocks[height + 1 :]

    def _ref(self, height: int | None) -> BlockRef | None:
        return self.blocks[height].ref if height is not None and height < len(self.blocks) else None

    def set_aside(self, host: str, reason: str) -> None:
        self.aside[host] = reason

    async def fetch_head(self) -> NodeHead:
        self.asked_at.append(asyncio.get_running_loop().time())
        if self.is_down:
            raise NodeUnavailable("node-a: connection refused")
        return NodeHead(self.host, self.host, self.blocks[-1].ref, self._ref(self.safe), self._ref(self.finalized))

    async def fetch_heads(self, hosts: Sequence[str]) -> Mapping[str, NodeHead]:
        asked = {host: self.other_hosts[host] for host in hosts}
        return {host: await chain.fetch_head() for host, chain in asked.items() if not chain.is_down}

    async def fetch_block(self, height: int) -> Block:
        self.fetched.append(height)
        if height >= len(self.blocks) or height < self.pruned_below:
            raise BlockNotFound(f"block {height}")
        block = self.blocks[height]
        listed = tuple(transfer for transfer in block.transfers if transfer.asset_id not in self.unlisted)
        return replace(block, transfers=listed)

    async def fetch_block_ahead(self, height: int) -> Block:
        self.fetched_ahead.append(height)
        block = await self.fetch_block(height)
        return replace(block, transfers=pack(block.transfers))

    async def fetch_block_by_hash(self, block_hash: BlockHash) -> Block:
        return next(block for block in self.blocks if block.ref.hash == block_hash)

    async def fetch_block_from(self, hosts: Collection[str], height: int) -> Block:
        known = {self.host: self, **self.other_hosts}
        for host in hosts:
            if host in known and not known[host].is_down:
                return await known[host].fetch_block(height)
        raise NodeUnavailable(f"block {height}: none of {hosts} answers")

    async def fetch_outlines(self, from_height: int, to_height: int, asset: Asset | None = None) -> Sequence[Outline]:
        if self.is_down or from_height < self.pruned_below or to_height >= len(self.blocks):
            raise BlockNotFound(f"headers {from_height} to {to_height}")
        return [
            Outline(block.ref, asset is None or any(t.asset_id == asset.id for t in block.transfers))
            for block in self.blocks[from_height : to_height + 1]
        ]

    async def fetch_ref(self, height: int) -> BlockRef | None:
        return self._ref(height)

    async def fetch_agreements(self, ref: BlockRef, hosts: Sequence[str]) -> Mapping[str, bool]:
        answers = {}
        for host in hosts:
            chain = self.other_hosts.get(host)
            theirs = chain._ref(ref.height) if chain is not None and not chain.is_down else None
            if theirs is not None:
                answers[host] = theirs.hash == ref.hash
        return answers

    def listen(self) -> AbstractAsyncContextManager[HintBox]:
        return nullcontext(self.announcements)

    @property
    def hosts(self) -> tuple[str, ...]:
        return (self.host, *self.other_hosts)

    @property
    def assets(self) -> tuple[Asset, ...]:
        return self.listed

    async def prove_balances(self, blocks: Sequence[Block], watched: Collection[bytes]) -> Sequence[Block]:
        self.proven.append(set(watched))
        if self.contradiction is not None:
            raise ChainHolds(self.contradiction)
        return blocks

    async def fetch_holdings(
        self, ref: BlockRef, asked: Sequence[tuple[bytes, AssetId]], hosts: Sequence[str] | None = None
    ) -> Mapping[tuple[bytes, AssetId], Holding]:
        found: dict[tuple[bytes, AssetId], Holding] = {}
        for chain in (self, *self.other_hosts.values()):
            if hosts is None or chain.host in hosts:
                found = chain.holdings_at(ref, asked) | found
        return found

    def holdings_at(
        self, ref: BlockRef, asked: Sequence[tuple[bytes, AssetId]]
    ) -> dict[tuple[bytes, AssetId], Holding]:
        """What this host alone says is held after the block."""
        self.asked_holdings.append((ref.height, len(asked)))
        if self.is_down or ref.height < self.state_from or self._ref(ref.height) != ref:
            return {}
        return {one: self._holding(ref.height, *one) for one in asked}

    def _holding(self, height: int, address: bytes, asset_id: AssetId) -> Holding:
        transfers = [transfer for block in self.blocks[: height + 1] for transfer in block.transfers]
        changes = [change for change in self.changes if change.height <= height and change.address == address]
        sent = {
            t.transaction.hash: t.transaction for t in transfers if t.transaction and t.transaction.sender == address
        }
        amount = self.opening.get((address, asset_id), 0) + self.lies.get((address, asset_id), 0)
        amount += sum(_moved(transfer, address) for transfer in transfers if transfer.asset_id == asset_id)
        amount += sum(change.amount_atomic for change in changes if change.asset_id == asset_id)
        if asset_id != COIN.id:
            return Holding(amount, False, None, None, self.host)
        amount -= sum(transaction.fee_atomic or 0 for transaction in sent.values())
        nonce = len(sent) + sum(change.is_transaction for change in changes)
        is_proven = self.has_proofs and (address, asset_id) not in self.lies
        return Holding(amount, is_proven, nonce, address in self.coded, self.host)

    def recall_tracers(self, tracers: Mapping[str, str]) -> None:
        self.tracers = {**tracers, **self.tracers}

    @property
    def value_paths(self) -> tuple[str, ...]:
        return ("native", "logs", "traces") if self.tracers else ("native", "logs")

    @property
    def is_tracing_open(self) -> bool:
        return False

    @property
    def decoder_version(self) -> int:
        return 1

    def node_statuses(self) -> tuple[NodeStatus, ...]:
        known = (self, *self.other_hosts.values())
        return tuple(NodeStatus(one.host, one.host, "ok", len(one.blocks) - 1, None) for one in known)

    async def close(self) -> None:
        """Nothing is open."""
