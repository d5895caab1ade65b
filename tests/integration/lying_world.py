"""A chain with traffic, nodes of which one lies, and a follower that has to come out right.

What is right is read from the real node itself, with nothing of ours: its blocks and receipts as JSON. Traffic, lies and
their order come from one seed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import groupby
from random import Random
from typing import Any

import rlp
from eth_account import Account
from sha3 import keccak_256
from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncEngine

from chainbell.demo.anvil import AnvilNode
from chainbell.demo.contracts import FORWARDER_CODE, TRANSFER_TOPIC, forward_call, transfer_call
from chainbell.demo.story import CUSTOMER
from chainbell.demo.story import send as sign_and_send
from chainbell.settings_model import NodeSettings
from chains.adapter import Internal
from chains.evm.adapter import EvmAdapter
from chains.profile import ChainProfile, add_tokens, load_profile, make_token
from indexer.commit import Followed
from indexer.follower import Course, Follower, Halted, Holding, Nothing, Outcome
from indexer.policy import CreditRule, Policy, rules_as_json
from ledger.chains import ChainConfiguration, find_chain, register_chain
from ledger.database import connect, transaction
from ledger.model import ChainRow
from ledger.schema import entries, events, tenants, watches
from tests.fakes.abandoned import record_branch
from tests.fakes.liar import Lie, LyingNode, lying_node
from tests.outside.payments import REVERTING_CODE, deploy, send, submit

CREDIT_AT = 3
REORG_DEPTH_MAX = CREDIT_AT - 1
"""Never as deep as the credit point: a credit that is taken back was given on a lie."""
PROFILE = "anvil"
CREATOR = 8
"""The account that creates contracts, and nothing else: where its first ones will be is watched before they are there."""

ACTS = (
    "pay", "crowd", "token", "forward", "withdraw", "withdraw token", "contract pays", "fail", "create", "mine", "reorg",
    "move",
)  # fmt: skip

Movement = tuple[str, str, str | None, str | None, int, str]
"""Side, asset, from, to, amount, block hash: what an entry says, and what the chain says."""


@dataclass
class World:
    """One scenario: its ledger, its nodes, its follower."""

    node: AnvilNode
    token: str
    engine: AsyncEngine
    profile: ChainProfile
    nodes: Sequence[NodeSettings]
    liars: Sequence[LyingNode]
    follower: Follower
    random: Random
    accounts: list[str]
    watched: list[str]
    paid: list[str]
    """Those of them that customers pay."""
    first_height: int
    reverting: str
    forwarder: str
    """Sends on what it is sent; it is watched itself."""
    forwarded: dict[str, tuple[str, int]] = field(default_factory=dict)
    """By transaction, whom the forwarder paid, and what."""
    outcomes: list[Outcome] = field(default_factory=list)

    async def converge(self) -> Outcome:
        """Let the follower do one cycle."""
        self.outcomes.append(await self.follower.converge())
        return self.outcomes[-1]

    async def act(self, kind: str) -> None:
        """One thing that happens on a chain."""
        customer, address = self.random.choice(self.accounts[2:6]), self.random.choice(self.paid)
        amount, hot_wallet = self.random.randint(1, 10**12), self.watched[0]
        match kind:
            case "pay":
                await send(self.node, customer, to=address, value=amount)
            case "crowd":
                await self._crowd(amount)
            case "token":
                await send(self.node, customer, to=self.token, data=transfer_call(address, amount))
            case "forward":
                await self._forward(customer, address, amount)
            case "withdraw":
                await send(self.node, hot_wallet, to=self.random.choice([customer, address]), value=amount)
            case "withdraw token":
                await send(self.node, hot_wallet, to=self.token, data=transfer_call(customer, amount))
            case "contract pays":
                await self._forward(customer, self.accounts[6], amount)
            case "fail":
                await send(self.node, hot_wallet, to=self.reverting, value=0)
            case "create":
                await deploy(self.node, self.accounts[CREATOR], "0x00", value=amount)
            case "mine":
                await self.node.mine(self.random.randint(1, 3))
            case "reorg":
                await self._reorg()
            case "move":
                await self._move(address, amount)

    async def _crowd(self, amount: int) -> None:
        """Several payments in one block, more than a liar's round number."""
        await self.node.rpc("evm_setAutomine", False)
        for customer in self.accounts[2:5]:
            await submit(self.node, customer, to=self.random.choice(self.paid), value=amount)
        await self.node.mine(1)
        await self.node.rpc("evm_setAutomine", True)

    async def _forward(self, customer: str, recipient: str, amount: int) -> None:
        receipt = await send(self.node, customer, to=self.forwarder, data=forward_call(recipient), value=amount)
        self.forwarded[receipt["transactionHash"]] = (recipient, amount)

    async def _reorg(self) -> None:
        """What the newest blocks carried is gone for good."""
        depth = min(self.random.randint(1, REORG_DEPTH_MAX), await self.node.height() - self.first_height)
        if depth > 0:
            await self._reorganise(depth)

    async def _move(self, address: str, amount: int) -> None:
        """A payment, which a reorg then takes to another block."""
        raw = await sign_and_send(self.node, Account.from_key(CUSTOMER), to=address, value=amount)
        above = self.random.randint(0, REORG_DEPTH_MAX - 1)
        if above:
            await self.node.mine(above)
        await self.cycles(self.random.randint(0, 3))
        await self._reorganise(above + 1, [(raw, self.random.randint(0, above))])

    async def _reorganise(self, depth: int, transactions: Sequence[tuple[str, int]] = ()) -> None:
        """Liars may go on to stand where the chain stood before."""
        abandoned = await record_branch(self.liars[0], depth)
        await self.node.reorg(depth, transactions)
        for liar in self.liars:
            liar.abandoned = abandoned

    async def cycles(self, count: int) -> None:
        """Let the follower do so many cycles."""
        for _ in range(count):
            await self.converge()

    async def traffic(self, steps: int) -> None:
        """Everything that can happen, once, and as much more by chance, with the follower at work in between."""
        kinds = [*ACTS, *self.random.choices(ACTS, k=max(0, steps - len(ACTS)))][:steps]
        self.random.shuffle(kinds)
        for kind in kinds:
            await self.act(kind)
            await self.cycles(self.random.randint(0, 2))

    async def settle(self, cycles: int = 60) -> None:
        """Nothing more happens but empty blocks; the follower gets so many cycles to come to the head and to finality."""
        await self.node.mine(12)
        for _ in range(cycles):
            outcome = await self.converge()
            row = await self.row()
            if (
                isinstance(outcome, Nothing)
                and row.tip_height == await self.node.height()
                and await self._is_final(row)
            ):
                return

    async def _is_final(self, row: ChainRow) -> bool:
        final = int((await self.node.rpc("eth_getBlockByNumber", "finalized", False))["number"], 16)
        return row.finalized_height is not None and row.finalized_height >= final

    async def row(self) -> ChainRow:
        """The chain's row."""
        async with transaction(self.engine) as connection:
            return await find_chain(connection, self.profile.chain_id)

    async def truth(self) -> list[Movement]:
        """What really happened to watched addresses, by the real node's blocks and receipts."""
        return await self._truth_up_to(await self.node.height())

    async def truth_up_to_our_tip(self) -> list[Movement]:
        """What really happened in the blocks that the follower took. It must not have taken the branch's last word from
        a node that was behind: then there is nothing to compare with, and nothing is."""
        row = await self.row()
        tip = await self.node.rpc("eth_getBlockByNumber", hex(row.tip_height or 0), False)
        is_ours = tip is not None and row.tip_hash is not None and tip["hash"] == "0x" + row.tip_hash.hex()
        return await self._truth_up_to(row.tip_height or 0) if is_ours else await self.told()

    async def _truth_up_to(self, height_max: int) -> list[Movement]:
        found: list[Movement] = []
        for height in range(self.first_height + 1, height_max + 1):
            block = await self.node.rpc("eth_getBlockByNumber", hex(height), True)
            receipts = await self.node.rpc("eth_getBlockReceipts", hex(height))
            for row, receipt in zip(block["transactions"], receipts, strict=True):
                found += self._of_transaction(row, receipt)
        return sorted(found, key=repr)

    def _of_transaction(self, row: dict[str, Any], receipt: dict[str, Any]) -> list[Movement]:
        coin, block_hash, value = str(self.profile.native.id), row["blockHash"], int(row["value"], 16)
        to = row["to"] or receipt["contractAddress"].lower()
        if receipt["status"] == "0x0":
            return self._sides(coin, row["from"], to, value, block_hash, has_failed=True)
        found = self._sides(coin, row["from"], to, value, block_hash) if value else []
        if row["hash"] in self.forwarded:
            found += self._sides(coin, self.forwarder, *self.forwarded[row["hash"]], block_hash)
        for log in receipt["logs"]:
            if log["address"] == self.token and log["topics"][0] == "0x" + TRANSFER_TOPIC:
                sender, recipient = ("0x" + topic[-40:] for topic in log["topics"][1:])
                asset = f"{self.profile.chain_id}/erc20:{self.token}"
                found += self._sides(asset, sender, recipient, int(log["data"], 16), block_hash)
        return found

    def _sides(
        self, asset: str, sender: str, to: str, amount: int, block_hash: str, *, has_failed: bool = False
    ) -> list[Movement]:
        sides: list[Movement] = []
        if to in self.watched and not has_failed:
            sides.append(("deposit", asset, sender, to, amount, block_hash))
        if sender in self.watched:
            sides.append(("failed" if has_failed else "withdrawal", asset, sender, to, amount, block_hash))
        return sides

    async def told(self) -> list[Movement]:
        """What the ledger holds to be in the chain."""
        async with transaction(self.engine) as connection:
            rows = (await connection.execute(select(entries).where(entries.c.block_hash.is_not(None)))).all()
        return sorted(
            (
                (
                    "failed" if row.state == "failed" else row.side,
                    row.asset_id,
                    _hex(row.sender),
                    _hex(row.recipient),
                    int(row.amount_atomic),
                    "0x" + row.block_hash.hex(),
                )
                for row in rows
            ),
            key=repr,
        )

    async def states(self) -> dict[str, list[str]]:
        """Each entry's events in sequence; their numbers must have no hole."""
        async with transaction(self.engine) as connection:
            rows = (
                await connection.execute(
                    select(events.c.subject, events.c.type, events.c.sequence).order_by(events.c.feed_position)
                )
            ).all()
        stories: dict[str, list[str]] = {}
        for row in rows:
            if row.sequence is not None:
                story = stories.setdefault(row.subject, [])
                story.append(row.type.partition(".")[2])
                assert row.sequence == len(story), f"{row.subject}: event {row.sequence} after {story}"
        return stories

    async def restart(self) -> None:
        """A new process: nothing that was learnt of the nodes is left."""
        await self.follower.adapter.close()
        self.follower = Follower(
            self.engine, make_adapter(self.profile, self.nodes), self.follower.followed, self.follower.course
        )

    @property
    def longest_wait(self) -> int:
        """The longest run of cycles in which the follower could use nobody's answer, or waited for a node to come up."""
        waits = [
            isinstance(one, Holding | Halted) or (isinstance(one, Nothing) and one.reason) for one in self.outcomes
        ]
        return max((len(list(run)) for is_wait, run in groupby(waits, bool) if is_wait), default=0)

    def last_reason(self) -> str | None:
        """Why the follower did not go on, if it did not."""
        held = [outcome for outcome in self.outcomes if isinstance(outcome, Holding | Halted)]
        return held[-1].reason if held else None


def created_address(creator: str, nonce: int) -> str:
    """Where a contract will be that an account creates with a nonce (Yellow Paper, section 7)."""
    digest: bytes = keccak_256(rlp.encode([bytes.fromhex(creator[2:]), nonce])).digest()
    return "0x" + digest[-20:].hex()


def _hex(value: bytes | None) -> str | None:
    return None if value is None else "0x" + value.hex()


@asynccontextmanager
async def lying_world(
    node: AnvilNode, database_url: str, liars: Sequence[Sequence[Lie]], seed: int, *, honest: int
) -> AsyncIterator[World]:
    """A fresh ledger over a running chain: liars are asked first, then as many honest nodes, each on a host of its own."""
    random, tracing = Random(seed), asyncio.Lock()
    async with AsyncExitStack() as stack:
        proxies = [
            await stack.enter_async_context(
                lying_node(node.url, host=f"127.0.0.{n}", lies=lies, seed=seed + n, tracing=tracing)
            )
            for n, lies in enumerate((*liars, *[()] * honest), start=1)
        ]
        accounts = [account.lower() for account in await node.rpc("eth_accounts")]
        token = await deploy(node, accounts[1])
        reverting = await deploy(node, accounts[1], REVERTING_CODE)
        forwarder = await deploy(node, accounts[1], FORWARDER_CODE)
        paid = [f"0x{random.getrandbits(160):040x}" for _ in range(5)]
        watched = [accounts[9], forwarder, *(created_address(accounts[CREATOR], nonce) for nonce in range(3)), *paid]
        profile = add_tokens(load_profile(PROFILE), (make_token(load_profile(PROFILE).chain_id, token, "TST", 6),))
        engine = connect(database_url, application="test", pool_size=5)
        stack.push_async_callback(engine.dispose)
        first_height = await node.height()
        nodes = [NodeSettings(url=each.url) for each in proxies]
        followed = await _registered(engine, profile, quorum=min(2, len(nodes)), watched=watched)
        course = Course(profile.slug, first_height, profile.has_finality_tags)
        follower = Follower(engine, make_adapter(profile, nodes), followed, course)
        world = World(
            node, token, engine, profile, nodes, proxies[: len(liars)], follower, random, accounts, watched, paid,
            first_height, reverting, forwarder,
        )  # fmt: skip
        try:
            yield world
        finally:
            await world.follower.adapter.close()


def make_adapter(profile: ChainProfile, nodes: Sequence[NodeSettings]) -> EvmAdapter:
    """The adapter of one process."""
    return EvmAdapter(profile, nodes, internal=Internal.AUTO, quorum=min(2, len(nodes)))


async def _registered(engine: AsyncEngine, profile: ChainProfile, *, quorum: int, watched: Sequence[str]) -> Followed:
    now, rules = datetime.now(UTC), (CreditRule("default", str(CREDIT_AT)),)
    configuration = ChainConfiguration(
        profile.chain_id, profile.slug, PROFILE, False, profile.native.id, profile.proof.value, quorum,
        ("native", "logs"), profile.assets, rules_as_json(rules),
    )  # fmt: skip
    async with transaction(engine) as connection:
        version = await register_chain(connection, configuration, now)
        await connection.execute(insert(tenants).values(id="ten_a", name="a", created_at=now))
        rows = [
            {
                "tenant_id": "ten_a", "id": f"wat_{n}", "scope": profile.chain_id, "address": bytes.fromhex(address[2:]),
                "metadata": {}, "covered_from": {}, "created_at": now,
            }
            for n, address in enumerate(watched)
        ]  # fmt: skip
        await connection.execute(insert(watches), rows)
    policy = Policy(profile.slug, version, rules)
    return Followed(profile.chain_id, policy, timedelta(days=36500), profile.finality_depth)
