"""Blocks of chains with other dialects, as their nodes would answer them, with true commitments.

Everything is encoded with the `rlp` package and a trie written from its definition, from the reference implementations'
field orders: nothing of ours but the hash function is used, so that two encoders have to agree.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import rlp
from eth_account import Account

from chains.evm.dialect import Dialect
from chains.evm.keccak import keccak
from chains.model import Address, hex_of
from tests.unit.chains.evm.recorded import Answer
from tests.unit.chains.evm.slow_trie import SlowTrie

KEY = "0x" + "11" * 32
SIGNER: Address = bytes.fromhex(Account.from_key(KEY).address[2:])
HEIGHT = 1_000_000
BASE_FEE_WEI = 100

Row = dict[str, Any]


def uint(number: int) -> bytes:
    """A number as RLP has it: big-endian, no leading zeros."""
    return number.to_bytes((number.bit_length() + 7) // 8, "big")


def root_of(items: list[bytes]) -> bytes:
    """The root of an ordered list."""
    return SlowTrie({rlp.encode(uint(index)): item for index, item in enumerate(items)}).root


def bloom_of(logs: list[Row]) -> int:
    """The bloom filter of logs, as a number."""
    bloom = 0
    for log in logs:
        for text in (log["address"], *log["topics"]):
            digest = keccak(bytes.fromhex(text[2:]))
            for at in (0, 2, 4):
                bloom |= 1 << (int.from_bytes(digest[at : at + 2], "big") & 2047)
    return bloom


@dataclass
class Sent:
    """One transaction with its outcome: what a node lists, its bytes, and what its receipt holds."""

    row: Row
    raw: bytes
    gas_used: int = 21_000
    status: int = 1
    logs: list[Row] = field(default_factory=list)
    receipt: Row = field(default_factory=dict)
    """More fields of the receipt, as a node lists them."""
    receipt_tail: list[bytes] = field(default_factory=list)
    """More fields of the receipt, as they lie under the root."""
    hash: bytes | None = None
    """Where it is not that of the bytes."""

    @property
    def kind(self) -> int:
        """Its type."""
        return int(self.row["type"], 16)


def row(kind: int, sender: Address, to: Address | None, value: int = 0, data: bytes = b"", **more: Any) -> Row:  # noqa: ANN401
    """A transaction as nodes list one that nobody signed."""
    listed = {
        "type": hex(kind), "from": hex_of(sender), "to": hex_of(to) if to is not None else None, "value": hex(value),
        "input": hex_of(data), "nonce": "0x0", "gas": "0x0", "gasPrice": "0x0", "v": "0x0", "r": "0x0", "s": "0x0",
    }  # fmt: skip
    return listed | more


def signed(to: Address, value: int, *, nonce: int = 0, chain_number: int = 1) -> Sent:
    """An ordinary dynamic-fee transaction of `SIGNER`."""
    fields = {
        "type": 2, "chainId": chain_number, "nonce": nonce, "gas": 21_000, "to": to, "value": value,
        "maxFeePerGas": 3 * BASE_FEE_WEI, "maxPriorityFeePerGas": 7, "data": b"",
    }  # fmt: skip
    made = Account.sign_transaction(fields, KEY)
    listed = row(
        2, SIGNER, to, value, nonce=hex(nonce), gas=hex(21_000), v=hex(made.v), r=hex(made.r), s=hex(made.s),
        chainId=hex(chain_number), maxFeePerGas=hex(3 * BASE_FEE_WEI), maxPriorityFeePerGas="0x7", accessList=[],
    )  # fmt: skip
    return Sent(listed, bytes(made.raw_transaction))


def make_answer(
    dialect: Dialect, sent: list[Sent], *, apart: Sent | None = None, height: int = HEIGHT, header: Row | None = None
) -> Answer:
    """The block of these transactions. `apart` is listed last and lies under no root; `header` overrides fields by their
    JSON names, and adds those of later forks."""
    fields = _header_of(sent, height) | (header or {})
    block_hash = keccak(rlp.encode(header_items(fields, dialect)))
    listed = [*sent, apart] if apart is not None else sent
    if apart is not None:
        apart.hash = keccak(b"matic-bor-receipt-" + height.to_bytes(8, "big") + block_hash)
    rows, receipts, cumulative, log_index = [], [], 0, 0
    for index, one in enumerate(listed):
        place = {"blockHash": hex_of(block_hash), "transactionIndex": hex(index)}
        transaction_hash = hex_of(one.hash or keccak(one.raw))
        rows.append(one.row | place | {"hash": transaction_hash})
        cumulative = 0 if one is apart else cumulative + one.gas_used
        logs = []
        for log in one.logs:
            logs.append(log | place | {"transactionHash": transaction_hash, "logIndex": hex(log_index)})
            log_index += 1
        receipts.append(
            place
            | {"transactionHash": transaction_hash, "type": hex(one.kind), "status": hex(one.status), "logs": logs}
            | {"cumulativeGasUsed": hex(cumulative), "gasUsed": hex(one.gas_used)}
            | one.receipt
        )
    fields = {name: value for name, value in fields.items() if value is not None}
    return Answer(fields | {"hash": hex_of(block_hash), "transactions": rows}, receipts, dialect)


def _header_of(sent: list[Sent], height: int) -> Row:
    blooms = [bloom_of(one.logs) for one in sent]
    union, cumulative, receipts = 0, 0, []
    for one, bloom in zip(sent, blooms, strict=True):
        union |= bloom
        cumulative += one.gas_used
        logs = [[_raw(log["address"]), [_raw(topic) for topic in log["topics"]], _raw(log["data"])] for log in one.logs]
        payload = rlp.encode([uint(one.status), uint(cumulative), bloom.to_bytes(256, "big"), logs, *one.receipt_tail])
        receipts.append((bytes([one.kind]) if one.kind else b"") + payload)
    zero = hex_of(bytes(32))
    return {
        "parentHash": zero, "sha3Uncles": hex_of(keccak(b"\xc0")), "miner": hex_of(bytes(20)), "stateRoot": zero,
        "transactionsRoot": hex_of(root_of([one.raw for one in sent])), "receiptsRoot": hex_of(root_of(receipts)),
        "logsBloom": f"0x{union:0512x}", "difficulty": "0x1", "number": hex(height), "gasLimit": "0x1000000",
        "gasUsed": hex(cumulative), "timestamp": "0x65000000", "extraData": "0x", "mixHash": zero,
        "nonce": "0x0000000000000000", "baseFeePerGas": hex(BASE_FEE_WEI),
    }  # fmt: skip


FIRST = [
    "parentHash", "sha3Uncles", "miner", "stateRoot", "transactionsRoot", "receiptsRoot", "logsBloom", "difficulty",
    "number", "gasLimit", "gasUsed", "timestamp", "extraData", "mixHash", "nonce",
]  # fmt: skip
LATER = [
    "baseFeePerGas", "withdrawalsRoot", "blobGasUsed", "excessBlobGas", "parentBeaconBlockRoot", "requestsHash",
    "blockAccessListHash", "slotNumber",
]  # fmt: skip
AVALANCHE = [
    "extDataHash", "baseFeePerGas", "extDataGasUsed", "blockGasCost", "blobGasUsed", "excessBlobGas",
    "parentBeaconBlockRoot", "timestampMilliseconds", "minDelayExcess",
]  # fmt: skip
NUMBERS = {
    "difficulty", "number", "gasLimit", "gasUsed", "timestamp", "baseFeePerGas", "blobGasUsed", "excessBlobGas",
    "slotNumber", "extDataGasUsed", "blockGasCost", "timestampMilliseconds", "minDelayExcess",
}  # fmt: skip


def header_items(fields: Row, dialect: Dialect) -> list[bytes]:
    """The header's fields in the order in which they are hashed."""
    names = FIRST + (AVALANCHE if dialect is Dialect.AVALANCHE else LATER)
    present = [name for name in names if fields.get(name) is not None]
    return [uint(int(fields[name], 16)) if name in NUMBERS else _raw(fields[name]) for name in present]


def _raw(text: str) -> bytes:
    return bytes.fromhex(text[2:])
