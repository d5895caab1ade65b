"""Small wire values for tests of decoding: plausible, unsigned, and with nothing hidden."""

from __future__ import annotations

from typing import Any

from chains.evm.tokens import TRANSFER_TOPIC
from chains.evm.wire import WireBlock, WireLog, WireReceipt, WireTransaction, WireWithdrawal
from chains.model import Address, Asset, AssetId, AssetKind, ChainId, hex_of

CHAIN_ID = ChainId("eip155:1")
ALICE: Address = bytes.fromhex("a1" * 20)
BOB: Address = bytes.fromhex("b0" * 20)
TOKEN: Address = bytes.fromhex("70" * 20)
BASE_FEE_WEI = 1000
NATIVE = Asset(AssetId("eip155:1/slip44:60"), "ETH", 18, AssetKind.NATIVE)


def make_asset(contract: Address = TOKEN, **flags: bool) -> Asset:
    """An allow-listed token."""
    asset_id = AssetId(f"eip155:1/erc20:{hex_of(contract)}")
    return Asset(asset_id, "TST", 6, AssetKind.FUNGIBLE, contract, **flags)


def word(value: Address | int) -> str:
    """32 bytes as `0x` hex: an address or a number, padded on the left."""
    return hex_of(value.rjust(32, b"\0") if isinstance(value, bytes) else value.to_bytes(32, "big"))


def make_transaction(index: int = 0, **changes: Any) -> WireTransaction:  # noqa: ANN401 - any field
    """A dynamic-fee transaction from Alice to Bob that moves nothing."""
    fields: dict[str, Any] = {
        "hash": word(0xAAAA0000 + index),
        "nonce": "0x7",
        "gas": "0x10000",
        "value": "0x0",
        "input": "0x",
        "v": "0x0",
        "r": "0x1",
        "s": "0x1",
        "sender": hex_of(ALICE),
        "to": hex_of(BOB),
        "type": "0x2",
        "chain_id": "0x1",
        "max_fee_per_gas": "0x1388",
        "max_priority_fee_per_gas": "0x64",
    }
    return WireTransaction(**(fields | changes))


def make_log(contract: Address = TOKEN, **changes: Any) -> WireLog:  # noqa: ANN401 - any field
    """A `Transfer` of 5 units from Alice to Bob."""
    fields: dict[str, Any] = {
        "address": hex_of(contract),
        "topics": [TRANSFER_TOPIC, word(ALICE), word(BOB)],
        "data": word(5),
        "log_index": "0x0",
        "block_hash": word(1),
        "transaction_hash": word(2),
        "transaction_index": "0x0",
    }
    return WireLog(**(fields | changes))


def make_receipt(*logs: WireLog, index: int = 0, **changes: Any) -> WireReceipt:  # noqa: ANN401 - any field
    """The receipt of a transaction that succeeded and used 100 gas."""
    fields: dict[str, Any] = {
        "transaction_hash": word(0xAAAA0000 + index),
        "transaction_index": hex(index),
        "block_hash": word(1),
        "cumulative_gas_used": hex(100 * (index + 1)),
        "logs": list(logs),
        "status": "0x1",
    }
    return WireReceipt(**(fields | changes))


def make_block(
    *transactions: WireTransaction,
    withdrawals: list[WireWithdrawal] | None = None,
    dialect: type[WireBlock] = WireBlock,
) -> WireBlock:
    """A block of these transactions; its commitments are empty, for tests that do not look at them."""
    return dialect(
        hash=word(1),
        parent_hash=word(0),
        sha3_uncles=word(0),
        miner=hex_of(bytes(20)),
        state_root=word(0),
        transactions_root=word(0),
        receipts_root=word(0),
        logs_bloom=hex_of(bytes(256)),
        difficulty="0x0",
        number="0x10",
        gas_limit="0x0",
        gas_used="0x0",
        timestamp="0x1",
        extra_data="0x",
        mix_hash=word(0),
        nonce=hex_of(bytes(8)),
        base_fee_per_gas=hex(BASE_FEE_WEI),
        transactions=list(transactions),
        withdrawals=withdrawals,
    )
