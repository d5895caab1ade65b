"""Reading a node's bytes: what nodes do differently, and what is malformed."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chains.evm.errors import ProofFailure
from chains.evm.proof import prove_block
from chains.evm.wire import bytes_of, decode_block, decode_header, decode_receipts, quantity_of
from chains.model import ProofLevel
from tests.unit.chains.evm.recorded import Answer, recorded


def proves(answer: Answer) -> bool:
    prove_block(*answer.decode(), ProofLevel.ROOTS)
    return True


def without(row: dict[str, Any], *names: str) -> None:
    for name in names:
        row.pop(name, None)


def test_null_is_no_block() -> None:
    assert decode_block(b"null") is None
    assert decode_header(b"null") is None
    assert decode_receipts(b"null") is None


def test_a_raw_part_of_a_larger_answer_is_read_as_it_is() -> None:
    raw = msgspec.json.encode(recorded(1000000).block)
    envelope = msgspec.json.decode(b'{"id":1,"result":' + raw + b"}", type=dict[str, msgspec.Raw])
    assert decode_block(envelope["result"]) == decode_block(raw)
    assert decode_header(envelope["result"]) == decode_header(raw)


def test_legacy_transactions_of_nodes_without_types_prove() -> None:
    answer = recorded(8000000)
    for row in answer.block["transactions"] + answer.receipts:
        without(row, "type", "chainId", "effectiveGasPrice")
    for row in answer.block["transactions"]:
        without(row, "blockHash", "transactionIndex")
    assert proves(answer)


def test_typed_transactions_of_nodes_without_y_parity_prove() -> None:
    answer = recorded(22431084)
    for row in answer.block["transactions"]:
        without(row, "yParity")
    assert proves(answer)


def test_receipts_without_their_own_bloom_and_gas_prove() -> None:
    answer = recorded(22431084)
    for row in answer.receipts:
        without(row, "logsBloom", "gasUsed", "type")
    assert proves(answer)


def test_a_meaningless_status_beside_a_state_root_proves() -> None:
    answer = recorded(4369999)
    for row in answer.receipts:
        row["status"] = "0x1"
    assert proves(answer)


def test_unknown_fields_and_null_fork_fields_are_tolerated() -> None:
    answer = recorded(8000000)
    answer.block |= {"baseFeePerGas": None, "withdrawals": None, "withdrawalsRoot": None, "somethingNew": {"a": [1]}}
    answer.block["transactions"][0] |= {"accessList": None, "somethingNew": 1}
    answer.receipts[0] |= {"root": None, "somethingNew": 1}
    assert proves(answer)


MALFORMED: dict[str, bytes] = {
    "not JSON": b"<html>502 Bad Gateway</html>",
    "cut off": b'{"hash":"0x12',
    "an error page as a string": b'"too many requests"',
    "a list": b"[]",
    "an empty object": b"{}",
    "nothing": b"",
    "not UTF-8": b'{"hash":"\xff\xfe"}',
}


@pytest.mark.parametrize("why", MALFORMED)
def test_a_malformed_answer_is_one_clear_failure(why: str) -> None:
    for decode in (decode_block, decode_header):
        with pytest.raises(ProofFailure, match="malformed") as failure:
            decode(MALFORMED[why])
        assert failure.value.check == "structure"


@pytest.mark.parametrize(
    ("name", "value"),
    [("hash", "0x12"), ("number", 17), ("transactions", None), ("transactions", ["0x" + "11" * 32]), ("miner", None)],
)
def test_a_block_with_a_wrong_field_is_malformed(name: str, value: object) -> None:
    block = recorded(1000000).block | {name: value}
    with pytest.raises(ProofFailure, match="malformed"):
        decode_block(json.dumps(block).encode())


@pytest.mark.parametrize("name", ["transactionHash", "cumulativeGasUsed", "logs"])
def test_a_receipt_without_a_needed_field_is_malformed_and_named(name: str) -> None:
    receipts = recorded(1000000).receipts
    del receipts[1][name]
    with pytest.raises(ProofFailure, match=name):
        decode_receipts(json.dumps(receipts).encode())


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_else(raw: bytes) -> None:
    for decode in (decode_block, decode_receipts, decode_header):
        try:
            decoded = decode(raw)
        except ProofFailure:
            continue
        assert decoded in (None, [])


@given(st.integers(min_value=0, max_value=2**256 - 1))
def test_a_quantity_is_its_number(number: int) -> None:
    assert quantity_of(hex(number)) == number


@pytest.mark.parametrize("text", ["0x", "0xzz", "1", "0x1g"])
def test_what_is_no_quantity_is_a_failure(text: str) -> None:
    with pytest.raises(ProofFailure, match="not a hexadecimal number"):
        quantity_of(text)


@pytest.mark.parametrize("text", ["0xa", "0xzz", "0x12 34", "0x 1234", "0x1234\n"])
def test_what_are_no_bytes_is_a_failure(text: str) -> None:
    with pytest.raises(ProofFailure, match="not hexadecimal"):
        bytes_of(text)
