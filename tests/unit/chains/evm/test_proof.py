"""What proves itself: recorded mainnet blocks of every era, forks' headers, generated blocks, and each level."""

from __future__ import annotations

import json

import msgspec
import pytest

from bench.blocks import make_chain
from chains.evm.bloom import bloom_of
from chains.evm.envelope import envelope_of
from chains.evm.errors import ProofFailure
from chains.evm.header import header_hash, header_ref, prove_header
from chains.evm.proof import prove_block
from chains.evm.receipt import receipt_bytes, withdrawal_bytes
from chains.evm.senders import senders_of
from chains.evm.trie import ordered_root
from chains.evm.wire import WireHeader, WireTransaction, decode_block, decode_header, decode_receipts
from chains.model import ProofLevel, hex_of, is_linked
from tests.unit.chains.evm.recorded import DATA, MAINNET, WITH_RECEIPTS, WITHOUT_RECEIPTS, Answer, read_json, recorded

FORK_HEADERS = read_json(DATA / "evm" / "fork_headers.json")
LEVELS = [ProofLevel.OFF, ProofLevel.STRUCTURE, ProofLevel.BLOOM, ProofLevel.ROOTS]


def generated(seed: int = 1) -> Answer:
    """One block of twelve transactions of all types, as a node would answer it."""
    ((block, receipts),) = make_chain(1, transactions=12, logs=30, transfers=15, seed=seed)
    return Answer(json.loads(block), json.loads(receipts))


@pytest.mark.parametrize("height", WITH_RECEIPTS)
def test_a_recorded_block_proves_itself_to_its_roots(height: int) -> None:
    block, receipts = recorded(height).decode()
    prove_block(block, receipts, ProofLevel.ROOTS)
    assert header_ref(block).height == height


def test_recorded_blocks_of_every_era_are_here() -> None:
    assert len(WITH_RECEIPTS) >= 17
    types = {row["type"] for height in WITH_RECEIPTS for row in recorded(height).block["transactions"]}
    assert types == {"0x0", "0x1", "0x2", "0x3"}


@pytest.mark.parametrize("height", WITHOUT_RECEIPTS)
def test_a_recorded_block_without_receipts_proves_all_that_it_has(height: int) -> None:
    block, _ = recorded(height).decode()
    prove_header(block)
    envelopes = [envelope_of(transaction) for transaction in block.transactions]
    assert [hex_of(envelope.hash) for envelope in envelopes] == [tx.hash for tx in block.transactions]
    assert hex_of(ordered_root([envelope.raw for envelope in envelopes])) == block.transactions_root
    senders = list(senders_of(block.transactions, envelopes))
    assert [hex_of(sender) for sender in senders] == [tx.sender for tx in block.transactions]
    assert block.withdrawals is not None
    assert hex_of(ordered_root([withdrawal_bytes(row) for row in block.withdrawals])) == block.withdrawals_root


def test_a_recorded_header_with_receipts_only_proves_both() -> None:
    header = msgspec.convert(read_json(MAINNET / "15000000" / "header.json"), WireHeader)
    raw = msgspec.json.encode(read_json(MAINNET / "15000000" / "receipts.json.gz"))
    receipts = decode_receipts(raw)
    assert receipts is not None
    prove_header(header)
    carriers = [
        WireTransaction(
            hash=r.transaction_hash,
            nonce="0x0",
            gas="0x0",
            value="0x0",
            input="0x",
            v="0x0",
            r="0x0",
            s="0x0",
            sender=hex_of(bytes(20)),
            type=r.type,
        )
        for r in receipts
    ]
    rows = zip(carriers, receipts, [f"{bloom_of(r.logs):0512x}" for r in receipts], strict=True)
    assert hex_of(ordered_root([receipt_bytes(*row) for row in rows])) == header.receipts_root


@pytest.mark.parametrize("fork", FORK_HEADERS)
def test_a_forks_first_header_hashes_to_its_own_hash(fork: str) -> None:
    header = decode_header(msgspec.json.encode(FORK_HEADERS[fork]))
    assert header is not None
    assert hex_of(header_hash(header)) == FORK_HEADERS[fork]["hash"]


def test_generated_blocks_prove_themselves_and_link() -> None:
    chain = [(decode_block(block), decode_receipts(receipts)) for block, receipts in make_chain(3, transactions=20)]
    refs = []
    for block, receipts in chain:
        assert block is not None
        assert receipts is not None
        prove_block(block, receipts, ProofLevel.ROOTS)
        refs.append(header_ref(block))
    assert is_linked(refs)


def test_a_generated_chain_is_the_same_for_a_seed_and_branches_for_another() -> None:
    first = make_chain(2, transactions=6, logs=5, transfers=2)
    assert make_chain(2, transactions=6, logs=5, transfers=2) == first
    assert make_chain(2, transactions=6, logs=5, transfers=2, seed=2)[0] != first[0]


def test_a_generated_block_may_be_empty() -> None:
    ((raw, receipts_raw),) = make_chain(1, transactions=0, withdrawals=0)
    block, receipts = decode_block(raw), decode_receipts(receipts_raw)
    assert block is not None
    assert receipts == []
    prove_block(block, receipts, ProofLevel.ROOTS)


def reached(answer: Answer) -> dict[ProofLevel, str | None]:
    """At each level, the check that refused the answer, or None."""
    block, receipts = answer.decode()
    checks: dict[ProofLevel, str | None] = {}
    for level in LEVELS:
        try:
            prove_block(block, receipts, level)
            checks[level] = None
        except ProofFailure as failure:
            checks[level] = failure.check
    return checks


def renumber_logs(answer: Answer) -> None:
    """Close the holes in the log indexes, as a node that hides a log on purpose would."""
    logs = [log for receipt in answer.receipts for log in receipt["logs"]]
    for index, log in enumerate(logs):
        log["logIndex"] = hex(index)


def test_an_empty_list_of_receipts_is_refused_by_structure() -> None:
    answer = generated()
    answer.receipts = []
    assert set(reached(answer).values()) == {None, "structure"}


def test_a_hole_in_the_log_indexes_is_refused_by_structure() -> None:
    answer = generated()
    next(receipt for receipt in answer.receipts if receipt["logs"])["logs"].pop(0)
    assert reached(answer)[ProofLevel.STRUCTURE] == "structure"


def test_a_log_left_out_without_a_hole_is_refused_by_the_receipts_bloom() -> None:
    answer = generated()
    next(receipt for receipt in answer.receipts if receipt["logs"])["logs"].pop(0)
    renumber_logs(answer)
    assert list(reached(answer).values()) == [None, None, "bloom", "bloom"]


def test_a_log_left_out_is_refused_by_the_headers_bloom_where_receipts_have_none() -> None:
    answer = generated()
    next(receipt for receipt in answer.receipts if receipt["logs"])["logs"].pop(0)
    renumber_logs(answer)
    for receipt in answer.receipts:
        del receipt["logsBloom"]
    assert list(reached(answer).values()) == [None, None, "bloom", "bloom"]


def test_a_log_that_no_bloom_shows_is_refused_by_the_receipts_root() -> None:
    """Two logs of one token, sender and recipient set the same bits: without one of them the bloom stays as it is."""
    answer = recorded(16899757)
    receipt = next(r for r in answer.receipts if hides_a_log(r["logs"]))
    receipt["logs"].pop(twin_of(receipt["logs"]))
    renumber_logs(answer)
    assert list(reached(answer).values()) == [None, None, None, "receipts_root"]


def twin_of(logs: list[dict[str, object]]) -> int:
    """The first log with the address and topics of an earlier one; -1 when there is none."""
    seen: list[tuple[object, object]] = []
    for index, log in enumerate(logs):
        key = (log["address"], log["topics"])
        if key in seen:
            return index
        seen.append(key)
    return -1


def hides_a_log(logs: list[dict[str, object]]) -> bool:
    return twin_of(logs) >= 0


def test_a_changed_amount_is_refused_by_the_receipts_root_only() -> None:
    answer = generated()
    log = next(log for receipt in answer.receipts for log in receipt["logs"] if len(log["topics"]) == 3)
    log["data"] = "0x" + "00" * 31 + "01"
    assert list(reached(answer).values()) == [None, None, None, "receipts_root"]


def test_a_changed_sender_is_refused_by_its_signature() -> None:
    """Nothing else commits to `from`: with it changed, a withdrawal of the true sender would go unseen."""
    answer = generated()
    answer.block["transactions"][1]["from"] = "0x" + "ab" * 20
    assert list(reached(answer).values()) == [None, None, None, "sender"]


def test_a_changed_value_is_refused_by_the_transactions_hash() -> None:
    answer = generated()
    answer.block["transactions"][1]["value"] = "0xffffff"
    assert list(reached(answer).values()) == [None, None, None, "transaction_hash"]


def test_an_invented_transaction_in_a_true_ones_place_is_refused_by_the_transactions_root() -> None:
    """Whoever alters a transaction can make its hash and its sender fit: any signature is somebody's."""
    answer = generated()
    row, receipt = answer.block["transactions"][1], answer.receipts[1]
    row["value"] = "0xffffff"
    altered = answer.decode()[0].transactions[1]
    envelope = envelope_of(altered)
    (signer,) = senders_of([altered], [envelope])
    assert signer is not None
    row["hash"], row["from"] = hex_of(envelope.hash), hex_of(signer)
    for told in (receipt, *receipt["logs"]):
        told["transactionHash"] = row["hash"]
    assert list(reached(answer).values()) == [None, None, None, "transactions_root"]


def test_a_transaction_of_a_type_that_we_do_not_know_is_refused_clearly() -> None:
    answer = generated()
    answer.block["transactions"][0]["type"] = answer.receipts[0]["type"] = "0x7e"
    assert list(reached(answer).values()) == [None, None, None, "transactions_root"]
    with pytest.raises(ProofFailure, match="of type 0x7e, which we cannot encode"):
        prove_block(*answer.decode(), ProofLevel.ROOTS)
