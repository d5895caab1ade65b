"""Proving by balances what only traces tell: asking for the proofs of accounts (EIP-1186), and what their answer means.

A header commits to the state after its block. So an account's balance there and in the parent, each proven against the
state root of a header whose hash is known, differ by exactly what the block did to the account. Where everything else that
the block did to it is known to the last wei, that bears a trace out, or shows that it is false: value invented, or hidden.
What is to be expected (`chains.evm.balance`) and what a difference means (`chains.evm.contradiction`) is decided
elsewhere; here is only the asking.

It is done near the head alone, where nodes still have the state, and for so few accounts of a block that it delays nothing.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import replace

import msgspec

from chains.errors import ChainHolds
from chains.evm.account import NO_CODE, decode_account_proof, prove_account, state_root_of
from chains.evm.balance import expected_change
from chains.evm.contradiction import Bearing, bearing_of
from chains.evm.errors import ProofFailure
from chains.evm.fetching import block_call, described
from chains.evm.reading import RawBlock, ReadingRules
from chains.evm.traces import settle_traces
from chains.evm.tracing import Tracers
from chains.evm.wire import decode_block, decode_receipts
from chains.model import Address, Block, BlockHash, LocatorKind, ProofLevel, Slug, TraceProof, Transfer, hex_of
from chains.node.errors import NodeError, RpcError
from chains.node.health import Upstream
from chains.node.jsonrpc import Call
from chains.node.pool import Pool

ACCOUNTS_PER_BLOCK_MAX = 16
"""Beyond these, accounts of one block stay as their traces prove them."""
ASKED_AT_ONCE = 4
ASKING_LIMIT_S = 5.0
"""What is not proven by then stays as its traces prove it: a block waits no longer for this."""

RECENT_BLOCKS_MAX = 8
RECENT_BYTES_MAX = 12 * 1024 * 1024
"""Answers that are kept until their block is committed, so that they need not be asked for again."""


class Accounts:
    """The accounts of one chain's newest blocks. One for each adapter."""

    def __init__(self, chain: Slug, pool: Pool, tracers: Tracers, rules: ReadingRules) -> None:
        self._chain = chain
        self._pool = pool
        self._tracers = tracers
        self._rules = rules
        self._recent: OrderedDict[BlockHash, RawBlock] = OrderedDict()

    def keep(self, block: Block, raw: RawBlock) -> None:
        """Keep what a block near the head was read from, for as long as it is news: where traces alone tell of something
        in it, and its header's state root is proven."""
        if block.proof is not ProofLevel.ROOTS or not any(map(_traced, block.transfers)):
            return
        self._recent[block.ref.hash] = raw
        while len(self._recent) > RECENT_BLOCKS_MAX or sum(map(_size_of, self._recent.values())) > RECENT_BYTES_MAX:
            self._recent.popitem(last=False)

    async def prove(self, block: Block, watched: Collection[Address]) -> Block:
        """The block with what traces alone tell of the watched addresses raised to `state`, where their balances bear it
        out. Raises `ChainHolds` where they contradict it: the nodes that traced it are failing then."""
        raw = self._recent.get(block.ref.hash)
        traced = {address for transfer in block.transfers for address in _traced(transfer) if address in watched}
        if raw is None or not traced:
            return block
        places = asyncio.Semaphore(ASKED_AT_ONCE)

        deadline = asyncio.get_running_loop().time() + ASKING_LIMIT_S

        async def _judge(address: Address, expected: int | None) -> Bearing:
            if expected is None:
                return Bearing.UNTOLD
            try:
                async with asyncio.timeout_at(deadline), places:
                    return await self._judge(block, raw, address, expected)
            except TimeoutError:
                return Bearing.UNTOLD

        asked = _expected_changes(self._rules, raw, sorted(traced)[:ACCOUNTS_PER_BLOCK_MAX])
        bearings = await asyncio.gather(*(_judge(address, expected) for address, expected in asked.items()))
        told = {address for address, bearing in zip(asked, bearings, strict=True) if bearing is Bearing.BORNE_OUT}
        return replace(block, transfers=tuple(_raised(transfer, traced, told) for transfer in block.transfers))

    async def _judge(self, block: Block, raw: RawBlock, address: Address, expected: int) -> Bearing:
        """What the account's proven balances say. Raises `ChainHolds` where they contradict the traces."""
        found = await self._change(block, address)
        if found is None:
            return Bearing.UNTOLD
        change, has_code = found
        inherited = [t.amount_atomic for t in block.transfers if t.is_destruction and t.recipient == address]
        bearing = bearing_of(
            expected, change, address, raw.traces, self._rules.dialect, has_code=has_code, inherited=inherited
        )
        if bearing is not Bearing.CONTRADICTED:
            return bearing
        detail = (
            f"{described(block.ref.height)}: by its traces the balance of {hex_of(address)} changed by {expected},"
            f" by proofs of the account by {change}"
        )
        self._tracers.distrust(block.ref.hash, block.traced_by, "state", detail)
        raise ChainHolds(f"{self._chain}: {detail}; traced by {', '.join(block.traced_by)}")

    async def _change(self, block: Block, address: Address) -> tuple[int, bool] | None:
        """By how much the account's balance changed in a block, and whether it has code, proven by the first node that can;
        None where none can."""
        for upstream in self._pool.upstreams:
            try:
                return await self._ask_change(upstream, block, address)
            except (NodeError, ProofFailure):
                continue  # counted by the client; another node may offer proofs, have the state, or be on our branch
        return None

    async def _ask_change(self, upstream: Upstream, block: Block, address: Address) -> tuple[int, bool]:
        ref, dialect = block.ref, self._rules.dialect
        places = ((ref.hash, ref.height), (ref.parent_hash, ref.height - 1))
        headers = [block_call(block_hash, has_transactions=False) for block_hash, _ in places]
        proofs: list[Call] = [("eth_getProof", [hex_of(address), [], hex(height)]) for _, height in places]
        answers = [_result(answer) for answer in await upstream.client.batch([*headers, *proofs])]
        after, before = [
            prove_account(state_root_of(header, block_hash, dialect), address, decode_account_proof(proof))
            for header, proof, (block_hash, _) in zip(answers[:2], answers[2:], places, strict=True)
        ]
        return after.balance - before.balance, after.code_hash != NO_CODE


def _expected_changes(rules: ReadingRules, raw: RawBlock, addresses: Sequence[Address]) -> dict[Address, int | None]:
    """What the block, which was proven when it was read, must have done to each account if its traces are true."""
    block, receipts = decode_block(raw.block, rules.dialect), decode_receipts(raw.receipts, rules.dialect)
    if block is None or receipts is None:
        raise ProofFailure("structure", "null in place of a block or of its receipts")
    moves, _ = settle_traces(raw.traces, block, receipts, len(raw.traces))
    return {address: expected_change(address, block, receipts, moves) for address in addresses}


def _result(answer: msgspec.Raw | RpcError) -> msgspec.Raw:
    if isinstance(answer, RpcError):
        raise answer
    return answer


def _traced(transfer: Transfer) -> tuple[Address, ...]:
    """Whom a transfer that only a trace tells of concerns."""
    if transfer.locator.kind is not LocatorKind.TRACE:
        return ()
    return tuple(address for address in (transfer.sender, transfer.recipient) if address is not None)


def _raised(transfer: Transfer, watched: Collection[Address], told: Collection[Address]) -> Transfer:
    """The transfer at `state` where the balances of all whom it concerns and who are watched bear it out."""
    concerned = [address for address in _traced(transfer) if address in watched]
    if concerned and all(address in told for address in concerned):
        return replace(transfer, proof=TraceProof.STATE)
    return transfer


def _size_of(raw: RawBlock) -> int:
    return len(raw.block) + len(raw.receipts) + sum(len(traces.answer) for traces in raw.traces)
