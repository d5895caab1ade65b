"""Our RLP against other people's vectors and another implementation."""

from __future__ import annotations

from typing import Any

import pytest
import rlp
from hypothesis import given
from hypothesis import strategies as st

from chains.evm.errors import ProofFailure
from chains.evm.rlp import Item, encode, list_hex, list_items, number_value, quantity_hex, string_hex, string_value
from tests.unit.chains.evm.recorded import DATA, read_json

ETHERS = read_json(DATA / "vectors" / "ethers_rlp.json")
ETHEREUM_TESTS = read_json(DATA / "vectors" / "ethereum-tests" / "rlptest.json")

items = st.recursive(st.binary(max_size=80), lambda inner: st.lists(inner, max_size=60), max_leaves=80)


def from_hex(value: Any) -> Item:  # noqa: ANN401 - JSON
    return bytes.fromhex(value[2:]) if isinstance(value, str) else [from_hex(item) for item in value]


def from_plain(value: Any) -> Item:  # noqa: ANN401 - JSON
    """ethereum/tests writes strings as text, numbers as numbers, and big numbers as `#` and decimal digits."""
    if isinstance(value, list):
        return [from_plain(item) for item in value]
    if isinstance(value, str) and not value.startswith("#"):
        return value.encode("latin-1")
    number = int(value.removeprefix("#")) if isinstance(value, str) else int(value)
    return number.to_bytes((number.bit_length() + 7) // 8, "big")


@pytest.mark.parametrize("row", ETHERS, ids=[row["name"] for row in ETHERS])
def test_vectors_of_ethers(row: dict[str, Any]) -> None:
    assert "0x" + encode(from_hex(row["decoded"])).hex() == row["encoded"]


@pytest.mark.parametrize("name", sorted(ETHEREUM_TESTS))
def test_vectors_of_ethereum_tests(name: str) -> None:
    row = ETHEREUM_TESTS[name]
    assert "0x" + encode(from_plain(row["in"])).hex() == row["out"]


@given(items)
def test_any_item_is_encoded_as_the_rlp_library_encodes_it(item: Item) -> None:
    assert encode(item) == rlp.encode(item)


@given(st.integers(min_value=0, max_value=2**256 - 1))
def test_a_quantity_is_encoded_as_a_big_endian_number(number: int) -> None:
    assert bytes.fromhex(quantity_hex(hex(number))) == rlp.encode(number)


@given(st.integers(min_value=0, max_value=2**64 - 1), st.integers(min_value=0, max_value=5))
def test_leading_zeros_of_a_quantity_are_not_encoded(number: int, zeros: int) -> None:
    assert quantity_hex("0x" + "0" * zeros + f"{number:x}") == quantity_hex(hex(number))


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_hex_writing_equals_byte_writing(values: list[bytes]) -> None:
    digits = list_hex("".join(string_hex("0x" + value.hex()) for value in values))
    assert bytes.fromhex(digits) == encode(values)


def test_half_a_byte_is_refused() -> None:
    with pytest.raises(ProofFailure, match="half a byte"):
        string_hex("0xabc")


def read_item(raw: bytes) -> Item:
    """The whole item, read back."""
    return [read_item(item) for item in list_items(raw)] if raw[:1] >= b"\xc0" else string_value(raw)


@given(items)
def test_any_item_is_read_back(item: Item) -> None:
    assert read_item(encode(item)) == item


@pytest.mark.parametrize("row", ETHERS, ids=[row["name"] for row in ETHERS])
def test_vectors_of_ethers_are_read_back(row: dict[str, Any]) -> None:
    assert read_item(bytes.fromhex(row["encoded"][2:])) == from_hex(row["decoded"])


@given(st.binary(max_size=12) | st.binary(max_size=70))
def test_whatever_is_read_has_no_other_encoding(raw: bytes) -> None:
    """Whoever hashes what was read gets the hash of what was given."""
    try:
        item = read_item(raw)
    except ValueError:
        return
    assert encode(item) == raw


MALFORMED = {
    "nothing": "",
    "a byte in two bytes": "8100",
    "a byte in two bytes, the largest": "817f",
    "a string that is cut": "83646f",
    "a length that is cut": "b9",
    "a length in two forms": "b800",
    "a length in two forms, the longest": "b837" + "00" * 55,
    "a length with a leading zero": "b90038" + "00" * 56,
    "a length beyond all memory": "bfffffffffffffffff",
    "a string and something after it": "8000",
    "a list and something after it": "c000",
    "a list that is cut": "c2",
    "a list whose length has two forms": "f800",
    "a list whose length has a leading zero": "f90000",
    "an item that runs over the end of its list": "c18100",
    "an item in a longer form in a list": "c28101",
}


@pytest.mark.parametrize("why", MALFORMED)
def test_another_form_of_an_item_is_refused(why: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        read_item(bytes.fromhex(MALFORMED[why]))


def test_a_number_has_no_leading_zeros_and_is_no_list() -> None:
    assert [number_value(encode(raw)) for raw in (b"", b"\1", b"\1\0")] == [0, 1, 256]
    for raw in ("00", "820001", "c0"):
        with pytest.raises(ValueError, match=r"\w"):
            number_value(bytes.fromhex(raw))
