"""The local node does what the demo and the other tests build on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import rlp
from sha3 import keccak_256

from chainbell.demo.anvil import AnvilError, AnvilNode, anvil, find_anvil

HEADER_FIELDS = """
    parentHash sha3Uncles miner stateRoot transactionsRoot receiptsRoot logsBloom difficulty number gasLimit gasUsed
    timestamp extraData mixHash nonce baseFeePerGas withdrawalsRoot blobGasUsed excessBlobGas parentBeaconBlockRoot
    requestsHash
"""
QUANTITIES = "difficulty number gasLimit gasUsed timestamp baseFeePerGas blobGasUsed excessBlobGas"


def header_hash(block: dict[str, str]) -> str:
    """Hash of a Prague header, computed the long way round, independently of `chains.evm`."""

    def encode(name: str) -> bytes:
        digits = block[name].removeprefix("0x")
        if name in QUANTITIES.split():
            number = int(digits, 16)
            return number.to_bytes((number.bit_length() + 7) // 8)
        return bytes.fromhex(digits)

    header: bytes = rlp.encode([encode(name) for name in HEADER_FIELDS.split()])
    digest: str = keccak_256(header).hexdigest()
    return "0x" + digest


async def blocks(node: AnvilNode) -> list[dict[str, Any]]:
    return [await node.rpc("eth_getBlockByNumber", hex(h), False) for h in range(await node.height() + 1)]


async def test_headers_of_every_block_hash_to_what_the_node_names(anvil_node: AnvilNode) -> None:
    accounts = await anvil_node.rpc("eth_accounts")
    await anvil_node.rpc("eth_sendTransaction", {"from": accounts[0], "to": accounts[1], "value": "0x1"})
    await anvil_node.mine(2)
    await anvil_node.reorg(2, [({"from": accounts[2], "to": accounts[3], "value": "0x7"}, 0)])
    found = await blocks(anvil_node)
    assert [header_hash(block) for block in found] == [block["hash"] for block in found]
    assert [block["parentHash"] for block in found[1:]] == [block["hash"] for block in found[:-1]]


async def test_a_reorg_replaces_exactly_its_depth_and_carries_only_what_it_is_given(anvil_node: AnvilNode) -> None:
    accounts = await anvil_node.rpc("eth_accounts")
    await anvil_node.rpc("eth_sendTransaction", {"from": accounts[0], "to": accounts[1], "value": "0x1"})
    await anvil_node.mine(3)
    before = await blocks(anvil_node)
    await anvil_node.reorg(4, [({"from": accounts[0], "to": accounts[1], "value": "0x2"}, 2)])
    after = await blocks(anvil_node)
    assert [a["hash"] == b["hash"] for a, b in zip(after, before, strict=True)] == [True, False, False, False, False]
    assert [len(block["transactions"]) for block in after] == [0, 0, 0, 1, 0]


async def test_empty_blocks_are_really_replaced(anvil_node: AnvilNode) -> None:
    await anvil_node.mine(8)
    before = await blocks(anvil_node)
    for _ in range(5):
        await anvil_node.reorg(8)
    assert not {block["hash"] for block in await blocks(anvil_node)} & {block["hash"] for block in before[1:]}


async def test_safe_and_finalized_are_one_and_two_epochs_behind_the_head(anvil_node: AnvilNode) -> None:
    await anvil_node.mine(10)
    tags = [await anvil_node.rpc("eth_getBlockByNumber", tag, False) for tag in ("safe", "finalized")]
    assert [int(block["number"], 16) for block in tags] == [6, 2]


async def test_a_rollback_takes_blocks_off(anvil_node: AnvilNode) -> None:
    await anvil_node.mine(5)
    await anvil_node.rpc("anvil_rollback", 2)
    assert await anvil_node.height() == 3


async def test_an_option_that_anvil_does_not_know_is_told_in_its_own_words() -> None:
    with pytest.raises(AnvilError, match="unexpected argument '--no-such-option'"):
        async with anvil(extra_args=["--no-such-option"]):
            pass


def test_a_program_that_is_not_there_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CHAINBELL_ANVIL", str(tmp_path / "anvil"))
    with pytest.raises(AnvilError, match=r"anvil is not a program.*make anvil"):
        find_anvil()


def states_below(home: Path) -> list[Path]:
    return list(home.rglob("anvil-state-*"))


async def test_a_node_leaves_nothing_in_the_home_of_its_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    async with anvil() as node:
        await node.mine(1200)  # more states than it keeps in memory
    assert states_below(tmp_path) == []
