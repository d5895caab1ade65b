"""What an operator gets wrong gets one clear sentence: what, where, remedy. Nothing else suffers for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chainbell.demo.anvil import anvil
from tests.outside.installation import Installation, Tenant, installed


def chain_settings(slug: str, url: str, chain_id: str = "eip155:31337") -> str:
    return (
        f'\n[chains.{slug}]\nprofile = "anvil"\nchain_id = "{chain_id}"\nnodes = [ {{ url = "{url}" }} ]\nstart = 0\n'
    )


async def test_a_node_of_another_chain_stops_a_new_installation_with_its_sentence(
    database_url: str, tmp_path: Path
) -> None:
    async with anvil() as node, installed(tmp_path, database_url, chain_settings("mine", node.url, "eip155:5")) as ours:
        ended = await ours.attempt("follow")
        assert ended.status == 1
        assert "eip155:31337" in ended.sentence and "eip155:5" in ended.sentence
        assert "correct its url" in ended.sentence
        ended = await ours.attempt("run")
        assert ended.status == 1
        assert "eip155:31337" in ended.complaint


async def test_a_node_that_turns_to_another_chain_stops_neither_the_other_chains_nor_the_api(
    database_url: str, tmp_path: Path
) -> None:
    async with anvil() as good, anvil(extra_args=["--chain-id", "31338"]) as other:
        both = chain_settings("good", good.url) + chain_settings("bad", other.url, "eip155:31338")
        async with installed(tmp_path, database_url, both) as ours:
            await ours.run()
            shop = await ours.tenant("shop")
            await shop.until_followed("bad", 0)
            await ours.stop("run")
            ours.configure(chain_settings("good", good.url) + chain_settings("bad", good.url, "eip155:31338"))
            await ours.run()
            await shop.until_chain("the bad chain holds for that", "bad", lambda row: holds_for(row, "eip155:31337"))
            await shop.until_followed("good", await good.mine())


async def test_what_lies_in_the_working_directory_is_not_taken_for_our_modules(
    database_url: str, tmp_path: Path
) -> None:
    for name in ("api", "chains", "ledger"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a decoy was run')")
    async with anvil() as node, installed(tmp_path, database_url, chain_settings("mine", node.url)) as ours:
        await ours.run()
        shop = await ours.tenant("shop")
        await shop.until_followed("mine", 0)
        assert "decoy" not in ours.log_text()


async def test_a_node_that_is_down_holds_its_chain_and_says_so(database_url: str, tmp_path: Path) -> None:
    async with installed(tmp_path, database_url, chain_settings("mine", "http://127.0.0.1:9")) as ours:
        await ours.run()
        shop = await ours.tenant("shop")
        await shop.until_chain("the chain holds for that", "mine", lambda row: holds_for(row, "connection failed"))


def holds_for(row: Any, words: str) -> bool:  # noqa: ANN401 - JSON
    """A chain's row once it holds for this reason: on a slow machine it may have held for another before."""
    return row["state"] == "holding" and words in row["reason"]


@pytest.mark.parametrize("height", ["-5", "999"])
async def test_a_halt_is_not_lifted_by_a_senseless_height(database_url: str, tmp_path: Path, height: str) -> None:
    async with anvil() as node, installed(tmp_path, database_url, chain_settings("mine", node.url)) as ours:
        await ours.run()
        await (await ours.tenant("shop")).until_followed("mine", 0)
        ended = await ours.attempt("resume", "--chain", "mine", "--accept-reorg-to", height)
        assert ended.status == 2


async def test_bad_requests_are_told_what_is_wrong_and_where(database_url: str, tmp_path: Path) -> None:
    async with anvil() as node, installed(tmp_path, database_url, chain_settings("mine", node.url)) as ours:
        await ours.run()
        shop = await ours.tenant("shop")
        good = "0x" + "11" * 20
        rows = [{"chain": "mine", "address": good}] * 3 + [{"chain": "mine", "address": good[:-1]}]
        answer = await shop.ask("POST", "/v1/watches", {"watches": rows})
        assert answer.status == 422
        assert answer.document["errors"][0]["pointer"] == "/watches/3/address"
        assert await shop.rows("/v1/watches") == []
        checksum = {
            "chain": "mine",
            "address": "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAeD".swapcase().replace("X", "x"),
        }
        assert (await shop.ask("POST", "/v1/watches", {"watches": [checksum]})).status == 422
        assert (await Tenant(ours, "id", "cb_live_nonsense").ask("GET", "/v1/deposits")).status == 401
        answer = await shop.ask("GET", "/v1/deposits?asset=USDC")
        assert answer.status == 422
        assert "eip155:1/slip44:60" in answer.document["detail"]


async def test_names_that_are_none_are_refused(database_url: str, tmp_path: Path) -> None:
    async with installed(tmp_path, database_url) as ours:
        await check_names(ours)


async def check_names(ours: Installation) -> None:
    for name in ("", "ten_ops", "x" * 101, " lead"):
        ended = await ours.attempt("tenants", "create", name)
        assert ended.status == 2
        assert "no name for a tenant" in ended.sentence
