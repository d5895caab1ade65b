"""Which value a block moves: each rule alone, then recorded blocks against another indexer's output."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chains.evm.carriers import carriers_of
from chains.evm.errors import ProofFailure
from chains.evm.senders import created_address
from chains.evm.tokens import TRANSFER_TOPIC
from chains.evm.transfers import decode_spends, decode_transfers
from chains.evm.wire import WireBlock, WireLog, WireReceipt, WireTransaction, WireWithdrawal, bytes_of
from chains.model import Asset, LocatorKind, Transfer, hex_of
from chains.spends import Spend, unpack_spends
from tests.unit.chains.evm.factories import (
    ALICE,
    BOB,
    CHAIN_ID,
    NATIVE,
    make_asset,
    make_block,
    make_log,
    make_receipt,
    make_transaction,
    word,
)
from tests.unit.chains.evm.recorded import MAINNET, WITH_EXPECTED_TRANSFERS, read_json, recorded

ROOT = word(0x5747)


def decode(block: WireBlock, *receipts: WireReceipt, assets: tuple[Asset, ...] = (make_asset(),)) -> list[Transfer]:
    by_contract = {asset.contract: asset for asset in assets if asset.contract is not None}
    return list(decode_transfers(CHAIN_ID, block, list(carriers_of(block, receipts)), by_contract, NATIVE))


def decode_one(transaction: WireTransaction, receipt: WireReceipt, asset: Asset | None = None) -> list[Transfer]:
    return decode(make_block(transaction), receipt, assets=(asset or make_asset(),))


def decode_log(log: WireLog, asset: Asset | None = None) -> list[Transfer]:
    return decode_one(make_transaction(), make_receipt(log), asset)


@pytest.mark.parametrize("calldata", ["0x", "0xa9059cbb" + "00" * 64, "0x00"])
def test_native_value_is_a_transfer_whatever_the_calldata(calldata: str) -> None:
    (transfer,) = decode_one(make_transaction(value="0x5", input=calldata), make_receipt())
    assert (transfer.asset_id, transfer.sender, transfer.recipient) == (NATIVE.id, ALICE, BOB)
    assert (transfer.amount_atomic, transfer.locator.kind, transfer.has_failed) == (5, LocatorKind.NATIVE, False)


def test_a_transaction_without_value_or_logs_moves_nothing() -> None:
    assert decode_one(make_transaction(), make_receipt()) == []


def test_value_sent_with_a_creation_credits_the_derived_address() -> None:
    (transfer,) = decode_one(make_transaction(value="0x5", to=None), make_receipt())
    assert transfer.recipient == created_address(ALICE, 7)


def test_a_created_address_is_that_of_a_known_contract() -> None:
    """The first contract of the first of Anvil's accounts."""
    deployer = bytes.fromhex("f39fd6e51aad88f6f4ce6ab8827279cfffb92266")
    assert created_address(deployer, 0).hex() == "5fbdb2315678afecb367f032d93f642f64180aa3"


def test_a_transfer_event_of_a_listed_token_is_a_transfer() -> None:
    (transfer,) = decode_log(make_log(log_index="0x2a"))
    assert (transfer.asset_id, transfer.sender, transfer.recipient) == (make_asset().id, ALICE, BOB)
    assert (transfer.amount_atomic, transfer.locator.path, transfer.locator.log_index) == (5, "0", 42)


def test_the_locator_is_the_ordinal_within_the_transaction() -> None:
    other = make_log(contract=BOB, log_index="0x5")
    transfers = decode_one(make_transaction(), make_receipt(other, make_log(log_index="0x6")))
    assert [(t.locator.path, t.locator.log_index) for t in transfers] == [("1", 6)]


NOT_A_TRANSFER = {
    "unlisted token": make_log(contract=BOB),
    "amount zero": make_log(data=word(0)),
    "four topics: an NFT": make_log(topics=[TRANSFER_TOPIC, word(ALICE), word(BOB), word(5)], data="0x"),
    "four topics and data": make_log(topics=[TRANSFER_TOPIC, word(ALICE), word(BOB), word(5)]),
    "two topics": make_log(topics=[TRANSFER_TOPIC, word(ALICE)], data=word(BOB) + word(5)[2:]),
    "no topics": make_log(topics=[]),
    "another event": make_log(topics=[word(1), word(ALICE), word(BOB)]),
    "data too long": make_log(data=word(5) + "00"),
    "data too short": make_log(data="0x05"),
    "unindexed form of an indexed token": make_log(
        topics=[TRANSFER_TOPIC], data=word(ALICE) + word(BOB)[2:] + word(5)[2:]
    ),
    "dirty sender": make_log(topics=[TRANSFER_TOPIC, hex_of(b"\1" + bytes(11) + ALICE), word(BOB)]),
    "dirty recipient": make_log(topics=[TRANSFER_TOPIC, word(ALICE), hex_of(bytes(11) + b"\1" + BOB)]),
}


@pytest.mark.parametrize("why", NOT_A_TRANSFER)
def test_other_logs_are_no_transfer(why: str) -> None:
    assert decode_log(NOT_A_TRANSFER[why]) == []


def test_the_unindexed_form_counts_for_a_token_that_uses_it() -> None:
    asset = make_asset(is_unindexed=True)
    log = make_log(topics=[TRANSFER_TOPIC], data=word(ALICE) + word(BOB)[2:] + word(5)[2:])
    (transfer,) = decode_log(log, asset)
    assert (transfer.sender, transfer.recipient, transfer.amount_atomic) == (ALICE, BOB, 5)
    assert decode_log(make_log(), asset) == []


def test_the_largest_amount_keeps_every_digit() -> None:
    (transfer,) = decode_log(make_log(data=word(2**256 - 1)))
    assert transfer.amount_atomic == 2**256 - 1


@pytest.mark.parametrize("change", [str.upper, str.lower])
def test_the_case_of_hex_does_not_hide_a_transfer(change: Any) -> None:  # noqa: ANN401 - a method of str
    log = make_log()
    shouted = make_log(address="0x" + change(log.address[2:]), topics=["0x" + change(t[2:]) for t in log.topics])
    assert decode_log(shouted) == decode_log(log)


def test_what_stands_before_the_digits_does_not_hide_a_transfer() -> None:
    log = make_log()
    odd = make_log(address="zz" + log.address[2:], topics=["??" + topic[2:] for topic in log.topics])
    assert decode_log(odd) == decode_log(log)


def test_a_failed_transaction_is_one_failed_transfer_and_its_logs_do_not_count() -> None:
    (transfer,) = decode_one(make_transaction(value="0x5"), make_receipt(make_log(), status="0x0"))
    assert (transfer.has_failed, transfer.amount_atomic, transfer.asset_id) == (True, 5, NATIVE.id)
    assert (transfer.sender, transfer.recipient) == (ALICE, BOB)
    assert transfer.locator.kind is LocatorKind.TRANSACTION


def test_a_failed_transaction_without_value_is_told_too() -> None:
    (transfer,) = decode_one(make_transaction(to=None), make_receipt(status="0x0"))
    assert (transfer.has_failed, transfer.amount_atomic) == (True, 0)
    assert transfer.recipient == created_address(ALICE, 7)


BEFORE_BYZANTIUM = {
    "gas left: succeeded": ((), "0x65", [LocatorKind.NATIVE]),
    "all gas used, a log: succeeded": ((make_log(),), "0x64", [LocatorKind.NATIVE, LocatorKind.LOG]),
    "all gas used, no log: in doubt": ((), "0x64", []),
}


@pytest.mark.parametrize("case", BEFORE_BYZANTIUM)
@pytest.mark.parametrize("status", [None, "0x0", "0x1"])
def test_before_byzantium_success_is_read_from_gas_and_logs_never_from_status(case: str, status: str | None) -> None:
    logs, gas, kinds = BEFORE_BYZANTIUM[case]
    transaction = make_transaction(value="0x5", gas=gas)
    transfers = decode_one(transaction, make_receipt(*logs, root=ROOT, status=status))
    assert [transfer.locator.kind for transfer in transfers] == kinds
    assert not any(transfer.has_failed for transfer in transfers)


def test_a_receipt_with_neither_status_nor_root_is_refused() -> None:
    with pytest.raises(ProofFailure, match="neither status nor root"):
        decode_one(make_transaction(value="0x5"), make_receipt(status=None))


def test_receipts_that_do_not_match_the_transactions_in_number_are_refused() -> None:
    with pytest.raises(ProofFailure, match="0 receipts for 1 transactions"):
        decode(make_block(make_transaction(value="0x5")))


def test_validator_withdrawals_are_gwei_without_a_transaction() -> None:
    rows = [WireWithdrawal("0x10", "0x1", hex_of(BOB), "0x3"), WireWithdrawal("0x11", "0x1", hex_of(BOB), "0x0")]
    (transfer,) = decode(make_block(withdrawals=rows))
    assert (transfer.amount_atomic, transfer.recipient, transfer.sender) == (3 * 10**9, BOB, None)
    assert (transfer.locator.kind, transfer.locator.path) == (LocatorKind.VALIDATOR_WITHDRAWAL, "16")
    assert transfer.transaction is None


FEES: dict[str, tuple[dict[str, Any], int | None]] = {
    "legacy: its own price": ({"type": "0x0", "gas_price": "0x7"}, 700),
    "untyped: its own price": ({"type": None, "gas_price": "0x7"}, 700),
    "0x1: its own price": ({"type": "0x1", "gas_price": "0x7"}, 700),
    "0x2: base fee and tip": ({"max_fee_per_gas": "0x1388", "max_priority_fee_per_gas": "0x64"}, 110_000),
    "0x2: capped": ({"max_fee_per_gas": "0x3f2", "max_priority_fee_per_gas": "0x64"}, 101_000),
    "0x2: the node's price is not read": ({"gas_price": "0x1"}, 110_000),
    "0x4: base fee and tip": ({"type": "0x4"}, 110_000),
    "0x3: not derived": ({"type": "0x3"}, None),
}


@pytest.mark.parametrize("case", FEES)
def test_the_fee_is_derived(case: str) -> None:
    changes, fee = FEES[case]
    (transfer,) = decode_one(make_transaction(value="0x5", **changes), make_receipt(gas_used="0x999"))
    assert transfer.transaction is not None
    assert transfer.transaction.fee_atomic == fee


def test_gas_used_is_the_difference_of_cumulative_gas() -> None:
    block = make_block(make_transaction(0), make_transaction(1, value="0x1", type="0x0", gas_price="0x1"))
    (transfer,) = decode(block, make_receipt(index=0), make_receipt(index=1, cumulative_gas_used="0x12c"))
    assert transfer.transaction is not None
    assert (transfer.transaction.fee_atomic, transfer.transaction.index) == (200, 1)


@given(st.integers(min_value=1, max_value=4))
def test_equal_movements_of_one_transaction_have_different_ids(count: int) -> None:
    logs = [make_log(log_index=hex(n)) for n in range(count)]
    transfers = decode_one(make_transaction(), make_receipt(*logs))
    assert len({transfer.id for transfer in transfers}) == count


def test_identity_does_not_depend_on_the_block() -> None:
    (one,) = decode_log(make_log(log_index="0x1"))
    moved = make_block(make_transaction(0), make_transaction(0))
    (two,) = decode(moved, make_receipt(), make_receipt(make_log(log_index="0x9"), cumulative_gas_used="0xfff"))
    assert one.id == two.id
    assert one.locator != two.locator


@pytest.mark.parametrize("height", WITH_EXPECTED_TRANSFERS)
def test_recorded_token_transfers_equal_another_indexers(height: int) -> None:
    """With every contract of the block listed, our ERC-20 transfers are theirs, but for those of zero."""
    block, receipts = recorded(height).decode()
    assets = {bytes_of(log.address): make_asset(bytes_of(log.address)) for r in receipts for log in r.logs}
    ours = Counter(
        (
            transfer.asset_id.rpartition(":")[2],
            transfer.sender,
            transfer.recipient,
            transfer.amount_atomic,
            transfer.transaction.hash,
            transfer.locator.log_index,
        )
        for transfer in decode_transfers(CHAIN_ID, block, list(carriers_of(block, receipts)), assets, NATIVE)
        if transfer.locator.kind is LocatorKind.LOG and transfer.transaction is not None
    )
    theirs = Counter(
        (
            row["tokenAddress"],
            bytes_of(row["fromAddress"]),
            bytes_of(row["toAddress"]),
            int(row["value"]),
            bytes_of(row["transactionHash"]),
            int(row.get("logIndex", 0)),
        )
        for row in read_json(MAINNET / str(height) / "expected_token_transfers.json.gz")
        if "erc20" in row and int(row.get("value") or 0) > 0
    )
    assert ours == theirs
    assert ours


def test_a_blocks_transactions_spend_their_senders_nonces_failed_ones_too() -> None:
    block, receipts = recorded(WITH_EXPECTED_TRANSFERS[-1]).decode()
    packed = decode_spends(list(carriers_of(block, receipts)))
    told = [Spend(bytes_of(row.sender), int(row.nonce, 16), bytes_of(row.hash)) for row in block.transactions]
    assert list(unpack_spends(packed, {spend.sender for spend in told})) == told
    assert any(receipt.status == "0x0" for receipt in receipts)
