"""Headers with fields of their own: Avalanche, the next fork of Ethereum; and that BNB Chain has none."""

from __future__ import annotations

import copy

import msgspec
import pytest
import rlp
from eth_account import Account

from chains.evm.dialect import Dialect
from chains.evm.errors import ProofFailure
from chains.evm.keccak import keccak
from chains.evm.reading import read_ref
from chains.evm.trie import ordered_root
from chains.model import ProofLevel, hex_of
from tests.unit.chains.evm.dialect_blocks import (
    HEIGHT,
    SIGNER,
    Row,
    Sent,
    header_items,
    make_answer,
    row,
    signed,
)
from tests.unit.chains.evm.dialect_reading import CANCUN, fees, native, read, refusal
from tests.unit.chains.evm.factories import BOB, word
from tests.unit.chains.evm.recorded import DATA, read_json
from tests.unit.chains.evm.test_proof_refusals import change, flip_last_bit

APRICOT = {"extDataHash": word(1), "extDataGasUsed": "0x0", "blockGasCost": "0x5"}
ETNA = APRICOT | {"blobGasUsed": "0x0", "excessBlobGas": "0x0", "parentBeaconBlockRoot": word(0)}
GRANITE = ETNA | {"timestampMilliseconds": "0x65000000123", "minDelayExcess": "0x799d4c"}
AVALANCHE: dict[str, Row] = {
    "before fees": {"extDataHash": word(1), "baseFeePerGas": None},
    "with a base fee": {"extDataHash": word(1)},
    "Apricot": APRICOT,
    "Etna": ETNA,
    "Granite": GRANITE,
}


@pytest.mark.parametrize("fork", AVALANCHE)
def test_a_header_of_each_fork_of_avalanche_hashes_to_its_hash(fork: str) -> None:
    answer = make_answer(Dialect.AVALANCHE, [signed(BOB, 1)], header=AVALANCHE[fork])
    assert native(read(answer)) == [(SIGNER, BOB, 1, "native")]
    ref = read_ref(ProofLevel.ROOTS, msgspec.json.encode(answer.block), HEIGHT, Dialect.AVALANCHE)
    assert hex_of(ref.hash) == answer.block["hash"]


@pytest.mark.parametrize("name", GRANITE)
def test_one_bit_in_a_header_field_of_avalanche_is_refused(name: str) -> None:
    answer = make_answer(Dialect.AVALANCHE, [signed(BOB, 1)], header=GRANITE)
    change(answer.block, (name,), flip_last_bit)
    assert refusal(answer) == "header_hash"


def test_an_avalanche_header_without_its_own_field_or_with_a_gap_is_refused() -> None:
    answer = make_answer(Dialect.AVALANCHE, [signed(BOB, 1)], header=GRANITE)
    for name in ("extDataHash", "blockGasCost", "timestampMilliseconds"):
        altered = copy.deepcopy(answer)
        del altered.block[name]
        assert refusal(altered) == "structure"


def test_a_header_whose_receipts_lie_elsewhere_is_refused_clearly() -> None:
    answer = make_answer(Dialect.AVALANCHE, [signed(BOB, 1)], header=GRANITE)
    answer.block["settledHeight"] = "0x1"
    with pytest.raises(ProofFailure, match="Helicon"):
        read(answer)


def test_withdrawals_that_no_header_of_avalanche_commits_to_are_refused() -> None:
    answer = make_answer(Dialect.AVALANCHE, [signed(BOB, 1)], header=GRANITE)
    answer.block["withdrawals"] = [{"index": "0x1", "validatorIndex": "0x1", "address": hex_of(BOB), "amount": "0x1"}]
    answer.block["withdrawalsRoot"] = word(1)
    assert refusal(answer) == "withdrawals_root"


PRAGUE = {"withdrawalsRoot": hex_of(ordered_root([])), **CANCUN, "requestsHash": word(2)}
AMSTERDAM = PRAGUE | {"blockAccessListHash": word(3), "slotNumber": "0xb5e620"}


def test_the_first_header_of_amsterdam_on_sepolia_hashes_to_its_hash() -> None:
    header = read_json(DATA / "evm" / "sepolia_amsterdam_header.json")
    ref = read_ref(ProofLevel.ROOTS, msgspec.json.encode(header), 11_856_337)
    assert hex_of(ref.hash) == header["hash"]


def test_a_block_of_amsterdam_proves_itself_though_it_counts_gas_otherwise() -> None:
    """The header's gas is before refunds (EIP-7778) or that of state (EIP-8037), its receipts' is what was paid."""
    header = AMSTERDAM | {"gasUsed": hex(30_000)}
    assert native(read(make_answer(Dialect.ETHEREUM, [signed(BOB, 1)], header=header))) == [(SIGNER, BOB, 1, "native")]
    with pytest.raises(ProofFailure, match="receipts use 21000 gas"):
        read(make_answer(Dialect.ETHEREUM, [signed(BOB, 1)], header=PRAGUE | {"gasUsed": hex(30_000)}))


@pytest.mark.parametrize("name", ["blockAccessListHash", "slotNumber"])
def test_one_bit_in_a_header_field_of_amsterdam_is_refused(name: str) -> None:
    answer = make_answer(Dialect.ETHEREUM, [signed(BOB, 1)], header=AMSTERDAM)
    change(answer.block, (name,), flip_last_bit)
    assert refusal(answer) == "header_hash"


def test_a_field_of_a_fork_that_we_do_not_know_is_a_clear_reason() -> None:
    answer = make_answer(Dialect.ETHEREUM, [signed(BOB, 1)], header=AMSTERDAM)
    items = [*header_items(answer.block, Dialect.ETHEREUM), b"\x01" * 32]
    answer.block["hash"] = hex_of(keccak(rlp.encode(items)))
    answer.block["someNewRoot"] = "0x" + "01" * 32
    for rows in (answer.block["transactions"], answer.receipts):
        rows[0]["blockHash"] = answer.block["hash"]
    with pytest.raises(ProofFailure, match="a fork that this version does not know"):
        read(answer)


def test_an_empty_list_of_withdrawals_may_be_left_out_where_the_root_says_that_it_is_empty() -> None:
    answer = make_answer(Dialect.ETHEREUM, [signed(BOB, 1)], header=PRAGUE)
    assert "withdrawals" not in answer.block
    assert read(answer).proof is ProofLevel.ROOTS
    other = make_answer(Dialect.ETHEREUM, [signed(BOB, 1)], header=PRAGUE | {"withdrawalsRoot": word(7)})
    assert refusal(other) == "withdrawals_root"


def test_a_system_transaction_of_bnb_chain_is_an_ordinary_one() -> None:
    """Its validator signs it, it uses gas and pays nothing for it."""
    fields = {"chainId": 56, "nonce": 0, "gas": 2**40, "gasPrice": 0, "to": BOB, "value": 7, "data": b""}
    made = Account.sign_transaction(fields, "0x" + "11" * 32)
    listed = row(0, SIGNER, BOB, 7, gas=hex(2**40), v=hex(made.v), r=hex(made.r), s=hex(made.s), chainId="0x38")
    block = read(
        make_answer(Dialect.ETHEREUM, [Sent(listed, bytes(made.raw_transaction))], header={"baseFeePerGas": "0x0"})
    )
    assert (native(block), fees(block)) == ([(SIGNER, BOB, 7, "native")], [0])
