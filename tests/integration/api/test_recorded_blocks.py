"""The whole way of recorded mainnet blocks: a node on loopback, proof, the follower, Postgres, and REST at the end.

What REST lists must be what another indexer found in the same block, or, where nobody published that, what the proven
receipts say when they are read by three lines that share nothing with ours.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from chains.evm.adapter import EvmAdapter
from chains.evm.transfers import TRANSFER_TOPIC
from chains.profile import ChainProfile, add_tokens, load_profile, make_token
from indexer.commit import Followed
from indexer.follower import Course, Extended, Follower, Holding
from indexer.policy import CreditRule, Policy, rules_as_json
from ledger.chains import ChainConfiguration, register_chain
from ledger.database import transaction
from tests.fakes.node import RecordedNode, drop_one_log, empty_list
from tests.integration.api.conftest import Service
from tests.unit.chains.evm.recorded import MAINNET, WITH_EXPECTED_TRANSFERS, WITH_RECEIPTS, Answer, read_json, recorded

RULES = (CreditRule("default", "12"),)

Row = tuple[str, str, str, str, int, int]
"""Transaction hash, contract, sender, recipient, amount, block-wide log index."""


@dataclass(frozen=True)
class NodeAt:
    """A node as settings name it."""

    url: str
    name: str | None = "recorded"
    rps: float | None = None


def movements(answer: Answer) -> set[Row]:
    """Every ERC-20 movement of more than nothing that the receipts tell of."""
    return {
        (
            log["transactionHash"],
            log["address"].lower(),
            "0x" + log["topics"][1][-40:],
            "0x" + log["topics"][2][-40:],
            int(log["data"], 16),
            int(log["logIndex"], 16),
        )
        for receipt in answer.receipts
        for log in receipt["logs"]
        if len(log["topics"]) == 3 and log["topics"][0] == TRANSFER_TOPIC and len(log["data"]) == 66
        if int(log["data"], 16) > 0
    }


def expected(height: int) -> set[Row]:
    """The same as another indexer published it."""
    rows = read_json(MAINNET / str(height) / "expected_token_transfers.json.gz")
    return {
        (
            row["transactionHash"],
            row["tokenAddress"],
            row["fromAddress"],
            row["toAddress"],
            int(row.get("value", 0)),
            int(row.get("logIndex", 0)),  # the source leaves zeros out
        )
        for row in rows
        if "erc20" in row and int(row.get("value", 0)) > 0
    }


def profile_with(contracts: set[str]) -> ChainProfile:
    """Ethereum with these contracts listed, whatever they call themselves."""
    profile = load_profile("ethereum")
    listed = {asset.id for asset in profile.tokens}
    tokens = (make_token(profile.chain_id, contract, "TOKEN", 18) for contract in sorted(contracts))
    return add_tokens(profile, tuple(token for token in tokens if token.id not in listed))


async def make_follower(service: Service, adapter: EvmAdapter, height: int) -> Follower:
    """The chain as settings would register it, to be followed from that height on."""
    profile = adapter.profile
    async with transaction(service.owner) as connection:
        configuration = ChainConfiguration(
            profile.chain_id, profile.slug, "ethereum", True, profile.native.id, profile.proof.value, 1,
            adapter.value_paths, profile.assets, rules_as_json(RULES),
        )  # fmt: skip
        version = await register_chain(connection, configuration, datetime.now(UTC))
    followed = Followed(profile.chain_id, Policy(profile.slug, version, RULES), timedelta(minutes=2), 64)
    return Follower(service.owner, adapter, followed, Course(profile.slug, height, True))


async def watch(service: Service, addresses: set[str]) -> None:
    """Watch them through REST."""
    ordered = sorted(addresses)
    for start in range(0, len(ordered), 10_000):
        rows = [{"chain": "ethereum", "address": address} for address in ordered[start : start + 10_000]]
        answer = await service.ask("POST", "/v1/watches", {"watches": rows})
        assert answer.status == 200, answer.content


async def listed(service: Service, path: str) -> list[dict[str, Any]]:
    """Every row of a list, page by page."""
    rows: list[dict[str, Any]] = []
    cursor: dict[str, object] = {}
    while True:
        page = (await service.ask("GET", path, query={"limit": 1000, **cursor})).json
        rows += page["data"]
        if page["next_cursor"] is None:
            return rows
        cursor = {"cursor": page["next_cursor"]}


def tokens_of(rows: list[dict[str, Any]]) -> set[Row]:
    """The token movements among listed entries."""
    return {
        (
            row["transaction"]["hash"],
            row["asset"]["contract"],
            row["from"],
            row["to"],
            int(row["amount_atomic"]),
            row["locator"]["log_index"],
        )
        for row in rows
        if row["asset"]["kind"] == "fungible"
    }


async def whole_way(service: Service, height: int, node: RecordedNode, rows: set[Row]) -> AsyncIterator[Follower]:
    """A follower over a node, with everybody in `rows` watched."""
    adapter = EvmAdapter(profile_with({row[1] for row in rows}), [NodeAt(node.url)])
    follower = await make_follower(service, adapter, height)
    await watch(service, {row[2] for row in rows} | {row[3] for row in rows})
    yield follower
    await adapter.close()


@pytest.mark.parametrize("height", WITH_RECEIPTS)
async def test_a_recorded_block_comes_out_of_rest_as_the_chain_has_it(service: Service, height: int) -> None:
    answer = recorded(height)
    truth = expected(height) if height in WITH_EXPECTED_TRANSFERS else movements(answer)
    async with RecordedNode({height: (answer.block, answer.receipts)}) as node:
        async for follower in whole_way(service, height, node, truth):
            assert await follower.converge() == Extended(1, is_behind=False)
    deposits = await listed(service, "/v1/deposits")
    assert tokens_of(deposits) == truth
    assert len([row for row in deposits if row["asset"]["kind"] == "fungible"]) == len(truth)
    assert tokens_of(await listed(service, "/v1/withdrawals")) == truth
    assert {row["proof"]["level"] for row in deposits} <= {"roots"}
    assert {row["block"]["hash"] for row in deposits} <= {answer.block["hash"]}
    chain = (await service.ask("GET", "/v1/chains")).json["data"][0]
    assert (chain["tip"], chain["proof"]) == (height, "roots")


@pytest.mark.parametrize("trouble", [drop_one_log, empty_list])
async def test_a_node_that_hides_logs_is_caught_and_nothing_is_lost(
    service: Service, trouble: Callable[[Any], Any]
) -> None:
    height = 17_300_000
    answer = recorded(height)
    async with RecordedNode({height: (answer.block, answer.receipts)}) as node:
        async for follower in whole_way(service, height, node, expected(height)):
            node.misbehave(trouble, method="eth_getBlockReceipts")
            outcome = await follower.converge()
            assert isinstance(outcome, Holding)
            assert "recorded" in outcome.reason
            assert await listed(service, "/v1/deposits") == []
            metrics = (await service.ask("GET", "/metrics", key="")).content.decode()
            assert 'chainbell_proof_failures_total{chain="ethereum"' in metrics
            assert 'node="recorded"' in metrics
            node.behave()
            assert await follower.converge() == Extended(1, is_behind=False)
    assert tokens_of(await listed(service, "/v1/deposits")) == expected(height)
