"""Polygon: state syncs, under the roots and apart from them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import rlp

from chains.evm.dialect import Dialect
from chains.evm.errors import ProofFailure
from chains.evm.polygon import MADHUGIRI_HEIGHT
from chains.model import ProofLevel, hex_of
from tests.unit.chains.evm.dialect_blocks import (
    Sent,
    make_answer,
    row,
    signed,
    uint,
)
from tests.unit.chains.evm.dialect_reading import read, refusal, transfer_log
from tests.unit.chains.evm.factories import BOB, TOKEN, word
from tests.unit.chains.evm.recorded import Answer


def state_sync_apart() -> Sent:
    """A state sync before Madhugiri, as nodes list it: it does not exist."""
    return Sent(row(0, bytes(20), bytes(20)), b"", gas_used=0, logs=[transfer_log(9)])


def state_sync() -> Sent:
    """A state sync since Madhugiri: two events, of which nodes list nothing."""
    events = [[uint(5), TOKEN, b"\xaa" * 70, b"\x01" * 32], [uint(6), TOKEN, b"", b"\x02" * 32]]
    system = bytes.fromhex("ff" * 19 + "fe")
    return Sent(row(0x7F, system, bytes(20)), b"\x7f" + rlp.encode(events), gas_used=0, logs=[transfer_log(9)])


def test_a_state_sync_apart_is_read_and_told_as_what_it_is() -> None:
    block = read(make_answer(Dialect.POLYGON, [signed(BOB, 1)], apart=state_sync_apart()))
    assert block.proof is ProofLevel.ROOTS
    own, synced = block.transfers
    assert (own.amount_atomic, own.proof) == (1, None)
    assert (synced.amount_atomic, synced.recipient, synced.proof) == (9, BOB, ProofLevel.STRUCTURE)
    assert synced.transaction is not None
    assert (synced.transaction.sender, synced.transaction.fee_atomic) == (bytes(20), 0)


def test_the_logs_of_a_state_sync_apart_may_be_forged_and_say_so() -> None:
    """The one thing that no proof covers. What the block does commit to stays as it is."""
    answer = make_answer(Dialect.POLYGON, [signed(BOB, 1)], apart=state_sync_apart())
    answer.receipts[-1]["logs"][0]["data"] = word(10**9)
    own, forged = read(answer).transfers
    assert (own.amount_atomic, own.proof) == (1, None)
    assert (forged.amount_atomic, forged.proof) == (10**9, ProofLevel.STRUCTURE)


Alteration = Callable[[Answer], Any]
FORGED_APART: dict[str, tuple[Alteration, str]] = {
    "value": (lambda a: a.block["transactions"][-1].update(value="0x1"), "structure"),
    "recipient": (lambda a: a.block["transactions"][-1].update(to=hex_of(BOB)), "structure"),
    "a creation": (lambda a: a.block["transactions"][-1].update(to=None), "structure"),
    "another type": (lambda a: [r.update(type="0x2") for r in (a.block["transactions"][-1], a.receipts[-1])],
                     "structure"),
    "another hash": (lambda a: [r.update({k: word(3)}) for r, k in ((a.block["transactions"][-1], "hash"),
                     (a.receipts[-1], "transactionHash"), (a.receipts[-1]["logs"][0], "transactionHash"))], "sender"),
    "no receipt": (lambda a: a.receipts.pop(), "structure"),
    "a hole in its logs": (lambda a: a.receipts[-1]["logs"][0].update(logIndex="0x7"), "structure"),
    "logs of another": (lambda a: a.receipts[-1]["logs"][0].update(transactionHash=word(3)), "structure"),
}  # fmt: skip


@pytest.mark.parametrize("case", FORGED_APART)
def test_a_state_sync_apart_that_is_anything_else_is_refused(case: str) -> None:
    alter, check = FORGED_APART[case]
    answer = make_answer(Dialect.POLYGON, [signed(BOB, 1)], apart=state_sync_apart())
    alter(answer)
    assert refusal(answer) in (check, "structure")


def test_a_block_without_the_state_sync_that_it_does_not_commit_to_proves_itself() -> None:
    """Nothing says that there was one: the level of what it told says so."""
    assert [t.proof for t in read(make_answer(Dialect.POLYGON, [signed(BOB, 1)])).transfers] == [None]


def test_a_state_sync_apart_is_refused_since_they_are_under_the_roots() -> None:
    answer = make_answer(Dialect.POLYGON, [signed(BOB, 1)], apart=state_sync_apart(), height=MADHUGIRI_HEIGHT)
    with pytest.raises(ProofFailure, match="since Madhugiri"):
        read(answer)


def test_a_state_sync_under_the_roots_is_proven_like_anything_else() -> None:
    sync = state_sync()
    block = read(make_answer(Dialect.POLYGON, [signed(BOB, 1), sync], height=MADHUGIRI_HEIGHT), sync.raw)
    assert [(t.amount_atomic, t.proof) for t in block.transfers] == [(1, None), (9, None)]
    assert block.transfers[1].transaction is not None
    assert block.transfers[1].transaction.sender == bytes(20)


def test_a_forged_state_sync_under_the_roots_is_refused() -> None:
    sync = state_sync()
    answer = make_answer(Dialect.POLYGON, [signed(BOB, 1), sync])
    forged = copy.deepcopy(answer)
    forged.receipts[1]["logs"][0]["data"] = word(10**9)
    assert refusal(forged, sync.raw) == "receipts_root"
    assert refusal(answer, sync.raw + b"\x00") == "transaction_hash"
    assert refusal(answer, b"\x02" + sync.raw[1:]) == "transactions_root"
    assert refusal(answer, None) == "transactions_root"


@pytest.mark.parametrize("name", ["value", "to", "from", "nonce", "input"])
def test_what_a_node_writes_beside_a_state_sync_changes_nothing(name: str) -> None:
    sync = state_sync()
    answer = make_answer(Dialect.POLYGON, [signed(BOB, 1), sync])
    truth = read(answer, sync.raw).transfers
    answer.block["transactions"][1][name] = {"to": hex_of(BOB), "from": hex_of(BOB)}.get(name, "0x07")
    assert read(answer, sync.raw).transfers == truth


def test_other_chains_know_no_state_sync() -> None:
    for dialect in (Dialect.ETHEREUM, Dialect.OP_STACK, Dialect.ARBITRUM):
        answer = make_answer(dialect, [signed(BOB, 1)], apart=state_sync_apart())
        assert refusal(answer) == "structure"
