"""How several nodes' traces settle what moved inside a block, and random trees against a simple machine."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chains.evm.errors import ProofFailure
from chains.evm.traces import TraceMethod, TracesDiffer, TracesRefused, read_traces, settle_traces
from chains.model import Address, TraceProof
from tests.unit.chains.evm.factories import BOB, make_block, make_receipt, make_transaction, word
from tests.unit.chains.evm.trace_forms import CAROL, flat_form, frame, raw_traces, root


def test_one_node_alone_is_believed_and_marked_so() -> None:
    told = raw_traces([{"result": root(frame(value=5))}])
    moves, proof = settle_traces([told], make_block(make_transaction()), [make_receipt()], needed=1)
    assert (len(moves), proof) == (1, TraceProof.TRACE)


def test_two_hosts_that_tell_the_same_agree() -> None:
    answers = [raw_traces([{"result": root(frame(value=5))}], host) for host in ("one", "two")]
    moves, proof = settle_traces(answers, make_block(make_transaction()), [make_receipt()], needed=2)
    assert (len(moves), proof) == (1, TraceProof.AGREED)


def test_two_hosts_that_tell_different_things_are_named_with_the_movement() -> None:
    answers = [raw_traces([{"result": root(frame(value=5))}], "one"), raw_traces([{"result": root()}], "two")]
    with pytest.raises(TracesDiffer, match="only one tells that 5 went from 0xb0") as caught:
        settle_traces(answers, make_block(make_transaction()), [make_receipt()], needed=1)
    assert caught.value.hosts == ("one", "two")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301 - our own bytes


def settle(*told: tuple[str, list[object]], needed: int = 1) -> tuple[list[int], TraceProof]:
    """Amounts and proof, of a block with one transaction; each host with the frames that it tells."""
    answers = [raw_traces([root(*frames)], host) for host, frames in told]
    moves, proof = settle_traces(answers, make_block(make_transaction()), [make_receipt()], needed)
    return [move.amount_atomic for move in moves], proof


FIVE, SIX, SEVEN = [frame(value=5)], [frame(value=6)], [frame(value=7)]


def test_a_majority_of_hosts_settles_it() -> None:
    told = settle(("a", SIX), ("b", FIVE), ("c", FIVE))  # type: ignore[arg-type]
    assert told == ([5], TraceProof.AGREED)


NO_MAJORITY: dict[str, tuple[int, list[tuple[str, Any]]]] = {
    "one against one": (1, [("a", FIVE), ("b", SIX)]),
    "three of three minds": (1, [("a", FIVE), ("b", SIX), ("c", SEVEN)]),
    "two against two": (2, [("a", FIVE), ("b", SIX), ("c", SIX), ("d", FIVE)]),
    "two of three, where three are needed": (3, [("a", FIVE), ("b", FIVE), ("c", SIX)]),
    "one host twice against another": (1, [("a", FIVE), ("a", FIVE), ("b", SIX)]),
    "one host that contradicts itself": (1, [("a", FIVE), ("a", SIX)]),
}


@pytest.mark.parametrize("why", NO_MAJORITY)
def test_without_a_majority_nothing_is_settled(why: str) -> None:
    needed, told = NO_MAJORITY[why]
    with pytest.raises(TracesDiffer) as caught:
        settle(*told, needed=needed)
    assert caught.value.hosts == tuple(sorted({host for host, _ in told}))


@pytest.mark.parametrize("told", [[], [("a", FIVE)], [("a", FIVE), ("a", FIVE)]])
def test_too_few_hosts_settle_nothing(told: list[tuple[str, Any]]) -> None:
    with pytest.raises(ProofFailure, match="hosts gave traces, 2 have to"):
        settle(*told, needed=2)


def test_order_and_paths_do_not_tell_two_answers_apart_and_counts_do() -> None:
    """A tracer that leaves out calls to precompiled contracts numbers the others differently."""
    precompiled = frame("STATICCALL", BOB, bytes(19) + b"\1", None)
    one, other = [precompiled, *FIVE, *SIX, *FIVE], [*SIX, *FIVE, *FIVE]
    assert settle(("a", one), ("b", other), needed=2) == ([5, 6, 5], TraceProof.AGREED)  # type: ignore[arg-type]
    with pytest.raises(TracesDiffer, match="only a tells that 5 went"):
        settle(("a", one), ("b", [*SIX, *FIVE]), needed=2)  # type: ignore[arg-type]


def test_value_for_a_precompiled_contract_tells_apart_only_answers_of_one_kind() -> None:
    """Reth's and Besu's `trace_block` leave such calls out, value or not."""
    block, receipts = make_block(make_transaction()), [make_receipt()]
    burned = frame("CALL", BOB, bytes(19) + b"\x04", 9)
    whole, partial = [root(burned, *FIVE)], [root(*FIVE)]
    flat = raw_traces(flat_form(partial, block.hash), "flat", TraceMethod.TRACE_BLOCK)
    moves, proof = settle_traces([raw_traces(whole, "tree"), flat], block, receipts, needed=2)
    assert ([move.amount_atomic for move in moves], proof) == ([5], TraceProof.AGREED)
    moves, proof = settle_traces([raw_traces(whole, "tree")], block, receipts, needed=1)
    assert ([move.amount_atomic for move in moves], proof) == ([9, 5], TraceProof.TRACE)
    with pytest.raises(TracesDiffer, match="only tree tells that 9 went"):
        settle_traces([raw_traces(whole, "tree"), raw_traces(partial, "other")], block, receipts, needed=2)


def test_traces_that_are_worth_nothing_are_their_nodes_failing_whatever_the_others_tell() -> None:
    block, receipts = make_block(make_transaction()), [make_receipt()]
    answers = [raw_traces([root()], "a"), raw_traces([], "b"), raw_traces([root()], "c")]
    with pytest.raises(TracesRefused) as caught:
        settle_traces(answers, block, receipts, needed=2)
    copy = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - our own bytes
    assert (copy.node, copy.host, copy.check, str(copy)) == ("b-node", "b", "traces", str(caught.value))


# Random trees, against a machine that keeps balances and undoes what fails.

PEOPLE = [bytes([n]) * 20 for n in range(1, 5)]
VALUED = ("CALL", "CREATE", "CREATE2", "SELFDESTRUCT")
people = st.sampled_from(PEOPLE)


def frames_with(calls: st.SearchStrategy[list[Any]]) -> st.SearchStrategy[Any]:
    """A frame of any kind with these inside."""
    return st.builds(
        _any_frame,
        st.sampled_from([*VALUED, "DELEGATECALL", "STATICCALL", "CALLCODE"]),
        people,
        people,
        st.integers(0, 9),
        st.booleans(),
        calls,
    )


def _any_frame(
    kind: str, sender: Address, to: Address, value: int, has_failed: bool, calls: list[dict[str, Any]]
) -> dict[str, Any]:
    more = {"error": "execution reverted"} if has_failed else {}
    told = None if kind == "STATICCALL" else value
    return frame(kind, sender, to, told, *([] if kind == "SELFDESTRUCT" else calls), **more)


any_frame = st.recursive(
    frames_with(st.just([])), lambda inner: frames_with(st.lists(inner, min_size=1, max_size=4)), max_leaves=12
)
trees = st.lists(any_frame, max_size=4)


def run(calls: list[dict[str, Any]], balances: dict[Address, int]) -> dict[Address, int]:
    """Balances after these calls: each pays, runs what is inside, and is undone where it failed."""
    for call in calls:
        after = dict(balances)
        sender, to = bytes.fromhex(call["from"][2:]), bytes.fromhex(call["to"][2:])
        if call["type"] in VALUED:
            amount = int(call["value"], 16)
            after[sender] -= amount
            after[to] += amount
        after = run(call.get("calls", []), after)
        balances = balances if "error" in call else after
    return balances


@given(trees)
def test_the_movements_are_what_a_machine_does_to_balances(calls: list[dict[str, Any]]) -> None:
    balances = dict.fromkeys(PEOPLE, 0)
    for form, method in (
        ([root(*calls)], TraceMethod.CALL_TRACER),
        (flat_form([root(*calls)], word(1)), TraceMethod.TRACE_BLOCK),
    ):
        after = dict(balances)
        moves = read_traces(raw_traces(form, method=method), make_block(make_transaction()), [make_receipt()])
        for move in moves:
            after[move.sender] -= move.amount_atomic
            after[move.recipient] += move.amount_atomic
        assert after == run(calls, balances)


@given(trees, trees)
def test_two_nodes_agree_exactly_where_they_tell_the_same_movements(
    one: list[dict[str, Any]], other: list[dict[str, Any]]
) -> None:
    block, receipts = make_block(make_transaction()), [make_receipt()]
    answers = [raw_traces([root(*calls)], host) for calls, host in ((one, "a"), (other, "b"))]
    told = [
        sorted((m.sender, m.recipient, m.amount_atomic) for m in read_traces(raw, block, receipts)) for raw in answers
    ]
    if told[0] == told[1]:
        assert settle_traces(answers, block, receipts, 2)[1] is TraceProof.AGREED
    else:
        with pytest.raises(TracesDiffer):
            settle_traces(answers, block, receipts, 2)


@given(trees, trees)
def test_nothing_inside_a_failed_frame_is_ever_told(calls: list[dict[str, Any]], hidden: list[dict[str, Any]]) -> None:
    block, receipts = make_block(make_transaction()), [make_receipt()]
    bare = read_traces(raw_traces([root(*calls)]), block, receipts)
    failed = frame("CALL", BOB, CAROL, 3, *hidden, error="execution reverted")
    assert read_traces(raw_traces([root(*calls, failed)]), block, receipts) == bare
