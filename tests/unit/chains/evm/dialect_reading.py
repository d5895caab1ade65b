"""Reading generated and recorded blocks as the adapter does, and what to ask of the outcome."""

from __future__ import annotations

import msgspec
import pytest

from chains.evm.errors import ProofFailure
from chains.evm.reading import RawBlock, ReadingRules, read_block
from chains.evm.tokens import TRANSFER_TOPIC
from chains.evm.wire import bytes_of
from chains.model import Address, Block, ProofLevel, hex_of
from tests.unit.chains.evm.dialect_blocks import Row
from tests.unit.chains.evm.factories import ALICE, BOB, CHAIN_ID, NATIVE, TOKEN, make_asset, word
from tests.unit.chains.evm.recorded import Answer

CAROL: Address = bytes.fromhex("ca" * 20)
CANCUN = {"blobGasUsed": "0x0", "excessBlobGas": "0x0", "parentBeaconBlockRoot": word(1)}
"""The header fields that came with Cancun."""


def read(answer: Answer, state_sync: bytes | None = None, *, like: Answer | None = None) -> Block:
    """What the adapter would make of the answer, with every contract of it (or of `like`) listed, when it asked for the
    block's height. Raises `ProofFailure`."""
    known = like or answer
    contracts = {bytes_of(log["address"]) for receipt in known.receipts for log in receipt["logs"]}
    rules = ReadingRules(CHAIN_ID, ProofLevel.ROOTS, NATIVE, {c: make_asset(c) for c in contracts}, answer.dialect)
    bytes_told = msgspec.json.encode(hex_of(state_sync)) if state_sync is not None else None
    raw = RawBlock(
        msgspec.json.encode(answer.block), msgspec.json.encode(answer.receipts), "n", "h", 1, state_sync=bytes_told
    )
    return read_block(rules, int(known.block["number"], 16), raw)


def native(block: Block) -> list[tuple[Address | None, Address | None, int, str]]:
    """The block's movements of the native coin: from, to, amount, and where they were seen."""
    return [
        (t.sender, t.recipient, t.amount_atomic, "failed" if t.has_failed else t.locator.path or t.locator.kind.value)
        for t in block.transfers
        if t.asset_id == NATIVE.id
    ]


def fees(block: Block) -> list[int | None]:
    """What the transactions of the block's transfers paid."""
    return [t.transaction.fee_atomic for t in block.transfers if t.transaction is not None]


def balances(block: Block) -> dict[Address, int]:
    """By how much the block's transfers of the native coin change each balance."""
    changes: dict[Address, int] = {}
    for transfer in block.transfers:
        if transfer.asset_id == NATIVE.id and not transfer.has_failed:
            for address, sign in ((transfer.sender, -1), (transfer.recipient, 1)):
                if address is not None:
                    changes[address] = changes.get(address, 0) + sign * transfer.amount_atomic
    return {address: amount for address, amount in changes.items() if amount}


def transfer_log(amount: int = 5) -> Row:
    """A `Transfer` of a listed token to Bob."""
    return {"address": hex_of(TOKEN), "topics": [TRANSFER_TOPIC, word(ALICE), word(BOB)], "data": word(amount)}


def refusal(answer: Answer, state_sync: bytes | None = None) -> str:
    """The check that refuses the answer."""
    with pytest.raises(ProofFailure) as failure:
        read(answer, state_sync)
    return failure.value.check
