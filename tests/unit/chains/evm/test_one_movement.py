"""One movement, one entry: what chains and tokens say twice is counted once, what they say falsely not at all."""

from __future__ import annotations

import pytest

from chains.evm.carriers import carriers_of
from chains.evm.keccak import keccak
from chains.evm.tokens import NOBODY, TRANSFER_TOPIC, UNWRAP_TOPIC, WRAP_TOPIC
from chains.evm.traces import TraceMethod, settle_traces
from chains.evm.transfers import decode_transfers
from chains.evm.wire import WireLog
from chains.model import Address, Asset, Transfer, hex_of
from chains.profile import ETHER_LOG_EMITTER, load_profile
from tests.unit.chains.evm.factories import (
    ALICE,
    BOB,
    CHAIN_ID,
    NATIVE,
    TOKEN,
    make_asset,
    make_block,
    make_log,
    make_receipt,
    make_transaction,
    word,
)
from tests.unit.chains.evm.trace_forms import CAROL, Json, flat_form, frame, raw_traces

ETHER = 10**18
WRAPPER = make_asset(wraps_without_transfer=True)


def decode(*logs: WireLog, value: int = 0, assets: tuple[Asset, ...] = (make_asset(),)) -> list[Transfer]:
    """The transfers of one transaction from Alice to Bob."""
    by_contract = {asset.contract: asset for asset in assets if asset.contract is not None}
    block = make_block(make_transaction(value=hex(value)))
    return list(decode_transfers(CHAIN_ID, block, list(carriers_of(block, [make_receipt(*logs)])), by_contract, NATIVE))


def wrap_log(topic: str, holder: Address, amount: int = 5) -> WireLog:
    return make_log(topics=[topic, word(holder)], data=word(amount))


def told(transfers: list[Transfer]) -> list[tuple[Address | None, Address | None, int]]:
    return [(transfer.sender, transfer.recipient, transfer.amount_atomic) for transfer in transfers]


# --- the native coin's other faces ------------------------------------------------------------------------------------

ALIASES = {
    "EIP-7708, every chain": hex_of(ETHER_LOG_EMITTER),
    "Polygon": "0x0000000000000000000000000000000000001010",
    "zkSync": "0x000000000000000000000000000000000000800a",
    "Celo": "0x471ece3750da237f93b8e339c536989b8978a438",
}


@pytest.mark.parametrize("alias", ALIASES.values(), ids=list(ALIASES))
def test_native_value_and_its_alias_log_are_one_movement(alias: str) -> None:
    log = make_log(contract=bytes.fromhex(alias[2:]), data=word(ETHER))
    (transfer,) = decode(log, value=ETHER)
    assert (transfer.asset_id, transfer.locator.kind, transfer.amount_atomic) == (NATIVE.id, "native", ETHER)


@pytest.mark.parametrize("alias", ALIASES.values(), ids=list(ALIASES))
def test_an_alias_log_alone_is_no_movement(alias: str) -> None:
    """Value that a contract sends is told by traces; its alias log would be the second telling."""
    assert decode(make_log(contract=bytes.fromhex(alias[2:]), data=word(ETHER))) == []


def test_the_address_of_eip_7708_is_an_alias_on_every_chain() -> None:
    assert hex_of(ETHER_LOG_EMITTER) == "0xfffffffffffffffffffffffffffffffffffffffe"
    assert ETHER_LOG_EMITTER in load_profile("anvil").native_aliases


def traced(value: int, inner: int) -> Json:
    """The trace of Alice's transaction to Bob, who hands a part on to Carol."""
    return {"result": frame("CALL", ALICE, BOB, value, frame("CALL", BOB, CAROL, inner))}


@pytest.mark.parametrize("method", TraceMethod)
def test_native_value_its_trace_and_its_log_are_one_movement(method: TraceMethod) -> None:
    """The day of EIP-7708: the same ether in the transaction, in the root of its trace, and in a log."""
    block = make_block(make_transaction(value=hex(ETHER)))
    logs = [
        make_log(ETHER_LOG_EMITTER, data=word(ETHER)),
        make_log(ETHER_LOG_EMITTER, topics=[TRANSFER_TOPIC, word(BOB), word(CAROL)], data=word(3)),
    ]
    receipts = [make_receipt(*logs)]
    trees = [traced(ETHER, 3)]
    answer = trees if method is TraceMethod.CALL_TRACER else flat_form(trees, block.hash)
    moves, proof = settle_traces([raw_traces(answer, method=method)], block, receipts, 1)
    transfers = decode_transfers(CHAIN_ID, block, list(carriers_of(block, receipts)), {}, NATIVE, moves, proof)
    assert told(list(transfers)) == [(ALICE, BOB, ETHER), (BOB, CAROL, 3)]
    assert [transfer.locator.kind for transfer in transfers] == ["native", "trace"]


# --- wrapping ---------------------------------------------------------------------------------------------------------


def test_the_events_of_weth9_have_these_hashes() -> None:
    assert hex_of(keccak(b"Deposit(address,uint256)")) == WRAP_TOPIC
    assert hex_of(keccak(b"Withdrawal(address,uint256)")) == UNWRAP_TOPIC


def test_wrapping_without_a_transfer_is_a_movement_from_nobody() -> None:
    native, wrapped = decode(wrap_log(WRAP_TOPIC, ALICE, ETHER), value=ETHER, assets=(WRAPPER,))
    assert native.asset_id == NATIVE.id
    assert (wrapped.asset_id, wrapped.locator.kind, wrapped.locator.path) == (WRAPPER.id, "log", "0")
    assert told([wrapped]) == [(NOBODY, ALICE, ETHER)]


def test_unwrapping_without_a_transfer_is_a_movement_to_nobody() -> None:
    assert told(decode(wrap_log(UNWRAP_TOPIC, ALICE), assets=(WRAPPER,))) == [(ALICE, NOBODY, 5)]


def test_a_wrap_that_a_transfer_tells_too_is_one_movement() -> None:
    mint = make_log(topics=[TRANSFER_TOPIC, word(NOBODY), word(ALICE)])
    burn = make_log(topics=[TRANSFER_TOPIC, word(BOB), word(NOBODY)])
    logs = (mint, wrap_log(WRAP_TOPIC, ALICE), wrap_log(UNWRAP_TOPIC, BOB), burn)
    assert told(decode(*logs, assets=(WRAPPER,))) == [(NOBODY, ALICE, 5), (BOB, NOBODY, 5)]


def test_wraps_beyond_those_that_transfers_tell_are_counted() -> None:
    mint = make_log(topics=[TRANSFER_TOPIC, word(NOBODY), word(ALICE)])
    logs = (wrap_log(WRAP_TOPIC, ALICE), mint, wrap_log(WRAP_TOPIC, ALICE), wrap_log(WRAP_TOPIC, ALICE, 6))
    transfers = decode(*logs, assets=(WRAPPER,))
    assert told(transfers) == [(NOBODY, ALICE, 5), (NOBODY, ALICE, 5), (NOBODY, ALICE, 6)]
    assert len({transfer.id for transfer in transfers}) == 3


def test_a_wrap_has_the_identity_of_the_mint_that_would_tell_it() -> None:
    """A token whose flag is set later, or whose contract comes to emit `Transfer`, tells the same entry."""
    mint = make_log(topics=[TRANSFER_TOPIC, word(NOBODY), word(ALICE)])
    (by_wrap,) = decode(wrap_log(WRAP_TOPIC, ALICE), assets=(WRAPPER,))
    (by_mint,) = decode(mint)
    assert by_wrap.id == by_mint.id


NO_WRAPS = {
    "of nothing": wrap_log(WRAP_TOPIC, ALICE, 0),
    "by an unlisted contract": make_log(contract=BOB, topics=[WRAP_TOPIC, word(ALICE)]),
    "with a third topic": make_log(topics=[WRAP_TOPIC, word(ALICE), word(BOB)]),
    "with more data": make_log(topics=[WRAP_TOPIC, word(ALICE)], data=word(5) + "00" * 32),
    "of a holder with dirty upper bytes": make_log(topics=[WRAP_TOPIC, "0x" + "01" * 32]),
    "without topics": make_log(topics=[]),
}


@pytest.mark.parametrize("log", NO_WRAPS.values(), ids=list(NO_WRAPS))
def test_what_only_looks_like_a_wrap_is_none(log: WireLog) -> None:
    assert decode(log, assets=(WRAPPER,)) == []


def test_a_deposit_event_of_a_token_that_wraps_nothing_means_something_else() -> None:
    assert decode(wrap_log(WRAP_TOPIC, ALICE)) == []


# --- what is no movement ----------------------------------------------------------------------------------------------

NO_MOVEMENTS = {
    "zero, sent in Alice's name by a third party": make_log(data=word(0)),
    "a fake: the same symbol, another contract": make_log(contract=bytes.fromhex("fa" * 20)),
    "an NFT: four topics": make_log(topics=[TRANSFER_TOPIC, word(ALICE), word(BOB), word(7)], data="0x"),
    "the unindexed form of a token that is not flagged": make_log(
        topics=[TRANSFER_TOPIC], data=word(ALICE) + word(BOB)[2:] + word(5)[2:]
    ),
}


@pytest.mark.parametrize("log", NO_MOVEMENTS.values(), ids=list(NO_MOVEMENTS))
def test_what_is_no_movement_of_a_listed_token_is_not_told(log: WireLog) -> None:
    assert decode(log) == []


def test_the_unindexed_form_is_a_movement_of_a_token_that_is_flagged() -> None:
    log = make_log(topics=[TRANSFER_TOPIC], data=word(ALICE) + word(BOB)[2:] + word(5)[2:])
    assert told(decode(log, assets=(make_asset(is_unindexed=True),))) == [(ALICE, BOB, 5)]


def test_equal_transfers_of_one_transaction_are_numbered_and_all_count() -> None:
    transfers = decode(*(make_log(log_index=hex(index)) for index in range(3)))
    assert told(transfers) == [(ALICE, BOB, 5)] * 3
    assert len({transfer.id for transfer in transfers}) == 3
    assert [transfer.locator.path for transfer in transfers] == ["0", "1", "2"]


def test_a_log_between_equal_transfers_does_not_change_their_identities() -> None:
    quiet = decode(make_log(), make_log())
    noisy = decode(make_log(), make_log(contract=bytes.fromhex("fa" * 20)), make_log())
    assert [transfer.id for transfer in noisy] == [transfer.id for transfer in quiet]


def test_a_token_that_keeps_a_part_is_read_as_it_says() -> None:
    """Decoding believes nothing and hides nothing: what such an amount is worth is for the story to say."""
    (transfer,) = decode(make_log(), assets=(make_asset(is_fee_on_transfer=True),))
    assert transfer.amount_atomic == 5


def test_contracts_are_told_apart_by_address_never_by_symbol() -> None:
    native_usdc, bridged_usdc = make_asset(TOKEN), make_asset(bytes.fromhex("b7" * 20))
    logs = (make_log(), make_log(contract=bytes.fromhex("b7" * 20)))
    assert [t.asset_id for t in decode(*logs, assets=(native_usdc, bridged_usdc))] == [native_usdc.id, bridged_usdc.id]
