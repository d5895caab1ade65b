"""The OP Stack: what comes from L1, with a signature and without."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import rlp

from chains.evm.dialect import Dialect
from chains.evm.keccak import keccak
from chains.evm.senders import created_address
from chains.model import Address, ProofLevel, hex_of
from tests.unit.chains.evm.dialect_blocks import (
    HEIGHT,
    SIGNER,
    Row,
    Sent,
    make_answer,
    row,
    signed,
    uint,
)
from tests.unit.chains.evm.dialect_reading import CANCUN, CAROL, balances, fees, native, read, refusal, transfer_log
from tests.unit.chains.evm.factories import ALICE, BOB, word
from tests.unit.chains.evm.test_proof_refusals import change, flip_last_bit

SOURCE = b"\x5c" * 32


def deposit(
    sender: Address = ALICE, to: Address | None = BOB, *, mint: int = 0, value: int = 0, is_system: bool = False,
    nonce: int | None = 9, version: int | None = 1, **more: Any,  # noqa: ANN401 - any field
) -> Sent:  # fmt: skip
    """A deposit transaction (0x7e), of Canyon unless `version` (Regolith) or `nonce` (before) is None."""
    items = [SOURCE, sender, to or b"", uint(mint), uint(value), uint(50_000), uint(is_system), b"\xda\x7a"]
    listed = row(
        0x7E, sender, to, value, b"\xda\x7a", gas=hex(50_000), sourceHash=hex_of(SOURCE), nonce=hex(nonce or 0)
    )
    if mint:
        listed["mint"] = hex(mint)
    if is_system:
        listed["isSystemTx"] = True
    receipt: Row = {"depositNonce": hex(nonce)} if nonce is not None else {}
    tail: list[bytes] = []
    if version is not None and nonce is not None:
        receipt["depositReceiptVersion"] = hex(version)
        tail = [uint(nonce), uint(version)]
    return Sent(listed, b"\x7e" + rlp.encode(items), receipt=receipt, receipt_tail=tail, **more)


DEPOSITS: dict[str, tuple[Sent, dict[Address, int]]] = {
    "mint that is handed on": (deposit(mint=7, value=7), {BOB: 7}),
    "mint, a part of it handed on": (deposit(mint=7, value=3), {ALICE: 4, BOB: 3}),
    "mint, more than it handed on": (deposit(mint=3, value=7), {ALICE: -4, BOB: 7}),
    "mint without value": (deposit(mint=7), {ALICE: 7}),
    "mint to oneself": (deposit(to=ALICE, mint=7, value=7), {ALICE: 7}),
    "mint to oneself of another value": (deposit(to=ALICE, mint=7, value=2), {ALICE: 7}),
    "value without mint": (deposit(value=7), {ALICE: -7, BOB: 7}),
    "nothing": (deposit(), {}),
    "failed, the mint stays": (deposit(mint=7, value=7, status=0), {ALICE: 7}),
    "failed without mint": (deposit(value=7, status=0), {}),
    "a creation": (deposit(to=None, mint=7, value=7), {created_address(ALICE, 9): 7}),
    "of Regolith": (deposit(mint=7, value=7, version=None), {BOB: 7}),
    "of Bedrock": (deposit(mint=7, value=7, nonce=None, version=None), {BOB: 7}),
    "of the chain itself, without gas": (deposit(is_system=True, gas_used=0), {}),
}


@pytest.mark.parametrize("case", DEPOSITS)
def test_what_a_deposit_credits_is_what_balances_change_by(case: str) -> None:
    sent, changes = DEPOSITS[case]
    block = read(make_answer(Dialect.OP_STACK, [copy.deepcopy(sent), signed(CAROL, 1)]))
    assert balances(block) == {key: value for key, value in (changes | {SIGNER: -1, CAROL: 1}).items() if value}


def test_a_mint_is_a_transfer_from_nobody_and_its_value_goes_on_as_another() -> None:
    block = read(make_answer(Dialect.OP_STACK, [deposit(mint=7, value=5)]))
    assert native(block) == [(None, ALICE, 7, "mint"), (ALICE, BOB, 5, "native")]
    assert len({t.id for t in block.transfers}) == 2
    assert fees(block) == [0, 0]


def test_a_failed_deposit_with_a_mint_is_both() -> None:
    block = read(make_answer(Dialect.OP_STACK, [deposit(mint=7, value=5, status=0)]))
    assert native(block) == [(None, ALICE, 7, "mint"), (ALICE, BOB, 5, "failed")]


def test_a_creation_by_a_deposit_before_canyon_credits_nobody_since_no_proof_covers_the_nonce() -> None:
    block = read(make_answer(Dialect.OP_STACK, [deposit(to=None, value=7, version=None)]))
    assert native(block) == [(ALICE, None, 7, "native")]


def test_the_fee_of_a_signed_transaction_on_the_op_stack_is_not_told_since_its_part_for_l1_is_unproven() -> None:
    assert fees(read(make_answer(Dialect.OP_STACK, [signed(BOB, 1)]))) == [None]


FORGED_DEPOSITS: dict[str, tuple[str, Any, str]] = {
    "from": ("from", hex_of(CAROL), "transaction_hash"),
    "to": ("to", hex_of(CAROL), "transaction_hash"),
    "mint": ("mint", "0x8", "transaction_hash"),
    "no mint": ("mint", None, "transaction_hash"),
    "value": ("value", "0x8", "transaction_hash"),
    "sourceHash": ("sourceHash", word(1), "transaction_hash"),
    "isSystemTx": ("isSystemTx", True, "transaction_hash"),
    "no sourceHash": ("sourceHash", None, "structure"),
    "type": ("type", "0x2", "structure"),
    "an unknown type": ("type", "0x7c", "structure"),
}


@pytest.mark.parametrize("case", FORGED_DEPOSITS)
def test_a_forged_deposit_is_refused(case: str) -> None:
    name, value, check = FORGED_DEPOSITS[case]
    answer = make_answer(Dialect.OP_STACK, [deposit(mint=7, value=7)])
    answer.block["transactions"][0][name] = value
    assert refusal(answer) == check


@pytest.mark.parametrize(
    ("name", "value"), [("depositNonce", "0xa"), ("depositReceiptVersion", None), ("depositReceiptVersion", "0x2")]
)
def test_a_forged_receipt_of_a_deposit_is_refused(name: str, value: str | None) -> None:
    answer = make_answer(Dialect.OP_STACK, [deposit(mint=7, value=7)])
    answer.receipts[0][name] = value
    assert refusal(answer) == "receipts_root"


def test_a_version_added_to_a_receipt_of_regolith_is_refused() -> None:
    answer = make_answer(Dialect.OP_STACK, [deposit(mint=7, version=None)])
    answer.receipts[0]["depositReceiptVersion"] = "0x1"
    assert refusal(answer) == "receipts_root"


def relayed(**more: Any) -> Sent:  # noqa: ANN401 - any field
    """A transaction from L1 before Bedrock: legacy, with a signature of zeros."""
    raw = rlp.encode([uint(3), b"", uint(50_000), BOB, uint(7), b"", b"", b"", b""])
    return Sent(row(0, ALICE, BOB, 7, nonce="0x3", gas=hex(50_000), **more), raw, logs=[transfer_log()])


def test_what_was_relayed_before_bedrock_is_read_and_says_that_its_sender_is_unproven() -> None:
    block = read(make_answer(Dialect.OP_STACK, [relayed(), signed(CAROL, 1)]))
    assert block.proof is ProofLevel.ROOTS
    assert [(t.recipient, t.amount_atomic, t.proof) for t in block.transfers] == [
        (BOB, 7, ProofLevel.STRUCTURE), (BOB, 5, ProofLevel.STRUCTURE), (CAROL, 1, None),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["to", "value", "nonce", "gas", "input"])
def test_what_was_relayed_before_bedrock_is_proven_but_for_its_sender(name: str) -> None:
    answer = make_answer(Dialect.OP_STACK, [relayed()])
    change(answer.block, ("transactions", 0, name), lambda text: flip_last_bit(text) if text != "0x" else "0x01")
    assert refusal(answer) == "transaction_hash"


def test_a_signature_of_zeros_is_refused_where_nothing_is_relayed() -> None:
    assert refusal(make_answer(Dialect.ETHEREUM, [relayed()])) == "sender"
    assert refusal(make_answer(Dialect.ARBITRUM, [relayed()])) == "sender"


def test_since_isthmus_the_withdrawals_root_is_another_one_and_there_are_no_withdrawals() -> None:
    header = {"withdrawalsRoot": word(0x1234)} | CANCUN | {"requestsHash": word(2)}
    answer = make_answer(Dialect.OP_STACK, [deposit(mint=7)], header=header)
    for nothing in ("[]", "null"):
        answer.block["withdrawals"] = json.loads(nothing)
        assert read(answer).proof is ProofLevel.ROOTS
    answer.block["withdrawals"] = [{"index": "0x1", "validatorIndex": "0x1", "address": hex_of(BOB), "amount": "0x1"}]
    assert refusal(answer) == "withdrawals_root"
    del answer.block["withdrawals"]
    answer.dialect = Dialect.ETHEREUM
    answer.block["transactions"] = answer.receipts = []
    assert refusal(answer) == "structure"


def post_exec() -> Sent:
    """The transaction in which a sequencer gives gas back (0x7d). Its hash is not that of its bytes."""
    payload = rlp.encode([uint(1), uint(HEIGHT), [[uint(1), uint(7)]]])
    name = keccak(b"\x7d" + rlp.encode([payload]))
    return Sent(row(0x7D, bytes(20), None, data=payload), b"\x7d" + payload, gas_used=0, hash=name)


def test_a_post_exec_transaction_proves_itself_and_moves_nothing() -> None:
    answer = make_answer(Dialect.OP_STACK, [deposit(), signed(BOB, 1), post_exec()])
    assert native(read(answer)) == [(SIGNER, BOB, 1, "native")]
    for name, value in (("value", "0x7"), ("to", hex_of(BOB)), ("from", hex_of(ALICE)), ("nonce", "0x7")):
        answer.block["transactions"][2][name] = value
        assert native(read(answer)) == [(SIGNER, BOB, 1, "native")]
    answer.block["transactions"][2]["input"] = "0x00"
    assert refusal(answer) == "transaction_hash"


def test_nothing_can_take_the_place_of_a_deposit() -> None:
    block = read(make_answer(Dialect.OP_STACK, [deposit(mint=7), signed(CAROL, 1, nonce=4)]))
    assert [t.transaction.nonce for t in block.transfers if t.transaction] == [None, 4]
