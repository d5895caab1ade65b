"""Internal value in recorded blocks, against what other indexers made of them."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from chains.evm.address import parse_address
from chains.evm.carriers import carriers_of
from chains.evm.senders import created_address
from chains.evm.traces import RawTraces, TraceMethod, TracesDiffer, TracesRefused, read_traces, settle_traces
from chains.evm.transfers import decode_transfers
from chains.evm.wire import WireBlock, WireReceipt, WireTransaction, bytes_of, decode_block, decode_receipts
from chains.model import Address, LocatorKind, TraceProof
from tests.unit.chains.evm.factories import CHAIN_ID, NATIVE, make_block, make_receipt, make_transaction
from tests.unit.chains.evm.recorded import DATA, read_json
from tests.unit.chains.evm.trace_forms import flat_form, raw_traces, tree_form

EVM = DATA / "evm"
ROPSTEN = DATA / "traces" / "rosetta-ropsten"
ETL = DATA / "traces" / "ethereum-etl"

TRACED = sorted(str(path.parent.relative_to(EVM)) for path in EVM.glob("*/*/call_traces.json.gz"))
FLATTENED = sorted(str(path.parent.relative_to(EVM)) for path in EVM.glob("*/*/expected_flattened_traces.json.gz"))
ROSETTA = sorted(str(path.parent.relative_to(EVM)) for path in EVM.glob("*/*/expected_rosetta_operations.json.gz"))
ETL_CASES = ("block_with_create", "block_with_error", "block_with_subtraces", "block_with_suicide")

Told = tuple[bytes, Address, Address, int]
"""Transaction, from, to, amount."""


def test_all_that_was_recorded_is_here() -> None:
    assert (len(TRACED), len(FLATTENED), len(ROSETTA)) == (5, 8, 2)
    assert len(list(ROPSTEN.iterdir())) == 4


def load(folder: Path) -> tuple[WireBlock, list[WireReceipt]]:
    """The block and its receipts."""
    answers = [_file(folder, name) for name in ("block.json", "receipts.json")]
    block, receipts = decode_block(msgspec.json.encode(answers[0])), decode_receipts(msgspec.json.encode(answers[1]))
    assert block is not None
    assert receipts is not None
    return block, receipts


def _file(folder: Path, name: str) -> Any:  # noqa: ANN401 - JSON
    plain = folder / name
    return read_json(plain if plain.exists() else folder / f"{name}.gz")


def internal_of(raw: RawTraces, block: WireBlock, receipts: list[WireReceipt]) -> Counter[Told]:
    """The internal movements that a node tells."""
    moves = read_traces(raw, block, receipts)
    hashes = [bytes_of(transaction.hash) for transaction in block.transactions]
    return Counter((hashes[m.transaction_index], m.sender, m.recipient, m.amount_atomic) for m in moves)


def native_of(raw: RawTraces, block: WireBlock, receipts: list[WireReceipt]) -> Counter[Told]:
    """All native value that moves in the block by its transactions: their own and inside them."""
    moves, proof = settle_traces([raw], block, receipts, needed=1)
    told: Counter[Told] = Counter()
    for transfer in decode_transfers(CHAIN_ID, block, list(carriers_of(block, receipts)), {}, NATIVE, moves, proof):
        if transfer.locator.kind in (LocatorKind.NATIVE, LocatorKind.TRACE):
            assert transfer.transaction is not None
            assert transfer.sender is not None
            assert transfer.recipient is not None
            told[(transfer.transaction.hash, transfer.sender, transfer.recipient, transfer.amount_atomic)] += 1
    return told


def rosetta_payments(folder: Path, name: str, symbol: str) -> Counter[Told]:
    """Every movement of the native coin among a block's balance-changing operations: a pair of them, less and more."""
    told: Counter[Told] = Counter()
    for transaction in read_json(folder / name)["block"]["transactions"]:
        operations = transaction["operations"]
        for operation in operations:
            related = operation.get("related_operations")
            if not related or operation["type"] not in ("CALL", "CREATE", "SELFDESTRUCT") or "amount" not in operation:
                continue
            giver = operations[related[0]["index"]]
            assert operation["amount"]["currency"]["symbol"] == symbol
            assert int(giver["amount"]["value"]) == -int(operation["amount"]["value"])
            people = [parse_address(side["account"]["address"].lower()) for side in (giver, operation)]
            carrier = bytes_of(transaction["transaction_identifier"]["hash"])
            told[(carrier, people[0], people[1], int(operation["amount"]["value"]))] += 1
    return told


def flattened_moves(rows: list[dict[str, Any]]) -> Counter[Told]:
    """What another indexer's flattened traces say: `status` is 1 where neither the frame nor one above it failed."""
    told: Counter[Told] = Counter()
    for row in rows:
        moves = row["type"] in ("CALL", "CREATE", "CREATE2", "SELFDESTRUCT") and row.get("status") == "1"
        if moves and row.get("traceAddress") and int(row["value"]) > 0:
            told[(bytes_of(row["transactionHash"]), bytes_of(row["from"]), bytes_of(row["to"]), int(row["value"]))] += 1
    return told


@pytest.mark.parametrize("place", ROSETTA)
def test_native_value_is_that_of_another_indexers_operations(place: str) -> None:
    folder = EVM / place
    block, receipts = load(folder)
    raw = raw_traces(read_json(folder / "call_traces.json.gz"))
    symbol = "MATIC" if place.startswith("polygon") else "ETH"
    expected = rosetta_payments(folder, "expected_rosetta_operations.json.gz", symbol)
    assert native_of(raw, block, receipts) == expected
    assert sum(expected.values()) > 5


@pytest.mark.parametrize("height", sorted(path.name for path in ROPSTEN.iterdir()))
def test_native_value_on_ropsten_is_that_of_another_indexers_operations(height: str) -> None:
    """Inner creations, self-destructs of two contracts in favour of each other, and value burned in the end."""
    folder = ROPSTEN / height
    block, receipts = load(folder)
    raw = raw_traces(read_json(folder / "call_traces.json.gz"))
    assert native_of(raw, block, receipts) == rosetta_payments(folder, "expected_operations.json.gz", "ETH")


@pytest.mark.parametrize("place", FLATTENED)
def test_internal_value_is_that_of_another_indexers_flattened_traces_in_both_forms(place: str) -> None:
    folder = EVM / place
    block, receipts = load(folder)
    rows = read_json(folder / "expected_flattened_traces.json.gz")
    trees = tree_form(rows)
    answers = [
        raw_traces(trees, "tree"),
        raw_traces(
            [{"txHash": t.hash, "result": tree} for t, tree in zip(block.transactions, trees, strict=True)], "geth"
        ),
        raw_traces(flat_form(trees, block.hash), "flat", TraceMethod.TRACE_BLOCK),
    ]
    for raw in answers:
        assert internal_of(raw, block, receipts) == flattened_moves(rows)
    assert settle_traces(answers, block, receipts, needed=3)[1] is TraceProof.AGREED


@pytest.mark.parametrize("place", TRACED)
def test_both_forms_of_a_recorded_answer_tell_the_same_frames(place: str) -> None:
    folder = EVM / place
    block, receipts = load(folder)
    trees = read_json(folder / "call_traces.json.gz")
    flat = raw_traces(flat_form(trees, block.hash), "flat", TraceMethod.TRACE_BLOCK)
    moves = read_traces(raw_traces(trees), block, receipts)
    assert moves == read_traces(flat, block, receipts)
    assert moves


@pytest.mark.parametrize("place", TRACED)
def test_a_movement_that_one_of_two_nodes_hides_or_invents_is_found_in_every_place(place: str) -> None:
    folder = EVM / place
    block, receipts = load(folder)
    trees = read_json(folder / "call_traces.json.gz")
    honest = raw_traces(trees, "honest")
    changed = 0
    for altered in _alterations(trees):
        with pytest.raises(TracesDiffer, match=r"(honest and liar|liar and honest) differ"):
            settle_traces([honest, raw_traces(altered, "liar")], block, receipts, needed=2)
        changed += 1
    assert changed > 5


def _alterations(trees: list[Any]) -> list[list[Any]]:
    """The answer with one thing changed: an inner frame of value left out, its amount or its recipient altered."""
    altered = []
    for path in _valued(trees)[:4]:
        for change in ("leave out", "raise", "redirect", "call it failed"):
            copy = msgspec.json.decode(msgspec.json.encode(trees))
            *parents, last = path
            place: Any = copy
            for at in parents:
                place = place[at]
            frame = place[last]
            if change == "leave out":
                del place[last]
            elif change == "raise":
                frame["value"] = hex(int(frame["value"], 16) + 1)
            elif change == "redirect":
                frame["to"] = "0x" + "ee" * 20
            else:
                frame["error"] = "execution reverted"
            altered.append(copy)
    return altered


def _valued(node: Any, path: tuple[Any, ...] = (), *, is_dead: bool = False) -> list[tuple[Any, ...]]:  # noqa: ANN401
    """Paths to the inner frames that move value, in JSON terms."""
    found = []
    if isinstance(node, dict):
        is_dead = is_dead or "error" in node
        is_inner = len(path) > 2
        moves = node.get("type") in ("CALL", "CREATE", "CREATE2", "SELFDESTRUCT") and int(node.get("value", "0x0"), 16)
        if is_inner and moves and not is_dead and path[-1] != "result":
            found.append(path)
        for key in ("result", "calls"):
            found += _valued(node.get(key), (*path, key), is_dead=is_dead)
    elif isinstance(node, list):
        for at, inner in enumerate(node):
            found += _valued(inner, (*path, at), is_dead=is_dead)
    return found


def etl_block(rows: list[dict[str, str]], block_hash: str) -> tuple[WireBlock, list[WireReceipt]]:
    """A block as the root rows of expected traces tell of it: the block itself was not recorded."""
    roots = [row for row in rows if row["trace_type"] in ("call", "create") and not row["trace_address"]]
    transactions: list[WireTransaction] = []
    receipts: list[WireReceipt] = []
    for index, row in enumerate(roots):
        is_creation = row["trace_type"] == "create"
        transactions.append(
            make_transaction(
                index,
                hash=row["transaction_hash"],
                sender=row["from_address"],
                to=None if is_creation else row["to_address"],
                value=hex(int(row["value"])),
                nonce=_nonce_of(row) if is_creation else "0x0",
            )
        )
        receipts.append(make_receipt(index=index, status="0x0" if row["error"] else "0x1"))
    block = make_block(*transactions)
    block.hash = block_hash
    return block, receipts


def _nonce_of(row: dict[str, str]) -> str:
    """The nonce with which the sender creates that address."""
    sender, created = bytes_of(row["from_address"]), bytes_of(row["to_address"])
    return hex(next(nonce for nonce in range(10**5) if created_address(sender, nonce) == created))


@pytest.mark.parametrize("case", ETL_CASES)
def test_internal_value_is_that_of_ethereum_etl(case: str) -> None:
    folder = ETL / "test_export_traces_job" / case
    rows = list(csv.DictReader((folder / "expected_traces.csv").read_text().splitlines()))
    (answer,) = (read_json(path)["result"] for path in folder.glob("web3_response.*"))
    block, receipts = etl_block(rows, answer[0]["blockHash"])
    expected: Counter[Told] = Counter()
    for row in rows:
        moves = row["trace_type"] in ("create", "suicide") or (row["trace_type"], row["call_type"]) == ("call", "call")
        if moves and row["trace_address"] and row["status"] == "1" and int(row["value"]):
            people = bytes_of(row["from_address"]), bytes_of(row["to_address"])
            expected[(bytes_of(row["transaction_hash"]), *people, int(row["value"]))] += 1
    assert internal_of(raw_traces(answer, method=TraceMethod.TRACE_BLOCK), block, receipts) == expected
    assert sum(expected.values()) == (1 if case == "block_with_suicide" else 0)

    (tree,) = (
        read_json(path)["result"] for path in (ETL / "test_extract_geth_traces_job" / case).glob("web3_response.*")
    )
    if case == "block_with_suicide":
        with pytest.raises(TracesRefused, match="SELFDESTRUCT without a value"):
            read_traces(raw_traces(tree), block, receipts)
    else:
        assert internal_of(raw_traces(tree), block, receipts) == expected
