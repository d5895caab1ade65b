"""The ordered root against a slow trie that is written from the definition, one key at a time."""

from __future__ import annotations

import rlp
from hypothesis import example, given
from hypothesis import strategies as st

from chains.evm.keccak import keccak
from chains.evm.trie import EMPTY_ROOT, ordered_root

Pairs = dict[str, bytes]


def slow_root(items: list[bytes]) -> bytes:
    """Yellow Paper, appendix D, over the RLP of each index as a key."""
    pairs = {rlp.encode(index).hex(): item for index, item in enumerate(items)}
    return keccak(rlp.encode(slow_node(pairs) if pairs else b""))


def slow_node(pairs: Pairs) -> list[object]:
    if len(pairs) == 1:
        ((key, value),) = pairs.items()
        return [hex_prefix(key, 2), value]
    head = ""
    while len({key[: len(head) + 1] for key in pairs}) == 1:
        head = next(iter(pairs))[: len(head) + 1]
    if head:
        return [hex_prefix(head, 0), slow_reference({key[len(head) :]: value for key, value in pairs.items()})]
    groups = [{key[1:]: value for key, value in pairs.items() if key[0] == nibble} for nibble in "0123456789abcdef"]
    return [*(slow_reference(group) if group else b"" for group in groups), b""]


def slow_reference(pairs: Pairs) -> object:
    node = slow_node(pairs)
    encoded = rlp.encode(node)
    return node if len(encoded) < 32 else keccak(encoded)


def hex_prefix(nibbles: str, flag: int) -> bytes:
    return bytes.fromhex(f"{flag + 1}{nibbles}" if len(nibbles) % 2 else f"{flag}0{nibbles}")


@given(st.lists(st.binary(min_size=1, max_size=70), max_size=300))
@example([b"\x01"] * 1)
@example([b"\x01"] * 127)
@example([b"\x01"] * 128)
@example([b"\x01"] * 129)
@example([b"\x01" * 40] * 257)
@example([b"\x01" * 40] * 300)
def test_the_root_is_that_of_the_definition(items: list[bytes]) -> None:
    assert ordered_root(items) == slow_root(items)


def test_more_items_than_two_bytes_of_index_hold_in_one() -> None:
    items = [index.to_bytes(4, "big") * 10 for index in range(1500)]
    assert ordered_root(items) == slow_root(items)


def test_an_empty_list_has_the_well_known_root() -> None:
    assert ordered_root([]) == EMPTY_ROOT
    assert EMPTY_ROOT.hex() == "56e81f171bcc55a6ff8345e692c0f86e5b48e01b996cadc001622fb5e363b421"


@given(st.lists(st.binary(min_size=1, max_size=50), min_size=2, max_size=40, unique=True), st.data())
def test_order_matters(items: list[bytes], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(items))
    assert (ordered_root(items) == ordered_root(shuffled)) == (items == shuffled)
