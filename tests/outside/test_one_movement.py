"""One movement, one entry: tokens and contracts that tell of money in odd ways, from a node to REST."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from chainbell.demo.anvil import AnvilNode, anvil
from chainbell.demo.contracts import TOKEN_CODE, transfer_call
from tests.fakes.receiver import Receiver, running_receiver
from tests.outside.installation import LOCAL_ENDPOINTS, Installation, Tenant, installed
from tests.outside.odd_tokens import (
    ANYBODY,
    ANYBODY_CODE,
    FORWARDER,
    NFT_CODE,
    TRIPLE_CODE,
    UNINDEXED_CODE,
    WRAPPER_CODE,
    call_with,
)
from tests.outside.payments import deploy, new_address, send

pytestmark = pytest.mark.asyncio(loop_scope="module")

ETHER_LOGS = "0xfffffffffffffffffffffffffffffffffffffffe"
NOBODY = "0x" + "00" * 20
TOKENS = {
    "PLAIN": (TOKEN_CODE, ""),
    "FEE": (TOKEN_CODE, "fee_on_transfer = true"),
    "REBASE": (TOKEN_CODE, "rebasing = true"),
    "OLD": (UNINDEXED_CODE, "unindexed = true"),
    "WRAPPED": (WRAPPER_CODE, "wraps_without_transfer = true"),
    "ANYBODY": (ANYBODY_CODE, ""),
    "TRIPLE": (TRIPLE_CODE, ""),
    "NFT": (NFT_CODE, ""),
}


@dataclass
class World:
    """One chain with odd tokens, listed and flagged, and one merchant."""

    node: AnvilNode
    shop: Tenant
    receiver: Receiver
    tokens: dict[str, str]
    accounts: list[str]

    async def entries(self, address: str) -> list[Any]:
        """Every entry of a watched address once all that was sent is final and told."""
        height = await self.node.height()
        await self.node.mine(9)
        await self.shop.until_final("local", height)
        await self.shop.until_delivered()
        deposits = await self.shop.rows("/v1/deposits", address=address)
        return [*deposits, *await self.shop.rows("/v1/withdrawals", address=address)]

    async def watched(self) -> str:
        """A new address, watched."""
        address = new_address()
        await self.shop.watch("local", address)
        return address


def settings(node: AnvilNode, tokens: dict[str, str]) -> str:
    chain = f'{LOCAL_ENDPOINTS}\n[chains.local]\nprofile = "anvil"\nchain_id = "eip155:31337"\nstart = 0\n'
    rows = [
        f'[[chains.local.assets]]\ncontract = "{tokens[symbol]}"\nsymbol = "{symbol}"\ndecimals = 6\n{flags}'
        for symbol, (_, flags) in TOKENS.items()
    ]
    return "\n".join([chain, f'poll_interval_s = 0.1\nnodes = [ {{ url = "{node.url}" }} ]', *rows])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(module_empty_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    directory: Path = tmp_path_factory.mktemp("one-movement")
    async with AsyncExitStack() as stack:
        node = await stack.enter_async_context(anvil(extra_args=["--slots-in-an-epoch", "4"]))
        accounts: list[str] = await node.rpc("eth_accounts")
        tokens = {symbol: await deploy(node, accounts[0], code) for symbol, (code, _) in TOKENS.items()}
        opened = installed(directory, module_empty_database_url, settings(node, tokens))
        installation: Installation = await stack.enter_async_context(opened)
        await installation.run()
        shop = await installation.tenant("shop")
        receiver = await stack.enter_async_context(running_receiver())
        await shop.open_endpoint(receiver)
        yield World(node, shop, receiver, tokens, accounts)


@pytest.mark.parametrize(("symbol", "reason"), [("FEE", "fee_on_transfer"), ("REBASE", "rebasing")])
async def test_what_may_not_arrive_is_told_to_the_end_and_never_is_money(
    world: World, symbol: str, reason: str
) -> None:
    address, sender = await world.watched(), world.accounts[3]
    await world.shop.watch("local", sender)
    await send(world.node, sender, to=world.tokens[symbol], data=transfer_call(address, 1_000))
    (deposit,) = await world.entries(address)
    told = [r.document["data"] for r in world.receiver.requests if r.document["data"]["id"] == deposit["id"]]
    assert [(data["state"], data["disposition"], data["reasons"]) for data in told] == [
        (state, "ignore", [reason]) for state in ("detected", "confirmed", "finalized")
    ]
    assert (deposit["disposition"], deposit["reasons"], deposit["amount_atomic"]) == ("ignore", [reason], "1000")
    [withdrawal] = [e for e in await world.entries(sender) if e["transfer_id"] == deposit["transfer_id"]]
    assert (withdrawal["object"], withdrawal["disposition"]) == ("withdrawal", "ignore")


async def test_an_ordinary_token_beside_them_is_money(world: World) -> None:
    address = await world.watched()
    await send(world.node, world.accounts[1], to=world.tokens["PLAIN"], data=transfer_call(address, 1_000))
    (entry,) = await world.entries(address)
    assert (entry["state"], entry["disposition"], entry["reasons"]) == ("finalized", "credit", [])


async def test_the_old_form_of_a_transfer_is_a_deposit_where_the_token_is_flagged(world: World) -> None:
    address = await world.watched()
    await send(world.node, world.accounts[1], to=world.tokens["OLD"], data=call_with(address, 1_000))
    (entry,) = await world.entries(address)
    assert (entry["from"], entry["amount_atomic"], entry["asset"]["symbol"]) == (world.accounts[1], "1000", "OLD")


async def test_wrapping_is_one_movement_of_each_asset(world: World) -> None:
    holder = world.accounts[4]
    await world.shop.watch("local", holder)
    await send(world.node, holder, to=world.tokens["WRAPPED"], value=700)
    await send(world.node, holder, to=world.tokens["WRAPPED"], data=call_with(300))
    found = [
        (e["object"], e["asset"]["symbol"], e["from"], e["to"], e["amount_atomic"]) for e in await world.entries(holder)
    ]
    assert sorted(found) == [
        ("deposit", "WRAPPED", NOBODY, holder, "700"),
        ("withdrawal", "ETH", holder, world.tokens["WRAPPED"], "700"),
        ("withdrawal", "WRAPPED", holder, NOBODY, "300"),
    ]


@pytest.mark.parametrize("alias", [ETHER_LOGS, "0x0000000000000000000000000000000000001010"])
async def test_native_value_and_the_log_that_repeats_it_are_one_movement(world: World, alias: str) -> None:
    """The log of EIP-7708, and of Polygon's contract (which no profile but Polygon's needs to know: it is unlisted)."""
    await world.node.rpc("anvil_setCode", alias, "0x" + ANYBODY)
    sender, address = world.accounts[5], await world.watched()
    await world.shop.watch("local", sender)
    receipt = await send(world.node, sender, to=alias, value=900, data=call_with(sender, address, 900))
    assert [log["address"] for log in receipt["logs"]] == [alias]
    assert await world.entries(address) == []
    [entry] = [e for e in await world.entries(sender) if e["transaction"]["hash"] == receipt["transactionHash"]]
    assert (entry["object"], entry["locator"]["kind"], entry["amount_atomic"]) == ("withdrawal", "native", "900")


async def test_value_that_a_contract_hands_on_is_told_by_its_trace_and_not_by_the_log_beside_it(world: World) -> None:
    """The root of the trace is the transaction's own value, its inner call is the deposit, and the log is neither."""
    await world.node.rpc("anvil_setCode", ETHER_LOGS, "0x" + FORWARDER)
    sender, address = world.accounts[6], await world.watched()
    await world.shop.watch("local", sender)
    receipt = await send(world.node, sender, to=ETHER_LOGS, value=800, data=call_with(address))
    assert [log["address"] for log in receipt["logs"]] == [ETHER_LOGS]
    (deposit,) = await world.entries(address)
    assert (deposit["from"], deposit["amount_atomic"], deposit["locator"]["kind"]) == (ETHER_LOGS, "800", "trace")
    (withdrawal,) = await world.entries(sender)
    assert (withdrawal["to"], withdrawal["amount_atomic"], withdrawal["locator"]["kind"]) == (
        ETHER_LOGS,
        "800",
        "native",
    )


async def test_nothing_moved_in_somebodys_name_is_no_withdrawal_of_theirs(world: World) -> None:
    """Spam of the kind that made customers fear for their money: `transferFrom` of zero needs no leave."""
    victim = await world.watched()
    await send(world.node, world.accounts[1], to=world.tokens["ANYBODY"], data=call_with(victim, new_address(), 0))
    assert await world.entries(victim) == []


async def test_a_fake_of_the_same_name_is_no_deposit(world: World) -> None:
    address = await world.watched()
    fake = await deploy(world.node, world.accounts[1], TOKEN_CODE)
    await send(world.node, world.accounts[1], to=fake, data=transfer_call(address, 10**12))
    assert await world.entries(address) == []


async def test_an_nft_is_no_deposit_even_where_its_contract_is_listed(world: World) -> None:
    address = await world.watched()
    await send(world.node, world.accounts[1], to=world.tokens["NFT"], data=call_with(address, 7))
    assert await world.entries(address) == []


async def test_equal_transfers_of_one_transaction_are_as_many_deposits(world: World) -> None:
    address = await world.watched()
    await send(world.node, world.accounts[1], to=world.tokens["TRIPLE"], data=call_with(address, 50))
    entries = await world.entries(address)
    assert [entry["amount_atomic"] for entry in entries] == ["50", "50", "50"]
    assert len({entry["id"] for entry in entries}) == len({entry["transfer_id"] for entry in entries}) == 3
    assert sorted(entry["locator"]["path"] for entry in entries) == ["0", "1", "2"]
