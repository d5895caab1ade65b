"""Who comes is let in while anybody waits; whoever is being answered is left in peace."""

from __future__ import annotations

from collections import Counter
from ipaddress import ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from api.callers import Network
from api.crowds import Crowds, household_of

HOME = ip_network("203.0.113.7/32")
OTHER = ip_network("198.51.100.1/32")


def test_in_a_full_room_the_one_that_has_waited_longest_goes() -> None:
    crowds: Crowds[str] = Crowds(most=3, most_of_address=3)
    assert [crowds.enter(name, HOME) for name in "abc"] == [None, None, None]
    crowds.begin("a")
    assert crowds.enter("d", OTHER) == "b"
    crowds.wait("a")
    assert [crowds.enter(name, OTHER) for name in "ef"] == ["c", "d"]
    assert crowds.enter("g", OTHER) == "a"


def test_where_all_are_being_answered_the_newcomer_is_refused_until_one_has_left() -> None:
    crowds: Crowds[str] = Crowds(most=2, most_of_address=2)
    for name in "ab":
        crowds.enter(name, HOME)
        crowds.begin(name)
    assert crowds.enter("c", OTHER) == "c"
    crowds.leave("c")
    crowds.leave("a")
    assert crowds.enter("c", OTHER) is None


def test_an_address_that_has_taken_its_part_makes_room_among_its_own() -> None:
    crowds: Crowds[str] = Crowds(most=10, most_of_address=2)
    assert crowds.enter("other", OTHER) is None
    assert [crowds.enter(name, HOME) for name in "abc"] == [None, None, "a"]
    for name in "bc":
        crowds.begin(name)
    assert crowds.enter("d", HOME) == "d"
    assert crowds.enter("e", OTHER) is None
    assert [crowds.enter(name, None) for name in "fghi"] == [None, None, None, None]  # a proxy speaks for many


def test_what_a_provider_gives_to_one_customer_counts_as_one() -> None:
    one, same, other = (ip_address(f"2001:db8:0:{tail}") for tail in ("1::5", "1:9::6", "2::5"))
    assert household_of(one) == household_of(same) != household_of(other)
    assert household_of(ip_address("203.0.113.7")) == HOME


@given(st.lists(st.tuples(st.sampled_from("ebwl"), st.integers(0, 12), st.sampled_from([HOME, OTHER, None]))))
def test_the_room_is_never_fuller_than_it_may_be(steps: list[tuple[str, int, Network | None]]) -> None:
    crowds: Crowds[int] = Crowds(most=5, most_of_address=3)
    inside: dict[int, Network | None] = {}
    busy: set[int] = set()
    for step, member, home in steps:
        if step == "e" and member not in inside:
            leaver = crowds.enter(member, home)
            assert leaver not in busy
            if leaver is not member:
                inside[member] = home
            if leaver is not None:
                inside.pop(leaver, None)
        elif step == "b" and member in inside:
            crowds.begin(member)
            busy.add(member)
        elif step == "w" and member in inside:
            crowds.wait(member)
            busy.discard(member)
        elif step == "l":
            crowds.leave(member)
            inside.pop(member, None)
            busy.discard(member)
        assert len(inside) <= 5
        assert max(Counter(home for home in inside.values() if home).values(), default=0) <= 3
    for member in list(inside):
        crowds.leave(member)
    assert not crowds._of
    assert not crowds._homes
