"""An EVM chain behind the `ChainAdapter` protocol: several nodes in, proven blocks out.

Asking (bytes, time-outs, the next node) lies in `chains.node`, proof and decoding in the pure modules beside this one.
Here they meet: an answer that fails its proof is a failing of the node that gave it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from itertools import pairwise
from typing import TypeVar

import aiohttp
import msgspec

from chains.adapter import Internal, NodeHead, NodeStatus
from chains.errors import BlockNotFound, WrongChain
from chains.evm.accounts import Accounts
from chains.evm.blaming import blaming, proven
from chains.evm.dialect import Dialect
from chains.evm.errors import ProofFailure
from chains.evm.fetching import block_call, described, fetch_raw_block, outline_of, present
from chains.evm.holdings import Holdings
from chains.evm.observing import ProofObserver
from chains.evm.outlines import may_move
from chains.evm.probe import NodeProbe, probe_node, with_lag
from chains.evm.reading import DECODER_VERSION, Place, RawBlock, ReadingRules, read_block, read_ref
from chains.evm.state_syncs import with_state_sync
from chains.evm.tracing import Tracers
from chains.evm.workers import Workers, pickled_rules
from chains.model import (
    Address,
    Asset,
    AssetId,
    Block,
    BlockHash,
    BlockRef,
    FailedCheck,
    Holding,
    Outline,
    ProofLevel,
    ValuePath,
)
from chains.node.client import NodeClient, open_session
from chains.node.errors import NodeError, NodeFailed, NodeGarbled, NodeUnproven, NodeUnsettled, RpcError
from chains.node.health import BLOCK, HEAD, REF, Upstream
from chains.node.hosts import Hosts
from chains.node.jsonrpc import NULL, Call
from chains.node.naming import NodeSettings, names_of
from chains.node.newheads import HeadSocket, HintBox, SocketFailed, listening, silence_limit_s
from chains.node.pool import Pool
from chains.profile import ChainProfile

UNSETTLED_PAUSE_S = 0.25
"""How long a node gets to finish what it was doing when its answer fell between two blocks."""

T = TypeVar("T")


class EvmAdapter:
    """One configured EVM chain. See `chains.adapter.ChainAdapter` for what each method promises."""

    def __init__(
        self,
        profile: ChainProfile,
        nodes: Sequence[NodeSettings],
        session: aiohttp.ClientSession | None = None,
        *,
        workers: Workers | None = None,
        internal: Internal = Internal.OFF,
        quorum: int = 1,
    ) -> None:
        """Must be made inside a running loop. `session` is a process's own from `open_session`; without one the adapter
        opens its own. `workers` are a process's own, shared by its chains; without them every block is read right here.
        `quorum` is the number of hosts that must agree before credit: of tracing ones, two are compared.
        Raises `ProfileError` for a URL that is none."""
        names = names_of(nodes)
        self.profile = profile
        self._session = session or open_session()
        self._owns_session = session is None
        tokens = {token.contract: token for token in profile.tokens if token.contract is not None}
        self._rules = ReadingRules(
            profile.chain_id, profile.proof, profile.native, tokens, profile.dialect, profile.is_proof_enforced
        )
        self._observer = ProofObserver(profile.slug)
        named = zip(names, nodes, strict=True)
        self._sockets = [(name, self._socket(name, node.ws)) for name, node in named if node.ws is not None]
        self._workers = workers
        self._pickled: dict[int | None, bytes] = {}
        self._pool = Pool(profile.slug, [self._upstream(*row) for row in zip(names, nodes, strict=True)], self._admit)
        self._hosts = Hosts(self._pool, quorum)
        self._tracers = Tracers(profile.slug, self._pool, internal, quorum)
        self._accounts = Accounts(profile.slug, self._pool, self._tracers, self._rules)
        self._holdings = Holdings(self._pool, self._rules)

    def _socket(self, name: str, url: str) -> HeadSocket:
        return HeadSocket(self.profile.slug, name, url, self._session, silence_limit_s(self.profile.block_time_s))

    def _upstream(self, name: str, node: NodeSettings) -> Upstream:
        return Upstream(NodeClient(self.profile.slug, name, node.url, self._session, node.rps))

    async def fetch_head(self) -> NodeHead:
        """Head and finality tags of the first node that answers, asked in one batch."""
        return await self._pool.first_answer("head", self._ask_head, kind=HEAD)

    async def fetch_heads(self, hosts: Sequence[str]) -> Mapping[str, NodeHead]:
        """Head and finality tags by host; a host that does not answer, or is left alone for a while, is absent."""
        return await self._hosts.answers(hosts, "head", self._ask_head, HEAD)

    async def fetch_block(self, height: int) -> Block:
        """The block at `height` on the node's current branch, proven and decoded."""
        return await self._fetch(height)

    async def fetch_block_ahead(self, height: int) -> Block:
        """The same block, read by a worker where there are any."""
        return await self._pool.first_answer(
            described(height),
            lambda upstream: self._ask_block(upstream, height, is_ahead=True),
            kind=BLOCK,
            height=height,
            is_urgent=False,
        )

    async def fetch_block_by_hash(self, block_hash: BlockHash) -> Block:
        """One block by hash, proven and decoded."""
        return await self._fetch(block_hash)

    async def fetch_block_from(self, hosts: Collection[str], height: int) -> Block:
        """The block at `height` from one of these hosts."""
        return await self._pool.first_answer(
            described(height),
            lambda upstream: self._ask_block(upstream, height),
            [upstream for upstream in self._pool.upstreams if upstream.host in hosts],
            kind=BLOCK,
            height=height,
        )

    async def fetch_outlines(self, from_height: int, to_height: int, asset: Asset | None = None) -> Sequence[Outline]:
        """Places of blocks by their headers, and which of them may hold logs of the asset."""
        return await self._pool.first_answer(
            f"headers {from_height} to {to_height}",
            lambda upstream: self._ask_outlines(upstream, range(from_height, to_height + 1), asset),
            kind=BLOCK,
            height=from_height,
            is_urgent=False,
        )

    async def fetch_ref(self, height: int) -> BlockRef | None:
        """Place and hash of the block at `height`, its hash recomputed at `roots`; None when no node has it."""
        try:
            return await self._pool.first_answer(
                described(height), lambda upstream: self._ask_ref(upstream, height), kind=REF, height=height
            )
        except BlockNotFound:
            return None

    async def fetch_agreements(self, ref: BlockRef, hosts: Sequence[str]) -> Mapping[str, bool]:
        """Which of the hosts name the same hash at `ref.height`; a host that does not know or answer, or is left alone for
        a while, is absent."""
        height = ref.height
        found = await self._hosts.answers(
            hosts, described(height), lambda upstream: self._ask_ref(upstream, height), REF
        )
        return {host: theirs.hash == ref.hash for host, theirs in found.items()}

    def set_aside(self, host: str, reason: str) -> None:
        """Ask this host's nodes after all others for a while."""
        for upstream in self._pool.upstreams:
            if upstream.host == host:
                self._pool.note_failure(upstream, NodeFailed(upstream.name, reason))

    def listen(self) -> AbstractAsyncContextManager[HintBox]:
        """Hear the announcements of every node that has a `ws`."""
        return listening([socket for _, socket in self._sockets])

    async def check_announcements(self) -> Mapping[str, str | None]:
        """For `doctor`: each node that has a `ws`, by name, with why it takes no subscription, or None where it does."""
        refusals = await asyncio.gather(*(_refusal_of(socket) for _, socket in self._sockets))
        return {name: refusal for (name, _), refusal in zip(self._sockets, refusals, strict=True)}

    async def check_chain_id(self) -> None:
        """Ask every node which chain it speaks of; one that does not answer now is asked when it does.

        Raises `WrongChain` naming each node of another chain. Later, such a node is only a failing node.
        """
        asked = await asyncio.gather(*(self._foreign(upstream) for upstream in self._pool.upstreams))
        sentences = [sentence for sentence in asked if sentence]
        if sentences:
            raise WrongChain(f"{self.profile.slug}: {'; '.join(sentences)}")

    async def probe(self) -> tuple[NodeProbe, ...]:
        """What each node can do, for `doctor`: takes seconds, and asks a node about thirty questions at most."""
        return with_lag(await asyncio.gather(*(probe_node(upstream.client) for upstream in self._pool.upstreams)))

    @property
    def hosts(self) -> tuple[str, ...]:
        """The distinct hosts of the configured nodes, in order."""
        return tuple(dict.fromkeys(upstream.host for upstream in self._pool.upstreams))

    @property
    def assets(self) -> tuple[Asset, ...]:
        """Native coin first, then the allow-listed tokens."""
        return self.profile.assets

    @property
    def value_paths(self) -> tuple[str, ...]:
        """Internal value (`traces`) is read where a node is known to trace."""
        paths = (ValuePath.NATIVE, ValuePath.LOGS, ValuePath.VALIDATOR_WITHDRAWALS)
        return tuple(path.value for path in (paths if not self.tracers else (*paths, ValuePath.TRACES)))

    @property
    def is_tracing_open(self) -> bool:
        """True until a block came that has transactions, where traces are wanted."""
        return self._tracers.is_open

    @property
    def decoder_version(self) -> int:
        """Which transfers are found in a block (`chains.evm.reading.DECODER_VERSION`)."""
        return DECODER_VERSION

    @property
    def tracers(self) -> Mapping[str, str]:
        """By host, the method by which it was seen to trace; none where no traces are wanted."""
        return self._tracers.methods

    async def prove_balances(self, blocks: Sequence[Block], watched: Collection[Address]) -> Sequence[Block]:
        """The blocks, with what traces alone tell of the watched addresses raised to `state` where it can be."""
        return [await self._accounts.prove(block, watched) for block in blocks]

    async def fetch_holdings(
        self, ref: BlockRef, asked: Sequence[tuple[Address, AssetId]], hosts: Sequence[str] | None = None
    ) -> Mapping[tuple[Address, AssetId], Holding]:
        """What accounts hold of assets after the block, native value proven where nodes offer proofs."""
        return await self._holdings.fetch(ref, asked, hosts)

    def recall_tracers(self, tracers: Mapping[str, str]) -> None:
        """What the ledger remembers of who traces."""
        self._tracers.recall(tracers)

    def node_statuses(self) -> tuple[NodeStatus, ...]:
        """Each configured node as last seen."""
        statuses = [upstream.status() for upstream in self._pool.upstreams]
        return tuple(
            replace(status, reason=status.reason or self._observer.reason_of(status.name)) for status in statuses
        )

    async def close(self) -> None:
        """End what is being asked, and close the session, where it is the adapter's own."""
        await self._tracers.close()
        if self._owns_session:
            await self._session.close()

    async def _fetch(self, place: Place) -> Block:
        height = place if isinstance(place, int) else None
        return await self._pool.first_answer(
            described(place), lambda upstream: self._ask_block(upstream, place), kind=BLOCK, height=height
        )

    async def _ask_block(self, upstream: Upstream, place: Place, *, is_ahead: bool = False) -> Block:
        """One node's block; asked once more, quietly, where its answer fell between two blocks."""
        try:
            block = await self._ask_block_once(upstream, place, is_ahead=is_ahead)
        except NodeUnsettled:
            await asyncio.sleep(UNSETTLED_PAUSE_S)
            block = await self._ask_block_once(upstream, place, is_ahead=is_ahead)
        self._observer.note(block.node, block.failed_checks, described(place))
        return block

    async def _ask_block_once(self, upstream: Upstream, place: Place, *, is_ahead: bool) -> Block:
        raw = await fetch_raw_block(upstream, place)
        if self._rules.dialect is Dialect.POLYGON and self._rules.proof is ProofLevel.ROOTS:
            raw = await with_state_sync(upstream, raw)

        async def _read(traced: RawBlock, needed: int | None) -> Block:
            with blaming(upstream):
                if is_ahead and self._workers is not None:
                    return await self._workers.read(self._pickled_rules(needed), place, traced)
                block = read_block(replace(self._rules, traces_needed=needed), place, traced)
            self._accounts.keep(block, traced)
            return block

        outline = outline_of(upstream, raw.block) if self._tracers.is_due else None
        if outline is None or outline.traced_count == 0:
            return await _read(raw, None)
        return await self._tracers.settle(upstream, raw, outline.ref, _read)

    def _pickled_rules(self, traces_needed: int | None) -> bytes:
        if traces_needed not in self._pickled:
            self._pickled[traces_needed] = pickled_rules(replace(self._rules, traces_needed=traces_needed))
        return self._pickled[traces_needed]

    async def _ask_head(self, upstream: Upstream) -> NodeHead:
        tags = self.profile.finality_tags
        calls: list[Call] = [("eth_getBlockByNumber", [tag, False]) for tag in ("latest", *tags)]
        latest, *finality = await upstream.client.batch(calls)
        if isinstance(latest, RpcError):
            raise latest
        if latest == NULL:
            raise NodeFailed(upstream.name, "names no newest block; it may still be starting")
        head = self._read_ref(upstream, latest)
        upstream.head = head.height
        claims = {tag: self._read_tag(upstream, answer) for tag, answer in zip(tags, finality, strict=True)}
        return NodeHead(upstream.name, upstream.host, head, claims.get("safe"), claims.get("finalized"))

    def _read_tag(self, upstream: Upstream, answer: msgspec.Raw | RpcError) -> BlockRef | None:
        return None if isinstance(answer, RpcError) or answer == NULL else self._read_ref(upstream, answer)

    async def _ask_ref(self, upstream: Upstream, height: int) -> BlockRef:
        (answer,) = await upstream.client.batch([block_call(height, has_transactions=False)])
        return self._read_ref(upstream, present(upstream, answer, height), height)

    async def _ask_outlines(self, upstream: Upstream, heights: range, asset: Asset | None) -> list[Outline]:
        calls = [block_call(height, has_transactions=False) for height in heights]
        answers = await upstream.client.batch(calls)
        headers = [present(upstream, answer, height) for answer, height in zip(answers, heights, strict=True)]
        found = [
            Outline(self._read_ref(upstream, header, height), asset is None or self._may_move(header, asset))
            for header, height in zip(headers, heights, strict=True)
        ]
        if any(later.ref.parent_hash != earlier.ref.hash for earlier, later in pairwise(found)):
            raise NodeUnsettled(upstream.name, "place", f"headers {heights.start} to {heights[-1]} are of two branches")
        return found

    def _may_move(self, header: msgspec.Raw, asset: Asset) -> bool:
        """Only a bloom that the block's hash commits to excludes anything."""
        is_bound = self._rules.proof is ProofLevel.ROOTS and self._rules.is_proof_enforced
        return not is_bound or may_move(header, asset, self._rules.dialect)

    def _read_ref(self, upstream: Upstream, raw: msgspec.Raw, place: Place | None = None) -> BlockRef:
        profile = self.profile
        if profile.is_proof_enforced:
            return proven(upstream, lambda: read_ref(profile.proof, raw, place, profile.dialect))
        ref = proven(upstream, lambda: read_ref(ProofLevel.STRUCTURE, raw, place, profile.dialect))
        try:
            return read_ref(profile.proof, raw, place, profile.dialect)
        except ProofFailure as failure:
            failed = FailedCheck(failure.check, failure.detail)
            self._observer.note(upstream.name, [failed], f"header {ref.height}")
            return ref

    async def _admit(self, upstream: Upstream) -> None:
        answer = await upstream.client.call("eth_chainId")
        try:
            found = f"eip155:{int(msgspec.json.decode(answer, type=str), 16)}"
        except (ValueError, msgspec.DecodeError):
            raise NodeGarbled(upstream.name, "eth_chainId: the answer is no number") from None
        if found != self.profile.chain_id:
            sentence = f"it speaks of {found}, not {self.profile.chain_id}: correct its url, or the chain's chain_id"
            raise NodeUnproven(upstream.name, "chain_id", sentence)

    async def _foreign(self, upstream: Upstream) -> str | None:
        """The sentence about a node of another chain; None for one of ours, or one that does not answer."""
        try:
            await self._pool.ask_one(upstream, self._admit, REF)
        except NodeUnproven as failure:
            return str(failure)
        except NodeError:
            return None  # counted and logged by the pool; its chain is checked before it is first believed
        return None


async def _refusal_of(socket: HeadSocket) -> str | None:
    try:
        await socket.check()
    except SocketFailed as failure:
        return str(failure)
    return None
