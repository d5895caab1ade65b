"""Nonces that a block spends, as bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chains.spends import Spend, pack_spends, unpack_spends

addresses, hashes = (st.binary(min_size=size, max_size=size) for size in (20, 32))
spends = st.builds(Spend, addresses, st.integers(0, 2**64 - 1), hashes)


@given(st.lists(spends))
def test_what_was_packed_is_found_by_its_senders_in_its_order(rows: list[Spend]) -> None:
    packed = pack_spends(rows)
    assert list(unpack_spends(packed, {row.sender for row in rows})) == rows
    some = {row.sender for row in rows[::2]}
    assert list(unpack_spends(packed, some)) == [row for row in rows if row.sender in some]
    assert list(unpack_spends(packed, ())) == []


def test_a_nonce_that_no_transaction_can_have_is_refused() -> None:
    with pytest.raises(ValueError, match="a nonce that no transaction can have"):
        pack_spends([Spend(bytes(20), 2**64, bytes(32))])
