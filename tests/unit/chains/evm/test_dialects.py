"""Chains that encode blocks otherwise: recorded blocks of each, and the whole promise over generated ones."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chains.evm.dialect import Dialect
from chains.evm.envelope import envelope_of
from chains.evm.errors import ProofFailure
from chains.evm.header import prove_header
from chains.evm.polygon import polygon_envelope
from chains.evm.senders import recover_sender
from chains.evm.trie import ordered_root
from chains.evm.wire import WireHeader, WireTransaction, bytes_of, decode_block
from chains.model import LocatorKind, ProofLevel, Transfer, hex_of
from tests.unit.chains.evm.dialect_blocks import (
    make_answer,
    signed,
)
from tests.unit.chains.evm.dialect_reading import read, refusal, transfer_log
from tests.unit.chains.evm.factories import BOB
from tests.unit.chains.evm.recorded import (
    DATA,
    ELSEWHERE,
    ELSEWHERE_WITH_EXPECTED_TRANSFERS,
    Answer,
    read_json,
    recorded,
)
from tests.unit.chains.evm.test_arbitrum import UNSIGNED, internal
from tests.unit.chains.evm.test_headers import GRANITE
from tests.unit.chains.evm.test_op_stack import deposit
from tests.unit.chains.evm.test_polygon import state_sync
from tests.unit.chains.evm.test_proof_refusals import alter_somewhere, change, flip_last_bit


@pytest.mark.parametrize(("chain", "height"), ELSEWHERE)
def test_a_recorded_block_of_another_chain_proves_itself_to_its_roots(chain: str, height: int) -> None:
    block = read(recorded(height, chain))
    assert (block.ref.height, block.proof) == (height, ProofLevel.ROOTS)
    assert block.transaction_count == len(recorded(height, chain).block["transactions"])


def test_recorded_blocks_of_every_chain_and_type_are_here() -> None:
    types = {(c, tx["type"]) for c, height in ELSEWHERE for tx in recorded(height, c).block["transactions"]}
    assert {("arbitrum-mainnet", t) for t in ("0x0", "0x2", "0x6a")} <= types
    assert {("base-mainnet", t) for t in ("0x0", "0x2", "0x7e")} <= types
    assert {("optimism-mainnet", t) for t in ("0x0", "0x2", "0x7e")} <= types
    assert {("polygon-mainnet", t) for t in ("0x0", "0x2")} <= types
    assert {height for _, height in ELSEWHERE} >= {10_000, 107_353_722, 38_102_393, 40_000_000, 150_000_000, 2_000_000}


@pytest.mark.parametrize(("chain", "height"), ELSEWHERE_WITH_EXPECTED_TRANSFERS)
def test_recorded_token_transfers_of_another_chain_equal_another_indexers(chain: str, height: int) -> None:
    path = DATA / "evm" / chain / str(height) / "expected_token_transfers.json.gz"
    theirs = {
        (row["transactionHash"], int(row.get("logIndex", 0)), row["tokenAddress"], row["toAddress"], int(row["value"]))
        for row in read_json(path)
        if "erc20" in row and int(row.get("value") or 0) > 0
    }
    ours = {
        (hex_of(t.transaction.hash), t.locator.log_index, t.asset_id.rpartition(":")[2], hex_of(t.recipient or b""),
         t.amount_atomic)
        for t in read(recorded(height, chain)).transfers
        if t.locator.kind is LocatorKind.LOG and t.transaction is not None
    }  # fmt: skip
    assert ours == theirs
    assert ours


@pytest.mark.parametrize(("chain", "height"), ELSEWHERE)
def test_one_bit_in_what_an_odd_transaction_or_its_receipt_holds_is_refused(chain: str, height: int) -> None:
    """Of the fields of an unsigned transaction that no bytes hold, none is told."""
    answer, unread = recorded(height, chain), {"gasPrice", "nonce", "gas", "value", "to", "chainId"}
    for index, tx in enumerate(answer.block["transactions"]):
        if tx["type"] not in ("0x7e", "0x6a"):
            continue
        for name in set(tx) - unread - {"blockNumber", "v", "r", "s"}:
            altered = copy.deepcopy(answer)
            change(altered.block, ("transactions", index, name), flip_last_bit)
            assert refusal(altered), name


POLYGON_STATE_SYNCS = [13522176, 13522240]


@pytest.mark.parametrize("height", POLYGON_STATE_SYNCS)
def test_a_recorded_polygon_block_recomputes_without_its_state_sync(height: int) -> None:
    block = decode_block(msgspec.json.encode(recorded(height, "polygon-mainnet").block), Dialect.POLYGON)
    assert block is not None
    prove_header(block)
    root = bytes_of(block.transactions_root)
    assert ordered_root([envelope_of(tx).raw for tx in block.transactions[:-1]]) == root
    for tx in block.transactions[:-1]:
        assert recover_sender(tx) == bytes_of(tx.sender)
    with pytest.raises(ProofFailure, match="no signature's"):
        polygon_envelope(block.transactions[-1], None)


@pytest.mark.parametrize("place", range(3))
def test_recorded_rinkeby_blocks_with_trimmed_lists_prove_what_they_have(place: int) -> None:
    """Clique's headers are Ethereum's. The lists are cut, so that no root can be recomputed."""
    answer = read_json(DATA / "evm" / "ethereum-rinkeby" / "exchange_deposits_2621840_2621842.blocks.json.gz")[place]
    header = msgspec.convert(answer["result"], WireHeader)
    prove_header(header)
    for listed in answer["result"]["transactions"]:
        transaction = msgspec.convert(listed, WireTransaction)
        assert hex_of(envelope_of(transaction).hash) == listed["hash"]
        assert hex_of(recover_sender(transaction)) == listed["from"]


# --- the whole promise ---

WHOLE: dict[str, tuple[Answer, bytes | None]] = {
    "OP Stack": (
        make_answer(Dialect.OP_STACK, [deposit(mint=7, value=5, logs=[transfer_log()]), signed(BOB, 1)]), None,
    ),
    "Arbitrum": (
        make_answer(Dialect.ARBITRUM, [internal(), *(UNSIGNED[kind][0]() for kind in sorted(UNSIGNED))]), None,
    ),
    "Polygon": (make_answer(Dialect.POLYGON, [signed(BOB, 1), state_sync()]), state_sync().raw),
    "Avalanche": (make_answer(Dialect.AVALANCHE, [signed(BOB, 1)], header=GRANITE), None),
}  # fmt: skip


def told(answer: Answer, state_sync: bytes | None, original: Answer) -> Sequence[Transfer]:
    """The transfers that a merchant may hear of, when the original was asked for."""
    return read(answer, state_sync, like=original).transfers


@pytest.mark.parametrize("name", WHOLE)
@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_any_change_of_any_character_is_refused_or_changes_nothing_that_we_tell(name: str, data: st.DataObject) -> None:
    original, sync = WHOLE[name]
    answer = copy.deepcopy(original)
    root = {"block": answer.block, "receipts": answer.receipts}
    alter_somewhere(root, data)
    try:
        found = told(answer, sync, original)
    except ProofFailure:
        return
    assert found == told(original, sync, original)
