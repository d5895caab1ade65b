"""Arbitrum: seven types of transaction that nobody signed, and what a unit of gas cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import rlp

from chains.evm.arbitrum import arbitrum_envelope
from chains.evm.dialect import Dialect
from chains.evm.errors import ProofFailure
from chains.evm.keccak import keccak
from chains.evm.senders import created_address
from chains.evm.wire import ArbitrumTransaction, bytes_of
from chains.model import Address, ProofLevel, hex_of
from tests.unit.chains.evm.dialect_blocks import (
    BASE_FEE_WEI,
    SIGNER,
    Row,
    Sent,
    make_answer,
    row,
    signed,
    uint,
)
from tests.unit.chains.evm.dialect_reading import CAROL, balances, fees, native, read, refusal
from tests.unit.chains.evm.factories import ALICE, BOB, word
from tests.unit.chains.evm.recorded import DATA, read_json

CHAIN_NUMBER = 42161
REQUEST = b"\x4e" * 32
TICKET = b"\x71" * 32
ESCROW = keccak(b"retryable escrow" + TICKET)[12:]


def arbitrum(kind: int, items: list[Any], sender: Address, to: Address | None, value: int = 0, **more: Any) -> Sent:  # noqa: ANN401 - any field
    """A transaction that nobody signed. The chain's number is the first of the items, in every type."""
    sent = {name: more.pop(name) for name in ("gas_used", "status", "logs") if name in more}
    listed = row(kind, sender, to, value, chainId=hex(CHAIN_NUMBER), **more)
    return Sent(listed, bytes([kind]) + rlp.encode([uint(CHAIN_NUMBER), *items]), **sent)


def eth_deposit(sender: Address = ALICE, to: Address = BOB, value: int = 7, **more: Any) -> Sent:  # noqa: ANN401 - any field
    items = [REQUEST, sender, to, uint(value)]
    return arbitrum(0x64, items, sender, to, value, requestId=hex_of(REQUEST), gas_used=0, **more)


def unsigned(to: Address | None = BOB, value: int = 7, **more: Any) -> Sent:  # noqa: ANN401 - any field
    items = [ALICE, uint(4), uint(150), uint(30_000), to or b"", uint(value), b"\x01"]
    fields = {"nonce": "0x4", "gas": hex(30_000), "gasPrice": hex(150)}
    return arbitrum(0x65, items, ALICE, to, value, data=b"\x01", **fields, **more)


def contract(to: Address | None = BOB, value: int = 7, **more: Any) -> Sent:  # noqa: ANN401 - any field
    items = [REQUEST, ALICE, uint(150), uint(30_000), to or b"", uint(value), b"\x01"]
    fields = {"requestId": hex_of(REQUEST), "gas": hex(30_000), "gasPrice": hex(150), "maxFeePerGas": hex(150)}
    return arbitrum(0x66, items, ALICE, to, value, data=b"\x01", **fields, **more)


def retry(to: Address | None = BOB, value: int = 7, **more: Any) -> Sent:  # noqa: ANN401 - any field
    items = [
        uint(1), ALICE, uint(100), uint(30_000), to or b"", uint(value), b"\x01", TICKET, CAROL, uint(11), uint(12)
    ]  # fmt: skip
    fields = {
        "nonce": "0x1", "gas": hex(30_000), "gasPrice": hex(100), "maxFeePerGas": hex(100), "ticketId": hex_of(TICKET),
        "refundTo": hex_of(CAROL), "maxRefund": "0xb", "submissionFeeRefund": "0xc",
    }  # fmt: skip
    return arbitrum(0x68, items, ALICE, to, value, data=b"\x01", **fields, **more)


def submission(retry_to: Address | None = BOB, **more: Any) -> Sent:  # noqa: ANN401 - any field
    items = [
        REQUEST, ALICE, uint(20), uint(10**18), uint(100), uint(30_000), retry_to or b"", uint(7), CAROL, uint(9), CAROL,
        b"\x02\x03",
    ]  # fmt: skip
    fields: Row = {
        "requestId": hex_of(REQUEST), "l1BaseFee": "0x14", "depositValue": hex(10**18), "gas": hex(30_000),
        "gasPrice": hex(100), "maxFeePerGas": hex(100), "retryTo": hex_of(retry_to) if retry_to else None,
        "retryValue": "0x7", "beneficiary": hex_of(CAROL), "maxSubmissionFee": "0x9", "refundTo": hex_of(CAROL),
        "retryData": "0x0203",
    }  # fmt: skip
    precompile = bytes.fromhex("6e".zfill(40))
    return arbitrum(0x69, items, ALICE, precompile, data=b"\xc9\xf9", **fields, **more)


def internal(**more: Any) -> Sent:  # noqa: ANN401 - any field
    arbos = bytes.fromhex("0a4b05".zfill(40))
    return arbitrum(0x6A, [b"\x6b\xf6"], arbos, arbos, data=b"\x6b\xf6", gas_used=0, **more)


UNSIGNED: dict[str, tuple[Callable[..., Sent], dict[Address, int]]] = {
    "0x64": (eth_deposit, {BOB: 7}),
    "0x65": (unsigned, {ALICE: -7, BOB: 7}),
    "0x66": (contract, {ALICE: -7, BOB: 7}),
    "0x68": (retry, {ESCROW: -7, BOB: 7}),
    "0x69": (submission, {}),
    "0x6a": (internal, {}),
}


@pytest.mark.parametrize("kind", UNSIGNED)
def test_an_unsigned_transaction_of_arbitrum_proves_itself_and_credits_what_it_brings(kind: str) -> None:
    make, changes = UNSIGNED[kind]
    block = read(make_answer(Dialect.ARBITRUM, [internal(), make(), signed(CAROL, 1)]))
    assert block.proof is ProofLevel.ROOTS
    assert balances(block) == changes | {SIGNER: -1, CAROL: 1}


@pytest.mark.parametrize("kind", UNSIGNED)
def test_a_failed_one_credits_nothing(kind: str) -> None:
    """Of a filtered deposit (ArbOS 60) the value goes to somebody else, that of a failed retry back into escrow."""
    block = read(make_answer(Dialect.ARBITRUM, [UNSIGNED[kind][0](status=0)]))
    assert balances(block) == {}
    assert all(transfer.has_failed for transfer in block.transfers)


def test_a_deposit_from_l1_to_oneself_is_one_transfer() -> None:
    assert native(read(make_answer(Dialect.ARBITRUM, [eth_deposit(to=ALICE)]))) == [(None, ALICE, 7, "mint")]
    assert native(read(make_answer(Dialect.ARBITRUM, [eth_deposit()]))) == [
        (None, ALICE, 7, "mint"), (ALICE, BOB, 7, "native"),
    ]  # fmt: skip


def test_a_contract_whose_creators_nonce_no_block_shows_is_nobody_that_we_know() -> None:
    assert native(read(make_answer(Dialect.ARBITRUM, [contract(to=None)]))) == [(ALICE, None, 7, "native")]
    expected = (ALICE, created_address(ALICE, 4), 7, "native")
    assert native(read(make_answer(Dialect.ARBITRUM, [unsigned(to=None)]))) == [expected]


def test_a_submission_without_a_recipient_proves_itself() -> None:
    assert read(make_answer(Dialect.ARBITRUM, [submission(retry_to=None)])).proof is ProofLevel.ROOTS


def test_a_transaction_of_before_nitro_is_refused_clearly() -> None:
    answer = make_answer(Dialect.ARBITRUM, [arbitrum(0x78, [], ALICE, BOB)])
    with pytest.raises(ProofFailure, match="of type 0x78, which we cannot encode"):
        read(answer)


UNMETERED_VALUES = ["value", "to", "nonce", "gas", "gasPrice", "input"]


@pytest.mark.parametrize("kind", ["0x64", "0x66", "0x69", "0x6a"])
@pytest.mark.parametrize("name", UNMETERED_VALUES)
def test_a_field_that_an_unsigned_transactions_bytes_do_not_hold_changes_nothing(kind: str, name: str) -> None:
    """A node may write anything there: value to a watched address, above all."""
    answer = make_answer(Dialect.ARBITRUM, [UNSIGNED[kind][0](), internal()])
    truth = read(answer).transfers
    answer.block["transactions"][0][name] = {"to": hex_of(CAROL), "input": "0x99"}.get(name, "0xffff")
    try:
        assert read(answer).transfers == truth
    except ProofFailure as failure:
        assert failure.check == "transaction_hash"


MIX = bytes(16) + (11).to_bytes(8, "big") + bytes(8)
ARBOS: dict[str, tuple[bytes, int | None]] = {
    "version 11: the base fee": (MIX, 21_000 * BASE_FEE_WEI),
    "version 9: tips were taken": (bytes(16) + (9).to_bytes(8, "big") + bytes(8), None),
    "version 60: a part may be given back": (bytes(16) + (60).to_bytes(8, "big") + bytes(8), None),
}


@pytest.mark.parametrize("case", ARBOS)
def test_the_fee_on_arbitrum_is_the_base_fee_where_that_is_all(case: str) -> None:
    mix, fee = ARBOS[case]
    answer = make_answer(Dialect.ARBITRUM, [signed(BOB, 1)], header={"mixHash": hex_of(mix)})
    assert fees(read(answer)) == [fee]


@pytest.mark.parametrize(("kind", "fee"), [("0x64", 0), ("0x65", 21_000 * BASE_FEE_WEI), ("0x68", None)])
def test_the_fee_of_an_unsigned_transaction_is_what_its_sender_paid(kind: str, fee: int | None) -> None:
    answer = make_answer(Dialect.ARBITRUM, [UNSIGNED[kind][0]()], header={"mixHash": hex_of(MIX)})
    assert set(fees(read(answer))) == {fee}


def test_a_signed_transaction_that_used_no_gas_is_refused_on_every_chain() -> None:
    for dialect in Dialect:
        header = {"extDataHash": word(1)} if dialect is Dialect.AVALANCHE else None
        sent = signed(BOB, 1)
        sent.gas_used = 0
        assert refusal(make_answer(dialect, [sent], header=header)) == "structure"


FIELDS = {
    0x64: ["chainId", "requestId", "from", "to", "value"],
    0x65: ["chainId", "from", "nonce", "maxFeePerGas", "gas", "to", "value", "input"],
    0x68: [
        "chainId", "nonce", "from", "maxFeePerGas", "gas", "to", "value", "input", "ticketId", "refundTo", "maxRefund",
        "submissionFeeRefund",
    ],
    0x69: [
        "chainId", "requestId", "from", "l1BaseFee", "depositValue", "maxFeePerGas", "gas", "retryTo", "retryValue",
        "beneficiary", "maxSubmissionFee", "refundTo", "retryData",
    ],
    0x6A: ["chainId", "input"],
}  # fmt: skip
"""The fields of each type in the order of its bytes, by their names in JSON."""
BYTES = {"requestId", "from", "to", "input", "ticketId", "refundTo", "retryTo", "beneficiary", "retryData"}
REAL = read_json(DATA / "vectors" / "arbitrum_transactions.json")


@pytest.mark.parametrize("case", REAL, ids=lambda case: case["raw"][:4])
def test_a_transaction_of_arbitrum_sepolia_has_its_bytes_and_its_hash(case: dict[str, str]) -> None:
    raw = bytes_of(case["raw"])
    items = zip(FIELDS[raw[0]], rlp.decode(raw[1:]), strict=True)
    told = {name: hex_of(item) if name in BYTES else hex(int.from_bytes(item, "big")) for name, item in items}
    listed = row(raw[0], bytes(20), None) | {"hash": case["hash"]} | told
    envelope = arbitrum_envelope(msgspec.convert(listed, ArbitrumTransaction))
    assert envelope.raw == raw
    assert hex_of(envelope.hash) == case["hash"]


def test_a_retry_is_paid_out_of_the_escrow_of_its_ticket() -> None:
    """The ticket that a retry names is the hash of its submission."""
    retried, submitted = (next(c for c in REAL if c["raw"].startswith(kind)) for kind in ("0x68", "0x69"))
    assert rlp.decode(bytes_of(retried["raw"])[1:])[8] == bytes_of(submitted["hash"])
