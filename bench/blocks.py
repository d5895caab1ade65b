"""Blocks as a node would answer them, of mainnet's size and mix, with true commitments.

Every signature, hash, root and bloom is real, so a block proves itself to `roots`; what it is made of is random, by a
seed. State roots are random too: nobody who only reads blocks can check them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

import msgspec
from coincurve import PrivateKey

from chains.evm.bloom import bloom_of
from chains.evm.envelope import ACCESS_LIST, BLOB, DELEGATION, DYNAMIC_FEE, LEGACY, envelope_of
from chains.evm.header import header_hash
from chains.evm.keccak import keccak
from chains.evm.receipt import receipt_bytes, withdrawal_bytes
from chains.evm.tokens import TRANSFER_TOPIC
from chains.evm.trie import ordered_root
from chains.evm.wire import (
    WireAccess,
    WireAuthorization,
    WireBlock,
    WireLog,
    WireReceipt,
    WireTransaction,
    WireWithdrawal,
    quantity_of,
)
from chains.model import Address, BlockHash, hex_of

GENESIS_PARENT: BlockHash = bytes(32)
_BASE_FEE_WEI = 5 * 10**9
_SLOT_S = 12
_START_S = 1_750_000_000
_EMPTY_OMMERS = hex_of(keccak(b"\xc0"))
_TYPES = (LEGACY, DYNAMIC_FEE, ACCESS_LIST, BLOB, DELEGATION)
_TYPE_WEIGHTS = (17, 78, 1, 2, 2)


@dataclass(slots=True)
class _Account:
    key: PrivateKey
    address: Address
    nonce: int = 0


@dataclass(slots=True)
class _Maker:
    """What one chain is made from: its random source, its accounts, and whom they pay in which tokens."""

    random: Random
    chain_number: int
    recipients: Sequence[Address]
    tokens: Sequence[Address]
    accounts: list[_Account] = field(default_factory=list)

    def word(self) -> str:
        return hex_of(self.random.randbytes(32))


def make_chain(
    count: int,
    *,
    transactions: int = 170,
    logs: int = 400,
    transfers: int = 190,
    withdrawals: int = 16,
    seed: int = 1,
    parent: BlockHash = GENESIS_PARENT,
    start_height: int = 20_000_000,
    chain_number: int = 1,
    recipients: Sequence[Address] = (),
    tokens: Sequence[Address] = (),
) -> list[tuple[bytes, bytes]]:
    """`count` linked blocks from `start_height` on: for each the JSON of the `result` of `eth_getBlockByNumber(.., true)`
    and of `eth_getBlockReceipts`.

    Of the `logs` of a block, `transfers` are ERC-20 transfers of random `tokens`, spread over its transactions. Every
    movement pays one of `recipients`. Both are random addresses where none are given. Another seed, or another parent,
    gives another branch.
    """
    random = Random(seed)
    maker = _Maker(
        random,
        chain_number,
        recipients or [random.randbytes(20) for _ in range(2000)],
        tokens or [random.randbytes(20) for _ in range(30)],
        [_make_account(random) for _ in range(min(transactions, 200))],
    )
    chain = []
    for height in range(start_height, start_height + count):
        block, receipts = _make_block(maker, parent, height, transactions, (logs, transfers), withdrawals)
        parent = bytes.fromhex(block.hash[2:])
        chain.append((_block_json(block), _receipts_json(block, receipts)))
    return chain


def _make_account(random: Random) -> _Account:
    key = PrivateKey(random.randbytes(32))
    return _Account(key, keccak(key.public_key.format(compressed=False)[1:])[12:])


def _make_block(
    maker: _Maker, parent: BlockHash, height: int, transactions: int, logs: tuple[int, int], withdrawals: int
) -> tuple[WireBlock, list[WireReceipt]]:
    body = [_make_transaction(maker, index) for index in range(transactions)]
    receipts = _make_receipts(maker, body, *logs)
    blooms = [bloom_of(receipt.logs) for receipt in receipts]
    for receipt, bloom in zip(receipts, blooms, strict=True):
        receipt.logs_bloom = f"0x{bloom:0512x}"
    paid = [_make_withdrawal(maker, height * withdrawals + n) for n in range(withdrawals)]
    block = _make_header(maker, parent, height, body, paid)
    encoded = [receipt_bytes(t, r, f"{b:0512x}") for t, r, b in zip(body, receipts, blooms, strict=True)]
    block.receipts_root = hex_of(ordered_root(encoded))
    block.logs_bloom = f"0x{_union(blooms):0512x}"
    block.gas_used = receipts[-1].cumulative_gas_used if receipts else "0x0"
    block.hash = hex_of(header_hash(block))
    _bind(block, receipts)
    return block, receipts


def _make_header(
    maker: _Maker, parent: BlockHash, height: int, body: list[WireTransaction], paid: list[WireWithdrawal]
) -> WireBlock:
    return WireBlock(
        hash=hex_of(bytes(32)),
        parent_hash=hex_of(parent),
        sha3_uncles=_EMPTY_OMMERS,
        miner=hex_of(maker.random.randbytes(20)),
        state_root=maker.word(),
        transactions_root=hex_of(ordered_root([envelope_of(transaction).raw for transaction in body])),
        receipts_root=hex_of(bytes(32)),
        logs_bloom=hex_of(bytes(256)),
        difficulty="0x0",
        number=hex(height),
        gas_limit=hex(45_000_000),
        gas_used="0x0",
        timestamp=hex(_START_S + height * _SLOT_S),
        extra_data=hex_of(b"chainbell bench"),
        mix_hash=maker.word(),
        nonce=hex_of(bytes(8)),
        base_fee_per_gas=hex(_BASE_FEE_WEI),
        withdrawals_root=hex_of(ordered_root([withdrawal_bytes(withdrawal) for withdrawal in paid])),
        blob_gas_used="0x0",
        excess_blob_gas="0x0",
        parent_beacon_block_root=maker.word(),
        requests_hash=maker.word(),
        transactions=body,
        withdrawals=paid,
    )


def _make_transaction(maker: _Maker, index: int) -> WireTransaction:
    """The first five are one of each type; then as on mainnet. A third is plain value, one in a hundred creates."""
    random = maker.random
    account = maker.accounts[index % len(maker.accounts)]
    kind = _TYPES[index] if index < len(_TYPES) else random.choices(_TYPES, _TYPE_WEIGHTS)[0]
    is_plain = random.random() < 0.35
    is_creation = not is_plain and kind < BLOB and random.random() < 0.02
    calldata = b"" if is_plain else random.randbytes(random.choice((68, 68, 68, 132, 260, 516, 1540)))
    transaction = WireTransaction(
        hash=hex_of(bytes(32)),
        v="0x0",
        r="0x0",
        s="0x0",
        sender=hex_of(account.address),
        nonce=hex(account.nonce),
        gas=hex(21_000 if is_plain else random.randrange(100_000, 400_000)),
        value=hex(random.randrange(1, 10**19) if is_plain or random.random() < 0.1 else 0),
        input=hex_of(calldata),
        to=None if is_creation else hex_of(random.choice(maker.recipients)),
        type=hex(kind),
        transaction_index=hex(index),
        chain_id=hex(maker.chain_number),
        gas_price=hex(_BASE_FEE_WEI + 10**9),
    )
    _add_type_fields(maker, transaction, kind)
    account.nonce += 1
    _sign(transaction, account.key, kind, maker.chain_number)
    return transaction


def _add_type_fields(maker: _Maker, transaction: WireTransaction, kind: int) -> None:
    if kind != LEGACY:
        rows = [WireAccess(hex_of(maker.random.randbytes(20)), [maker.word(), maker.word()])]
        transaction.access_list = rows if kind == ACCESS_LIST else []
    if kind >= DYNAMIC_FEE:
        transaction.max_fee_per_gas = hex(3 * _BASE_FEE_WEI)
        transaction.max_priority_fee_per_gas = hex(10**9)
    if kind == BLOB:
        transaction.max_fee_per_blob_gas = hex(10**9)
        transaction.blob_versioned_hashes = [maker.word() for _ in range(3)]
    if kind == DELEGATION:
        delegate = hex_of(maker.random.randbytes(20))
        transaction.authorization_list = [
            WireAuthorization(hex(maker.chain_number), delegate, "0x1", maker.word(), maker.word(), "0x1")
        ]


def _sign(transaction: WireTransaction, key: PrivateKey, kind: int, chain_number: int) -> None:
    """Fill in `v`, `r`, `s` and the hash that follows from them; legacy ones are bound to the chain by EIP-155."""
    offset = 35 + 2 * chain_number if kind == LEGACY else 0
    transaction.v = hex(offset)
    signature = key.sign_recoverable(envelope_of(transaction).signing_hash, hasher=None)
    transaction.r = hex(int.from_bytes(signature[:32], "big"))
    transaction.s = hex(int.from_bytes(signature[32:64], "big"))
    transaction.v = hex(offset + signature[64])
    transaction.y_parity = None if kind == LEGACY else hex(signature[64])
    transaction.hash = hex_of(envelope_of(transaction).hash)


def _make_receipts(maker: _Maker, body: list[WireTransaction], logs: int, transfers: int) -> list[WireReceipt]:
    """One in 33 transactions fails. The logs are dealt out to those that call a contract and succeed."""
    receipts = []
    gas_total = 0
    for index, transaction in enumerate(body):
        gas_used = quantity_of(transaction.gas)
        gas_total += gas_used
        has_failed = transaction.input != "0x" and maker.random.random() < 0.045
        receipts.append(
            WireReceipt(
                transaction_hash=transaction.hash,
                transaction_index=hex(index),
                block_hash=hex_of(bytes(32)),
                cumulative_gas_used=hex(gas_total),
                logs=[],
                type=transaction.type,
                status="0x0" if has_failed else "0x1",
                gas_used=hex(gas_used),
            )
        )
    _deal_logs(maker, body, receipts, logs, transfers)
    return receipts


def _deal_logs(
    maker: _Maker, body: list[WireTransaction], receipts: list[WireReceipt], logs: int, transfers: int
) -> None:
    takers = [r for t, r in zip(body, receipts, strict=True) if r.status == "0x1" and t.input != "0x"]
    for n in range(logs if takers else 0):
        taker = maker.random.choice(takers)
        taker.logs.append(_make_log(maker, taker, is_transfer=n < transfers))
    log_index = 0
    for receipt in receipts:
        for log in receipt.logs:
            log.log_index = hex(log_index)
            log_index += 1


def _make_log(maker: _Maker, receipt: WireReceipt, *, is_transfer: bool) -> WireLog:
    random = maker.random
    topics, size = [maker.word(), maker.word()], 32 * random.randrange(1, 8)
    if is_transfer:
        sender, recipient = random.choice(maker.accounts).address, random.choice(maker.recipients)
        topics, size = [TRANSFER_TOPIC, _padded(sender), _padded(recipient)], 0
    amount = random.randrange(1, 10**12).to_bytes(32, "big")
    return WireLog(
        address=hex_of(random.choice(maker.tokens)),
        topics=topics,
        data=hex_of(random.randbytes(size) or amount),
        log_index="0x0",
        block_hash=hex_of(bytes(32)),
        transaction_hash=receipt.transaction_hash,
        transaction_index=receipt.transaction_index,
        removed=False,
    )


def _make_withdrawal(maker: _Maker, index: int) -> WireWithdrawal:
    amount = hex(maker.random.randrange(10**7, 2 * 10**7))
    validator = hex(maker.random.randrange(10**6))
    return WireWithdrawal(hex(index), validator, hex_of(maker.random.choice(maker.recipients)), amount)


def _bind(block: WireBlock, receipts: list[WireReceipt]) -> None:
    """Write the block's hash, known last, into everything that names it."""
    for transaction in block.transactions:
        transaction.block_hash = block.hash
    for receipt in receipts:
        receipt.block_hash = block.hash
        for log in receipt.logs:
            log.block_hash = block.hash


def _block_json(block: WireBlock) -> bytes:
    rows = [_row_of(tx) | {"to": tx.to, "blockNumber": block.number} for tx in block.transactions]
    return msgspec.json.encode(_row_of(block) | {"transactions": rows, "uncles": [], "size": "0x1e240"})


def _receipts_json(block: WireBlock, receipts: list[WireReceipt]) -> bytes:
    rows = []
    for receipt, transaction in zip(receipts, block.transactions, strict=True):
        place = {"blockNumber": block.number, "blockTimestamp": block.timestamp}
        row = _row_of(receipt) | {"logs": [_row_of(log) | place for log in receipt.logs]}
        row |= {"from": transaction.sender, "to": transaction.to, "contractAddress": None}
        rows.append(row | {"blockNumber": block.number, "effectiveGasPrice": transaction.gas_price})
    return msgspec.json.encode(rows)


def _row_of(item: msgspec.Struct) -> dict[str, object]:
    """The item by the node's names, without what it does not have: nodes leave such fields out."""
    values = ((f.encode_name, getattr(item, f.name)) for f in msgspec.structs.fields(item))
    return {name: value for name, value in values if value is not None}


def _padded(address: Address) -> str:
    return hex_of(bytes(12) + address)


def _union(blooms: list[int]) -> int:
    union = 0
    for bloom in blooms:
        union |= bloom
    return union
