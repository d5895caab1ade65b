"""Internal value: what traces tell, what they may not contradict, and how several nodes' traces settle it."""

from __future__ import annotations

import pickle
from typing import Any

import msgspec
import pytest

from chains.evm.errors import ProofFailure
from chains.evm.reading import RawBlock, ReadingRules, read_block
from chains.evm.traces import (
    InternalMove,
    RawTraces,
    TraceMethod,
    TracesDiffer,
    TracesRefused,
    read_traces,
    settle_traces,
)
from chains.evm.wire import WireReceipt, WireTransaction
from chains.model import Address, LocatorKind, ProofLevel, TraceProof, hex_of
from tests.unit.chains.evm.factories import (
    ALICE,
    BOB,
    CHAIN_ID,
    NATIVE,
    TOKEN,
    make_asset,
    make_block,
    make_log,
    make_receipt,
    make_transaction,
)

CAROL: Address = bytes.fromhex("ca" * 20)
DAVE: Address = bytes.fromhex("da" * 20)


def frame(
    kind: str = "CALL",
    sender: Address = BOB,
    to: Address | None = CAROL,
    value: int | None = 0,
    *calls: object,
    **more: object,
) -> dict[str, Any]:
    """A frame as callTracer tells it."""
    told: dict[str, Any] = {"type": kind, "from": hex_of(sender), "gas": "0x1", "gasUsed": "0x1", "input": "0x"}
    told |= {"to": hex_of(to)} if to is not None else {}
    told |= {"value": hex(value)} if value is not None else {}
    told |= {"calls": list(calls)} if calls else {}
    return told | more


def root(*calls: object, **more: object) -> dict[str, Any]:
    """The root frame of the transaction that `make_transaction` makes."""
    return frame("CALL", ALICE, BOB, 0, *calls, **more)


def raw(answer: object, host: str = "one", method: TraceMethod = TraceMethod.CALL_TRACER) -> RawTraces:
    """What a node on `host` answered."""
    return RawTraces(method, msgspec.json.encode(answer), f"{host}-node", host)


def read(
    *frames: object, transaction: WireTransaction | None = None, receipt: WireReceipt | None = None
) -> list[InternalMove]:
    """The movements in a block of one transaction."""
    block = make_block(transaction or make_transaction())
    return list(read_traces(raw([{"result": told} for told in frames]), block, [receipt or make_receipt()]))


def refusal(*frames: object, **block: Any) -> str:  # noqa: ANN401 - passed on
    """Why these traces are refused."""
    with pytest.raises(TracesRefused) as caught:
        read(*frames, **block)
    assert (caught.value.check, caught.value.node, caught.value.host) == ("traces", "one-node", "one")
    return caught.value.detail


MOVES = {
    "call": frame(value=5),
    "creation": frame("CREATE", value=5),
    "salted creation": frame("CREATE2", value=5),
    "end of a contract": frame("SELFDESTRUCT", value=5),
}


@pytest.mark.parametrize("why", MOVES)
def test_a_frame_with_value_moves_it(why: str) -> None:
    (move,) = read(root(MOVES[why]))
    assert (move.transaction_index, move.path, move.sender, move.recipient) == (0, "0", BOB, CAROL)
    assert (move.amount_atomic, move.is_destruction) == (5, why == "end of a contract")


STAYS = {
    "zero": frame(value=0),
    "delegated, which names its parent's value": frame("DELEGATECALL", value=5),
    "delegated, no value": frame("DELEGATECALL", value=None),
    "static": frame("STATICCALL", value=None),
    "foreign code": frame("CALLCODE", value=5),
    "failed": frame(value=5, error="execution reverted"),
    "failed creation": frame("CREATE", BOB, None, 5, error="out of gas"),
    "burned": frame("SELFDESTRUCT", BOB, BOB, 5),
    "end of an empty contract": frame("SELFDESTRUCT", value=0),
    "unknown, no value": frame("AUTHCALL", value=None),
}


@pytest.mark.parametrize("why", STAYS)
def test_other_frames_move_nothing(why: str) -> None:
    assert read(root(STAYS[why])) == []


def test_the_root_frame_is_the_transaction_itself() -> None:
    assert read(frame("CALL", ALICE, BOB, 5), transaction=make_transaction(value="0x5")) == []


def test_children_of_a_frame_that_keeps_value_count() -> None:
    told = root(frame("DELEGATECALL", BOB, DAVE, 0, frame(value=1), frame(value=2)), frame(value=3))
    assert [(move.path, move.amount_atomic) for move in read(told)] == [("0.0", 1), ("0.1", 2), ("1", 3)]


def test_nothing_under_a_failed_frame_counts() -> None:
    failed = frame("CALL", BOB, CAROL, 1, frame(value=2, sender=CAROL), error="execution reverted")
    told = root(frame(value=3), failed, frame(value=4))
    assert [(move.path, move.amount_atomic) for move in read(told)] == [("0", 3), ("2", 4)]


def test_one_node_alone_is_believed_and_marked_so() -> None:
    told = raw([{"result": root(frame(value=5))}])
    moves, proof = settle_traces([told], make_block(make_transaction()), [make_receipt()], needed=1)
    assert (len(moves), proof) == (1, TraceProof.TRACE)


def test_two_hosts_that_tell_the_same_agree() -> None:
    answers = [raw([{"result": root(frame(value=5))}], host) for host in ("one", "two")]
    moves, proof = settle_traces(answers, make_block(make_transaction()), [make_receipt()], needed=2)
    assert (len(moves), proof) == (1, TraceProof.AGREED)


def test_two_hosts_that_tell_different_things_are_named_with_the_movement() -> None:
    answers = [raw([{"result": root(frame(value=5))}], "one"), raw([{"result": root()}], "two")]
    with pytest.raises(TracesDiffer, match="only one tells that 5 went from 0xb0") as caught:
        settle_traces(answers, make_block(make_transaction()), [make_receipt()], needed=1)
    assert caught.value.hosts == ("one", "two")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301 - our own bytes


def test_a_block_is_read_with_its_internal_value_between_native_value_and_logs() -> None:
    block = make_block(make_transaction(value="0x1"))
    receipts = [make_receipt(make_log())]
    rules = ReadingRules(CHAIN_ID, ProofLevel.OFF, NATIVE, {TOKEN: make_asset()}, traces_needed=1)
    told = raw([{"result": frame("CALL", ALICE, BOB, 1, frame(value=2))}])
    answer = RawBlock(msgspec.json.encode(block), msgspec.json.encode(receipts), "n", "h", 2, (told,))
    transfers = read_block(rules, 0x10, answer).transfers
    kinds = [(transfer.locator.kind, transfer.proof) for transfer in transfers]
    assert kinds == [(LocatorKind.NATIVE, None), (LocatorKind.TRACE, TraceProof.TRACE), (LocatorKind.LOG, None)]
    assert len({transfer.transaction for transfer in transfers}) == 1
    with pytest.raises(ProofFailure, match="0 hosts gave traces, 1 have to"):
        read_block(rules, 0x10, RawBlock(answer.block, answer.receipts, "n", "h", 2))
