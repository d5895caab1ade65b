"""Internal value: what traces tell, what they may not contradict, and how several nodes' traces settle it."""

from __future__ import annotations

import pickle
from typing import Any

import msgspec
import pytest

from chains.evm.errors import ProofFailure
from chains.evm.polygon import derived_hash
from chains.evm.reading import RawBlock, ReadingRules, read_block
from chains.evm.senders import created_address
from chains.evm.traces import (
    InternalMove,
    RawTraces,
    TraceMethod,
    TracesRefused,
    read_traces,
)
from chains.evm.wire import PolygonBlock, WireReceipt, WireTransaction, bytes_of
from chains.model import LocatorKind, ProofLevel, TraceProof, hex_of
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
    word,
)
from tests.unit.chains.evm.trace_forms import CAROL, DAVE, flat_form, frame, raw_traces, root


def read(
    *frames: object, transaction: WireTransaction | None = None, receipt: WireReceipt | None = None
) -> list[InternalMove]:
    """The movements in a block of one transaction."""
    block = make_block(transaction or make_transaction())
    return list(read_traces(raw_traces([{"result": told} for told in frames]), block, [receipt or make_receipt()]))


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


def both_forms(told: dict[str, Any], transaction: WireTransaction | None = None) -> list[list[tuple[int, bool]]]:
    """Amounts, and whether nothing of them may be left after the contract's end, by each of the two methods."""
    block = make_block(transaction or make_transaction())
    receipt = make_receipt()
    flat = raw_traces(flat_form([told], block.hash), method=TraceMethod.TRACE_BLOCK)
    return [
        [(move.amount_atomic, move.is_destruction) for move in read_traces(traces, block, [receipt])]
        for traces in (raw_traces([told]), flat)
    ]


SHORT_LIVED: dict[str, tuple[list[dict[str, Any]], list[tuple[int, bool]]]] = {
    "ends within its creation": ([frame("CREATE", BOB, CAROL, 5, frame("SELFDESTRUCT", CAROL, CAROL, 5))], [(5, True)]),
    "ends later, with nothing": (
        [frame("CREATE2", BOB, CAROL, 5), frame("CALL", BOB, CAROL, 0, frame("SELFDESTRUCT", CAROL, DAVE, 0))],
        [(5, True)],
    ),
    "is paid after its end": (
        [frame("CREATE", BOB, CAROL, 0, frame("SELFDESTRUCT", CAROL, BOB, 0)), frame(value=5)],
        [(5, True)],
    ),
    "pays others before its end": (
        [frame("CREATE", BOB, CAROL, 5, frame("CALL", CAROL, DAVE, 5), frame("SELFDESTRUCT", CAROL, BOB, 0))],
        [(5, True), (5, False)],
    ),
    "is written in capitals once": (
        [frame("CREATE", BOB, CAROL, 5, frame("SELFDESTRUCT", CAROL, DAVE, 0) | {"from": "0x" + "CA" * 20})],
        [(5, True)],
    ),
    "lives on": ([frame("CREATE", BOB, CAROL, 5), frame("SELFDESTRUCT", BOB, DAVE, 0)], [(5, False)]),
    "its end was undone": (
        [frame("CREATE", BOB, CAROL, 5, frame(), frame("SELFDESTRUCT", CAROL, DAVE, 5, error="out of gas"))],
        [(5, False)],
    ),
    "its end was undone with the call": (
        [
            frame("CREATE", BOB, CAROL, 5),
            frame("CALL", BOB, CAROL, 0, frame("SELFDESTRUCT", CAROL, DAVE, 5), error="x"),
        ],
        [(5, False)],
    ),
    "was there before": (
        [frame(value=5), frame("CALL", BOB, CAROL, 0, frame("SELFDESTRUCT", CAROL, DAVE, 0))],
        [(5, False)],
    ),
}


@pytest.mark.parametrize("why", SHORT_LIVED)
def test_what_goes_to_a_contract_that_its_own_transaction_ends_is_marked(why: str) -> None:
    frames, expected = SHORT_LIVED[why]
    assert both_forms(root(*frames)) == [expected, expected]


def test_a_contract_that_the_transaction_itself_creates_may_end_in_it_too() -> None:
    transaction = make_transaction(to=None)
    created = created_address(ALICE, 7)
    end = frame("SELFDESTRUCT", created, BOB, 0)
    told = frame("CREATE", ALICE, created, 0, frame("CALL", CAROL, created, 5), end)
    assert both_forms(told, transaction) == [[(5, True)], [(5, True)]]


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


def test_a_block_is_read_with_its_internal_value_between_native_value_and_logs() -> None:
    block = make_block(make_transaction(value="0x1"))
    receipts = [make_receipt(make_log())]
    rules = ReadingRules(CHAIN_ID, ProofLevel.OFF, NATIVE, {TOKEN: make_asset()}, traces_needed=1)
    told = raw_traces([{"result": frame("CALL", ALICE, BOB, 1, frame(value=2))}])
    answer = RawBlock(msgspec.json.encode(block), msgspec.json.encode(receipts), "n", "h", 2, (told,))
    transfers = read_block(rules, 0x10, answer).transfers
    kinds = [(transfer.locator.kind, transfer.proof) for transfer in transfers]
    assert kinds == [(LocatorKind.NATIVE, None), (LocatorKind.TRACE, TraceProof.TRACE), (LocatorKind.LOG, None)]
    assert len({transfer.transaction for transfer in transfers}) == 1
    with pytest.raises(ProofFailure, match="0 hosts gave traces, 1 have to"):
        read_block(rules, 0x10, RawBlock(answer.block, answer.receipts, "n", "h", 2))


def test_a_creation_is_the_root_frame_of_a_transaction_without_a_recipient() -> None:
    contract = created_address(ALICE, 7)
    creation = make_transaction(to=None, value="0x3")
    told = frame("CREATE", ALICE, contract, 3, frame(sender=contract, value=2))
    assert [(move.sender, move.amount_atomic) for move in read(told, transaction=creation)] == [(contract, 2)]
    failed = frame("CREATE", ALICE, None, 3, error="out of gas")
    assert read(failed, transaction=creation, receipt=make_receipt(status="0x0")) == []
    assert "another recipient" in refusal(frame("CREATE", ALICE, CAROL, 3), transaction=creation)
    assert "another recipient" in refusal(frame("CREATE", ALICE, None, 3), transaction=creation)


CONTRADICTIONS = {
    "no trace": ([], "0 traces for 1 transactions"),
    "one too many": ([root(), root()], "2 traces for 1 transactions"),
    "failed, by its trace alone": ([root(error="out of gas")], "says that it failed"),
    "another sender": ([frame("CALL", CAROL, BOB)], "another sender or value"),
    "another value": ([frame("CALL", ALICE, BOB, 1)], "another sender or value"),
    "another recipient": ([frame("CALL", ALICE, CAROL)], "another recipient"),
    "nobody receives": ([frame("CALL", ALICE, None)], "another recipient"),
    "a creation": ([frame("CREATE", ALICE, BOB)], "is a CREATE"),
    "no value": ([frame("CALL", ALICE, BOB, None)], "is a CALL, or incomplete"),
    "no kind": ([frame("CALL", ALICE, BOB) | {"type": None}], "no trace of transaction 0"),
    "an unknown frame with value": (
        [root(frame("EXTCALL", value=1))],
        "an unknown kind of frame, 'EXTCALL', has value",
    ),
    "a call without a value": ([root(frame(value=None))], "a CALL without a value"),
    "an old tracer's end of a contract": ([root({"type": "SELFDESTRUCT"})], "a SELFDESTRUCT without a value"),
    "a movement to nobody": ([root(frame("CREATE", BOB, None, 5))], "does not say from whom to whom"),
    "no address": ([root(frame(value=5) | {"to": "0xca"})], "'0xca' is no address"),
    "no hexadecimal": ([root(frame(value=5) | {"from": "0x" + "zz" * 20})], "not hexadecimal"),
    "no amount": ([root(frame() | {"value": "0x-1"})], "'0x-1' is no amount"),
    "more than there can be": ([root(frame() | {"value": "0x1" + "0" * 64})], "is no amount"),
    "a number that is none": ([root(frame() | {"value": "five"})], "not a hexadecimal number"),
    "calls that are no list": ([root() | {"calls": 5}], "malformed"),
}


@pytest.mark.parametrize("why", CONTRADICTIONS)
def test_traces_that_contradict_the_proven_block_are_refused(why: str) -> None:
    frames, said = CONTRADICTIONS[why]
    assert said in refusal(*frames)


def test_a_trace_that_knows_of_no_failure_is_refused_for_a_transaction_that_failed() -> None:
    assert "says that it succeeded" in refusal(root(), receipt=make_receipt(status="0x0"))
    assert read(root(frame(value=5), error="reverted"), receipt=make_receipt(status="0x0")) == []


ENTRIES = {
    "with its hash": {"txHash": word(0xAAAA0000), "result": root(frame(value=5))},
    "with its hash in capitals": {"txHash": "0x" + word(0xAAAA0000)[2:].upper(), "result": root(frame(value=5))},
    "without": {"result": root(frame(value=5))},
    "bare": root(frame(value=5)),
    "of Arbitrum": {
        "result": root(frame(value=5), beforeEVMTransfers=[{"purpose": "feePayment"}], afterEVMTransfers=[])
    },
    "with empty fields": {
        "result": root(frame(value=5), error="", calls=[frame(value=5)], revertReason=None),
        "error": None,
    },
}


@pytest.mark.parametrize("how", ENTRIES)
def test_an_entry_is_read_in_the_forms_that_nodes_use(how: str) -> None:
    raw = raw_traces([ENTRIES[how]])
    (move,) = read_traces(raw, make_block(make_transaction()), [make_receipt()])
    assert (move.path, move.amount_atomic) == ("0", 5)


NO_ENTRIES = {
    "null": None,
    "of another transaction": [{"txHash": word(9), "result": root()}],
    "a tracer that gave up": [{"txHash": word(0xAAAA0000), "error": "execution timeout"}],
    "a tracer that gave up half way": [{"result": root(), "error": "execution timeout"}],
    "an error of a server": [{"error": {"code": -32000, "message": "no state"}}],
    "steps of the machine": [{"result": {"gas": 21000, "failed": False, "returnValue": "", "structLogs": []}}],
    "no list": {"result": root()},
    "no entries": ["0x"],
}


@pytest.mark.parametrize("why", NO_ENTRIES)
def test_an_answer_without_a_trace_of_each_transaction_is_refused(why: str) -> None:
    with pytest.raises(TracesRefused):
        read_traces(raw_traces(NO_ENTRIES[why]), make_block(make_transaction()), [make_receipt()])


@pytest.mark.parametrize("answer", [b"", b"[", b"\xff", b'[{"result":{"type":"\xff"}}]', b"[" * 10**6])
@pytest.mark.parametrize("method", list(TraceMethod))
def test_an_answer_that_is_no_json_is_refused(answer: bytes, method: TraceMethod) -> None:
    with pytest.raises(TracesRefused, match="malformed"):
        read_traces(RawTraces(method, answer, "n", "h"), make_block(make_transaction()), [make_receipt()])


BLOCK = make_block(make_transaction(0), make_transaction(1))
RECEIPTS = [make_receipt(index=0), make_receipt(index=1)]


def rows(*trees: dict[str, Any]) -> list[dict[str, Any]]:
    """The same as `trace_block` tells it, and what it pays the miner."""
    reward = {"type": "reward", "action": {"author": hex_of(ALICE), "value": "0x5"}, "traceAddress": []}
    return [*flat_form(list(trees), BLOCK.hash), reward | {"blockHash": BLOCK.hash, "error": None}]


def flat_refusal(answer: list[dict[str, Any]]) -> str:
    with pytest.raises(TracesRefused) as caught:
        read_traces(raw_traces(answer, method=TraceMethod.TRACE_BLOCK), BLOCK, RECEIPTS)
    return caught.value.detail


def test_flat_traces_are_read_and_rewards_are_not() -> None:
    destroyed = frame("SELFDESTRUCT", CAROL, DAVE, 2)
    answer = rows(root(frame(value=1), frame("CREATE2", value=3)), root(frame("STATICCALL", BOB, CAROL, 0, destroyed)))
    moves = read_traces(raw_traces(answer, method=TraceMethod.TRACE_BLOCK), BLOCK, RECEIPTS)
    assert [(move.transaction_index, move.path, move.amount_atomic, move.is_destruction) for move in moves] == [
        (0, "0", 1, False),
        (0, "1", 3, False),
        (1, "0.0", 2, True),
    ]


def test_the_names_that_nodes_have_for_one_thing_are_read_alike() -> None:
    rows_of = rows(root(frame("SELFDESTRUCT", value=1)), root())
    rows_of[0] = {key: value for key, value in rows_of[0].items() if key != "type"}
    rows_of[1] |= {"type": "selfdestruct"}
    (move,) = read_traces(raw_traces(rows_of, method=TraceMethod.TRACE_BLOCK), BLOCK, RECEIPTS)
    assert (move.amount_atomic, move.is_destruction) == (1, True)


def test_nothing_under_a_failed_row_counts() -> None:
    inner = frame("CALL", CAROL, DAVE, 1, frame(value=2))
    answer = rows(root(frame("CALL", BOB, CAROL, 0, inner, error="Reverted")), root())
    assert read_traces(raw_traces(answer, method=TraceMethod.TRACE_BLOCK), BLOCK, RECEIPTS) == ()


def test_flat_traces_that_contradict_the_block_or_themselves_are_refused() -> None:
    good = rows(root(frame(value=1)), root())
    assert "is of block" in flat_refusal([good[0] | {"blockHash": word(9)}, *good[1:]])
    assert "1 traces for 2 transactions" in flat_refusal(good[:2])
    assert "not the first ones" in flat_refusal(good[2:])
    assert "first trace is not the root" in flat_refusal(good[1:])
    assert "doubled or has no parent" in flat_refusal([*good[:2], good[1], *good[2:]])
    assert "doubled or has no parent" in flat_refusal([good[0], good[1] | {"traceAddress": [0, 0]}, *good[2:]])
    assert "doubled or has no parent" in flat_refusal([*good[:3], good[2]])
    assert "belongs to no transaction" in flat_refusal([good[0] | {"transactionPosition": None}, *good[1:]])
    assert "is of transaction" in flat_refusal([good[0] | {"transactionHash": word(9)}, *good[1:]])
    assert "an unknown type, 'authcall'" in flat_refusal([good[0], good[1] | {"type": "authcall"}, *good[2:]])
    strange = good[1] | {"action": good[1]["action"] | {"callType": "authcall"}}
    assert "an unknown kind of frame, 'AUTHCALL'" in flat_refusal([good[0], strange, *good[2:]])
    silent = good[1] | {"action": {"from": hex_of(BOB), "callType": "call"}}
    assert "a CALL without a value" in flat_refusal([good[0], silent, *good[2:]])
    assert "malformed" in flat_refusal([good[0] | {"traceAddress": "0"}])


@pytest.mark.parametrize("is_apart", [True, False])
def test_a_state_sync_of_polygon_may_have_a_trace_or_none(is_apart: bool) -> None:
    nobody, system = hex_of(bytes(20)), hex_of(bytes.fromhex("ff" * 19 + "fe"))
    sync = make_transaction(1, sender=system, to=nobody, type="0x7f", gas="0x0")
    if is_apart:
        listed = hex_of(derived_hash(0x10, bytes_of(word(1))))
        sync = make_transaction(1, sender=nobody, to=nobody, type="0x0", gas="0x0", hash=listed)
    block = make_block(make_transaction(0), sync, dialect=PolygonBlock)
    credited = frame("CALL", bytes(20), DAVE, 0, frame(value=9))
    for answer in ([root(frame(value=5))], [root(frame(value=5)), credited]):
        moves = read_traces(raw_traces(answer), block, RECEIPTS)
        assert [(move.transaction_index, move.amount_atomic) for move in moves] == [(0, 5)]
    with pytest.raises(TracesRefused, match="3 traces for 1 transactions"):
        read_traces(raw_traces([root(), credited, credited]), block, RECEIPTS)


@pytest.mark.parametrize("kind", ["0x64", "0x69", "0x6a"])
def test_a_failed_transaction_of_arbitrum_that_runs_no_code_moves_nothing(kind: str) -> None:
    submitted = make_transaction(type=kind)
    told = root(frame("CALL", bytes(20), ALICE, 5))
    assert [move.amount_atomic for move in read(told, transaction=submitted)] == [5]
    assert read(told, transaction=submitted, receipt=make_receipt(status="0x0")) == []


def test_before_byzantium_a_trace_may_tell_what_no_receipt_tells() -> None:
    doubtful = make_receipt(root=word(1), status=None, cumulative_gas_used="0x64")
    legacy = make_transaction(gas="0x64", type="0x0", gas_price="0x1")
    assert len(read(root(frame(value=5)), transaction=legacy, receipt=doubtful)) == 1
    assert read(root(frame(value=5), error="out of gas"), transaction=legacy, receipt=doubtful) == []


@pytest.mark.parametrize("depth", [490, 1024])
def test_calls_may_nest_as_deep_as_the_machine_lets_them(depth: int) -> None:
    """1,024 calls inside the root nest 2,050 brackets."""
    head = b'{"type":"CALL","from":"%s","to":"%s","value":"0x1"' % (hex_of(BOB).encode(), hex_of(CAROL).encode())
    inner = (head + b',"calls":[') * (depth - 1) + head + b"}" + b"]}" * (depth - 1)
    answer = msgspec.json.encode([{"result": root()}])[:-3] + b',"calls":[' + inner + b"]}}]"
    raw = RawTraces(TraceMethod.CALL_TRACER, answer, "n", "h")
    moves = read_traces(raw, make_block(make_transaction()), [make_receipt()])
    assert (len(moves), moves[-1].path.count(".")) == (depth, depth - 1)


def test_what_goes_to_another_process_and_back_can_be_pickled() -> None:
    view = msgspec.json.decode(b'{"result":[1]}', type=dict[str, msgspec.Raw])["result"]
    for value in (raw_traces([root()]), InternalMove(0, "0", ALICE, BOB, 5), ProofFailure("state", "why")):
        assert str(pickle.loads(pickle.dumps(value))) == str(value)  # noqa: S301 - our own bytes
    copy = pickle.loads(pickle.dumps(RawTraces(TraceMethod.TRACE_BLOCK, view, "n", "h")))  # noqa: S301 - our own bytes
    assert bytes(copy.answer) == b"[1]"


def test_a_block_without_transactions_needs_no_traces() -> None:
    rules = ReadingRules(CHAIN_ID, ProofLevel.OFF, NATIVE, {}, traces_needed=2)
    answer = RawBlock(msgspec.json.encode(make_block()), b"[]", "n", "h", 2)
    assert read_block(rules, 0x10, answer).transfers == ()


def test_equal_movements_inside_and_outside_keep_identities_of_their_own() -> None:
    block = make_block(make_transaction(value="0x5"))
    rules = ReadingRules(CHAIN_ID, ProofLevel.OFF, NATIVE, {}, traces_needed=1)
    again = frame("CALL", ALICE, BOB, 5)
    told = raw_traces([frame("CALL", ALICE, BOB, 5, again, again)])
    answer = RawBlock(msgspec.json.encode(block), msgspec.json.encode([make_receipt()]), "n", "h", 2, (told,))
    transfers = read_block(rules, 0x10, answer).transfers
    assert len({transfer.id for transfer in transfers}) == len(transfers) == 3
    without = read_block(ReadingRules(CHAIN_ID, ProofLevel.OFF, NATIVE, {}), 0x10, answer).transfers
    assert [transfer.id for transfer in without] == [transfers[0].id]
