"""The story that the demo tells, on real parts: a chain, a database, Chainbell, a merchant.

Each act does something on the chain and waits until the merchant has been told what it should be told. The merchant's
books at the end must be exactly right; anything else fails the demo.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from eth_account import Account
from eth_account.signers.local import LocalAccount

from chainbell.demo.anvil import AnvilNode
from chainbell.demo.contracts import (
    COIN_DECIMALS,
    COIN_SYMBOL,
    FORWARDER_CODE,
    TOKEN_CODE,
    forward_call,
    transfer_call,
)
from chainbell.demo.merchant import Merchant
from chainbell.demo.service import DemoFailed, Service
from chains.evm.keccak import keccak

CHAIN_NUMBER = 31337
CREDIT_AT = 3
ETH = 10**18
RECEIPT_LIMIT_S = 120.0

CUSTOMER = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"
HOT_WALLET = "0x59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d"
"""Keys of Anvil's public test mnemonic: worth nothing anywhere. Chainbell itself never sees a key."""


@dataclass
class Cast:
    """Who is in the story."""

    customer: LocalAccount
    hot_wallet: LocalAccount
    orders: dict[str, str]
    """The merchant's deposit addresses by order."""
    token: str


def make_cast(token: str) -> Cast:
    """Two wallets with keys, four deposit addresses without."""
    orders = {f"order-{n}": f"0x{n:02x}" + "c0ffee" * 6 + "00" for n in (1, 2, 3, 4)}
    return Cast(Account.from_key(CUSTOMER), Account.from_key(HOT_WALLET), orders, token)


def chain_settings(node_url: str, token: str) -> str:
    """The settings that follow this chain and let endpoints be on this machine."""
    return f"""
[notifier]
allow_http = true
allow_private = ["127.0.0.0/8"]

[chains.anvil]
profile = "anvil"
nodes = [ {{ url = "{node_url}" }} ]
start = 0
credit_at = {CREDIT_AT}

[[chains.anvil.assets]]
contract = "{token}"
symbol = "{COIN_SYMBOL}"
decimals = {COIN_DECIMALS}
"""


class Story:
    """The acts. `say` prints a heading and what happens on the chain."""

    def __init__(
        self, node: AnvilNode, service: Service, merchant: Merchant, cast: Cast, say: Callable[[str, str], None]
    ) -> None:
        self.node, self.service, self.merchant, self.cast, self.say = node, service, merchant, cast, say

    async def register(self) -> None:
        """Make a tenant, a key, an endpoint and the watches, as an operator and a backend do."""
        tenant = await self.service.command("tenants", "create", "sample-shop")
        scopes = [word for scope in ("watches:*", "entries:read", "endpoints:*", "events:read", "chains:read",
                                     "deliveries:read") for word in ("--scope", scope)]  # fmt: skip
        key = await self.service.command("keys", "create", "--tenant", tenant["id"], *scopes)
        self.service.key = key["key"]
        endpoint = await self.service.call("POST", "/v1/endpoints", {"url": self.merchant.url})
        self.merchant.secret = endpoint["secret"]
        wanted = {**self.cast.orders, "hot wallet": self.cast.hot_wallet.address}
        rows = [{"chain": "anvil", "address": address, "reference": name} for name, address in wanted.items()]
        answer = await self.service.call("POST", "/v1/watches", {"watches": rows})
        covered = {row["covered_from_height"] for row in answer["data"]}
        self.say("registered", f"{len(rows)} addresses, covered from block {min(covered)}; one endpoint, signed")

    async def native_deposit(self) -> None:
        """A customer pays in the native coin; confirmations come with blocks."""
        self.say("a customer pays", "1.5 ETH to order-1")
        await self._pay("order-1", ETH * 3 // 2)
        await self._told("order-1", "detected")
        self.say("blocks are mined", f"credit comes at {CREDIT_AT} confirmations")
        await self.node.mine(CREDIT_AT - 1)
        await self._told("order-1", "confirmed")

    async def token_deposit(self) -> None:
        """A customer pays in an allow-listed token; a token that nobody listed is nothing."""
        self.say("a customer pays", f"25 {COIN_SYMBOL} to order-2, and 1000 of a token that nobody listed")
        fake = await deploy(self.node, self.cast.customer, TOKEN_CODE)
        await self._send(fake, data=transfer_call(self.cast.orders["order-2"], 1_000 * 10**COIN_DECIMALS))
        await self._send(self.cast.token, data=transfer_call(self.cast.orders["order-2"], 25 * 10**COIN_DECIMALS))
        await self.node.mine(CREDIT_AT)
        await self._told("order-2", "confirmed")

    async def internal_deposit(self) -> None:
        """A customer's exchange pays out through its contract: no log tells of it, only the node's trace does, and the
        proven balance of the address bears it out."""
        self.say("a contract pays", "3 ETH to order-4, sent on by an exchange's payout contract")
        forwarder = await deploy(self.node, self.cast.customer, FORWARDER_CODE)
        await send(
            self.node, self.cast.customer, to=forwarder, value=3 * ETH, data=forward_call(self.cast.orders["order-4"])
        )
        await self.node.mine(CREDIT_AT - 1)
        await self._told("order-4", "confirmed")

    async def withdrawal(self) -> None:
        """The merchant's own wallet pays out: seen from outside, with its fee."""
        self.say("the hot wallet pays out", "0.25 ETH to a supplier")
        await send(self.node, self.cast.hot_wallet, to="0x" + "5e11e4" * 6 + "5e11", value=ETH // 4)
        await self.node.mine(CREDIT_AT)
        await self._told("hot wallet", "confirmed")

    async def reorg(self) -> None:
        """A deposit loses its block, is told, and comes back as the same deposit."""
        self.say("a customer pays", "2 ETH to order-3")
        raw = await self._pay("order-3", 2 * ETH)
        await self._told("order-3", "detected")
        self.say("the chain reorganises", "the newest block is replaced by one without the payment")
        await self.node.reorg(1)
        await self._told("order-3", "reorged")
        self.say("the payment is mined again", "same transaction, another block: the same deposit")
        await broadcast(self.node, raw)
        await self._told("order-3", "detected")
        await self.node.mine(CREDIT_AT - 1)
        await self._told("order-3", "confirmed")

    async def finality(self) -> None:
        """The chain's finality covers everything."""
        self.say("time passes", "until the chain says that the blocks are final")
        await self.node.mine(12)
        for name in self.cast.orders:
            await self._told(name, "finalized")

    async def reconcile(self) -> dict[str, str]:
        """The merchant's books, the API and the truth must be one. Returns the books. Raises `DemoFailed`."""
        expected = {"order-1": "1.5 ETH", "order-2": f"25 {COIN_SYMBOL}", "order-3": "2 ETH", "order-4": "3 ETH"}
        books = self.merchant.credited()
        if books != expected:
            raise DemoFailed(f"the merchant's books are {books}; they should be {expected}")
        deposits = (await self.service.call("GET", "/v1/deposits"))["data"]
        if len(deposits) != len(expected):
            raise DemoFailed(f"the API lists {len(deposits)} deposits; there were {len(expected)}")
        levels = {row["watch"]["reference"]: row["proof"]["level"] for row in deposits}
        if levels["order-4"] != "state":
            raise DemoFailed(f"what the contract sent is proven at {levels['order-4']}, not by the account's balance")
        feed = (await self.service.call("GET", "/v1/events?limit=1000"))["data"]
        received = {event["id"] for event in self.merchant.events}
        if {event["id"] for event in feed} != received:
            raise DemoFailed(f"the feed has {len(feed)} events, the merchant received {len(received)}")
        if self.merchant.refused:
            raise DemoFailed(f"the merchant refused {len(self.merchant.refused)} webhooks: {self.merchant.refused[0]}")
        return books

    async def _pay(self, order: str, amount_atomic: int) -> str:
        return await send(self.node, self.cast.customer, to=self.cast.orders[order], value=amount_atomic)

    async def _send(self, to: str, data: str) -> str:
        return await send(self.node, self.cast.customer, to=to, data=data)

    async def _told(self, reference: str, state: str) -> None:
        def _has_it() -> bool:
            newest = [s for s in self.merchant.subjects.values() if s["watch"]["reference"] == reference]
            return any(subject["state"] == state for subject in newest)

        await self.merchant.wait_for(f"{reference} {state}", _has_it)


async def send(
    node: AnvilNode, sender: LocalAccount, *, to: str | None = None, value: int = 0, data: str = "0x"
) -> str:
    """Sign a transaction as a wallet would, send it (Anvil mines it at once), and return its bytes as hex."""
    nonce = int(await node.rpc("eth_getTransactionCount", sender.address, "latest"), 16)
    fields: dict[str, Any] = {
        "type": 2, "chainId": CHAIN_NUMBER, "nonce": nonce, "value": value, "data": data, "gas": 300_000,
        "maxFeePerGas": 10 * 10**9, "maxPriorityFeePerGas": 10**9,
    }  # fmt: skip
    if to is not None:
        fields["to"] = bytes.fromhex(to.removeprefix("0x"))
    raw = "0x" + bytes(sender.sign_transaction(fields).raw_transaction).hex()
    await broadcast(node, raw)
    return raw


async def broadcast(node: AnvilNode, raw: str) -> dict[str, Any]:
    """Send a signed transaction and wait for its receipt: Anvil answers before it has mined."""
    transaction_hash = await node.rpc("eth_sendRawTransaction", raw)
    async with asyncio.timeout(RECEIPT_LIMIT_S):
        while True:
            receipt: dict[str, Any] | None = await node.rpc("eth_getTransactionReceipt", transaction_hash)
            if receipt is not None:
                return receipt
            await asyncio.sleep(0.01)


async def deploy(node: AnvilNode, deployer: LocalAccount, code: str) -> str:
    """Put a contract on the chain by its creation code; returns its address."""
    raw = await send(node, deployer, data=code)
    transaction_hash = "0x" + keccak(bytes.fromhex(raw.removeprefix("0x"))).hex()
    receipt = await node.rpc("eth_getTransactionReceipt", transaction_hash)
    address: str = receipt["contractAddress"]
    return address
