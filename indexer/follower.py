"""Following one chain: `converge` moves our tip one step towards a node's head, with one of five outcomes.

    nothing new   the head is our tip, or the node lags behind it
    extended      blocks were committed on top of our tip
    reorged       our branch was replaced from the common ancestor on, in one transaction
    holding       no node's answer can be used at the moment; tried again by itself
    halted        a person has to decide (`chainbell resume`)

What keeps this right when everything around it goes wrong: a cycle begins by reading the checkpoint from the ledger, so
nothing that was believed in memory outlives a failure; blocks come from the adapter complete and proven; whatever is
committed is compared with the checkpoint once more under the chain's lock. A second follower, a crash between any two
lines, a node that changes its branch while it is read: each ends in a cycle that wrote nothing, and the next one starts
from the ledger again.

A node's head below our tip never undoes anything. The node may lag, or have switched to a shorter branch; if that branch
wins it will grow past our tip, and then it is a reorg like any other.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import structlog

from chains.adapter import ChainAdapter, NodeHead
from chains.errors import BlockNotFound, ChainHolds, NodeUnavailable
from chains.model import Block, BlockHash, BlockRef, Slug
from chains.packing import PackedTransfers, traced_parties_of
from indexer.commit import Committed, Followed, commit_blocks, settle_heights
from indexer.coverage import Readings
from indexer.errors import BranchChanged, DeepReorg, deep_reorg_reason
from indexer.finality import Agreement, finalized_by_depth, lowest_reorg_height, quorum_claim
from indexer.metrics import BLOCKS, EVENTS, REORG_DEPTH, REORGS
from indexer.prefetch import prefetch, recent_sizes
from indexer.reconcile import Linkage, Relation, link, look_back, narrow, relate
from ledger.blocks import find_canonical, find_canonical_at
from ledger.chains import find_chain, lock_chain, remember_tracers
from ledger.database import Engine, transaction
from ledger.errors import CheckpointMoved
from ledger.halts import halt_chain
from ledger.matching import match_watches
from ledger.model import ChainRow
from ledger.states import ChainState

log = structlog.get_logger()

BATCH_BLOCKS_MAX = 64
"""Blocks in one transaction of catch-up: enough to make its cost small, few enough to keep the lock short."""

CYCLE_BLOCKS_MAX = 1024
CYCLE_LIMIT_S = 3.0
"""One cycle fetches ahead without a pause for so many blocks, or until the first commit after so long; between cycles the
follower gives a sign of life, and is told to stop."""

BATCH_TRANSFERS_MAX = 20_000
"""Transfers in one transaction, whichever comes first: bounds memory on full chains."""

CATCH_UP_BLOCKS = 8
"""A gap larger than this is catch-up: contiguous batches; a smaller one is committed block by block."""

TAGS_ASKED_EVERY = 20
"""Cycles after which all hosts are asked for their finality tags, though the first one has no news."""


@dataclass(frozen=True, slots=True)
class Nothing:
    """The head is our tip; or it is below, and `reason` says so."""

    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Extended:
    """Blocks were committed; `is_behind` when the head is still far above."""

    count: int
    is_behind: bool


@dataclass(frozen=True, slots=True)
class Reorged:
    """Our blocks above the ancestor were replaced."""

    depth: int


@dataclass(frozen=True, slots=True)
class Holding:
    """No answer can be used; nothing was written."""

    reason: str


@dataclass(frozen=True, slots=True)
class Halted:
    """Nothing is written until a person resumes the chain."""

    reason: str


Outcome = Nothing | Extended | Reorged | Holding | Halted


@dataclass(frozen=True, slots=True)
class Course:
    """How a chain is followed: facts from its profile and settings."""

    slug: Slug
    start: int | None
    """First height where there is no checkpoint; None for the node's head."""
    has_finality_tags: bool


class Follower:
    """One chain's follower. It holds no truth: only which hosts were seen to agree, which can be asked again."""

    def __init__(self, engine: Engine, adapter: ChainAdapter, followed: Followed, course: Course) -> None:
        """Nothing is asked or written before `converge`."""
        self.engine = engine
        self.adapter = adapter
        self.followed = followed
        self.course = course
        self.agreement = Agreement({})
        self.tip_hash: BlockHash | None = None
        self.head_height: int | None = None
        self.cycles_unasked = TAGS_ASKED_EVERY
        self.final_height: int | None = None
        """Our newest final block, or the last before our first, as of the last cycle that came to its end."""
        self.tip_height: int | None = None
        self.answer_sizes = recent_sizes()
        self.readings = Readings(engine, followed.chain_id, adapter)
        self.remembered: tuple[Mapping[str, str], Sequence[str]] | None = None
        """Who traces and what is read, as the ledger has it."""

    async def converge(self) -> Outcome:
        """Move our tip one step towards the head. Raises only what the database raises, and `StoryConflict`."""
        try:
            async with transaction(self.engine) as connection:
                chain = await find_chain(connection, self.followed.chain_id)
            if chain.state is ChainState.HALTED:
                return Halted(chain.reason or "")
            self.adapter.recall_tracers(chain.tracers)
            self.remembered = self.remembered or (dict(chain.tracers), chain.value_paths)
            if chain.tip_hash != self.tip_hash:
                # Another follower, or our own failed commit: what hosts said may have been of another branch.
                self.agreement, self.tip_hash = Agreement({}), chain.tip_hash
            head = await self.adapter.fetch_head()
            self.head_height = head.head.height
            outcome = await self._step(chain, head)
            if not isinstance(outcome, Halted):
                await self._settle(head)
            return outcome
        except BlockNotFound:
            return Nothing()
        except (NodeUnavailable, ChainHolds) as error:
            return Holding(str(error))
        except (BranchChanged, CheckpointMoved) as error:
            log.info("cycle abandoned", chain=self.course.slug, reason=str(error))
            return Nothing()
        except DeepReorg as error:
            return await self._halt(str(error))

    async def _step(self, chain: ChainRow, head: NodeHead) -> Outcome:
        tip = self._tip(chain)
        if tip is None:
            return await self._begin(head)
        match relate(tip, head.head):
            case Relation.SAME:
                self.agreement = self.agreement.raised(head.host, tip.height)
                return Nothing()
            case Relation.BEHIND:
                return Nothing(
                    f"{head.node}: its head {head.head.height} is below our tip {tip.height}; waiting for it"
                )
            case Relation.AHEAD:
                return await self._extend(chain, tip, head)
            case Relation.SIBLING:
                holders = await self._holders_of(tip)
                if holders:
                    return Nothing(
                        f"{head.node}: another block {tip.height} than ours, which {', '.join(holders)} still has:"
                        " the branch that grows will tell"
                    )
                return await self._reorganise(chain, tip, head)

    async def _holders_of(self, tip: BlockRef) -> list[str]:
        """The hosts that have our tip, asked when somebody names another block in its place.

        As long as there is one, neither branch is longer, and to change over would be to change back: nodes that do not
        agree about their newest block, two hosts' or two behind one URL, would have us tell of a reorg with every poll."""
        answers = await self.adapter.fetch_agreements(tip, self.adapter.hosts)
        return [host for host, is_same in answers.items() if is_same]

    def _tip(self, chain: ChainRow) -> BlockRef | None:
        if chain.tip_height is None or chain.tip_hash is None:
            return None
        return BlockRef(chain.tip_height, chain.tip_hash, b"")

    async def _begin(self, head: NodeHead) -> Outcome:
        """No checkpoint: the first block is the configured height or the node's head."""
        start = self.course.start if self.course.start is not None else head.head.height
        if start > head.head.height:
            return Nothing(f"{head.node}: its head {head.head.height} is below the configured start {start}")
        block = await self.adapter.fetch_block(start)
        await self._commit(None, [block])
        return Extended(1, is_behind=head.head.height > start)

    async def _extend(self, chain: ChainRow, tip: BlockRef, head: NodeHead) -> Outcome:
        """Commit what follows our tip, fetching ahead; stop where the node's branch turns out not to be ours."""
        count = 0
        last = head.head.height
        is_far = last - tip.height > CATCH_UP_BLOCKS
        fetch = self.adapter.fetch_block_ahead if is_far else self.adapter.fetch_block
        batch_max = BATCH_BLOCKS_MAX if is_far else 1
        began = time.monotonic()
        stop_at = min(last, tip.height + CYCLE_BLOCKS_MAX)
        async with prefetch(fetch, tip.height + 1, stop_at, sizes=self.answer_sizes) as blocks:
            batch: list[Block] = []
            async for block in blocks:
                linkage = link(batch[-1].ref if batch else tip, [block.ref])
                if linkage is not Linkage.EXTENDS:
                    if count or batch:
                        raise BranchChanged(f"{chain.slug}: block {block.ref.height} does not follow the one before it")
                    return await self._reorganise(chain, tip, head)
                batch.append(block)
                if len(batch) == batch_max or _transfer_count(batch) > BATCH_TRANSFERS_MAX:
                    tip = await self._commit(tip, batch)
                    count += len(batch)
                    batch = []
                    if time.monotonic() - began > CYCLE_LIMIT_S:
                        blocks.stop()
            if batch:
                tip = await self._commit(tip, batch)
                count += len(batch)
            if blocks.failure is not None and count == 0:
                raise blocks.failure
        # A head that is not there, or not yet, is asked for again at its time; after any other failure at once.
        is_there = not isinstance(blocks.failure, BlockNotFound)
        return Extended(count, is_behind=last > tip.height and is_there)

    async def _reorganise(self, chain: ChainRow, tip: BlockRef, head: NodeHead) -> Outcome:
        """Find the common ancestor, fetch the new branch up to at least our old height, replace in one transaction."""
        try:
            ancestor_height = await self._common_ancestor(chain, tip)
        except DeepReorg:
            dispute = await self._dispute_over(chain, chain.finalized_height, head, is_deep=True)
            if dispute is None:
                raise
            return Nothing(dispute)
        dispute = await self._dispute_over(chain, ancestor_height + 1, head)
        if dispute is not None:
            return Nothing(dispute)
        blocks = [await self.adapter.fetch_block(height) for height in range(ancestor_height + 1, tip.height + 1)]
        if not blocks or link(None, [block.ref for block in blocks]) is Linkage.BROKEN:
            raise BranchChanged(f"{chain.slug}: the node's branch changed while it was read")
        await self._commit(tip, blocks, ancestor_height)
        depth = tip.height - ancestor_height
        REORGS.labels(self.course.slug).inc()
        REORG_DEPTH.labels(self.course.slug).observe(depth)
        log.warning("reorg applied", chain=self.course.slug, depth=depth, ancestor=ancestor_height, tip=tip.height)
        return Reorged(depth)

    async def _dispute_over(
        self, chain: ChainRow, height: int | None, head: NodeHead, *, is_deep: bool = False
    ) -> str | None:
        """Why our blocks from `height` on are not undone yet; None where they may be.

        What a quorum of hosts had named, and may be credited, is not taken back on one host's word: only when more hosts
        leave it than hold it, of those that answer. One that a majority contradicts is asked after the others. As many on
        either side are waited for, but for what is final (`is_deep`): then a person decides."""
        if height is None or height > (chain.agreed_height or -1):
            return None
        if chain.quorum < 2 or chain.accepted_reorg_height is not None:
            return None
        async with transaction(self.engine) as connection:
            ours = (await find_canonical(connection, chain.chain_id, height, height)).get(height)
        answers = {} if ours is None else await self.adapter.fetch_agreements(ours, self.adapter.hosts)
        holders = [host for host, is_same in answers.items() if is_same and host != head.host]
        leavers = {head.host, *(host for host, is_same in answers.items() if not is_same)}
        if len(leavers) > len(holders) or (is_deep and len(leavers) == len(holders)):
            return None
        reason = f"names another block {height} than {', '.join(holders)}"
        if len(holders) > len(leavers):
            self.adapter.set_aside(head.host, reason)
        return f"{head.node}: {reason}: what a quorum had named is undone when more hosts leave it than hold it"

    async def _common_ancestor(self, chain: ChainRow, tip: BlockRef) -> int:
        """The highest block that both branches share, found by doubling steps back and then halving the gap."""
        first_height = chain.first_height or 0
        lowest = lowest_reorg_height(
            first_height=first_height,
            finalized_height=chain.finalized_height,
            accepted_reorg_height=chain.accepted_reorg_height,
            lowest_by_depth=tip.height - self.followed.finality_depth,
        )
        async with transaction(self.engine) as connection:
            ours = await find_canonical(connection, chain.chain_id, lowest, tip.height)
        known = [height for height in sorted(ours) if height >= first_height]  # far below finality with gaps
        if known[-1:] != [tip.height]:
            raise BranchChanged(f"{chain.slug}: our tip is not {tip.height} any more")
        theirs: dict[int, BlockRef | None] = {}
        for height in look_back(known):
            theirs[height] = await self.adapter.fetch_ref(height)
            if narrow(ours, theirs).agreed is not None:
                break
        bracket = narrow(ours, theirs)
        if bracket.agreed is None and theirs[bracket.differing] is None:
            # A missing block is no other branch: a node that lacks it may be syncing, or have thrown it away.
            raise ChainHolds(f"{chain.slug}: a reorg, but the node does not have block {bracket.differing} to compare")
        if bracket.agreed is None and lowest >= first_height:
            raise DeepReorg(deep_reorg_reason(chain, known[0], head_height=self.head_height))
        if bracket.agreed is None:
            return first_height - 1
        agreed = bracket.agreed
        between = [height for height in known if agreed < height < bracket.differing]
        while between:
            place = len(between) // 2
            middle = between[place]
            found = await self.adapter.fetch_ref(middle)
            is_same = found is not None and found.hash == ours[middle].hash
            agreed, between = (middle, between[place + 1 :]) if is_same else (agreed, between[:place])
        return agreed

    async def _commit(
        self, tip: BlockRef | None, blocks: Sequence[Block], ancestor_height: int | None = None
    ) -> BlockRef:
        """Commit; what hosts are known to agree on follows our chain only once the commit has happened."""
        await self._remember_tracers()
        blocks = await self._with_balances(blocks)
        agreement = self.agreement if ancestor_height is None else self.agreement.capped(ancestor_height)
        for block in blocks:
            agreement = agreement.raised(block.host, block.ref.height)
        if len(blocks) > 1:
            # Catch-up tells a whole story at once, credit included, so it asks before. Live news does not wait for it.
            agreement = await self._ask_agreement(agreement, [blocks[-1].ref])
        committed = await commit_blocks(
            self.engine,
            self.followed,
            expected=tip,
            blocks=blocks,
            agreement=agreement,
            ancestor_height=ancestor_height,
            readings=await self.readings.of(blocks),
        )
        self.agreement, self.tip_hash = agreement, blocks[-1].ref.hash
        self._count(committed, blocks)
        return blocks[-1].ref

    async def _remember_tracers(self) -> None:
        """Write down who traces before the first block that was read with traces: a restart in between must not make
        the chain go on without."""
        found = (dict(self.adapter.tracers), self.adapter.value_paths)
        if found == self.remembered:
            return
        async with transaction(self.engine) as connection:
            await remember_tracers(connection, self.followed.chain_id, *found)
        self.remembered = found
        log.info("nodes that trace", chain=self.course.slug, tracers=found[0], value_paths=found[1])

    async def _with_balances(self, blocks: Sequence[Block]) -> Sequence[Block]:
        """The blocks, with what only traces tell of watched addresses proven by the accounts' balances, where it can be.
        Which addresses are watched is asked without a lock: a watch that is inserted meanwhile covers later blocks.

        A block that was read ahead is read again for this: else what holds a chain at its head, balances that contradict the
        traces, would be passed over as soon as the head has moved on a little."""
        traced = {block.ref.height: traced_parties_of(block.transfers) for block in blocks}
        addresses = {address for parties in traced.values() for address in parties}
        if not addresses:
            return blocks
        async with transaction(self.engine) as connection:
            watched = await match_watches(connection, self.followed.chain_id, addresses)
        concerned = {height for height, parties in traced.items() if not parties.isdisjoint(watched)}
        whole = [await self._read_again(block) if block.ref.height in concerned else block for block in blocks]
        return await self.adapter.prove_balances(whole, watched.keys()) if concerned else blocks

    async def _read_again(self, block: Block) -> Block:
        """The block with all that proving takes, where it was read ahead."""
        if not isinstance(block.transfers, PackedTransfers):
            return block
        again = await self.adapter.fetch_block(block.ref.height)
        if again.ref != block.ref:
            raise BranchChanged(f"{self.course.slug}: block {block.ref.height} is another one now")
        return again

    def _count(self, committed: Committed, blocks: Sequence[Block]) -> None:
        BLOCKS.labels(self.course.slug, "committed").inc(len(blocks))
        for event_type, count in committed.event_counts.items():
            EVENTS.labels(event_type).inc(count)
        last = blocks[-1]
        log.info(
            "block applied" if len(blocks) == 1 else "blocks applied",
            chain=self.course.slug,
            height=last.ref.height,
            hash="0x" + last.ref.hash.hex(),
            blocks=len(blocks),
            transfers=_transfer_count(blocks),
            entries=committed.entry_count,
            events=sum(committed.event_counts.values()),
            node=last.node,
        )

    async def _settle(self, head: NodeHead) -> None:
        """Raise safe, finalized and agreed heights by what nodes claim of our blocks, and credit what waited for it."""
        async with transaction(self.engine) as connection:
            chain = await find_chain(connection, self.followed.chain_id)
            recent = await find_canonical(
                connection, chain.chain_id, (chain.tip_height or 0) - 7, chain.tip_height or 0
            )
            by_depth = self._final_by_depth(chain)
            depth_ref = None
            if by_depth is not None:
                depth_ref = (await find_canonical(connection, chain.chain_id, by_depth, by_depth)).get(by_depth)
        if chain.tip_height is None:
            return
        first_height = chain.first_height or 0
        self.final_height = first_height - 1 if chain.finalized_height is None else chain.finalized_height
        self.tip_height = chain.tip_height
        newest_first = [recent[height] for height in sorted(recent, reverse=True)]
        self.agreement = await self._ask_agreement(self.agreement, newest_first)
        safe, finalized = await self._final_by_tags(chain, head) if self.course.has_finality_tags else (None, depth_ref)
        if not self._is_news(chain, safe, finalized):
            return
        has_more = True
        while has_more:
            committed = await settle_heights(
                self.engine, self.followed, safe=safe, finalized=finalized, agreement=self.agreement
            )
            has_more = committed.has_more_due
            for event_type, count in committed.event_counts.items():
                EVENTS.labels(event_type).inc(count)

    async def _final_by_tags(self, chain: ChainRow, head: NodeHead) -> tuple[BlockRef | None, BlockRef | None]:
        """The blocks that are safe and finalized: by the tags of as many hosts as the quorum asks for. The others are
        asked when the first one has news, and now and then, for its tags may stand still or be missing."""
        if chain.quorum < 2:
            return head.safe, head.finalized
        self.cycles_unasked += 1
        claims = ((head.safe, chain.safe_height), (head.finalized, chain.finalized_height))
        has_news = any(claim is not None and (known is None or claim.height > known) for claim, known in claims)
        if self.cycles_unasked < TAGS_ASKED_EVERY and not has_news:
            return None, None
        self.cycles_unasked = 0
        others = await self.adapter.fetch_heads([host for host in self.adapter.hosts if host != head.host])
        heads = [head, *others.values()]
        safe, finalized = [one.safe for one in heads], [one.finalized for one in heads]
        heights = sorted({claim.height for claim in (*safe, *finalized) if claim is not None})
        async with transaction(self.engine) as connection:
            ours = await find_canonical_at(connection, chain.chain_id, heights)
        return quorum_claim(safe, ours, chain.quorum), quorum_claim(finalized, ours, chain.quorum)

    def _final_by_depth(self, chain: ChainRow) -> int | None:
        if self.course.has_finality_tags or chain.tip_height is None:
            return None
        return finalized_by_depth(chain.tip_height, chain.first_height or 0, self.followed.finality_depth)

    def _is_news(self, chain: ChainRow, safe: BlockRef | None, finalized: BlockRef | None) -> bool:
        """True when a claim is about a higher block than we know, within our chain."""
        claims = (
            (safe.height if safe else None, chain.safe_height),
            (finalized.height if finalized else None, chain.finalized_height),
            (self.agreement.quorum_height(chain.quorum), chain.agreed_height),
        )
        tip_height = chain.tip_height or 0
        return any(
            claimed is not None and claimed <= tip_height and (known is None or claimed > known)
            for claimed, known in claims
        )

    async def _ask_agreement(self, agreement: Agreement, refs: Sequence[BlockRef]) -> Agreement:
        """Ask the hosts that are not known to share our newest block; a host that lags is asked about older ones."""
        for ref in refs:
            waiting = [host for host in self.adapter.hosts if agreement.heights.get(host, -1) < ref.height]
            if not waiting:
                break
            answers = await self.adapter.fetch_agreements(ref, waiting)
            for host, is_same in answers.items():
                if is_same:
                    agreement = agreement.raised(host, ref.height)
        return agreement

    async def _halt(self, reason: str) -> Outcome:
        async with transaction(self.engine) as connection:
            chain, now = await lock_chain(connection, self.followed.chain_id)
            if chain.state is not ChainState.HALTED:
                await halt_chain(connection, chain, reason, now)
        log.error("chain halted", chain=self.course.slug, reason=reason)
        return Halted(reason)


def _transfer_count(blocks: Sequence[Block]) -> int:
    return sum(len(block.transfers) for block in blocks)
