"""Accounts by proof: recorded proofs, tries of every shape, and everything that is no proof."""

from __future__ import annotations

import json
from collections.abc import Sequence

import msgspec
import pytest
import rlp
from hypothesis import assume, given
from hypothesis import strategies as st

from chains.evm.account import (
    NO_ACCOUNT,
    NO_CODE,
    Account,
    WireAccountProof,
    decode_account_proof,
    prove_account,
    prove_value,
)
from chains.evm.errors import ProofFailure
from chains.evm.header import prove_header
from chains.evm.keccak import keccak
from chains.evm.trie import EMPTY_ROOT
from chains.evm.wire import bytes_of, decode_header
from chains.model import hex_of
from tests.unit.chains.evm.factories import ALICE, BOB
from tests.unit.chains.evm.recorded import DATA, read_json, recorded
from tests.unit.chains.evm.slow_trie import SlowTrie

PROOFS = DATA / "evm" / "proofs"
TRIES = json.loads((DATA / "vectors" / "ethereum-tests" / "trieanyorder.json").read_text())


def account_value(nonce: int = 1, balance: int = 5, *more: bytes) -> bytes:
    fields = [nonce, balance, EMPTY_ROOT, NO_CODE, *more]
    return bytes(rlp.encode(fields))


def state_of(accounts: int) -> SlowTrie:
    """A state trie of Alice's account and others."""
    others = {keccak(bytes([n])): account_value(n, n) for n in range(accounts - 1)}
    return SlowTrie(others | {keccak(ALICE): account_value(7, 10**18)})


def wire(nodes: Sequence[bytes]) -> WireAccountProof:
    return WireAccountProof([hex_of(node) for node in nodes])


def test_a_recorded_mainnet_proof_gives_the_account_under_a_proven_header() -> None:
    file = read_json(PROOFS / "mainnet_weth.json")
    block, _ = recorded(file["block"]).decode()
    prove_header(block)
    claimed = file["proof"]
    proof = decode_account_proof(msgspec.json.encode(claimed))
    account = prove_account(bytes_of(block.state_root), bytes_of(claimed["address"]), proof)
    assert (account.nonce, account.balance) == (int(claimed["nonce"], 16), int(claimed["balance"], 16))
    assert (hex_of(account.storage_hash), hex_of(account.code_hash)) == (claimed["storageHash"], claimed["codeHash"])


def test_a_recorded_proof_of_the_specification_gives_the_account_under_a_proven_header() -> None:
    file = read_json(PROOFS / "synthetic_contract.json")
    header = decode_header(msgspec.json.encode(file["header"]))
    assert header is not None
    prove_header(header)
    claimed = file["proof"]
    proof = decode_account_proof(msgspec.json.encode(claimed))
    account = prove_account(bytes_of(header.state_root), bytes_of(claimed["address"]), proof)
    assert (account.nonce, account.balance) == (0, 0x76)
    assert (hex_of(account.storage_hash), hex_of(account.code_hash)) == (claimed["storageHash"], claimed["codeHash"])


@pytest.mark.parametrize("count", [1, 2, 3, 20, 200])
def test_an_account_is_read_and_another_is_absent(count: int) -> None:
    trie = state_of(count)
    alice = prove_account(trie.root, ALICE, wire(trie.proof(keccak(ALICE))))
    assert alice == Account(7, 10**18, EMPTY_ROOT, NO_CODE)
    assert prove_account(trie.root, BOB, wire(trie.proof(keccak(BOB)))) == NO_ACCOUNT


@pytest.mark.parametrize("nodes", [[], [b"\x80"]], ids=["no node", "the empty node"])
def test_under_the_empty_root_nothing_exists(nodes: list[bytes]) -> None:
    assert prove_account(EMPTY_ROOT, ALICE, wire(nodes)) == NO_ACCOUNT
    with pytest.raises(ProofFailure, match="state"):
        prove_account(keccak(b"other"), ALICE, wire(nodes))


@pytest.mark.parametrize("flag", [b"", b"\1"])
def test_an_account_of_avalanche_has_a_flag_more(flag: bytes) -> None:
    trie = SlowTrie({keccak(ALICE): account_value(7, 9, flag)})
    assert prove_account(trie.root, ALICE, wire(trie.proof(keccak(ALICE)))).balance == 9


NO_ACCOUNTS = {
    "three fields": rlp.encode([1, 2, EMPTY_ROOT]),
    "six fields": account_value(1, 2, b"", b""),
    "a fifth field that is no flag": account_value(1, 2, b"\2"),
    "a short hash": rlp.encode([1, 2, EMPTY_ROOT[1:], NO_CODE]),
    "a short code hash": rlp.encode([1, 2, EMPTY_ROOT, b""]),
    "a number with a leading zero": rlp.encode([1, b"\0\1", EMPTY_ROOT, NO_CODE]),
    "a list for a number": rlp.encode([1, [2], EMPTY_ROOT, NO_CODE]),
    "no list": rlp.encode(b"account"),
    "something after the list": account_value() + b"\0",
}


@pytest.mark.parametrize("why", NO_ACCOUNTS)
def test_a_value_that_is_no_account_is_refused(why: str) -> None:
    trie = SlowTrie({keccak(ALICE): NO_ACCOUNTS[why], keccak(BOB): account_value()})
    with pytest.raises(ProofFailure) as caught:
        prove_account(trie.root, ALICE, wire(trie.proof(keccak(ALICE))))
    assert caught.value.check == "state"


def test_a_proof_that_is_cut_stretched_or_of_another_account_is_refused() -> None:
    trie = state_of(40)
    proof = trie.proof(keccak(ALICE))
    assert len(proof) > 2
    wrong = {
        "cut at the end": proof[:-1],
        "cut at the root": proof[1:],
        "nothing": [],
        "a node twice": [*proof, proof[-1]],
        "a stranger": [*proof, b"\xc0"],
        "swapped": [proof[0], *reversed(proof[1:])],
        "of nobody": trie.proof(keccak(BOB)),
    }
    for nodes in wrong.values():
        with pytest.raises(ProofFailure) as caught:
            prove_account(trie.root, ALICE, wire(nodes))
        assert caught.value.check == "state"


@given(st.integers(0, 10**6), st.integers(1, 255))
def test_a_single_altered_byte_is_found(at: int, change: int) -> None:
    trie = state_of(40)
    proof = trie.proof(keccak(ALICE))
    joined = bytearray(b"".join(proof))
    joined[at % len(joined)] ^= change
    altered, start = [], 0
    for node in proof:
        altered.append(bytes(joined[start : start + len(node)]))
        start += len(node)
    with pytest.raises(ProofFailure):
        prove_account(trie.root, ALICE, wire(altered))


@pytest.mark.parametrize("answer", [b"null", b"{}", b'{"accountProof":[1]}', b'{"accountProof":null}', b"[", b"\xff"])
def test_an_answer_that_is_no_proof_is_refused(answer: bytes) -> None:
    with pytest.raises(ProofFailure, match="state: the node's account proof is malformed"):
        decode_account_proof(answer)


@pytest.mark.parametrize("node", ["0x", "0xf", "0xzz", "0xc0", "0xc180", "0xf7", "0xff"])
def test_a_root_node_that_is_no_node_is_refused(node: str) -> None:
    root = keccak(bytes.fromhex(node[2:])) if node not in ("0xf", "0xzz") else bytes(32)
    with pytest.raises(ProofFailure) as caught:
        prove_account(root, ALICE, WireAccountProof([node]))
    assert caught.value.check == "state"


def test_a_claimed_balance_beside_the_proof_is_not_looked_at() -> None:
    trie = state_of(3)
    answer = {"balance": "0x1", "accountProof": [hex_of(node) for node in trie.proof(keccak(ALICE))]}
    proof = decode_account_proof(msgspec.json.encode(answer))
    assert prove_account(trie.root, ALICE, proof).balance == 10**18


@pytest.mark.parametrize("name", TRIES)
def test_every_key_of_a_published_trie_is_proven_and_others_are_absent(name: str) -> None:
    def _bytes(text: str) -> bytes:
        return bytes.fromhex(text[2:]) if text.startswith("0x") else text.encode()

    values = {_bytes(key): _bytes(value) for key, value in TRIES[name]["in"].items()}
    trie = SlowTrie(values)
    assert hex_of(trie.root) == TRIES[name]["root"]
    for key, value in values.items():
        assert prove_value(trie.root, key, trie.proof(key)) == value
        for other in (key[:-1], key + b"x", b"\0" + key):
            if other not in values:
                assert prove_value(trie.root, other, trie.proof(other)) is None


keys = st.binary(min_size=1, max_size=3)
tries = st.dictionaries(keys, st.binary(min_size=1, max_size=40), min_size=1, max_size=12)


@given(tries, keys)
def test_any_trie_proves_what_it_holds_and_what_it_does_not(values: dict[bytes, bytes], key: bytes) -> None:
    trie = SlowTrie(values)
    assert prove_value(trie.root, key, trie.proof(key)) == values.get(key)


@given(tries, tries, keys)
def test_no_trie_proves_what_another_holds(values: dict[bytes, bytes], others: dict[bytes, bytes], key: bytes) -> None:
    trie, other = SlowTrie(values), SlowTrie(others)
    assume(trie.root != other.root)
    with pytest.raises((ProofFailure, ValueError)):
        prove_value(trie.root, key, other.proof(key))


def test_a_node_that_should_have_been_embedded_or_hashed_is_refused() -> None:
    """Two encodings of one trie must not both be accepted."""
    values = {bytes([n]): b"v" for n in range(16)}
    trie = SlowTrie(values)
    assert prove_value(trie.root, b"\3", trie.proof(b"\3")) == b"v"
    leaf = rlp.encode([b"\x20", b"v" * 40])
    branch = rlp.encode([rlp.decode(leaf), *[b""] * 15, b""])
    with pytest.raises((ProofFailure, ValueError)):
        prove_value(keccak(branch), b"\0", [branch])


BAD_PATHS = {
    "nothing": b"",
    "an unknown flag": b"\x40",
    "padding that is not zero": b"\x21",
    "an extension of no length": b"\x00",
}


@pytest.mark.parametrize("why", BAD_PATHS)
def test_a_path_in_a_form_that_it_cannot_have_is_refused(why: str) -> None:
    node = rlp.encode([BAD_PATHS[why], b"v"])
    with pytest.raises((ProofFailure, ValueError)):
        prove_value(keccak(node), b"", [node])
