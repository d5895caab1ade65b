"""Sealed values open in their own place and nowhere else."""

from __future__ import annotations

from base64 import b64decode
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.secrets import (
    BadMasterKey,
    SealBroken,
    SealPlace,
    SecretBox,
    new_endpoint_secret,
    new_master_key,
    parse_master_key,
)

BOX = SecretBox(bytes(range(32)))
PLACE = SealPlace("endpoint_secrets", "sealed", "ten_a", "ep_1/sec_1")


def test_a_sealed_secret_opens_in_its_place_and_a_dump_shows_nothing_of_it() -> None:
    secret = new_endpoint_secret()
    sealed = BOX.seal(secret.encode(), PLACE)
    assert BOX.open(sealed, PLACE).decode() == secret
    assert b"whsec_" not in sealed
    assert secret.removeprefix("whsec_").encode() not in sealed
    assert b64decode(secret.removeprefix("whsec_")) not in sealed
    assert BOX.seal(secret.encode(), PLACE) != sealed


@pytest.mark.parametrize("part", ["table", "column", "tenant_id", "row_id"])
def test_a_value_swapped_to_another_place_does_not_open(part: str) -> None:
    sealed = BOX.seal(b"whsec_x", PLACE)
    with pytest.raises(SealBroken, match="another row"):
        BOX.open(sealed, replace(PLACE, **{part: "other"}))


def test_parts_of_a_place_cannot_be_shifted_into_each_other() -> None:
    sealed = BOX.seal(b"whsec_x", SealPlace("a", "bc", "d", "e"))
    with pytest.raises(SealBroken):
        BOX.open(sealed, SealPlace("ab", "c", "d", "e"))


def test_another_master_key_is_named_as_the_reason() -> None:
    sealed = BOX.seal(b"whsec_x", PLACE)
    with pytest.raises(SealBroken, match="another master key"):
        SecretBox(bytes(32)).open(sealed, PLACE)


def test_an_earlier_master_key_is_read_and_never_written_with() -> None:
    earlier, present = SecretBox(bytes(32)), SecretBox(bytes(range(32)), (bytes(32),))
    assert present.open(earlier.seal(b"whsec_x", PLACE), PLACE) == b"whsec_x"
    assert SecretBox(bytes(range(32))).open(present.seal(b"whsec_x", PLACE), PLACE) == b"whsec_x"
    with pytest.raises(SealBroken, match=present.key_id.hex()):
        earlier.open(present.seal(b"whsec_x", PLACE), PLACE)
    with pytest.raises(BadMasterKey):
        SecretBox(bytes(32), (b"short",))


def test_nothing_of_a_box_shows_its_keys() -> None:
    box = SecretBox(b"k" * 32, (b"p" * 32,))
    assert "kkkk" not in repr(box) and "pppp" not in repr(box)


@given(st.binary(max_size=80), st.integers(min_value=0), st.integers(min_value=1, max_value=255))
def test_any_changed_byte_breaks_the_seal(plaintext: bytes, position: int, difference: int) -> None:
    sealed = bytearray(BOX.seal(plaintext, PLACE))
    sealed[position % len(sealed)] ^= difference
    with pytest.raises(SealBroken):
        BOX.open(bytes(sealed), PLACE)


@given(st.binary(max_size=60))
def test_bytes_that_were_never_sealed_do_not_open(sealed: bytes) -> None:
    with pytest.raises(SealBroken):
        BOX.open(sealed, PLACE)


def test_master_keys_are_32_bytes_of_base64() -> None:
    assert len(parse_master_key(new_master_key())) == 32
    assert len(parse_master_key(f" {new_master_key()}\n")) == 32
    for text in ("", "not base64!", "c2hvcnQ=", "ключ"):
        with pytest.raises(BadMasterKey, match="openssl rand"):
            parse_master_key(text)
    with pytest.raises(BadMasterKey):
        SecretBox(b"short")


def test_endpoint_secrets_are_whsec_and_32_fresh_bytes() -> None:
    secrets = {new_endpoint_secret() for _ in range(100)}
    assert len(secrets) == 100
    assert all(len(b64decode(secret.removeprefix("whsec_"), validate=True)) == 32 for secret in secrets)


def test_a_box_does_not_show_its_key() -> None:
    assert "master_key" not in repr(BOX)
    assert bytes(range(32)).hex() not in repr(BOX)
