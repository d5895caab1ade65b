"""A caller is whom the last trusted proxy saw, and nobody can say that he is another."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.callers import caller_of

PROXIES = [ip_network("10.0.0.0/8"), ip_network("fd00::/8")]


@pytest.mark.parametrize(
    ("peer", "forwarded", "caller"),
    [
        ("203.0.113.7", [], "203.0.113.7"),
        ("203.0.113.7", ["198.51.100.1"], "203.0.113.7"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["1.1.1.1, 198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["1.1.1.1", "198.51.100.1, 10.0.0.2"], "198.51.100.1"),
        ("10.0.0.1", ["10.0.0.3,10.0.0.2"], "10.0.0.3"),
        ("::ffff:10.0.0.1", ["198.51.100.1:443"], "198.51.100.1"),
        ("fd00::1", ["[2001:db8::1]:443"], "2001:db8::1"),
        ("fd00::1", ["2001:db8::1"], "2001:db8::1"),
        ("10.0.0.1", ["198.51.100.1, unknown"], None),
        ("10.0.0.1", [""], None),
        (None, ["198.51.100.1"], None),
        ("/run/socket", [], None),
    ],
)
def test_a_caller_is_whom_the_last_trusted_proxy_saw(
    peer: str | None, forwarded: list[str], caller: str | None
) -> None:
    assert caller_of(peer, forwarded, PROXIES) == (ip_address(caller) if caller else None)


@given(st.lists(st.text(max_size=50), max_size=5))
def test_a_caller_without_a_proxy_is_himself_whatever_he_sends(forwarded: list[str]) -> None:
    assert caller_of("203.0.113.7", forwarded, PROXIES) == ip_address("203.0.113.7")
    assert caller_of("203.0.113.7", forwarded, []) == ip_address("203.0.113.7")


@given(st.lists(st.text(max_size=50), max_size=5))
def test_what_a_caller_writes_before_the_proxys_word_changes_nothing(made_up: list[str]) -> None:
    assert caller_of("10.0.0.1", [*made_up, "203.0.113.7"], PROXIES) == ip_address("203.0.113.7")
