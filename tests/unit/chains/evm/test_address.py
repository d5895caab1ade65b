"""Addresses as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chains.evm.address import AddressError, checksum_of, parse_address
from tests.unit.chains.evm.recorded import DATA, read_json

EIP55 = read_json(DATA / "vectors" / "eip55.json")
ACCOUNTS = read_json(DATA / "vectors" / "ethers_accounts.json.gz")


@pytest.mark.parametrize("text", EIP55)
def test_vectors_of_eip_55(text: str) -> None:
    assert parse_address(text) == bytes.fromhex(text[2:])
    assert checksum_of(parse_address(text)) == text


def test_vectors_of_ethers() -> None:
    texts = [row["address"] for row in ACCOUNTS if row["address"]]
    assert len(texts) > 100
    assert [checksum_of(parse_address(text)) for text in texts] == texts


@given(st.binary(min_size=20, max_size=20))
def test_one_case_carries_no_checksum(address: bytes) -> None:
    assert parse_address("0x" + address.hex()) == address
    assert parse_address("0x" + address.hex().upper()) == address
    assert parse_address(checksum_of(address)) == address


@given(st.binary(min_size=20, max_size=20), st.integers(min_value=0, max_value=39))
def test_a_letter_in_the_wrong_case_is_refused(address: bytes, at: int) -> None:
    right = checksum_of(address)
    wrong = right[: at + 2] + right[at + 2].swapcase() + right[at + 3 :]
    is_mixed = wrong[2:] not in (wrong[2:].lower(), wrong[2:].upper())
    if wrong != right and is_mixed:
        with pytest.raises(AddressError, match="checksum"):
            parse_address(wrong)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0x",
        "0x1234",
        "27b1fdb04752bbc536007a920d24acb045561c26",
        "0x27b1fdb04752bbc536007a920d24acb045561c2g",
        "0x27b1fdb04752bbc536007a920d24acb045561c26\n",
        " 0x27b1fdb04752bbc536007a920d24acb045561c26",
        "0x27b1fdb04752bbc536007a920d24acb045561c2600",
        "0X27b1fdb04752bbc536007a920d24acb045561c26",
        "0x٢٧b1fdb04752bbc536007a920d24acb045561c26",
        "1BoatSLRHtKNngkdXEeobR76b53LETtpyT",
    ],
)
def test_what_is_no_address_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(AddressError, match="40 hexadecimal digits"):
        parse_address(text)
