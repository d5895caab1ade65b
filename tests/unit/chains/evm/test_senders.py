"""Transactions as bytes, and who signed them, against eth-account: another implementation of every type."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from eth_account import Account
from eth_account.datastructures import SignedTransaction

from chains.evm.address import checksum_of, parse_address
from chains.evm.envelope import envelope_of
from chains.evm.errors import ProofFailure
from chains.evm.senders import recover_sender
from chains.evm.wire import WireTransaction
from chains.model import hex_of
from tests.unit.chains.evm.recorded import DATA, WITH_RECEIPTS, WITHOUT_RECEIPTS, read_json, recorded

KEY = "0x" + "11" * 32
SENDER = parse_address(Account.from_key(KEY).address)
BOB = checksum_of(bytes.fromhex("b0" * 20))
CURVE_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141

BASE: dict[str, Any] = {"nonce": 7, "gas": 21000, "to": BOB, "value": 10**18, "data": "0x1234"}
ACCESS = [{"address": BOB, "storageKeys": ["0x" + "01" * 32, "0x" + "02" * 32]}]
DYNAMIC: dict[str, Any] = {"chainId": 1, "maxFeePerGas": 10**10, "maxPriorityFeePerGas": 0}


def delegation() -> list[Any]:
    """One authorization (EIP-7702), signed as eth-account does it."""
    return [Account.sign_authorization({"chainId": 1, "address": BOB, "nonce": 0}, KEY)]


TRANSACTIONS: dict[str, dict[str, Any]] = {
    "legacy before EIP-155": BASE | {"gasPrice": 10**9},
    "legacy of chain 1": BASE | {"gasPrice": 10**9, "chainId": 1},
    "legacy of a chain with a large number": BASE | {"gasPrice": 10**9, "chainId": 11155111},
    "legacy creation": BASE | {"gasPrice": 0, "chainId": 1, "to": "", "value": 0, "nonce": 0},
    "0x1": BASE | {"type": 1, "chainId": 1, "gasPrice": 10**9, "accessList": ACCESS},
    "0x1 without a list": BASE | {"type": 1, "chainId": 1, "gasPrice": 10**9, "accessList": []},
    "0x2": BASE | {"type": 2, "accessList": ACCESS} | DYNAMIC,
    "0x2 creation": BASE | {"type": 2, "to": "", "data": "0x" + "60" * 300} | DYNAMIC,
    "0x3": BASE | {"type": 3, "maxFeePerBlobGas": 5, "blobVersionedHashes": ["0x01" + "ab" * 31]} | DYNAMIC,
    "0x4": BASE | {"type": 4, "authorizationList": delegation()} | DYNAMIC,
}


def hexed(value: Any) -> Any:  # noqa: ANN401 - JSON
    """A value as a node would write it."""
    if isinstance(value, int):
        return hex(value)
    if isinstance(value, bytes):
        return "0x" + value.hex()
    if isinstance(value, list | tuple):
        return [hexed(item) for item in value]
    return value


def as_node(fields: dict[str, Any], signed: SignedTransaction) -> WireTransaction:
    """The transaction as a node would list it."""
    names = {"data": "input", "gas": "gas"}
    row = {names.get(name, name): hexed(value) for name, value in fields.items() if name != "authorizationList"}
    row |= {"v": hex(signed.v), "r": hex(signed.r), "s": hex(signed.s), "hash": hex_of(signed.hash)}
    row |= {"from": hex_of(SENDER), "to": row["to"] or None}
    if "authorizationList" in fields:
        row["authorizationList"] = [
            {"chainId": hex(a.chain_id), "address": hexed(a.address), "nonce": hex(a.nonce)}
            | {"yParity": hex(a.y_parity), "r": hex(a.r), "s": hex(a.s)}
            for a in fields["authorizationList"]
        ]
    return msgspec.convert(row, WireTransaction)


def sign(fields: dict[str, Any]) -> SignedTransaction:
    signed: SignedTransaction = Account.sign_transaction({k: v for k, v in fields.items() if v != ""}, KEY)
    return signed


@pytest.mark.parametrize("name", TRANSACTIONS)
def test_the_envelope_is_what_eth_account_signed(name: str) -> None:
    fields = TRANSACTIONS[name]
    signed = sign(fields)
    transaction = as_node(fields, signed)
    envelope = envelope_of(transaction)
    assert envelope.hash == bytes(signed.hash)
    assert envelope.raw == bytes(signed.raw_transaction)
    assert recover_sender(transaction) == SENDER


def test_a_high_s_recovers_the_same_sender() -> None:
    """Before Homestead both twins of a signature were valid (EIP-2)."""
    fields = TRANSACTIONS["legacy before EIP-155"]
    transaction = as_node(fields, sign(fields))
    transaction.s = hex(CURVE_ORDER - int(transaction.s, 16))
    transaction.v = hex(55 - int(transaction.v, 16))
    assert recover_sender(transaction) == SENDER


@pytest.mark.parametrize(
    ("field", "value", "check"),
    [
        ("v", "0x1a", "sender"),
        ("r", "0x0", "sender"),
        ("s", hex(CURVE_ORDER), "sender"),
        ("gas_price", None, "structure"),
        ("type", "0x5", "transactions_root"),
        ("type", "0x7e", "transactions_root"),
    ],
)
def test_what_cannot_be_a_signature_or_an_envelope_is_refused(field: str, value: str | None, check: str) -> None:
    fields = TRANSACTIONS["legacy of chain 1"]
    transaction = as_node(fields, sign(fields))
    setattr(transaction, field, value)
    with pytest.raises(ProofFailure) as failure:
        recover_sender(transaction)
    assert failure.value.check == check


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("0x1", "gas_price"),
        ("0x2", "chain_id"),
        ("0x2", "max_fee_per_gas"),
        ("0x2", "max_priority_fee_per_gas"),
        ("0x3", "max_fee_per_blob_gas"),
        ("0x3", "blob_versioned_hashes"),
        ("0x4", "authorization_list"),
    ],
)
def test_a_field_that_its_type_needs_and_the_node_left_out_is_named(name: str, field: str) -> None:
    transaction = as_node(TRANSACTIONS[name], sign(TRANSACTIONS[name]))
    setattr(transaction, field, None)
    with pytest.raises(ProofFailure, match="structure"):
        envelope_of(transaction)


def test_parity_is_read_from_v_or_y_parity_and_both_must_agree() -> None:
    transaction = as_node(TRANSACTIONS["0x2"], sign(TRANSACTIONS["0x2"]))
    transaction.y_parity = transaction.v
    assert recover_sender(transaction) == SENDER
    transaction.y_parity = "0x1" if transaction.v == "0x0" else "0x0"
    with pytest.raises(ProofFailure, match="no parity"):
        recover_sender(transaction)


def test_known_keys_recover_to_their_addresses() -> None:
    rows = read_json(DATA / "vectors" / "ethers_accounts.json.gz")
    fields = TRANSACTIONS["0x2"]
    for row in [row for row in rows if row.get("privateKey")][:20]:
        signed = Account.sign_transaction(fields, row["privateKey"])
        assert recover_sender(as_node(fields, signed)) == parse_address(row["address"])


@pytest.mark.parametrize("height", WITH_RECEIPTS + WITHOUT_RECEIPTS)
def test_recorded_transactions_hash_and_recover(height: int) -> None:
    answer = recorded(height)
    for row in answer.block["transactions"][:60]:
        transaction = msgspec.convert(row, WireTransaction)
        assert hex_of(envelope_of(transaction).hash) == row["hash"]
        assert hex_of(recover_sender(transaction)) == row["from"]
