"""A watch created between two blocks is covered from exactly the height that the API said."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from pathlib import Path

from chainbell.demo.anvil import AnvilNode, anvil
from tests.outside.installation import Installation, Tenant, installed
from tests.outside.payments import new_address, receipt_of, submit

ADDRESSES = 30
BLOCKS_AFTER = 5
"""Mined after the last watch."""

WATCHES_A_HEIGHT = 3
"""At most so many addresses are watched before the follower has to pass the height that covers the last of them."""


def settings(node: AnvilNode) -> str:
    return f"""
[chains.local]
profile = "anvil"
chain_id = "eip155:31337"
nodes = [ {{ url = "{node.url}" }} ]
start = 0
credit_at = 1
poll_interval_s = 0.05
"""


async def pay_everybody(node: AnvilNode, addresses: list[str], is_over: asyncio.Event) -> dict[int, list[str]]:
    """Block after block pays to every address, whoever watches it by then; who was paid at which height."""
    paid: dict[int, list[str]] = {}
    sender = (await node.rpc("eth_accounts"))[0]
    await node.rpc("evm_setAutomine", False)
    left = BLOCKS_AFTER
    while left > 0:
        left -= is_over.is_set()
        sent = [await submit(node, sender, to=address, value=1) for address in addresses]
        height = await node.mine()
        for transaction in sent:
            assert int((await receipt_of(node, transaction))["blockNumber"], 16) == height
        paid[height] = addresses
    return paid


async def watch_at_any_moment(shop: Tenant, addresses: list[str], is_over: asyncio.Event) -> dict[str, int]:
    """Watch one address after another, at random moments; from which height the API says that each is covered.

    However slow the machine, they are spread over many blocks: each few wait until the height of those before is followed.
    """
    chance = random.Random(7)
    covered: dict[str, int] = {}
    for count, address in enumerate(addresses):
        if covered and count % WATCHES_A_HEIGHT == 0:
            await shop.until_followed("local", max(covered.values()))
        await asyncio.sleep(chance.uniform(0.0, 0.15))
        (row,) = await shop.watch("local", address)
        covered[address] = row["covered_from_height"]
    is_over.set()
    return covered


async def check(shop: Tenant, paid: dict[int, list[str]], covered: dict[str, int]) -> None:
    """Every payment at a covered height is a deposit, none below it."""
    found: dict[str, list[int]] = defaultdict(list)
    for row in await shop.rows("/v1/deposits"):
        found[row["to"]].append(row["block"]["height"])
    for address, first in covered.items():
        assert sorted(found[address]) == [height for height in sorted(paid) if height >= first]
    assert set(found) <= set(covered)


async def test_a_watch_made_while_blocks_come_is_covered_from_the_height_that_was_answered(
    database_url: str, tmp_path: Path
) -> None:
    addresses = [new_address() for _ in range(ADDRESSES)]
    async with anvil() as node, installed(tmp_path, database_url, settings(node)) as installation:
        shop = await started(installation)
        is_over = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            paying = group.create_task(pay_everybody(node, addresses, is_over))
            watching = group.create_task(watch_at_any_moment(shop, addresses, is_over))
        paid, covered = paying.result(), watching.result()
        await shop.until_followed("local", max(paid))
        await check(shop, paid, covered)
        heights = set(covered.values())
        assert len(heights) >= ADDRESSES // WATCHES_A_HEIGHT  # they were made between many different blocks
        for address in addresses[:3]:
            (row,) = await shop.watch("local", address)  # asked again, it is answered as it is
            assert (row["status"], row["covered_from_height"]) == ("exists", covered[address])


async def started(installation: Installation) -> Tenant:
    """A tenant of a running follower and API."""
    await installation.start("serve")
    await installation.ready()
    shop = await installation.tenant("shop")
    await installation.start("follow")
    await shop.until_followed("local", 0)
    return shop
