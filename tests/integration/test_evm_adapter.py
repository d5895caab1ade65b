"""The EVM adapter before a real node: everything that a block can carry, proven at `roots`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from eth_account import Account

from chainbell.demo.anvil import AnvilNode
from chains.errors import BlockNotFound, NodeUnavailable, WrongChain
from chains.evm.adapter import EvmAdapter
from chains.evm.senders import created_address
from chains.evm.tokens import TRANSFER_TOPIC
from chains.model import Address, Block, ChainId, LocatorKind, ProofLevel, Transfer, hex_of
from chains.profile import ChainProfile, add_tokens, load_profile, make_token, rename_profile

FIRST_KEY = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"
"""Of the first account of the well-known test mnemonic."""

TOKEN_RUNTIME = bytes.fromhex(
    "602435600052"  # memory[0] = second argument
    "60043533"  # first argument, caller
    f"7f{TRANSFER_TOPIC[2:]}"
    "60206000a300"  # log `Transfer(caller, first argument, second argument)` and stop
)
"""The smallest contract whose `transfer(address,uint256)` says that it moved what it was told to."""
REVERTING_RUNTIME = bytes.fromhex("60006000fd")


@dataclass(frozen=True)
class Settings:
    url: str
    name: str | None = None
    rps: float | None = None
    ws: str | None = None


def deploying(runtime: bytes) -> str:
    """The code that creates a contract of that code, shorter than 256 bytes."""
    return "0x" + (bytes.fromhex(f"60{len(runtime):02x}80600b6000396000f3") + runtime).hex()


def transfer_call(recipient: Address, amount: int) -> str:
    return "0xa9059cbb" + recipient.rjust(32, b"\0").hex() + f"{amount:064x}"


@dataclass
class Bench:
    """Anvil, its unlocked accounts, and adapters over it."""

    node: AnvilNode
    accounts: list[Address]
    adapters: list[EvmAdapter]

    def adapter(self, profile: ChainProfile | None = None) -> EvmAdapter:
        adapter = EvmAdapter(profile or load_profile("anvil"), [Settings(self.node.url)])
        self.adapters.append(adapter)
        return adapter

    async def submit(self, sender: Address, **fields: Any) -> str:  # noqa: ANN401 - JSON
        """Send from an unlocked account; the transaction's hash."""
        transaction_hash: str = await self.node.rpc("eth_sendTransaction", {"from": hex_of(sender), **fields})
        return transaction_hash

    async def send(self, sender: Address, **fields: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
        """Send from an unlocked account and wait for the receipt: Anvil answers before it mines."""
        transaction_hash = await self.submit(sender, **fields)
        async with asyncio.timeout(120):
            while True:
                receipt: dict[str, Any] | None = await self.node.rpc("eth_getTransactionReceipt", transaction_hash)
                if receipt is not None:
                    return receipt

    async def deploy(self, runtime: bytes) -> Address:
        receipt = await self.send(self.accounts[0], data=deploying(runtime))
        return bytes.fromhex(receipt["contractAddress"][2:])

    async def newest(self, adapter: EvmAdapter) -> Block:
        return await adapter.fetch_block(await self.node.height())


@pytest.fixture
async def bench(anvil_node: AnvilNode) -> AsyncIterator[Bench]:
    accounts = [bytes.fromhex(account[2:]) for account in await anvil_node.rpc("eth_accounts")]
    made = Bench(anvil_node, accounts, [])
    yield made
    for adapter in made.adapters:
        await adapter.close()


def only(block: Block) -> Transfer:
    """The one transfer of a block proven to its roots."""
    assert block.proof is ProofLevel.ROOTS
    (transfer,) = block.transfers
    return transfer


@pytest.mark.parametrize("data", ["0x", "0x68656c6c6f"])
async def test_native_value_is_a_transfer_whatever_the_calldata(bench: Bench, data: str) -> None:
    sender, recipient = bench.accounts[:2]
    receipt = await bench.send(sender, to=hex_of(recipient), value="0x3e8", data=data)
    transfer = only(await bench.newest(bench.adapter()))
    assert (transfer.sender, transfer.recipient, transfer.amount_atomic) == (sender, recipient, 1000)
    assert transfer.locator.kind is LocatorKind.NATIVE
    assert transfer.transaction is not None
    fee = int(receipt["gasUsed"], 16) * int(receipt["effectiveGasPrice"], 16)
    assert (hex_of(transfer.transaction.hash), transfer.transaction.fee_atomic) == (receipt["transactionHash"], fee)


async def test_a_contract_created_with_value_is_credited(bench: Bench) -> None:
    receipt = await bench.send(bench.accounts[0], data=deploying(TOKEN_RUNTIME), value="0x7")
    transfer = only(await bench.newest(bench.adapter()))
    assert (transfer.recipient, transfer.amount_atomic) == (created_address(bench.accounts[0], 0), 7)
    assert hex_of(transfer.recipient or b"") == receipt["contractAddress"].lower()


async def test_a_listed_token_is_a_transfer_and_an_unlisted_one_is_not(bench: Bench) -> None:
    listed, unlisted = await bench.deploy(TOKEN_RUNTIME), await bench.deploy(TOKEN_RUNTIME)
    profile = load_profile("anvil")
    token = make_token(profile.chain_id, hex_of(listed), "TST", 6)
    adapter = bench.adapter(add_tokens(profile, (token,)))
    sender, recipient = bench.accounts[1:3]
    for contract in (unlisted, listed):
        await bench.send(sender, to=hex_of(contract), data=transfer_call(recipient, 5))
    height = await bench.node.height()
    assert (await adapter.fetch_block(height - 1)).transfers == ()
    transfer = only(await adapter.fetch_block(height))
    assert (transfer.asset_id, transfer.amount_atomic) == (token.id, 5)
    assert (transfer.sender, transfer.recipient, transfer.locator.kind) == (sender, recipient, LocatorKind.LOG)


async def test_movements_of_zero_are_none(bench: Bench) -> None:
    contract = await bench.deploy(TOKEN_RUNTIME)
    profile = load_profile("anvil")
    adapter = bench.adapter(add_tokens(profile, (make_token(profile.chain_id, hex_of(contract), "TST", 6),)))
    await bench.send(bench.accounts[0], to=hex_of(contract), data=transfer_call(bench.accounts[1], 0))
    await bench.send(bench.accounts[0], to=hex_of(bench.accounts[1]), value="0x0")
    height = await bench.node.height()
    assert [(await adapter.fetch_block(h)).transfers for h in (height - 1, height)] == [(), ()]


async def test_a_failed_transaction_moved_nothing_and_is_told(bench: Bench) -> None:
    contract = await bench.deploy(REVERTING_RUNTIME)
    receipt = await bench.send(bench.accounts[0], to=hex_of(contract), value="0x9", gas="0x186a0")
    assert receipt["status"] == "0x0"
    transfer = only(await bench.newest(bench.adapter()))
    assert (transfer.has_failed, transfer.locator.kind) == (True, LocatorKind.TRANSACTION)
    assert (transfer.sender, transfer.recipient, transfer.amount_atomic) == (bench.accounts[0], contract, 9)


async def test_every_type_of_transaction_proves_in_one_block(bench: Bench) -> None:
    to, sender = hex_of(bench.accounts[9]), bench.accounts[0]
    await bench.node.rpc("evm_setAutomine", False)
    gas_price = hex(10 * 10**9)
    access = [{"address": to, "storageKeys": ["0x" + "02" * 32]}]
    sends: list[dict[str, Any]] = [
        {"to": to, "value": "0x1", "gasPrice": gas_price},
        {"to": to, "value": "0x2", "gasPrice": gas_price, "accessList": access},
        {"to": to, "value": "0x3", "maxFeePerGas": gas_price, "maxPriorityFeePerGas": "0x1", "accessList": access},
    ]
    for n, fields in enumerate(sends):
        await bench.submit(sender, nonce=hex(n), gas="0x186a0", **fields)
    await bench.node.rpc("eth_sendRawTransaction", hex_of(delegating(bench.accounts[9], nonce=3)))
    await bench.node.mine()
    raw = await bench.node.rpc("eth_getBlockByNumber", "latest", True)
    assert [row["type"] for row in raw["transactions"]] == ["0x0", "0x1", "0x2", "0x4"]
    block = await bench.newest(bench.adapter())
    assert (block.proof, [transfer.amount_atomic for transfer in block.transfers]) == (ProofLevel.ROOTS, [1, 2, 3, 4])
    assert {transfer.sender for transfer in block.transfers} == {sender}


def delegating(recipient: Address, nonce: int) -> bytes:
    """A signed transaction of type 0x4 (EIP-7702) of the first account, with value 4."""
    account = Account.from_key(FIRST_KEY)
    authorization = account.sign_authorization({"chainId": 31337, "address": b"\x01" * 20, "nonce": nonce + 1})
    signed = account.sign_transaction(
        {
            "type": 4,
            "chainId": 31337,
            "nonce": nonce,
            "gas": 200_000,
            "maxFeePerGas": 10 * 10**9,
            "maxPriorityFeePerGas": 1,
            "to": recipient,
            "value": 4,
            "accessList": [],
            "authorizationList": [authorization],
        }
    )
    return bytes(signed.raw_transaction)


async def test_every_block_from_genesis_proves_and_links_before_and_after_a_reorg(bench: Bench) -> None:
    adapter = bench.adapter()
    await bench.send(bench.accounts[0], to=hex_of(bench.accounts[1]), value="0x1")
    await bench.node.mine(4)
    before = [await adapter.fetch_block(height) for height in range(6)]
    await bench.node.reorg(
        4, [({"from": hex_of(bench.accounts[2]), "to": hex_of(bench.accounts[3]), "value": "0x5"}, 1)]
    )
    after = [await adapter.fetch_block(height) for height in range(6)]
    for branch in (before, after):
        assert [b.ref.parent_hash for b in branch[1:]] == [b.ref.hash for b in branch[:-1]]
        assert {block.proof for block in branch} == {ProofLevel.ROOTS}
    assert [a.ref == b.ref for a, b in zip(before, after, strict=True)] == [True, True, False, False, False, False]
    assert [len(block.transfers) for block in after] == [0, 1, 0, 1, 0, 0]
    assert await adapter.fetch_ref(5) == after[5].ref
    assert await adapter.fetch_agreements(before[5].ref, adapter.hosts) == {"127.0.0.1": False}
    assert await adapter.fetch_block_by_hash(after[3].ref.hash) == after[3]


async def test_the_head_and_its_tags_follow_the_node_up_and_down(bench: Bench) -> None:
    adapter = bench.adapter()
    await bench.node.mine(10)
    head = await adapter.fetch_head()
    assert head.safe is not None
    assert head.finalized is not None
    assert [head.head.height, head.safe.height, head.finalized.height] == [10, 6, 2]
    assert head.finalized == await adapter.fetch_ref(2)
    await bench.node.rpc("anvil_rollback", 3)
    assert (await adapter.fetch_head()).head.height == 7
    with pytest.raises(BlockNotFound):
        await adapter.fetch_block(8)
    assert await adapter.fetch_ref(8) is None


async def test_a_chain_id_that_is_not_the_nodes_stops_the_start(bench: Bench) -> None:
    profile = load_profile("anvil")
    await bench.adapter().check_chain_id()
    other = rename_profile(profile, profile.slug, ChainId("eip155:31338"))
    with pytest.raises(WrongChain, match=r"127\.0\.0\.1: .*eip155:31337, not eip155:31338"):
        await bench.adapter(other).check_chain_id()


async def test_what_anvil_can_do_is_found_by_asking(bench: Bench) -> None:
    await bench.node.mine(20)
    (probe,) = await bench.adapter().probe()
    assert (probe.reason, probe.chain_id, probe.head, probe.lag_blocks) == (None, "eip155:31337", 20, 0)
    assert (probe.has_batches, probe.has_block_receipts, probe.log_range_max) == (True, True, 21)
    assert probe.trace_methods == ("debug_traceBlockByHash", "trace_block")
    assert (probe.has_old_blocks, probe.has_old_receipts, probe.has_old_state) == (True, True, True)
    assert (probe.client or "").startswith("anvil/")


async def test_nothing_listening_is_a_node_that_does_not_answer(bench: Bench) -> None:
    adapter = EvmAdapter(load_profile("anvil"), [Settings("http://127.0.0.1:1", "gone")])
    bench.adapters.append(adapter)
    await adapter.check_chain_id()
    with pytest.raises(NodeUnavailable, match="anvil: head: no node answered: gone: connection failed"):
        await adapter.fetch_head()


async def test_the_second_node_answers_for_the_first(bench: Bench) -> None:
    profile = replace(load_profile("anvil"), proof=ProofLevel.ROOTS)
    adapter = EvmAdapter(profile, [Settings("http://127.0.0.1:1", "gone"), Settings(bench.node.url, "here")])
    bench.adapters.append(adapter)
    assert (await adapter.fetch_block(0)).node == "here"
    assert [(status.name, status.state) for status in adapter.node_statuses()] == [("gone", "failing"), ("here", "ok")]
