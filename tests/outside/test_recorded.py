"""Recorded blocks of every chain go the whole way: a node, the follower, Postgres, REST. Each is the first block of a chain
of its own, since they do not follow one another."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from chains.model import hex_of
from chains.profile import load_profile
from tests.fakes.node import RecordedNode, drop_one_log, empty_list
from tests.outside.installation import Installation, Tenant, installed
from tests.unit.chains.evm.recorded import (
    DATA,
    ELSEWHERE,
    WITH_EXPECTED_TRANSFERS,
    WITH_RECEIPTS,
    internal_moves,
    read_json,
    recorded,
    recorded_traces,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

TRANSFER_TOPIC = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"
PROFILES = {
    "ethereum-mainnet": "ethereum",
    "arbitrum-mainnet": "arbitrum",
    "base-mainnet": "base",
    "optimism-mainnet": "optimism",
    "polygon-mainnet": "polygon",
}
"""The recorded chains, and the profile by which each is followed."""
ETHEREUM = [("ethereum-mainnet", height) for height in WITH_RECEIPTS]
PLACES = ETHEREUM + ELSEWHERE

Place = tuple[str, int]
"""A recorded chain, and a height of it."""
Movement = tuple[str, int, str, str, str, str]
"""Transaction hash, log index in the block, contract, from, to, amount."""


InternalMovement = tuple[str, str, str, str]
"""Transaction hash, from, to, amount."""


def internal_movements_of(place: Place) -> list[InternalMovement]:
    """What contracts sent on in a block, by its recorded traces; nothing where none were recorded."""
    hashes = [row["hash"] for row in recorded(place[1], place[0]).block["transactions"]]
    traces = recorded_traces(place[1], place[0]) or [{}] * len(hashes)
    return sorted(
        (transaction_hash, sender, recipient, str(amount))
        for transaction_hash, row in zip(hashes, traces, strict=True)
        for sender, recipient, amount in (internal_moves(row.get("result", row)) if row else ())
    )


def slug_of(place: Place) -> str:
    """The chain of its own that a recorded block begins."""
    return f"{PROFILES[place[0]]}-{place[1]}"


def movements_in_file(place: Place) -> list[Movement]:
    """The ERC-20 movements that another indexer found in the block, but for those of zero, which are no entries."""
    rows = read_json(DATA / "evm" / place[0] / str(place[1]) / "expected_token_transfers.json.gz")
    return sorted(
        (
            row["transactionHash"], int(row.get("logIndex", 0)), row["tokenAddress"], row["erc20"]["fromAddress"],
            row["erc20"]["toAddress"], row["erc20"]["value"],
        )
        for row in rows
        if "erc20" in row and row["erc20"].get("value", "0") != "0"
    )  # fmt: skip


def movements_in_logs(place: Place) -> list[Movement]:
    """The ERC-20 movements by the rule of EIP-20 alone, read from the recorded receipts."""
    logs = [log for receipt in recorded(place[1], place[0]).receipts for log in receipt["logs"]]
    return sorted(
        (
            log["transactionHash"], int(log["logIndex"], 16), log["address"].lower(), "0x" + log["topics"][1][26:],
            "0x" + log["topics"][2][26:], str(int(log["data"], 16)),
        )
        for log in logs
        if len(log["topics"]) == 3 and log["topics"][0] == TRANSFER_TOPIC and len(log["data"]) == 66
        and int(log["data"], 16) > 0
    )  # fmt: skip


def is_told_in_file(place: Place) -> bool:
    """True where another indexer's output was recorded beside the block."""
    return (DATA / "evm" / place[0] / str(place[1]) / "expected_token_transfers.json.gz").exists()


def movements_of(place: Place) -> list[Movement]:
    """What has to be found in a block: not the native coin once more, under another name."""
    aliases = {hex_of(alias) for alias in load_profile(PROFILES[place[0]]).native_aliases}
    found = movements_in_file(place) if is_told_in_file(place) else movements_in_logs(place)
    return [movement for movement in found if movement[2] not in aliases]


def movement_of(entry: Any) -> Movement:  # noqa: ANN401 - JSON
    """What the API says of an ERC-20 entry."""
    return (
        entry["transaction"]["hash"], entry["locator"]["log_index"], entry["asset"]["contract"], entry["from"],
        entry["to"], entry["amount_atomic"],
    )  # fmt: skip


def sent_on(entry: Any) -> InternalMovement:  # noqa: ANN401 - JSON
    """What the API says of an entry that only a trace tells of."""
    return (entry["transaction"]["hash"], entry["from"], entry["to"], entry["amount_atomic"])


def chain_settings(slug: str, number: int, place: Place, nodes: Iterable[tuple[str, str]]) -> str:
    """A chain like the recorded one that begins at a recorded block, with every token of that block listed."""
    profile = load_profile(PROFILES[place[0]])
    listed = {hex_of(token.contract) for token in profile.tokens if token.contract}
    given = ", ".join(f'{{ name = "{name}", url = "{url}" }}' for name, url in nodes)
    text = f'\n[chains.{slug}]\nprofile = "{profile.slug}"\nchain_id = "eip155:{number}"\n'
    text += f"nodes = [ {given} ]\nstart = {place[1]}\n"
    for count, contract in enumerate(sorted({row[2] for row in movements_of(place)} - listed)):
        text += f'\n[[chains.{slug}.assets]]\ncontract = "{contract}"\nsymbol = "T{count}"\ndecimals = 18\n'
    return text


def recorded_node(place: Place, number: int) -> RecordedNode:
    answer = recorded(place[1], place[0])
    traces = recorded_traces(place[1], place[0])
    known = {place[1]: (answer.block, answer.receipts)}
    return RecordedNode(known, chain_id=number, traces={place[1]: traces} if traces else {})


async def watch_all(shop: Tenant, places: Iterable[tuple[str, Place]]) -> None:
    """Watch every address that occurs in the blocks' movements, in batches."""
    wanted = set()
    for slug, place in places:
        wanted |= {(slug, address) for row in movements_of(place) for address in row[3:5]}
        wanted |= {(slug, address) for row in internal_movements_of(place) for address in row[1:3]}
    rows = [{"chain": slug, "address": address} for slug, address in sorted(wanted)]
    for first in range(0, len(rows), 5_000):
        await shop.call("POST", "/v1/watches", {"watches": rows[first : first + 5_000]})


async def check_entries(shop: Tenant, slug: str, place: Place) -> None:
    """The entries of the chain are exactly the block's movements, on both sides: ERC-20 proven to the roots, and what
    contracts sent on by the one tracing node's word."""
    expected, internal = movements_of(place), internal_movements_of(place)
    for side in ("deposits", "withdrawals"):
        rows = await shop.rows(f"/v1/{side}", chain=slug)
        levels = {(row["locator"]["kind"] == "trace", row["proof"]["level"]) for row in rows}
        assert levels <= {(False, "roots"), (True, "trace")}
        assert sorted(sent_on(row) for row in rows if row["locator"]["kind"] == "trace") == internal, (slug, side)
        assert {row["block"]["height"] for row in rows} <= {place[1]}
        found = sorted(movement_of(row) for row in rows if row["asset"]["kind"] == "fungible")
        assert found == expected, (slug, side)


@dataclass
class World:
    """One chain for each recorded block, all followed by one process."""

    installation: Installation
    shop: Tenant


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(module_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        settings = ""
        for number, place in enumerate(PLACES, start=1):
            node = await stack.enter_async_context(recorded_node(place, number))
            settings += chain_settings(slug_of(place), number, place, [("node", node.url)])
        opened = installed(tmp_path_factory.mktemp("recorded"), module_database_url, settings)
        installation = await stack.enter_async_context(opened)
        await installation.start("serve")
        await installation.ready()
        shop = await installation.tenant("shop")
        await watch_all(shop, ((slug_of(place), place) for place in PLACES))
        await installation.start("follow")
        yield World(installation, shop)


@pytest.mark.parametrize("place", PLACES, ids=slug_of)
async def test_every_erc20_movement_of_a_recorded_block_is_an_entry_proven_to_the_roots(
    world: World, place: Place
) -> None:
    slug, height = slug_of(place), place[1]
    await world.shop.until_followed(slug, height)
    row = await world.shop.until_chain("it follows", slug, lambda row: row["state"] == "following")
    assert (row["tip"], row["proof"], row["reason"]) == (height, "roots", None)
    await check_entries(world.shop, slug, place)


async def test_the_blocks_hold_enough_to_mean_something() -> None:
    assert len(WITH_RECEIPTS) >= 15
    assert {chain for chain, _ in PLACES} == set(PROFILES)
    assert sum(len(movements_of(place)) for place in PLACES) > 1_000
    told = [place for place in PLACES if is_told_in_file(place)]
    assert len(told) >= len(WITH_EXPECTED_TRANSFERS) + 4
    assert sum(bool(internal_movements_of(place)) for place in PLACES) >= 5
    assert sum(len(internal_movements_of(place)) for place in PLACES) > 150
    assert all(movements_in_file(place) == movements_in_logs(place) for place in told)


# --- nodes that leave something out -----------------------------------------------------------------------------------

HEIGHT = 17_000_000
AT = ("ethereum-mainnet", HEIGHT)


async def metric(installation: Installation, name: str, **labels: str) -> float:
    """The value of one series at /metrics; 0 where there is none."""
    async with installation.session.get(installation.url + "/metrics") as response:
        lines = (await response.text()).splitlines()
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    found = [line for line in lines if line.startswith(name + "{") and all(word in line for word in wanted)]
    return sum(float(line.rpartition(" ")[2]) for line in found)


@dataclass
class Liar:
    """A chain whose first node leaves something out; perhaps it has another node, which does not."""

    slug: str
    nodes: Sequence[RecordedNode]

    @property
    def has_help(self) -> bool:
        """True when another node can answer."""
        return len(self.nodes) > 1


async def lying_chains(stack: AsyncExitStack) -> list[Liar]:
    """Two lies, each told by an only node and by one that has an honest node beside it. Nodes with help do not know the
    block yet: their chain would be through before anything is watched."""
    liars = []
    for number, (slug, lie) in enumerate((("omits", drop_one_log), ("empties", empty_list)) * 2, start=1):
        count = 1 if number <= 2 else 2
        nodes = [await stack.enter_async_context(recorded_node(AT, number)) for _ in range(count)]
        nodes[0].misbehave(lie, method="eth_getBlockReceipts")
        if count > 1:
            for node in nodes:
                node.head = HEIGHT - 1
        liars.append(Liar(slug if count == 1 else f"{slug}-helped", nodes))
    return liars


async def test_a_node_that_leaves_something_out_is_caught_and_named_and_nothing_is_lost(
    database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    async with AsyncExitStack() as stack:
        liars = await lying_chains(stack)
        settings = "".join(
            chain_settings(
                liar.slug, number, AT, zip(("liar", "honest"), [node.url for node in liar.nodes], strict=False)
            )
            for number, liar in enumerate(liars, start=1)
        )
        opened = installed(tmp_path_factory.mktemp("lying"), database_url, settings)
        installation = await stack.enter_async_context(opened)
        await installation.run()
        shop = await installation.tenant("shop")
        await check_that_they_hold(shop, [liar for liar in liars if not liar.has_help])
        await watch_all(shop, ((liar.slug, AT) for liar in liars))
        for liar in liars:
            if liar.has_help:  # else a slow machine could find it late, and ask the other before it has lied
                liar.nodes[0].head = HEIGHT
                await until_it_is_caught(installation, liar)
            liar.nodes[-1].behave()
            for node in liar.nodes:
                node.head = HEIGHT
        for liar in liars:
            await shop.until_followed(liar.slug, HEIGHT)
            await check_entries(shop, liar.slug, AT)
            row = await shop.until_chain("it follows", liar.slug, lambda row: row["state"] == "following")
            assert row["reason"] is None
            if liar.has_help:
                await shop.until_chain("its nodes are told apart", liar.slug, has_liar_and_honest_node)
            await check_that_it_is_named(installation, liar)
        await installation.stop("run")


async def check_that_they_hold(shop: Tenant, liars: Sequence[Liar]) -> None:
    """Nothing is committed; operators see why in the API and on the command line."""
    reasons = {}
    for liar in liars:
        row = await shop.until_chain("it holds", liar.slug, holds_unproven)
        assert row["tip"] is None
        assert "liar: " in row["reason"]
        assert [(node["name"], node["state"]) for node in row["nodes"]] == [("liar", "failing")]
        reasons[liar.slug] = row["reason"]

    async def is_said_so() -> bool:
        chains = {row["chain"]: row for row in (await shop.installation.command("status"))["chains"]}
        assert {chains[slug]["state"] for slug in reasons} == {"holding"}
        return {slug: chains[slug]["reason"] for slug in reasons} == reasons

    await shop.installation.until("the command says the same", is_said_so)


def holds_unproven(row: Any) -> bool:  # noqa: ANN401 - JSON
    """A chain's row once it holds for what its nodes answer, and not for their being slow."""
    return row["state"] == "holding" and "no node's answer can be proven" in row["reason"]


def has_liar_and_honest_node(row: Any) -> bool:  # noqa: ANN401 - JSON
    """A chain's row while the one node is seen to fail, and the other is not."""
    return [(node["name"], node["state"]) for node in row["nodes"]] == [("liar", "failing"), ("honest", "ok")]


async def until_it_is_caught(installation: Installation, liar: Liar) -> None:
    """Wait until a proof of this node was seen to fail."""

    async def is_caught() -> bool:
        return await metric(installation, "chainbell_proof_failures_total", chain=liar.slug, node="liar") >= 1

    await installation.until(f"{liar.slug}: the liar is caught", is_caught)


async def check_that_it_is_named(installation: Installation, liar: Liar) -> None:
    """The node is in the metrics and in the log; an honest one is not."""
    name = "chainbell_proof_failures_total"
    assert await metric(installation, name, chain=liar.slug, node="liar") >= 1
    assert await metric(installation, name, chain=liar.slug, node="honest") == 0
    assert f'"chain":"{liar.slug}","node":"liar","reason":' in installation.log_text()
