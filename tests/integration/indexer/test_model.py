"""Whatever happens, in whatever order, the ledger is what a fresh reading of the final chain gives, and every story holds.

A state machine (Hypothesis) does at random what happens to a follower: blocks, reorgs of any depth, nodes that are away,
watches made, deleted and made again, policies that change, tags that move, restarts, and kills between any two steps of a
commit. Beside it runs an oracle in a few lines: a transfer belongs to a tenant from the first time that a block with it was
committed while a live watch covered its height; from then on it is an entry for ever.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from random import Random
from types import ModuleType
from typing import Any, TypeVar

from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy import Engine, select

import indexer.commit
import indexer.coverage
from chains.model import Address, Block, BlockHash, Movement, TransferId
from chains.spends import unpack_spends
from indexer.branch import sides_of
from indexer.coverage import Compression
from indexer.follower import Follower, Halted, Nothing, Outcome
from indexer.policy import CreditRule, Policy, rules_as_json
from ledger.chains import ChainConfiguration, register_chain
from ledger.database import transaction
from ledger.ids import Side, TenantId, WatchId
from ledger.model import Entry
from ledger.rows import entry_from
from ledger.schema import blocks, coverage, entries
from ledger.states import CREDITED_STATES, ENTRY_TRANSITIONS, LOST_STATES, EntryState
from ledger.watches import NewWatch, delete_watch, insert_watches
from tests.fakes.adapter import CHAIN_ID, COIN, LATE_TOKEN, TOKEN, FakeChain, address, payment
from tests.fixtures.postgres import new_database
from tests.integration.indexer.conftest import NOW, Ledger, make_ledger

EXAMPLES = int(os.environ.get("CHAINBELL_MODEL_EXAMPLES", "12"))
STEPS = int(os.environ.get("CHAINBELL_MODEL_STEPS", "30"))

TENANTS = ("ten_a", "ten_b")
PLACES = [address(number) for number in range(1, 5)]
"""Addresses that may be watched; others pay them and are paid by them."""
STEPS_OF_COMMIT = (
    "lock_chain", "orphan_blocks", "match_watches", "insert_spent_nonces", "write_entries", "record_events",
    "insert_blocks", "move_checkpoint",
)  # fmt: skip
"""Effects of one commit, in their order: a process may be killed before or after each of them."""

SENDERS = [*PLACES, address(77), address(78)]

STEPS_OF_COMPRESSION = ("lock_chain", "find_uncompressed", "extend_coverage", "delete_compressed")

Key = tuple[TenantId, Side, TransferId]
T = TypeVar("T")


def is_next(movement: Movement, spent: Mapping[Address, int]) -> bool:
    """True when its transaction may be included: its sender's nonces have come that far, and no further."""
    return movement.transaction is not None and movement.transaction.nonce == spent[movement.transaction.sender]


class Killed(BaseException):
    """The process ended here."""


@contextmanager
def killing(module: ModuleType, step: str, *, is_before: bool, times: int = 1) -> Iterator[None]:
    """Where the block comes to `step` of the module for so many times, the process ends before it or after it."""
    real, calls = getattr(module, step), 0

    async def _killed(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - stands in for any of them
        nonlocal calls
        calls += 1
        if is_before and calls == times:
            raise Killed
        result = await real(*arguments, **named)
        if calls == times:
            raise Killed
        return result

    setattr(module, step, _killed)
    try:
        yield
    except Killed:
        note(f"killed at {step}")
    finally:
        setattr(module, step, real)


class Machine(RuleBasedStateMachine):
    """One ledger, one chain, what happens to them, and the oracle."""

    def __init__(self, open_database: Callable[[], AbstractContextManager[str]]) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.open_database = open_database
        self.runner = self.stack.enter_context(asyncio.Runner())
        self.chain = FakeChain()
        self.chain.mine()
        self.chain.unlisted = {LATE_TOKEN.id}
        self.ledger = self.run(make_ledger(self.stack.enter_context(open_database()), self.chain, credit_at="2"))
        self.transactions = 0
        self.credit_at = 2
        self.lost: list[list[Movement]] = []
        self.known_blocks: dict[BlockHash, Block] = {}
        self.live: dict[tuple[str, bytes], tuple[str, int]] = {}
        self.seen: set[BlockHash] = set()
        self.owed: set[Key] = set()
        for place in PLACES[:2]:
            self.watch_from_the_beginning(place)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run something asynchronous to its end."""
        return self.runner.run(work)

    def watch_from_the_beginning(self, place: bytes) -> None:
        """A watch that is never deleted: its entries have to be all there are."""
        watch_id = self.run(self.ledger.watch(place, "ten_a", covered_from=0))
        self.live["ten_a", place] = (watch_id, 0)

    # --- what happens to the chain ------------------------------------------------------------------------------------

    def movements(self, random: Random) -> list[Movement]:
        """What a new block carries: new transactions, and ones that lost their block. Each spends its sender's next nonce,
        so that a new one may take a lost one's place."""
        made = []
        spent = Counter(spend.sender for block in self.chain.blocks for spend in unpack_spends(block.spends, SENDERS))
        for _ in range(random.choice([0, 0, 1, 1, 2, 3])):
            waiting = [number for number, lost in enumerate(self.lost) if is_next(lost[0], spent)]
            if waiting and random.random() < 0.6:
                made += self.again(self.lost.pop(random.choice(waiting)), random)
            else:
                made += self.new_transaction(random, spent)
            carrier = made[-1].transaction
            assert carrier is not None
            spent[carrier.sender] += 1
        return made

    def new_transaction(self, random: Random, spent: Mapping[Address, int]) -> list[Movement]:
        """One that nobody has seen, which moves something once or twice."""
        self.transactions += 1
        sender, recipient = random.sample(SENDERS, 2)
        asset, amount = random.choice([COIN, TOKEN, LATE_TOKEN]), random.choice([1, 1, 5, 1000])
        name, nonce = f"t{self.transactions}", spent[sender]
        return [payment(name, recipient, amount, sender=sender, asset=asset, nonce=nonce)] * random.choice([1, 1, 1, 2])

    def again(self, lost: list[Movement], random: Random) -> list[Movement]:
        """A transaction that lost its block comes again, whole; or it fails this time, or no more."""
        has_failed = lost[0].has_failed ^ (random.random() < 0.2)
        if has_failed or lost[0].has_failed:
            return [replace(lost[0], asset_id=COIN.id, has_failed=has_failed)]
        return lost

    @rule(random=st.randoms(use_true_random=False), count=st.integers(1, 3))
    def blocks_are_mined(self, random: Random, count: int) -> None:
        """The chain grows."""
        for _ in range(count):
            self.chain.mine(*self.movements(random), salt=str(random.random()))

    @rule(random=st.randoms(use_true_random=False), depth=st.integers(1, 12), longer=st.integers(-1, 3))
    def the_chain_is_reorganised(self, random: Random, depth: int, longer: int) -> None:
        """Another branch, perhaps shorter for now; what was in the old one may come again."""
        floor = max(0, self.chain.finalized or 0)
        ancestor = max(floor, len(self.chain.blocks) - 1 - depth)
        gone = self.chain.blocks[ancestor + 1 :]
        for block in gone:
            self.known_blocks[block.ref.hash] = block
            carried: dict[Any, list[Movement]] = defaultdict(list)
            for t in block.transfers:
                carried[t.transaction].append(
                    Movement(t.asset_id, t.sender, t.recipient, t.amount_atomic, t.locator, t.transaction, t.has_failed)
                )
            self.lost += carried.values()
        self.chain.drop_to(ancestor)
        for _ in range(max(0, len(gone) + longer)):
            self.chain.mine(*self.movements(random), salt=str(random.random()))
        self.chain.safe = min(self.chain.safe, ancestor) if self.chain.safe is not None else None

    @rule(back=st.integers(0, 6))
    def tags_move(self, back: int) -> None:
        """The node calls more of its chain safe and final; tags may fall behind too."""
        head = len(self.chain.blocks) - 1
        self.chain.safe = max(0, head - back)
        self.chain.finalized = max(self.chain.finalized or 0, head - 4 - back) if head > 4 + back else None

    @rule()
    def the_node_goes_away(self) -> None:
        """Or comes back."""
        self.chain.is_down = not self.chain.is_down

    # --- what happens to the follower ---------------------------------------------------------------------------------

    @rule(cycles=st.integers(1, 3))
    def the_follower_works(self, cycles: int) -> None:
        """Some cycles; the oracle looks at the ledger's chain after each."""
        for _ in range(cycles):
            outcome = self.run(self.ledger.converge())
            note(repr(outcome))
            assert not isinstance(outcome, Halted), outcome
            self.look()

    @rule(step=st.sampled_from(STEPS_OF_COMMIT), is_before=st.booleans(), times=st.integers(1, 3))
    def the_follower_is_killed(self, step: str, is_before: bool, times: int) -> None:
        """In the middle of a commit, if it comes to one; then a new process starts."""
        with killing(indexer.commit, step, is_before=is_before, times=times):
            self.run(self.ledger.converge())
        self.ledger.restart()
        self.look()

    @rule(kept=st.integers(1, 4), step=st.sampled_from(("", *STEPS_OF_COMPRESSION)), is_before=st.booleans())
    def old_rows_are_compressed(self, kept: int, step: str, is_before: bool) -> None:
        """As soon as they are final, and the process may be killed over it: what is in our chain stays the same."""
        compression = Compression(self.ledger.engine, CHAIN_ID, self.ledger.follower.course.slug, kept)
        before = self.canonical()
        with killing(indexer.coverage, step, is_before=is_before) if step else nullcontext():
            self.run(compression.step())
        assert self.canonical() == before

    @rule()
    def two_followers_work_at_once(self) -> None:
        """Leadership is for economy: a second one wastes work, and nothing else."""
        second = Follower(self.ledger.engine, self.chain, self.ledger.follower.followed, self.ledger.follower.course)

        async def _both() -> Sequence[Outcome]:
            return await asyncio.gather(self.ledger.converge(), second.converge())

        for outcome in self.run(_both()):
            note(repr(outcome))
            assert not isinstance(outcome, Halted), outcome
        self.look()

    @rule()
    def the_follower_starts_again(self) -> None:
        """Nothing that it knew in memory is left."""
        self.ledger.restart()

    # --- what tenants and operators do --------------------------------------------------------------------------------

    @rule(tenant=st.sampled_from(TENANTS), place=st.sampled_from(PLACES))
    def an_address_is_watched(self, tenant: str, place: bytes) -> None:
        """Or was already."""
        row = self.run(self._insert_watch(tenant, place))
        self.live.setdefault((tenant, place), row)

    async def _insert_watch(self, tenant: str, place: bytes) -> tuple[str, int]:
        async with transaction(self.ledger.engine) as connection:
            asked = [NewWatch(CHAIN_ID, place, None, {}, None)]
            (made,), _ = await insert_watches(connection, TenantId(tenant), asked, NOW)
        return made.row.id, made.row.covered_from.get(CHAIN_ID, 0)

    @precondition(lambda self: any(key not in self.eternal for key in self.live))
    @rule(random=st.randoms(use_true_random=False))
    def a_watch_is_deleted(self, random: Random) -> None:
        """What it found stays."""
        tenant, place = random.choice(sorted(key for key in self.live if key not in self.eternal))
        watch_id, _ = self.live.pop((tenant, place))
        assert self.run(self._delete_watch(tenant, watch_id))

    async def _delete_watch(self, tenant: str, watch_id: str) -> bool:
        async with transaction(self.ledger.engine) as connection:
            return await delete_watch(connection, TenantId(tenant), WatchId(watch_id), NOW)

    @property
    def eternal(self) -> set[tuple[str, bytes]]:
        """Watches that are never deleted."""
        return {("ten_a", place) for place in PLACES[:2]}

    @rule(credit_at=st.integers(1, 4))
    def the_policy_changes(self, credit_at: int) -> None:
        """For what comes; a promise that was made stays."""
        rules = (CreditRule("default", str(credit_at)),)
        version = self.run(self._register(rules))
        followed = self.ledger.follower.followed
        self.ledger.follower.followed = replace(followed, policy=Policy(followed.policy.slug, version, rules))

    @precondition(lambda self: self.chain.unlisted)
    @rule()
    def an_asset_is_listed(self) -> None:
        """Its movements are read from then on; those before are a gap of its own."""
        self.run(self._register(self.ledger.follower.followed.policy.rules))
        self.chain.unlisted = set()

    async def _register(self, rules: tuple[CreditRule, ...]) -> int:
        followed = self.ledger.follower.followed
        async with transaction(self.ledger.engine) as connection:
            return await register_chain(
                connection,
                ChainConfiguration(
                    CHAIN_ID, followed.policy.slug, "anvil", False, COIN.id, "roots", 1, ("native",),
                    (COIN, TOKEN, LATE_TOKEN), rules_as_json(rules),
                ),
                NOW,
            )  # fmt: skip

    # --- the oracle ---------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Which blocks are in our chain now; what a live watch covers in a block that was not is owed from now on."""
        for block in self.canonical():
            if block.ref.hash in self.seen:
                continue
            for transfer in block.transfers:
                for side, place in sides_of(transfer) if transfer.asset_id not in self.chain.unlisted else ():
                    for tenant in TENANTS:
                        watch = self.live.get((tenant, place))
                        if watch is not None and watch[1] <= block.ref.height:
                            self.owed.add((TenantId(tenant), side, transfer.id))
        self.seen = {block.ref.hash for block in self.canonical()}

    def canonical(self) -> list[Block]:
        """The blocks of our chain, as the test made them."""
        for block in self.chain.blocks:
            self.known_blocks[block.ref.hash] = block
        return [self.known_blocks[block_hash] for block_hash in self.run(self._canonical_hashes())]

    async def _canonical_hashes(self) -> list[BlockHash]:
        """By the ranges, whose blocks are found by their parents' hashes, and above them by the rows."""
        async with transaction(self.ledger.engine) as connection:
            ranges = (await connection.execute(select(coverage).where(coverage.c.state == "canonical"))).all()
            statement = select(blocks.c.height, blocks.c.hash).where(blocks.c.state == "canonical")
            rows = {row.height: row.hash for row in await connection.execute(statement.order_by(blocks.c.height))}
        told: list[BlockHash] = []
        for one in sorted(ranges, key=lambda one: one.to_height):
            assert one.from_height == len(told)
            refs = [self.known_blocks[one.hash].ref]
            while refs[-1].height > one.from_height:
                refs.append(self.known_blocks[refs[-1].parent_hash].ref)
            assert refs[-1].parent_hash == one.parent_hash
            told += [ref.hash for ref in reversed(refs)]
        assert all(told[height] == block_hash for height, block_hash in rows.items() if height < len(told))
        above = [height for height in rows if height >= len(told)]
        assert above == list(range(len(told), len(told) + len(above)))
        return told + [rows[height] for height in above]

    async def _entries(self) -> list[Entry]:
        async with transaction(self.ledger.engine) as connection:
            return [entry_from(row) for row in await connection.execute(select(entries))]

    @invariant()
    def the_ledger_is_the_chain(self) -> None:
        """Every entry that is owed is there, in its block or lost, and no other."""
        found = self.run(self._entries())
        assert {(e.tenant_id, e.side, e.transfer_id) for e in found} <= self.owed
        included = {t.id: (t, block) for block in self.canonical() for t in block.transfers}
        standing = {(e.tenant_id, e.side, e.transfer_id): e for e in found}
        for key in self.owed:
            _, side, transfer_id = key
            transfer, block = included.get(transfer_id, (None, None))
            entry = standing.get(key)
            if transfer is None or block is None or (transfer.has_failed and side is Side.DEPOSIT):
                assert entry is None or entry.state in self.hopes_of(entry), entry
            else:
                assert entry is not None, f"missed: {key} in block {block.ref.height}"
                assert entry.block_hash == block.ref.hash
                assert (entry.state is EntryState.FAILED) == transfer.has_failed
                self.check_credit(entry)

    def hopes_of(self, entry: Entry) -> tuple[EntryState, ...]:
        """What an entry may be that is in no block: waiting, or given up once a final block has its nonce otherwise."""
        finalized = self.run(self.ledger.row()).finalized_height
        final = [block for block in self.canonical() if finalized is not None and block.ref.height <= finalized]
        assert entry.transaction_sender is not None and entry.transaction_nonce is not None
        spends = [
            spend
            for block in final
            for spend in unpack_spends(block.spends, [entry.transaction_sender])
            if spend.nonce == entry.transaction_nonce
        ]
        if not spends:
            return LOST_STATES
        other = spends[0].transaction_hash if spends[0].transaction_hash != entry.transaction_hash else None
        assert entry.replaced_by == other, entry
        is_own = entry.side is Side.WITHDRAWAL and entry.address == entry.transaction_sender
        return (EntryState.REPLACED if is_own and other is not None else EntryState.DROPPED,)

    def check_credit(self, entry: Entry) -> None:
        """What has its confirmations is credited."""
        tip = self.run(self.ledger.row()).tip_height or 0
        is_due = entry.confirm_height is not None and entry.confirm_height <= tip
        if is_due and entry.state is not EntryState.FAILED:
            assert entry.state in CREDITED_STATES, f"{entry.id} has {entry.confirm_height} <= {tip}"

    @invariant()
    def every_story_follows_the_map(self) -> None:
        """No hole in a sequence, every step on the map; a receiver that keeps the newest holds what the ledger does."""
        found = {str(entry.id): entry for entry in self.run(self._entries())}
        for tenant in TENANTS:
            held: dict[str, dict[str, Any]] = {}
            for body in self.run(self.ledger.bodies(tenant)):
                if body["sequence"] is not None:
                    self.check_step(held.get(body["data"]["id"]), body)
                    held[body["data"]["id"]] = body
            for entry_id, body in held.items():
                assert body["data"]["state"] == found[entry_id].state
                assert body["sequence"] == found[entry_id].sequence
            assert {e.id for e in found.values() if e.tenant_id == tenant} == held.keys()

    @rule(random=st.randoms(use_true_random=False))
    def a_receiver_counts_its_credits(self, random: Random) -> None:
        """At any time."""
        self.credits_are_counted(random)

    def credits_are_counted(self, random: Random) -> None:
        """Events come in any order, some twice; of each entry the receiver believes the highest sequence, and credits what
        is confirmed or finalized there, and nothing else."""
        for tenant in TENANTS:
            bodies = [body for body in self.run(self.ledger.bodies(tenant)) if body["sequence"] is not None]
            newest: dict[str, dict[str, Any]] = {}
            for body in random.sample(bodies * 2, len(bodies) * 2):
                if body["sequence"] >= newest.get(body["data"]["id"], body)["sequence"]:
                    newest[body["data"]["id"]] = body
            credited = {
                entry_id
                for entry_id, body in newest.items()
                if body["data"]["state"] in ("confirmed", "finalized") and body["data"]["disposition"] == "credit"
            }
            standing = [e for e in self.run(self._entries()) if e.tenant_id == tenant and e.state in CREDITED_STATES]
            assert credited == {str(entry.id) for entry in standing}

    def check_step(self, before: dict[str, Any] | None, body: dict[str, Any]) -> None:
        """One event follows the one before it."""
        state = body["data"]["state"]
        if before is None:
            assert (body["sequence"], body["previous_state"]) == (1, None)
            return
        assert body["sequence"] == before["sequence"] + 1
        assert body["previous_state"] == before["data"]["state"]
        is_moved = body["type"].endswith(".moved")
        allowed = ENTRY_TRANSITIONS[EntryState(before["data"]["state"])]
        assert state == before["data"]["state"] if is_moved else EntryState(state) in allowed

    # --- the end ------------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        """The node is back and grows past us; then a fresh ledger reads the final chain and finds the same."""
        try:
            self.settle()
            self.compare_with_a_fresh_index()
        finally:
            self.run(self.ledger.engine.dispose())
            self.stack.close()

    def settle(self) -> None:
        """Come to the head."""
        self.chain.is_down = False
        tip = self.run(self.ledger.row()).tip_height or 0
        self.chain.mine(count=max(1, tip + 5 - len(self.chain.blocks)))
        for _ in range(20):
            outcome = self.run(self.ledger.converge())
            self.look()
            if isinstance(outcome, Nothing) and outcome.reason is None:
                break
        assert self.run(self.ledger.row()).tip_height == len(self.chain.blocks) - 1, outcome
        self.the_ledger_is_the_chain()
        self.every_story_follows_the_map()
        self.credits_are_counted(Random(1))

    def compare_with_a_fresh_index(self) -> None:
        """The watches that were there from the beginning have exactly the entries that a fresh ledger finds."""
        with self.open_database() as url:
            assets = (COIN, TOKEN, LATE_TOKEN)
            fresh = self.run(make_ledger(url, self.chain, credit_at="2", assets=assets))
            for place in PLACES[:2]:
                self.run(fresh.watch(place, "ten_a", covered_from=0))
            while not isinstance(self.run(fresh.converge()), Nothing):
                pass
            theirs = self.run(self._standing(fresh))
            self.run(fresh.engine.dispose())
        late = {t.id for block in self.chain.blocks for t in block.transfers if t.asset_id == LATE_TOKEN.id}
        missed = late - {transfer_id for _, _, transfer_id in self.owed}
        assert self.run(self._standing(self.ledger)) == {row for row in theirs if row[1] not in missed}

    async def _standing(self, ledger: Ledger) -> set[tuple[Any, ...]]:
        """Tenant, side, transfer, block and amount of what is in the chain and concerns the eternal watches."""
        statement = select(entries).where(
            entries.c.tenant_id == "ten_a", entries.c.address.in_(PLACES[:2]), entries.c.block_hash.is_not(None)
        )
        async with transaction(ledger.engine) as connection:
            rows = [entry_from(row) for row in await connection.execute(statement)]
        return {(e.side, e.transfer_id, e.block_hash, e.amount_atomic, e.state is EntryState.FAILED) for e in rows}


def test_the_ledger_is_what_a_fresh_reading_gives(
    postgres_url: str, postgres_admin: Engine, migrated_template: str
) -> None:
    def _open() -> AbstractContextManager[str]:
        return new_database(postgres_url, postgres_admin, migrated_template)

    run_state_machine_as_test(
        lambda: Machine(_open),  # type: ignore[arg-type]  # a factory serves as well as the class
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
