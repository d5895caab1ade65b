"""A watch is covered from exactly the height that the API said, however its insert falls among blocks."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from datetime import UTC, datetime, timedelta

from chains.model import Slug
from indexer.commit import Followed
from indexer.follower import Course, Follower
from indexer.policy import CreditRule, Policy, rules_as_json
from ledger.chains import ChainConfiguration, register_chain
from ledger.database import transaction
from tests.fakes.adapter import CHAIN_ID, COIN, TOKEN, FakeChain, address, payment
from tests.integration.api.conftest import Service

ADDRESSES = [address(number) for number in range(1, 41)]
RULES = (CreditRule("default", "2"),)


async def make_follower(service: Service, chain: FakeChain) -> Follower:
    """A follower of a chain in memory, from its first block."""
    async with transaction(service.owner) as connection:
        configuration = ChainConfiguration(
            CHAIN_ID,
            Slug("local"),
            "anvil",
            False,
            COIN.id,
            "roots",
            1,
            ("native",),
            (COIN, TOKEN),
            rules_as_json(RULES),
        )
        version = await register_chain(connection, configuration, datetime.now(UTC))
    followed = Followed(CHAIN_ID, Policy(Slug("local"), version, RULES), timedelta(days=36_500), 64)
    return Follower(service.owner, chain, followed, Course(Slug("local"), 0, True))


async def test_a_watch_made_between_two_blocks_is_covered_from_the_height_that_was_answered(service: Service) -> None:
    chain = FakeChain()
    chain.mine()
    follower = await make_follower(service, chain)
    await follower.converge()
    is_done, committed = asyncio.Event(), [0]

    async def _mine() -> None:
        """Every block pays everybody; blocks come as fast as they can be committed."""
        while not is_done.is_set():
            height = len(chain.blocks)
            chain.mine(*(payment(f"{height}-{n}", who) for n, who in enumerate(ADDRESSES)))
            await follower.converge()
            committed[0] = height

    async def _watch() -> dict[str, int]:
        """One watch after another, on the chain alone and on all EVM chains in turn; what the API said of each. Each few
        wait for a block, so that they are made among many, whoever is slow."""
        said: dict[str, int] = {}
        for number, who in enumerate(ADDRESSES):
            while number % 5 == 4 and committed[0] < max(said.values()):  # noqa: ASYNC110 - as below
                await asyncio.sleep(0)
            row = {"chain": "local" if number % 2 else "evm", "address": "0x" + who.hex()}
            answer = (await service.ask("POST", "/v1/watches", {"watches": [row]})).json["data"][0]
            covered = answer["covered_from_height"]
            said[answer["address"]] = covered if number % 2 else covered["local"]
        return said

    miner = asyncio.create_task(_mine())
    said = await _watch()
    tip_before = len(chain.blocks)
    while len(chain.blocks) < tip_before + 3:  # noqa: ASYNC110 - the miner is what is waited for
        await asyncio.sleep(0)
    is_done.set()
    await miner
    await follower.converge()
    assert len(set(said.values())) > len(ADDRESSES) // 5, "the inserts did not fall among blocks"

    found: dict[str, list[int]] = defaultdict(list)
    cursor: dict[str, object] = {}
    while True:
        page = (await service.ask("GET", "/v1/deposits", query={"limit": 1000, **cursor})).json
        for row in page["data"]:
            found[row["to"]].append(row["block"]["height"])
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    head = len(chain.blocks) - 1
    assert {who: sorted(heights) for who, heights in found.items()} == {
        who: list(range(first, head + 1)) for who, first in said.items()
    }


async def test_a_watch_made_before_the_first_block_is_covered_from_it(service: Service) -> None:
    chain = FakeChain()
    chain.mine(payment("one", ADDRESSES[0]))
    follower = await make_follower(service, chain)
    row = {"chain": "local", "address": "0x" + ADDRESSES[0].hex()}
    answer = (await service.ask("POST", "/v1/watches", {"watches": [row]})).json["data"][0]
    assert answer["covered_from_height"] is None
    await follower.converge()
    watch = (await service.ask("GET", f"/v1/watches/{answer['id']}")).json
    assert watch["covered_from_height"] == 0
    assert len((await service.ask("GET", "/v1/deposits")).json["data"]) == 1


async def test_a_watch_deleted_and_made_again_keeps_history_and_tells_each_deposit_once(service: Service) -> None:
    chain = FakeChain()
    chain.mine()
    follower = await make_follower(service, chain)
    await follower.converge()
    row = {"chain": "local", "address": "0x" + ADDRESSES[0].hex()}
    first = (await service.ask("POST", "/v1/watches", {"watches": [row]})).json["data"][0]
    chain.mine(payment("one", ADDRESSES[0]))
    await follower.converge()
    assert (await service.ask("DELETE", f"/v1/watches/{first['id']}")).status == 204
    chain.mine(payment("unwatched", ADDRESSES[0]))
    await follower.converge()
    second = (await service.ask("POST", "/v1/watches", {"watches": [row]})).json["data"][0]
    assert second["id"] != first["id"]
    assert second["covered_from_height"] == 3
    chain.drop_to(0)
    chain.mine(payment("unwatched", ADDRESSES[0]), salt="b")
    chain.mine(payment("one", ADDRESSES[0]), salt="b")
    chain.mine(payment("two", ADDRESSES[0]), salt="b")
    await follower.converge()
    await follower.converge()
    deposits = (await service.ask("GET", "/v1/deposits")).json["data"]
    assert {row["block"]["height"] for row in deposits} == {2, 3}
    assert {row["block"]["height"]: row["watch"]["id"] for row in deposits} == {2: first["id"], 3: second["id"]}


async def test_a_chains_own_watch_has_its_deposits_before_the_one_for_all_evm_chains(service: Service) -> None:
    """And the other has them where the own one does not cover: each payment is told once, and none is lost."""
    chain = FakeChain()
    chain.mine()
    follower = await make_follower(service, chain)
    await follower.converge()
    row = {"address": "0x" + ADDRESSES[0].hex()}
    rows = [
        {**row, "chain": "evm", "reference": "all"},
        {**row, "chain": "local", "reference": "own", "start_height": 3},
    ]
    own = (await service.ask("POST", "/v1/watches", {"watches": rows})).json["data"][1]
    for height in range(1, 5):
        chain.mine(payment(f"at {height}", ADDRESSES[0]))
    await follower.converge()
    assert (await service.ask("DELETE", f"/v1/watches/{own['id']}")).status == 204
    chain.mine(payment("at 5", ADDRESSES[0]))
    await follower.converge()

    async def _heights(**query: object) -> list[int]:
        page = (await service.ask("GET", "/v1/deposits", query=query)).json
        return sorted(row["block"]["height"] for row in page["data"])

    assert (await _heights(reference="own"), await _heights(reference="all")) == ([3, 4], [1, 2, 5])
    assert await _heights(address=row["address"]) == [1, 2, 3, 4, 5]
