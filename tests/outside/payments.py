"""What customers and hot wallets do on a local chain, sent from the node's own unlocked accounts."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

from chainbell.demo.anvil import AnvilNode
from chainbell.demo.contracts import TOKEN_CODE

GAS = hex(300_000)
REVERTING_CODE = "0x6005600c60003960056000f360006000fd"
"""Creation code of a contract that refuses every call."""


def new_address() -> str:
    """An address that nobody has used."""
    return "0x" + secrets.token_hex(20)


async def receipt_of(node: AnvilNode, transaction_hash: str) -> dict[str, Any]:
    """The receipt, once it is there: Anvil answers a send before it has mined."""
    async with asyncio.timeout(120):
        while True:
            receipt: dict[str, Any] | None = await node.rpc("eth_getTransactionReceipt", transaction_hash)
            if receipt is not None:
                return receipt
            await asyncio.sleep(0.01)


async def send(node: AnvilNode, sender: str, **fields: object) -> dict[str, Any]:
    """Send a transaction and wait for its receipt; `value` is in wei."""
    return await receipt_of(node, await submit(node, sender, **fields))


async def submit(node: AnvilNode, sender: str, **fields: object) -> str:
    """Send a transaction; its hash."""
    quantities = {name: hex(value) if isinstance(value, int) else value for name, value in fields.items()}
    transaction_hash: str = await node.rpc("eth_sendTransaction", {"from": sender, "gas": GAS, **quantities})
    return transaction_hash


async def deploy(node: AnvilNode, sender: str, code: str = TOKEN_CODE, **fields: object) -> str:
    """Create a contract, the demo's token by default; its address."""
    receipt = await send(node, sender, data=code, **fields)
    address: str = receipt["contractAddress"].lower()
    return address


def height_of(receipt: dict[str, Any]) -> int:
    """The block that a transaction landed in."""
    return int(receipt["blockNumber"], 16)
