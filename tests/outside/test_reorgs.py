"""Reorgs of a real node, as merchants and operators see them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio
from eth_account import Account

from chainbell.demo.anvil import AnvilNode, anvil
from chainbell.demo.story import CUSTOMER, broadcast
from chainbell.demo.story import send as sign_and_send
from chains.evm.keccak import keccak
from tests.fakes.receiver import Receiver, running_receiver
from tests.outside.installation import LOCAL_ENDPOINTS, Installation, Tenant, installed
from tests.outside.payments import new_address, send

pytestmark = pytest.mark.asyncio(loop_scope="module")

CREDIT_AT = 3


@dataclass
class World:
    """A chain whose blocks become final after eight, one whose blocks do after two, and a merchant."""

    installation: Installation
    node: AnvilNode
    hasty: AnvilNode
    shop: Tenant
    receiver: Receiver

    async def pay(self, address: str, value: int = 5) -> str:
        """A signed payment on the first chain, mined; its bytes as hex, to be mined again."""
        return await sign_and_send(self.node, Account.from_key(CUSTOMER), to=address, value=value)

    def story(self, address: str) -> list[tuple[str, int]]:
        """Types and sequences of the webhooks about deposits to an address, as they came."""
        return [(event["type"].partition(".")[2], event["sequence"]) for event in self.events(address)]

    def events(self, address: str) -> list[Any]:
        """The webhooks about deposits to an address; every signature is accepted."""
        assert all(request.is_signed for request in self.receiver.requests)
        documents = [request.document for request in self.receiver.requests]
        return [document for document in documents if document["data"].get("to") == address]

    async def until_told(self, address: str, *types: str) -> None:
        """Wait until the whole story of the deposits to an address is `types`, numbered from 1 on."""
        wanted = [(name, number) for number, name in enumerate(types, start=1)]
        await self.receiver.wait_until(
            f"{address}: {wanted}, not {self.story(address)}", lambda: self.story(address) == wanted
        )

    async def deposit(self, address: str) -> Any:  # noqa: ANN401 - JSON
        """The one deposit to an address, as the API shows it."""
        (row,) = await self.shop.rows("/v1/deposits", address=address)
        return row

    async def until_settled(self) -> None:
        """Wait until our tip is the node's head and everything is told."""
        await self.shop.until_followed("local", await self.node.height())
        await self.shop.until_delivered()


def settings(node: AnvilNode, hasty: AnvilNode) -> str:
    return f"""{LOCAL_ENDPOINTS}
[chains.local]
profile = "anvil"
chain_id = "eip155:31337"
nodes = [ {{ url = "{node.url}" }} ]
start = 0
credit_at = {CREDIT_AT}
poll_interval_s = 0.1

[chains.hasty]
profile = "anvil"
chain_id = "eip155:31338"
nodes = [ {{ url = "{hasty.url}" }} ]
start = 0
credit_at = 1
poll_interval_s = 0.1
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(module_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        node = await stack.enter_async_context(anvil(extra_args=["--slots-in-an-epoch", "4"]))
        hasty_options = ["--slots-in-an-epoch", "1", "--chain-id", "31338"]
        hasty = await stack.enter_async_context(anvil(extra_args=hasty_options))
        opened = installed(tmp_path_factory.mktemp("reorgs"), module_database_url, settings(node, hasty))
        installation = await stack.enter_async_context(opened)
        await installation.run()
        shop = await installation.tenant("shop")
        receiver = await stack.enter_async_context(running_receiver())
        await shop.open_endpoint(receiver)
        yield World(installation, node, hasty, shop, receiver)


async def test_a_lost_deposit_is_reorged_and_comes_back_as_the_same_with_the_next_sequence(world: World) -> None:
    address = new_address()
    await world.shop.watch("local", address)
    raw = await world.pay(address)
    await world.until_told(address, "detected")
    first = await world.deposit(address)
    await world.node.reorg(1)
    await world.until_told(address, "detected", "reorged")
    lost = await world.deposit(address)
    assert (lost["id"], lost["state"], lost["block"]) == (first["id"], "reorged", None)
    await broadcast(world.node, raw)
    await world.until_told(address, "detected", "reorged", "detected")
    await world.node.mine(CREDIT_AT - 1)
    await world.until_told(address, "detected", "reorged", "detected", "confirmed")
    found = await world.deposit(address)
    assert (found["id"], found["transfer_id"]) == (first["id"], first["transfer_id"])
    assert found["block"]["hash"] != first["block"]["hash"]


async def test_a_deposit_that_moved_is_told_its_new_block_and_never_retracted(world: World) -> None:
    address = new_address()
    await world.shop.watch("local", address)
    raw = await world.pay(address)
    await world.node.mine(CREDIT_AT - 1)
    await world.until_told(address, "detected", "confirmed")
    before = await world.deposit(address)
    await world.node.reorg(3, [(raw, 1)])
    await world.until_told(address, "detected", "confirmed", "moved")
    after = await world.deposit(address)
    assert (after["state"], after["id"]) == ("confirmed", before["id"])
    assert after["block"]["height"] == before["block"]["height"] + 1
    (moved,) = [event for event in world.events(address) if event["type"] == "deposit.moved"]
    assert (moved["previous_state"], moved["data"]["state"]) == ("confirmed", "confirmed")
    assert moved["data"]["block"] == after["block"]
    await world.node.mine(10)
    await world.until_told(address, "detected", "confirmed", "moved", "finalized")


async def test_a_deposit_lost_after_its_credit_is_reversed_and_can_come_back(world: World) -> None:
    address = new_address()
    await world.shop.watch("local", address)
    raw = await world.pay(address)
    await world.node.mine(CREDIT_AT - 1)
    await world.until_told(address, "detected", "confirmed")
    await world.node.reorg(3)
    await world.until_told(address, "detected", "confirmed", "reversed")
    lost = await world.deposit(address)
    assert (lost["state"], lost["block"], lost["confirmed_at"]) == ("reversed", None, None)
    await broadcast(world.node, raw)
    await world.node.mine(CREDIT_AT - 1)
    await world.until_told(address, "detected", "confirmed", "reversed", "detected", "confirmed")


async def test_a_deposit_that_a_reorg_puts_into_a_height_that_was_empty_is_found(world: World) -> None:
    address = new_address()
    await world.shop.watch("local", address)
    tip = await world.node.mine(4)
    await world.shop.until_followed("local", tip)
    raw = signed_payment(address, int(await world.node.rpc("eth_getTransactionCount", customer(), "latest"), 16))
    await world.node.reorg(4, [(raw, 1)])
    await world.until_told(address, "detected", "confirmed")
    assert (await world.deposit(address))["block"]["height"] == tip - 2


def customer() -> str:
    """The address that pays."""
    return str(Account.from_key(CUSTOMER).address)


def signed_payment(address: str, nonce: int) -> str:
    """A payment that nobody has sent yet."""
    signed = Account.from_key(CUSTOMER).sign_transaction(
        {
            "type": 2,
            "chainId": 31337,
            "nonce": nonce,
            "value": 5,
            "gas": 21_000,
            "maxFeePerGas": 10 * 10**9,
            "maxPriorityFeePerGas": 10**9,
            "to": bytes.fromhex(address[2:]),
        }
    )
    return "0x" + bytes(signed.raw_transaction).hex()


async def test_a_deposit_whose_money_was_spent_otherwise_is_dropped_once_that_is_final(world: World) -> None:
    address, other = new_address(), new_address()
    await world.shop.watch("local", address)
    nonce = int(await world.node.rpc("eth_getTransactionCount", customer(), "latest"), 16)
    await world.pay(address)
    await world.until_told(address, "detected")
    instead = signed_payment(other, nonce)
    await world.node.reorg(1, [(instead, 0)])
    await world.until_told(address, "detected", "reorged")
    await world.node.mine(10)
    await world.until_told(address, "detected", "reorged", "dropped")
    deposit = await world.deposit(address)
    assert (deposit["state"], deposit["replaced_by"], deposit["block"]) == ("dropped", hash_of(instead), None)


async def test_a_withdrawal_that_its_wallet_replaced_ends_as_replaced_and_the_other_one_goes_its_way(
    world: World,
) -> None:
    wallet = customer()
    (watch,) = await world.shop.watch("local", wallet)
    nonce = int(await world.node.rpc("eth_getTransactionCount", wallet, "latest"), 16)
    first = await world.pay(new_address())
    await world.node.mine(CREDIT_AT - 1)
    instead = signed_payment(new_address(), nonce)

    async def states() -> dict[str, tuple[str, str | None]]:
        rows = await world.shop.rows("/v1/withdrawals", address=wallet)
        return {row["transaction"]["hash"]: (row["state"], row["replaced_by"]) for row in rows}

    async def until(wanted: dict[str, tuple[str, str | None]]) -> None:
        async def _is_so() -> bool:
            return await states() == wanted

        await world.installation.until(f"withdrawals are {wanted}", _is_so)

    await until({hash_of(first): ("confirmed", None)})
    await world.node.reorg(CREDIT_AT, [(instead, 0)])
    await until({hash_of(first): ("reversed", None), hash_of(instead): ("confirmed", None)})
    await world.node.mine(10)
    await until({hash_of(first): ("replaced", hash_of(instead)), hash_of(instead): ("finalized", None)})
    assert (await world.shop.ask("DELETE", f"/v1/watches/{watch['id']}")).status == 204


def hash_of(raw: str) -> str:
    """The hash of a signed transaction."""
    return "0x" + keccak(bytes.fromhex(raw[2:])).hex()


async def test_a_node_that_goes_back_below_our_tip_undoes_nothing(world: World) -> None:
    address = new_address()
    await world.shop.watch("local", address)
    await world.pay(address)
    tip = await world.node.mine(4)
    await world.until_told(address, "detected", "confirmed")
    await world.shop.until_followed("local", tip)
    await world.node.rpc("anvil_rollback", 2)
    row = await world.shop.until_chain("its head is below our tip", "local", lambda row: row["head"] == tip - 2)
    assert (row["tip"], row["state"]) == (tip, "following")
    await world.node.rpc("anvil_setCoinbase", new_address())
    await world.node.mine(4)
    await world.shop.until_followed("local", tip + 2)
    await world.until_settled()
    assert world.story(address) == [("detected", 1), ("confirmed", 2)]
    assert (await world.deposit(address))["state"] == "confirmed"


async def test_a_reorg_below_finality_halts_one_chain_until_a_person_lifts_it(world: World) -> None:
    hasty, shop = world.hasty, world.shop
    accounts = await hasty.rpc("eth_accounts")
    final, here = new_address(), new_address()
    await shop.watch("hasty", final)
    await shop.watch("local", here)
    ops = await world.installation.keyed("ops", "events:read", "chains:read")
    ancestor = await hasty.height()
    await send(hasty, accounts[1], to=final, value=9)
    tip = await hasty.mine(5)
    await world.until_told(final, "detected", "confirmed", "finalized")
    await hasty.reorg(tip - ancestor)

    row = await shop.until_chain("it is halted", "hasty", lambda row: row["state"] == "halted")
    assert "finalized" in row["reason"]
    assert "resume" in row["reason"]
    status = await world.installation.command("status")
    (told,) = [chain for chain in status["chains"] if chain["chain"] == "hasty"]
    assert (told["state"], told["reason"], told["tip"]) == ("halted", row["reason"], tip)
    async with world.installation.session.get(world.installation.url + "/metrics") as response:
        metrics = await response.text()
    assert 'chainbell_chain_halted{chain="hasty"} 1.0' in metrics
    assert 'chainbell_chain_halted{chain="local"} 0.0' in metrics

    await world.pay(here)  # the other chain goes on meanwhile
    await world.until_told(here, "detected")
    assert world.story(final) == [("detected", 1), ("confirmed", 2), ("finalized", 3)]

    # Lifted without leave to undo what was final, it halts again: nothing is guessed.
    await world.installation.command("resume", "--chain", "hasty")
    await shop.until_chain("it is halted again", "hasty", lambda row: row["state"] == "halted")
    assert (await shop.chain("hasty"))["tip"] == tip
    await world.installation.command("resume", "--chain", "hasty", "--accept-reorg-to", str(ancestor))
    await shop.until_chain("it follows", "hasty", lambda row: row["state"] == "following")
    await world.until_told(final, "detected", "confirmed", "finalized", "reversed")
    await send(hasty, accounts[1], to=final, value=10)
    await shop.until_followed("hasty", tip + 1)
    await shop.until_delivered()
    assert sorted(row["state"] for row in await shop.rows("/v1/deposits", address=final)) == ["confirmed", "reversed"]
    types = [event["type"] for event in await ops.feed()]
    assert [name for name in types if name != "chain.reorged"] == ["chain.halted", "chain.resumed"] * 2


async def test_a_chain_that_is_not_halted_cannot_be_resumed(world: World) -> None:
    await world.shop.until_chain("it follows", "local", lambda row: row["state"] == "following")
    ended = await world.installation.attempt("resume", "--chain", "local")
    assert (ended.status, ended.output) == (2, "")
    assert ended.sentence == "chainbell: local is not halted (it is following); there is nothing to resume"
