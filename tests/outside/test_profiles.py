"""Every shipped profile that a local node can play, as it is shipped: the coin and each stablecoin, from a node to REST.

A local node has no blocks of another dialect than Ethereum's, but it can have another chain's id, and its tokens where that
chain has them. (Avalanche is left out: its headers have fields that no local node gives.)
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio

from chainbell.demo.anvil import AnvilNode, anvil
from chains.model import hex_of
from chains.profile import load_profile, profile_names
from tests.outside.installation import Tenant, installed
from tests.outside.odd_tokens import ANYBODY, call_with
from tests.outside.payments import new_address, send

pytestmark = pytest.mark.asyncio(loop_scope="module")

PLAYED = sorted(set(profile_names()) - {"anvil", "avalanche", "sepolia"})
BLOCKS = 60
"""Mined on top of what is sent: more than any profile's count of confirmations."""

FINAL_BELOW_HEAD = 2
"""Blocks from Anvil's head down to what it calls final, with one slot in an epoch."""

World = tuple[dict[str, AnvilNode], Tenant]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(module_empty_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    directory: Path = tmp_path_factory.mktemp("profiles")
    async with AsyncExitStack() as stack:
        nodes: dict[str, AnvilNode] = {}
        for name in PLAYED:
            options = ["--chain-id", load_profile(name).chain_id.partition(":")[2], "--slots-in-an-epoch", "1"]
            nodes[name] = await stack.enter_async_context(anvil(extra_args=options))
        settings = "".join(
            f'\n[chains.{name}]\nnodes = [ {{ url = "{node.url}" }} ]\nstart = 0\npoll_interval_s = 0.2\n'
            for name, node in nodes.items()
        )
        installation = await stack.enter_async_context(installed(directory, module_empty_database_url, settings))
        await installation.run()
        yield nodes, await installation.tenant("shop")


@pytest.mark.parametrize("name", PLAYED)
async def test_a_profile_as_shipped_tells_its_coin_and_its_stablecoins(world: World, name: str) -> None:
    nodes, shop = world
    node, profile, address = nodes[name], load_profile(name), new_address()
    (sender, *_) = await node.rpc("eth_accounts")
    await shop.watch(name, address)
    await send(node, sender, to=address, value=5)
    for number, token in enumerate(profile.tokens):
        assert token.contract is not None
        await node.rpc("anvil_setCode", hex_of(token.contract), "0x" + ANYBODY)
        await send(node, sender, to=hex_of(token.contract), data=call_with(sender, address, 10 + number))
    for alias in map(hex_of, profile.native_aliases):
        await node.rpc("anvil_setCode", alias, "0x" + ANYBODY)
        await send(node, sender, to=alias, data=call_with(sender, address, 99))
    head = await node.mine(BLOCKS)
    await shop.until_final(name, head - FINAL_BELOW_HEAD)
    entries = await shop.rows("/v1/deposits", address=address)
    expected = {profile.native.id: "5"} | {token.id: str(10 + n) for n, token in enumerate(profile.tokens)}
    assert {entry["asset"]["id"]: entry["amount_atomic"] for entry in entries} == expected
    assert len(entries) == len(expected)
    assert {(e["chain_id"], e["state"], e["disposition"]) for e in entries} == {
        (profile.chain_id, "finalized", "credit")
    }
    assert {entry["livemode"] for entry in entries} == {profile.livemode}
    assert {entry["proof"]["level"] for entry in entries} == {"roots"}
    required = {entry["confirmations"]["required"] for entry in entries}
    assert required == {profile.credit_at if isinstance(profile.credit_at, int) else None}
