"""Every kind of payment becomes exactly the right entries and webhooks: two chains, two tenants, one installation."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import rlp
from sha3 import keccak_256

from chainbell.demo.anvil import AnvilNode, anvil
from chainbell.demo.contracts import TOKEN_CODE, transfer_call
from tests.fakes.receiver import Receiver, running_receiver
from tests.outside.installation import LOCAL_ENDPOINTS, Installation, Tenant, installed
from tests.outside.payments import REVERTING_CODE, deploy, height_of, new_address, send

pytestmark = pytest.mark.asyncio(loop_scope="module")

CREDITED = ["deposit.detected", "deposit.confirmed", "deposit.finalized"]
PAID_OUT = ["withdrawal.detected", "withdrawal.confirmed", "withdrawal.finalized"]


@dataclass
class World:
    """Two chains and two merchants before one installation."""

    installation: Installation
    node: AnvilNode
    second: AnvilNode
    token: str
    shop: Tenant
    shop_receiver: Receiver
    other: Tenant
    other_receiver: Receiver
    accounts: list[str]

    async def settle(self) -> None:
        """Make everything so far final on both chains, and wait until both merchants were told."""
        for slug, node in (("local", self.node), ("second", self.second)):
            height = await node.height()
            await node.mine(9)
            await self.shop.until_final(slug, height)
        await self.shop.until_delivered()
        await self.other.until_delivered()


def settings(node: AnvilNode, second: AnvilNode, token: str) -> str:
    return f"""{LOCAL_ENDPOINTS}
[chains.local]
profile = "anvil"
chain_id = "eip155:31337"
nodes = [ {{ url = "{node.url}" }} ]
start = 0
poll_interval_s = 0.1

[[chains.local.assets]]
contract = "{token}"
symbol = "TST"
decimals = 6

[chains.second]
profile = "anvil"
chain_id = "eip155:31338"
nodes = [ {{ url = "{second.url}" }} ]
start = 0
poll_interval_s = 0.1
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(module_empty_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    directory: Path = tmp_path_factory.mktemp("entries")
    async with AsyncExitStack() as stack:
        epochs = ["--slots-in-an-epoch", "4"]
        node = await stack.enter_async_context(anvil(extra_args=epochs))
        second = await stack.enter_async_context(anvil(extra_args=[*epochs, "--chain-id", "31338"]))
        accounts: list[str] = await node.rpc("eth_accounts")
        token = await deploy(node, accounts[0])
        opened = installed(directory, module_empty_database_url, settings(node, second, token))
        installation = await stack.enter_async_context(opened)
        await installation.run()
        shop, other = await installation.tenant("shop"), await installation.tenant("other")
        receivers = [await stack.enter_async_context(running_receiver()) for _ in range(2)]
        for tenant, receiver in zip((shop, other), receivers, strict=True):
            await tenant.open_endpoint(receiver)
        yield World(installation, node, second, token, shop, receivers[0], other, receivers[1], accounts)


async def entries_at(tenant: Tenant, address: str) -> list[Any]:
    """Every deposit and withdrawal of a watched address."""
    return [*await tenant.rows("/v1/deposits", address=address), *await tenant.rows("/v1/withdrawals", address=address)]


def told(receiver: Receiver, entry: Any) -> list[str]:  # noqa: ANN401 - JSON
    """The types of an entry's webhooks as they came; in sequence, each signature accepted, none twice."""
    requests = [request for request in receiver.requests if request.document["data"]["id"] == entry["id"]]
    assert all(request.is_signed for request in requests)
    documents = [request.document for request in requests]
    assert [document["sequence"] for document in documents] == list(range(1, len(documents) + 1))
    assert [request.event_id for request in requests] == [document["id"] for document in documents]
    states = [None, *(document["data"]["state"] for document in documents)]
    assert [document["previous_state"] for document in documents] == states[: len(documents)]
    return [document["type"] for document in documents]


async def only_deposit(world: World, address: str) -> Any:  # noqa: ANN401 - JSON
    """The one entry at an address: a final deposit, told from its detection on."""
    (entry,) = await entries_at(world.shop, address)
    assert (entry["object"], entry["state"], entry["sequence"], entry["to"]) == ("deposit", "finalized", 3, address)
    assert told(world.shop_receiver, entry) == CREDITED
    return entry


async def test_a_native_payment_is_one_deposit_with_every_fact_of_it(world: World) -> None:
    address = new_address()
    (watch,) = await world.shop.watch("local", address, reference="order-1")
    receipt = await send(world.node, world.accounts[1], to=address, value=15 * 10**17)
    await world.settle()
    entry = await only_deposit(world, address)
    assert (entry["amount_atomic"], entry["amount"], entry["from"]) == ("1500000000000000000", "1.5", world.accounts[1])
    assert entry["asset"] == {
        "id": "eip155:31337/slip44:60", "symbol": "ETH", "decimals": 18, "contract": None, "kind": "native"
    }  # fmt: skip
    assert entry["transaction"] == {"hash": receipt["transactionHash"], "index": 0}
    assert (entry["block"]["height"], entry["block"]["hash"]) == (height_of(receipt), receipt["blockHash"])
    assert entry["watch"] == {"id": watch["id"], "reference": "order-1", "metadata": {}}
    assert (entry["chain"], entry["chain_id"], entry["livemode"]) == ("local", "eip155:31337", False)
    assert (entry["proof"], entry["locator"]["kind"]) == ({"level": "roots", "agreed_by": 1}, "native")
    assert (entry["confirmations"]["required"], entry["confirmations"]["finality"]) == (2, "finalized")
    assert watch["covered_from_height"] <= height_of(receipt)


async def test_calldata_does_not_hide_a_native_payment(world: World) -> None:
    address = new_address()
    await world.shop.watch("local", address)
    await send(world.node, world.accounts[1], to=address, value=7, data="0x68656c6c6f")
    await world.settle()
    assert (await only_deposit(world, address))["amount_atomic"] == "7"


async def test_a_contract_created_with_value_at_a_watched_address_is_a_deposit(world: World) -> None:
    nonce = int(await world.node.rpc("eth_getTransactionCount", world.accounts[2], "latest"), 16)
    sender = bytes.fromhex(world.accounts[2][2:])
    address = "0x" + keccak_256(rlp.encode([sender, nonce])).digest()[12:].hex()
    await world.shop.watch("local", address)
    assert await deploy(world.node, world.accounts[2], TOKEN_CODE, value=11) == address
    await world.settle()
    assert (await only_deposit(world, address))["amount_atomic"] == "11"


async def test_a_listed_token_is_a_deposit_and_an_unlisted_one_is_nothing(world: World) -> None:
    address = new_address()
    await world.shop.watch("local", address)
    unlisted = await deploy(world.node, world.accounts[1])
    await send(world.node, world.accounts[1], to=unlisted, data=transfer_call(address, 10**12))
    receipt = await send(world.node, world.accounts[1], to=world.token, data=transfer_call(address, 2_500_000))
    await world.settle()
    entry = await only_deposit(world, address)
    assert (entry["amount"], entry["asset"]["symbol"], entry["asset"]["contract"]) == ("2.5", "TST", world.token)
    assert entry["asset"]["id"] == f"eip155:31337/erc20:{world.token}"
    assert (entry["transaction"]["hash"], entry["from"]) == (receipt["transactionHash"], world.accounts[1])
    assert entry["locator"] == {"kind": "log", "path": "0", "log_index": 0}


async def test_a_failed_transaction_of_a_watched_sender_is_a_failed_withdrawal(world: World) -> None:
    sender = world.accounts[3]
    refusing = await deploy(world.node, world.accounts[1], REVERTING_CODE)
    await world.shop.watch("local", sender, refusing)
    receipt = await send(world.node, sender, to=refusing, value=9)
    assert receipt["status"] == "0x0"
    await world.settle()
    (entry,) = await entries_at(world.shop, sender)
    assert (entry["object"], entry["state"], entry["amount_atomic"]) == ("withdrawal", "failed", "9")
    assert (entry["locator"]["kind"], entry["failure"]["code"]) == ("transaction", "reverted")
    fee = int(receipt["gasUsed"], 16) * int(receipt["effectiveGasPrice"], 16)
    assert entry["fee"] == {"asset_id": "eip155:31337/slip44:60", "amount_atomic": str(fee)}
    assert told(world.shop_receiver, entry) == ["withdrawal.failed"]
    assert await entries_at(world.shop, refusing) == []


async def test_movements_of_zero_are_no_entries(world: World) -> None:
    address = new_address()
    await world.shop.watch("local", address)
    await send(world.node, world.accounts[1], to=address, value=0)
    await send(world.node, world.accounts[1], to=world.token, data=transfer_call(address, 0))
    await world.settle()
    assert await entries_at(world.shop, address) == []


async def test_a_transfer_between_two_watched_addresses_is_a_withdrawal_and_a_deposit(world: World) -> None:
    sender, address = world.accounts[4], new_address()
    await world.shop.watch("local", sender, address)
    receipt = await send(world.node, sender, to=address, value=21)
    await world.settle()
    deposit = await only_deposit(world, address)
    (withdrawal,) = await entries_at(world.shop, sender)
    assert (withdrawal["object"], withdrawal["state"]) == ("withdrawal", "finalized")
    assert told(world.shop_receiver, withdrawal) == PAID_OUT
    assert withdrawal["transfer_id"] == deposit["transfer_id"]
    fee = int(receipt["gasUsed"], 16) * int(receipt["effectiveGasPrice"], 16)
    assert withdrawal["fee"]["amount_atomic"] == str(fee)


async def test_two_tenants_may_watch_one_address_and_neither_sees_the_other(world: World) -> None:
    address = new_address()
    await world.shop.watch("local", address, reference="ours")
    await world.other.watch("local", address, reference="theirs")
    await send(world.node, world.accounts[1], to=address, value=33)
    await world.settle()
    ours = await only_deposit(world, address)
    (theirs,) = await entries_at(world.other, address)
    assert (ours["watch"]["reference"], theirs["watch"]["reference"]) == ("ours", "theirs")
    assert ours["id"] != theirs["id"]
    assert told(world.other_receiver, theirs) == CREDITED
    assert told(world.shop_receiver, theirs) == []
    assert (await world.other.ask("GET", f"/v1/deposits/{ours['id']}")).status == 404


async def test_one_watch_for_all_evm_chains_covers_both(world: World) -> None:
    address = new_address()
    (watch,) = await world.shop.watch("evm", address)
    assert set(watch["covered_from_height"]) == {"local", "second"}
    for node, value in ((world.node, 1), (world.second, 2)):
        await send(node, world.accounts[1], to=address, value=value)
    await world.settle()
    found = sorted(await entries_at(world.shop, address), key=lambda entry: str(entry["chain"]))
    assert [(entry["chain_id"], entry["amount_atomic"]) for entry in found] == [
        ("eip155:31337", "1"),
        ("eip155:31338", "2"),
    ]
    assert [told(world.shop_receiver, entry) for entry in found] == [CREDITED, CREDITED]


async def test_the_list_of_chains_has_pages_like_every_list(world: World) -> None:
    first = await world.shop.call("GET", "/v1/chains?limit=1")
    second = await world.shop.call("GET", f"/v1/chains?limit=1&cursor={first['next_cursor']}")
    assert [row["chain"] for row in first["data"] + second["data"]] == ["local", "second"]
    assert second["next_cursor"] is None


async def test_a_watch_on_one_chain_is_silent_about_another(world: World) -> None:
    address = new_address()
    await world.shop.watch("second", address)
    await send(world.node, world.accounts[1], to=address, value=5)
    await world.settle()
    assert await entries_at(world.shop, address) == []


async def test_a_deleted_watch_finds_nothing_new_and_keeps_what_it_found(world: World) -> None:
    address = new_address()
    (watch,) = await world.shop.watch("local", address)
    await send(world.node, world.accounts[1], to=address, value=5)
    await world.shop.until_followed("local", await world.node.height())
    assert (await world.shop.ask("DELETE", f"/v1/watches/{watch['id']}")).status == 204
    await send(world.node, world.accounts[1], to=address, value=6)
    await world.settle()
    assert (await only_deposit(world, address))["amount_atomic"] == "5"


async def test_the_feed_is_what_each_merchant_was_sent_byte_for_byte_and_nothing_else(world: World) -> None:
    address = new_address()
    for tenant in (world.shop, world.other):
        await tenant.watch("local", address)
    await send(world.node, world.accounts[1], to=address, value=44)
    await world.settle()
    for tenant, receiver in ((world.shop, world.shop_receiver), (world.other, world.other_receiver)):
        feed = await tenant.feed()
        sent = {request.event_id: request.document for request in receiver.requests}
        assert sent == {event["id"]: event for event in feed}
        assert len(receiver.requests) == len(feed) > 0
        assert all(request.is_signed for request in receiver.requests)
