"""What a difference between a block's transfers and an account's proven balances means, and what it does not."""

from __future__ import annotations

import msgspec
import pytest

from chains.evm.contradiction import Bearing, bearing_of
from chains.evm.dialect import Dialect
from chains.evm.traces import RawTraces, TraceMethod
from chains.model import Address, hex_of

CUSTOMER: Address = bytes.fromhex("c0ffee" * 6 + "c0ff")
OTHER: Address = bytes.fromhex("ab" * 20)


def call_traces(*frames: object) -> RawTraces:
    """A transaction whose root has these calls."""
    root = {"type": "CALL", "from": hex_of(OTHER), "to": hex_of(CUSTOMER), "value": "0x0", "calls": list(frames)}
    return RawTraces(TraceMethod.CALL_TRACER, msgspec.json.encode([{"result": root}]), "node", "host")


def flat_traces(*rows: object) -> RawTraces:
    return RawTraces(TraceMethod.TRACE_BLOCK, msgspec.json.encode(rows), "node", "host")


def destruction(account: Address) -> dict[str, str]:
    return {"type": "SELFDESTRUCT", "from": hex_of(account), "to": hex_of(OTHER), "value": "0x0"}


def suicide(account: Address) -> dict[str, object]:
    action = {"address": hex_of(account), "refundAddress": hex_of(OTHER), "balance": "0x0"}
    return {"type": "suicide", "action": action, "traceAddress": [0]}


@pytest.mark.parametrize("dialect", Dialect)
def test_equal_changes_bear_the_traces_out_on_every_chain(dialect: Dialect) -> None:
    assert bearing_of(5, 5, CUSTOMER, [call_traces()], dialect) is Bearing.BORNE_OUT
    assert bearing_of(0, 0, bytes(20), [call_traces()], dialect) is Bearing.BORNE_OUT


@pytest.mark.parametrize(("expected", "proven"), [(5, 0), (0, 5), (5, -5), (5, 4)])
def test_a_difference_is_a_contradiction_on_ethereum(expected: int, proven: int) -> None:
    assert bearing_of(expected, proven, CUSTOMER, [call_traces(), flat_traces()]) is Bearing.CONTRADICTED


@pytest.mark.parametrize("dialect", [Dialect.OP_STACK, Dialect.POLYGON, Dialect.AVALANCHE])
def test_elsewhere_fees_may_come_without_a_transfer_but_nothing_may_go(dialect: Dialect) -> None:
    assert bearing_of(0, 5, CUSTOMER, [call_traces()], dialect) is Bearing.UNTOLD
    assert bearing_of(5, 0, CUSTOMER, [call_traces()], dialect) is Bearing.CONTRADICTED


def test_arbitrum_moves_value_outside_of_transactions() -> None:
    assert bearing_of(5, 0, CUSTOMER, [call_traces()], Dialect.ARBITRUM) is Bearing.UNTOLD


@pytest.mark.parametrize(
    "account",
    [
        "0000000000000000000000000000000000001010",
        "4200000000000000000000000000000000000019",
        "fffffffffffffffffffffffffffffffffffffffe",
        "0100000000000000000000000000000000000000",
    ],
)
def test_an_account_of_the_protocol_tells_nothing(account: str) -> None:
    assert bearing_of(5, 0, bytes.fromhex(account), [call_traces()]) is Bearing.UNTOLD


def test_a_vanity_address_is_an_account_like_any_other() -> None:
    account = bytes.fromhex("00000000219ab540356cbb839cbe05303d7705fa")
    assert bearing_of(5, 0, account, [call_traces()]) is Bearing.CONTRADICTED


@pytest.mark.parametrize("traces", [call_traces(destruction(CUSTOMER)), flat_traces(suicide(CUSTOMER))])
def test_an_account_that_destroyed_itself_may_have_burned_what_came(traces: RawTraces) -> None:
    assert bearing_of(5, 0, CUSTOMER, [traces]) is Bearing.UNTOLD


@pytest.mark.parametrize("traces", [call_traces(destruction(OTHER)), flat_traces(suicide(OTHER))])
def test_anothers_destruction_explains_nothing(traces: RawTraces) -> None:
    assert bearing_of(5, 0, CUSTOMER, [traces]) is Bearing.CONTRADICTED


def test_a_call_to_the_account_explains_nothing() -> None:
    row = {"type": "call", "action": {"from": hex_of(CUSTOMER), "to": hex_of(OTHER), "value": "0x5"}}
    call = {"type": "CALL", "from": hex_of(CUSTOMER), "to": hex_of(OTHER), "value": "0x5"}
    assert bearing_of(5, 0, CUSTOMER, [flat_traces(row), call_traces(call)]) is Bearing.CONTRADICTED


def test_a_contract_may_have_sent_value_to_a_precompiled_one_where_trace_block_was_asked() -> None:
    """Some nodes' `trace_block` leaves those calls out."""
    both = [call_traces(), flat_traces()]
    assert bearing_of(5, 4, CUSTOMER, both, has_code=True) is Bearing.UNTOLD
    assert bearing_of(5, 6, CUSTOMER, both, has_code=True) is Bearing.CONTRADICTED
    assert bearing_of(5, 4, CUSTOMER, [call_traces()], has_code=True) is Bearing.CONTRADICTED


@pytest.mark.parametrize(
    ("expected", "proven", "bearing"),
    [
        (2, 1, Bearing.UNTOLD),  # the one that a contract is said to have left never was
        (5, 2, Bearing.UNTOLD),  # neither of the two was
        (5, 1, Bearing.CONTRADICTED),  # something else is false besides
        (2, 3, Bearing.CONTRADICTED),  # more came than is told
    ],
)
def test_only_what_was_left_by_a_contracts_end_excuses_what_is_missing(
    expected: int, proven: int, bearing: Bearing
) -> None:
    assert bearing_of(expected, proven, b"\x77" * 20, [], inherited=[1, 2]) is bearing
