"""By how much a block changes an account's balance, against a ledger that is kept by hand."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chains.evm.balance import expected_change
from chains.evm.senders import created_address
from chains.evm.traces import InternalMove
from chains.evm.wire import (
    AvalancheBlock,
    OpStackBlock,
    OpStackTransaction,
    PolygonBlock,
    WireBlock,
    WireReceipt,
    WireTransaction,
    WireWithdrawal,
)
from chains.model import Address, hex_of
from tests.unit.chains.evm.factories import ALICE, BASE_FEE_WEI, BOB, make_block, make_receipt, make_transaction, word

FEE = 100 * (BASE_FEE_WEI + 100)
"""What a transaction of `make_transaction` and its receipt costs."""
NO_UNCLES = "0x1dcc4de8dec75d7aab85b567b6ccd41ad312451b948a7413f0a142fd40d49347"


def block_of(
    *transactions: WireTransaction,
    withdrawals: list[WireWithdrawal] | None = None,
    dialect: type[WireBlock] = WireBlock,
) -> WireBlock:
    block = make_block(*transactions, withdrawals=withdrawals, dialect=dialect)
    block.sha3_uncles = NO_UNCLES
    return block


def change(
    address: Address,
    transaction: WireTransaction,
    receipt: WireReceipt | None = None,
    *moves: InternalMove,
    dialect: type[WireBlock] = WireBlock,
) -> int | None:
    block = block_of(transaction, dialect=dialect)
    return expected_change(address, block, [receipt or make_receipt()], moves)


def test_value_and_fee_leave_the_sender_and_value_reaches_the_recipient() -> None:
    transaction = make_transaction(value="0x5")
    assert change(ALICE, transaction) == -5 - FEE
    assert change(BOB, transaction) == 5


def test_a_failed_transaction_costs_its_fee_alone() -> None:
    transaction, receipt = make_transaction(value="0x5"), make_receipt(status="0x0")
    assert change(ALICE, transaction, receipt) == -FEE
    assert change(BOB, transaction, receipt) == 0


def test_value_sent_to_oneself_costs_its_fee_alone() -> None:
    assert change(ALICE, make_transaction(value="0x5", to=hex_of(ALICE))) == -FEE


def test_a_created_contract_has_what_was_sent_with_its_creation() -> None:
    assert change(created_address(ALICE, 7), make_transaction(value="0x5", to=None)) == 5


def test_internal_value_counts_on_both_sides() -> None:
    out, back = InternalMove(0, "0", BOB, ALICE, 3), InternalMove(0, "1", ALICE, ALICE, 9)
    assert change(ALICE, make_transaction(), None, out, back) == 3 - FEE
    assert change(BOB, make_transaction(), None, out, back) == -3


def test_a_validator_withdrawal_adds_its_gwei() -> None:
    withdrawal = WireWithdrawal("0x1", "0x1", hex_of(ALICE), "0x2")
    assert expected_change(ALICE, block_of(withdrawals=[withdrawal]), [], ()) == 2 * 10**9
    assert expected_change(BOB, block_of(withdrawals=[withdrawal]), [], ()) == 0


UNKNOWN: dict[str, dict[str, Any]] = {
    "a blob transaction": {"type": "0x3"},
    "no price": {"type": "0x0", "gas_price": None},
}


@pytest.mark.parametrize("why", UNKNOWN)
def test_an_unknown_fee_leaves_the_sender_unknown_and_no_one_else(why: str) -> None:
    transaction = make_transaction(value="0x5", **UNKNOWN[why])
    assert change(ALICE, transaction) is None
    assert change(BOB, transaction) == 5


def test_on_the_op_stack_a_sender_is_unknown_and_no_one_else() -> None:
    transaction = make_transaction(value="0x5")
    assert change(ALICE, transaction, dialect=OpStackBlock) is None
    assert change(BOB, transaction, dialect=OpStackBlock) == 5


@pytest.mark.parametrize("dialect", [PolygonBlock, AvalancheBlock])
def test_where_gas_is_all_that_is_paid_for_both_sides_are_known(dialect: type[WireBlock]) -> None:
    transaction = make_transaction(value="0x5")
    assert change(ALICE, transaction, dialect=dialect) == -5 - FEE
    assert change(BOB, transaction, dialect=dialect) == 5


@pytest.mark.parametrize(("status", "kept", "given"), [("0x1", 2, 5), ("0x0", 7, 0)])
def test_a_mint_stays_with_its_sender_whatever_becomes_of_its_value(status: str, kept: int, given: int) -> None:
    listed = {"hash": word(1), "gas": "0x1", "value": "0x5", "input": "0x", "from": hex_of(ALICE), "to": hex_of(BOB)}
    deposit = msgspec.convert(listed | {"type": "0x7e", "mint": "0x7"}, OpStackTransaction)
    assert change(ALICE, deposit, make_receipt(status=status), dialect=OpStackBlock) == kept
    assert change(BOB, deposit, make_receipt(status=status), dialect=OpStackBlock) == given


def test_whoever_gets_the_tips_is_unknown() -> None:
    block = block_of(make_transaction())
    block.miner = hex_of(BOB)
    assert expected_change(BOB, block, [make_receipt()], ()) is None
    assert expected_change(ALICE, block, [make_receipt()], ()) == -FEE


def test_a_block_with_uncles_rewards_somebody_whom_it_does_not_name() -> None:
    block = block_of(make_transaction())
    block.sha3_uncles = word(1)
    assert expected_change(BOB, block, [make_receipt()], ()) is None


def test_before_byzantium_a_doubtful_success_leaves_both_sides_unknown_where_it_moves_value() -> None:
    doubtful = make_receipt(root=word(1), cumulative_gas_used="0x64")
    transaction = make_transaction(value="0x5", gas="0x64", type="0x0", gas_price="0x2")
    assert [change(address, transaction, doubtful) for address in (ALICE, BOB)] == [None, None]
    nothing = make_transaction(gas="0x64", type="0x0", gas_price="0x2")
    assert [change(address, nothing, doubtful) for address in (ALICE, BOB)] == [-200, 0]


people = st.sampled_from([bytes([n]) * 20 for n in range(1, 5)])
payments = st.tuples(people, people, st.integers(0, 50), st.booleans())


@given(st.lists(payments, max_size=8), st.lists(st.tuples(people, people, st.integers(1, 50)), max_size=8))
def test_the_changes_are_those_of_a_ledger(
    sent: list[tuple[Address, Address, int, bool]], inner: list[tuple[Address, Address, int]]
) -> None:
    balances: defaultdict[Address, int] = defaultdict(int)
    transactions, receipts = [], []
    for index, (sender, recipient, amount, is_good) in enumerate(sent):
        transactions.append(make_transaction(index, sender=hex_of(sender), to=hex_of(recipient), value=hex(amount)))
        receipts.append(make_receipt(index=index, status="0x1" if is_good else "0x0"))
        balances[sender] -= FEE + amount * is_good
        balances[recipient] += amount * is_good
    moves = [InternalMove(0, str(n), *row) for n, row in enumerate(inner)]
    for sender, recipient, amount in inner:
        balances[sender] -= amount
        balances[recipient] += amount
    block = block_of(*transactions)
    for address in {row[0] for row in sent} | {row[1] for row in inner}:
        assert expected_change(address, block, receipts, moves) == balances[address]
