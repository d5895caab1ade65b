"""The form of bearer keys."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.errors import UnknownName
from ledger.keys import SCOPES, MalformedKey, check_scopes, format_key, has_scope, parse_key

IDS = st.text("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", min_size=16, max_size=16)
SECRETS = st.binary(min_size=32, max_size=32)


@given(IDS, SECRETS)
def test_a_key_is_read_back(key_id: str, secret: bytes) -> None:
    key = format_key(key_id, secret)
    assert len(key) == 8 + 16 + 1 + 43 + 6
    assert parse_key(key).id == key_id
    assert len(parse_key(key).secret_sha256) == 32


@given(IDS, SECRETS, SECRETS)
def test_another_secret_has_another_hash(key_id: str, one: bytes, other: bytes) -> None:
    hashes = {parse_key(format_key(key_id, secret)).secret_sha256 for secret in (one, other)}
    assert len(hashes) == len({one, other})


@given(IDS, SECRETS, st.integers(0, 73), st.characters())
def test_a_changed_character_is_noticed(key_id: str, secret: bytes, place: int, character: str) -> None:
    key = format_key(key_id, secret)
    changed = key[:place] + character + key[place + 1 :]
    if changed != key:
        with pytest.raises(MalformedKey):
            parse_key(changed)


@given(IDS, SECRETS)
def test_a_refusal_repeats_nothing_of_the_key(key_id: str, secret: bytes) -> None:
    key = format_key(key_id, secret)
    with pytest.raises(MalformedKey) as refused:
        parse_key(key[:-1])
    assert key[8:30] not in str(refused.value)


@pytest.mark.parametrize("scope", SCOPES)
def test_a_scope_is_covered_by_itself_its_family_and_all(scope: str) -> None:
    assert has_scope([scope], scope)
    assert has_scope([scope.split(":")[0] + ":*"], scope)
    assert has_scope(["*"], scope)
    assert not has_scope([other for other in SCOPES if other != scope], scope)


@pytest.mark.parametrize("scopes", [[], ["watches"], ["watches:read", "all"], ["*:read"]])
def test_unknown_scopes_are_refused(scopes: list[str]) -> None:
    with pytest.raises(UnknownName, match="watches:read"):
        check_scopes(scopes)
