"""Nothing in an answer can be altered: one bit in any field, a row dropped, doubled or moved, two blocks mixed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chains.evm.carriers import carriers_of
from chains.evm.errors import ProofFailure
from chains.evm.header import header_ref
from chains.evm.proof import prove_block
from chains.evm.transfers import decode_transfers
from chains.evm.wire import bytes_of
from chains.model import BlockRef, ProofLevel, Transfer
from tests.unit.chains.evm.factories import CHAIN_ID, NATIVE, make_asset
from tests.unit.chains.evm.recorded import Answer, recorded
from tests.unit.chains.evm.test_proof import generated

Path = tuple[str | int, ...]

NO_COMMITMENT = {"blockNumber", "blockTimestamp", "size", "totalDifficulty", "uncles"}
"""Fields that nothing commits to and that we do not read."""
NO_COMMITMENT_RECEIPT = {"from", "to", "contractAddress", "effectiveGasPrice", "blobGasUsed", "blobGasPrice"}
"""Of a receipt: the node's copies and arithmetic, derived by us where they are needed."""


@cache
def base(name: str) -> Answer:
    """The answer of that name; not to be altered."""
    return generated() if name == "generated" else recorded(int(name))


def fresh(name: str) -> Answer:
    return copy.deepcopy(base(name))


def leaves(value: Any, path: Path = ()) -> Iterator[Path]:  # noqa: ANN401 - JSON
    """Paths to every string and boolean in JSON."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from leaves(item, (*path, index))
    elif isinstance(value, str | bool):
        yield path


def change(root: Any, path: Path, alter: Callable[[Any], Any]) -> None:  # noqa: ANN401 - JSON
    for step in path[:-1]:
        root = root[step]
    root[path[-1]] = alter(root[path[-1]])


def flip_last_bit(value: str | bool) -> str | bool:
    """The smallest change: the last bit of the last digit."""
    if isinstance(value, bool):
        return not value
    return value[:-1] + f"{int(value[-1], 16) ^ 1:x}"


def is_committed(answer: Answer, path: Path) -> bool:
    """Whether a change there must be refused."""
    if NO_COMMITMENT & set(path):
        return False
    if path[0] == "transactions" and path[2] in ("gasPrice", "chainId"):
        rows: Any = answer.block["transactions"]
        kind = int(rows[path[1]].get("type", "0x0"), 16)
        return kind < 2 if path[2] == "gasPrice" else kind > 0
    return True


def is_refused(answer: Answer) -> bool:
    try:
        prove_block(*answer.decode(), ProofLevel.ROOTS)
    except ProofFailure:
        return True
    return False


def first_of_each(rows: list[dict[str, Any]], key: Callable[[dict[str, Any]], object]) -> list[int]:
    """The index of the first row of each kind."""
    found: dict[object, int] = {}
    for index, row in enumerate(rows):
        found.setdefault(key(row), index)
    return sorted(found.values())


RICH = ["1000000", "8000000", "16899757", "22431084", "generated"]
"""Before Byzantium; before typed transactions; with type 0x1; Prague with type 0x3; all types, 0x4 too."""


@pytest.mark.parametrize("name", RICH)
def test_one_bit_in_any_header_field_is_refused(name: str) -> None:
    names = {str(path[0]) for path in leaves(base(name).block)} - NO_COMMITMENT - {"transactions", "withdrawals"}
    assert len(names) >= 16
    for field in names:
        answer = fresh(name)
        change(answer.block, (field,), flip_last_bit if answer.block[field] != "0x" else lambda _: "0x01")
        assert is_refused(answer), field


@pytest.mark.parametrize("name", RICH)
def test_one_bit_in_any_field_of_a_transaction_of_each_type_is_refused(name: str) -> None:
    rows = base(name).block["transactions"]
    tried = set()
    for index in first_of_each(rows, lambda row: (row["type"], row["to"] is None, row["input"] == "0x")):
        for path in leaves(rows[index], ("transactions", index)):
            answer = fresh(name)
            if not is_committed(answer, path) or answer.block["transactions"][index][path[2]] == "0x":
                continue
            change(answer.block, path, flip_last_bit)
            assert is_refused(answer), path
            tried.add(path[2])
    assert {"nonce", "value", "to", "v", "r", "s", "hash", "from", "gas", "type"} <= tried


@pytest.mark.parametrize("name", RICH)
def test_one_bit_in_any_field_of_a_receipt_or_log_is_refused(name: str) -> None:
    rows = base(name).receipts
    tried = set()
    for index in first_of_each(rows, lambda row: (row["type"], row.get("status"), bool(row["logs"]))):
        for path in leaves(rows[index], (index,)):
            is_later_log = path[1] == "logs" and path[2] != 0
            if is_later_log or path[1] in NO_COMMITMENT_RECEIPT or NO_COMMITMENT & set(path):
                continue
            answer = fresh(name)
            if rows[index]["logs"] and path[1] == "logs" and rows[index]["logs"][0][path[3]] == "0x":
                continue
            change(answer.receipts, path, flip_last_bit)
            assert is_refused(answer), path
            tried.add(path[3] if path[1] == "logs" else path[1])
    assert {"cumulativeGasUsed", "logsBloom", "transactionHash", "address", "topics", "data", "logIndex"} <= tried


@pytest.mark.parametrize("field", ["index", "validatorIndex", "address", "amount"])
def test_one_bit_in_a_validator_withdrawal_is_refused(field: str) -> None:
    answer = fresh("22431084")
    change(answer.block, ("withdrawals", 3, field), flip_last_bit)
    with pytest.raises(ProofFailure, match="withdrawals_root"):
        prove_block(*answer.decode(), ProofLevel.ROOTS)


Alteration = Callable[[list[Any]], None]
LISTS: dict[str, Alteration] = {
    "dropped first": lambda rows: rows.__delitem__(0),
    "dropped last": lambda rows: rows.__delitem__(-1),
    "doubled": lambda rows: rows.append(rows[-1]),
    "swapped": lambda rows: rows.insert(0, rows.pop()),
    "emptied": list.clear,
}


@pytest.mark.parametrize("how", LISTS)
@pytest.mark.parametrize("what", ["transactions", "receipts", "both", "withdrawals", "logs", "topics"])
def test_a_row_dropped_doubled_or_moved_is_refused(what: str, how: str) -> None:
    answer = fresh("22431084")
    logs = max((receipt["logs"] for receipt in answer.receipts), key=len)
    targets = {
        "transactions": [answer.block["transactions"]],
        "receipts": [answer.receipts],
        "both": [answer.block["transactions"], answer.receipts],
        "withdrawals": [answer.block["withdrawals"]],
        "logs": [logs],
        "topics": [next(log["topics"] for log in logs if len(set(log["topics"])) > 1)],
    }
    for rows in targets[what]:
        LISTS[how](rows)
    assert is_refused(answer)


@pytest.mark.parametrize("how", [how for how in LISTS if how != "doubled"])
def test_a_log_dropped_or_moved_and_renumbered_is_refused(how: str) -> None:
    answer = fresh("22431084")
    LISTS[how](max((receipt["logs"] for receipt in answer.receipts), key=len))
    for index, log in enumerate(log for receipt in answer.receipts for log in receipt["logs"]):
        log["logIndex"] = hex(index)
    assert is_refused(answer)


def test_the_receipts_of_another_block_are_refused() -> None:
    one, two = generated(seed=1), generated(seed=2)
    one.receipts, two.receipts = two.receipts, one.receipts
    assert is_refused(one)
    assert is_refused(two)


def test_the_receipts_of_another_block_made_to_look_right_are_refused() -> None:
    one, two = generated(seed=1), generated(seed=2)
    for mine, theirs in zip(one.receipts, two.receipts, strict=True):
        for row in (theirs, *theirs["logs"]):
            row |= {"blockHash": mine["blockHash"], "transactionHash": mine["transactionHash"]}
        theirs["type"] = mine["type"]
    one.receipts = two.receipts
    assert is_refused(one)


def test_a_withdrawals_root_passed_off_as_a_later_field_is_refused() -> None:
    """RLP has no names: these bytes hash to the right block hash, with the withdrawals hidden."""
    answer = fresh("17300000")
    answer.block["parentBeaconBlockRoot"] = answer.block.pop("withdrawalsRoot")
    answer.block["withdrawals"] = None
    with pytest.raises(ProofFailure, match="later fork's field"):
        prove_block(*answer.decode(), ProofLevel.ROOTS)


def test_withdrawals_without_a_root_are_refused() -> None:
    answer = fresh("8000000")
    answer.block["withdrawals"] = [
        {"index": "0x1", "validatorIndex": "0x1", "address": "0x" + "aa" * 20, "amount": "0x1"}
    ]
    with pytest.raises(ProofFailure, match="withdrawals_root"):
        prove_block(*answer.decode(), ProofLevel.ROOTS)


def test_a_status_passed_off_as_a_state_root_is_refused() -> None:
    """The status 1 and a state root of the one byte 1 have the same RLP, and success would then be in doubt."""
    answer = fresh("8000000")
    answer.receipts[0]["root"] = answer.receipts[0].pop("status")
    assert is_refused(answer)


@pytest.mark.parametrize("text", ["{0} 5", "{0}+5", "{0}-5", "{0}5_0", "0x٥", "55"])
def test_numbers_that_python_reads_and_a_node_never_writes_are_refused(text: str) -> None:
    answer = fresh("generated")
    answer.block["transactions"][0]["value"] = text.format("0x")
    assert is_refused(answer)


@cache
def truth(name: str) -> tuple[BlockRef, tuple[Transfer, ...]]:
    return read(fresh(name))


def read(answer: Answer) -> tuple[BlockRef, tuple[Transfer, ...]]:
    """What the adapter would make of the answer, with every contract listed. Raises `ProofFailure`."""
    block, receipts = answer.decode()
    prove_block(block, receipts, ProofLevel.ROOTS)
    contracts = {bytes_of(log.address) for receipt in receipts for log in receipt.logs}
    assets = {contract: make_asset(contract) for contract in contracts}
    return header_ref(block), decode_transfers(CHAIN_ID, block, list(carriers_of(block, receipts)), assets, NATIVE)


ALPHABET = "0123456789abcdefABCDEF xX_-+٣"


def alter_somewhere(root: Any, data: st.DataObject) -> None:  # noqa: ANN401 - JSON
    """Change one character of one leaf, or the whole leaf."""
    path = data.draw(st.sampled_from(sorted(leaves(root), key=repr)))
    kind = data.draw(st.sampled_from(["replace", "insert", "delete", "null", "shift"]))
    character = data.draw(st.sampled_from(ALPHABET))
    at = data.draw(st.integers(min_value=0, max_value=70))

    def _alter(value: Any) -> Any:  # noqa: ANN401 - JSON
        if isinstance(value, bool):
            return not value
        place = at % (len(value) + 1)
        return {
            "replace": value[:place] + character + value[place + 1 :],
            "insert": value[:place] + character + value[place:],
            "delete": value[:place] + value[place + 1 :],
            "null": None,
            "shift": value[:2] + "00" + value[2:],
        }[kind]

    change(root, path, _alter)


@pytest.mark.parametrize("name", ["generated", "1000000"])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_change_of_any_character_is_refused_or_changes_nothing_that_we_tell(name: str, data: st.DataObject) -> None:
    """The whole promise in one sentence: whatever a node alters, what we would tell a merchant stays the same."""
    answer = fresh(name)
    root = {"block": answer.block, "receipts": answer.receipts}
    alter_somewhere(root, data)
    try:
        told = read(answer)
    except ProofFailure:
        return
    assert told == truth(name)
