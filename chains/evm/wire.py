"""What a node says over JSON-RPC, typed, and still in the node's own hex.

Decoding checks that the answer has the fields we need, in strings of the right length, and stops there: most fields of
most blocks are hashed once and never looked at again, so each is turned into bytes or a number where it is used, once.
Fields that we do not need are skipped without being stored. Nodes differ; what differs and is tolerated:

- `type` is absent on nodes older than EIP-2718: such a transaction is a legacy one.
- `yParity` is absent on older nodes: `v` stands in. Where both are there they must agree.
- `status` is absent or null in a receipt from before Byzantium (EIP-658), which carries the state root `root` instead.
- `withdrawals`, `baseFeePerGas` and the like are absent or null before the fork that brought them.
- Transactions that nobody signed (`chains.evm.dialect`) have a signature of zeros, or none.

**One reading.** Every hex string is read from its third character on, by `quantity_of` as a number and by `bytes_of` as
bytes, and the proof hashes exactly those characters. A string must never mean one thing to the proof and another to
the decoder, or a node could slip a forged value past a correct hash.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, TypeVar

import msgspec
from msgspec import Meta, Struct, field

from chains.evm.dialect import Dialect
from chains.evm.errors import ProofFailure

Quantity = Annotated[str, Meta(min_length=3, max_length=66)]
"""`0x` and a number of up to 256 bits, without padding."""
Data = Annotated[str, Meta(min_length=2)]
"""`0x` and any number of bytes."""
Hex8 = Annotated[str, Meta(min_length=18, max_length=18)]
Hex20 = Annotated[str, Meta(min_length=42, max_length=42)]
Hex32 = Annotated[str, Meta(min_length=66, max_length=66)]
Hex256 = Annotated[str, Meta(min_length=514, max_length=514)]


class WireHeader(Struct, rename="camel", gc=False):
    """A header, as `eth_getBlockByNumber(.., false)` and `newHeads` give it: every field that enters the block hash.

    The fields after `nonce` came with forks and are None before them: London (EIP-1559), Shanghai (EIP-4895), Cancun
    (EIP-4844, EIP-4788), Prague (EIP-7685), Amsterdam (EIP-7928, EIP-7843). Osaka adds none. From
    `ext_data_hash` on they are Avalanche's (`chains.evm.header`).

    `dialect` goes with the value, so that what was decoded as one dialect's is proven and read as that dialect's.
    """

    dialect: ClassVar[Dialect] = Dialect.ETHEREUM

    hash: Hex32
    parent_hash: Hex32
    sha3_uncles: Hex32
    miner: Hex20
    state_root: Hex32
    transactions_root: Hex32
    receipts_root: Hex32
    logs_bloom: Hex256
    difficulty: Quantity
    number: Quantity
    gas_limit: Quantity
    gas_used: Quantity
    timestamp: Quantity
    extra_data: Data
    mix_hash: Hex32
    nonce: Hex8
    base_fee_per_gas: Quantity | None = None
    withdrawals_root: Hex32 | None = None
    blob_gas_used: Quantity | None = None
    excess_blob_gas: Quantity | None = None
    parent_beacon_block_root: Hex32 | None = None
    requests_hash: Hex32 | None = None
    block_access_list_hash: Hex32 | None = None
    slot_number: Quantity | None = None
    ext_data_hash: Hex32 | None = None
    ext_data_gas_used: Quantity | None = None
    block_gas_cost: Quantity | None = None
    timestamp_milliseconds: Quantity | None = None
    min_delay_excess: Quantity | None = None
    target_exponent: Quantity | None = None
    settled_height: Quantity | None = None


class AvalancheHeader(WireHeader, rename="camel", gc=False):
    """A header of Avalanche's C-Chain."""

    dialect: ClassVar[Dialect] = Dialect.AVALANCHE


class WireAccess(Struct, rename="camel", gc=False):
    """One row of an access list (EIP-2930)."""

    address: Hex20
    storage_keys: list[Hex32]


class WireAuthorization(Struct, rename="camel", gc=False):
    """One signed delegation of a type 0x4 transaction (EIP-7702)."""

    chain_id: Quantity
    address: Hex20
    nonce: Quantity
    r: Quantity
    s: Quantity
    y_parity: Quantity


class WireTransaction(Struct, rename="camel", gc=False):
    """A transaction of any type of Ethereum: legacy, 0x1, 0x2, 0x3, 0x4; one of another type decodes and fails proof.

    `sender` is the node's claim (`from`), true only once it is compared with the signature. `gas_price` is the
    sender's own price for legacy and 0x1, and the node's arithmetic for the later types: never used there.
    """

    hash: Hex32
    nonce: Quantity
    gas: Quantity
    value: Quantity
    input: Data
    v: Quantity
    r: Quantity
    s: Quantity
    sender: Hex20 = field(name="from")
    to: Hex20 | None = None
    type: Quantity | None = None
    block_hash: Hex32 | None = None
    transaction_index: Quantity | None = None
    gas_price: Quantity | None = None
    chain_id: Quantity | None = None
    y_parity: Quantity | None = None
    max_priority_fee_per_gas: Quantity | None = None
    max_fee_per_gas: Quantity | None = None
    max_fee_per_blob_gas: Quantity | None = None
    access_list: list[WireAccess] | None = None
    blob_versioned_hashes: list[Hex32] | None = None
    authorization_list: list[WireAuthorization] | None = None


class OpStackTransaction(WireTransaction, rename="camel", gc=False, kw_only=True):
    """A transaction of an OP Stack chain. The fields here are those of a deposit (0x7e), which nobody signed."""

    v: Quantity = "0x0"
    r: Quantity = "0x0"
    s: Quantity = "0x0"
    nonce: Quantity = "0x0"
    source_hash: Hex32 | None = None
    mint: Quantity | None = None
    is_system_tx: bool | None = None


class ArbitrumTransaction(WireTransaction, rename="camel", gc=False, kw_only=True):
    """A transaction of an Arbitrum chain. The fields here are those of types 0x64 to 0x6a, which nobody signed."""

    v: Quantity = "0x0"
    r: Quantity = "0x0"
    s: Quantity = "0x0"
    request_id: Hex32 | None = None
    ticket_id: Hex32 | None = None
    refund_to: Hex20 | None = None
    max_refund: Quantity | None = None
    submission_fee_refund: Quantity | None = None
    l1_base_fee: Quantity | None = None
    deposit_value: Quantity | None = None
    retry_to: Hex20 | None = None
    retry_value: Quantity | None = None
    retry_data: Data | None = None
    beneficiary: Hex20 | None = None
    max_submission_fee: Quantity | None = None


class WireLog(Struct, rename="camel", gc=False):
    """A log. Its address, topics and data are under the receipts root; the other fields are checked for order only."""

    address: Hex20
    topics: list[Hex32]
    data: Data
    log_index: Quantity
    block_hash: Hex32
    transaction_hash: Hex32
    transaction_index: Quantity
    removed: bool | None = None


class WireReceipt(Struct, rename="camel", gc=False):
    """A receipt. `status` or, before Byzantium, `root`; `gas_used` is derivable and compared where it is given."""

    transaction_hash: Hex32
    transaction_index: Quantity
    block_hash: Hex32
    cumulative_gas_used: Quantity
    logs: list[WireLog]
    type: Quantity | None = None
    status: Quantity | None = None
    root: Hex32 | None = None
    gas_used: Quantity | None = None
    logs_bloom: Hex256 | None = None


class OpStackReceipt(WireReceipt, rename="camel", gc=False, kw_only=True):
    """A receipt of an OP Stack chain. The fields here are those of a deposit's, since Regolith and since Canyon."""

    deposit_nonce: Quantity | None = None
    deposit_receipt_version: Quantity | None = None


class WireWithdrawal(Struct, rename="camel", gc=False):
    """A validator withdrawal (EIP-4895). `amount` is in Gwei."""

    index: Quantity
    validator_index: Quantity
    address: Hex20
    amount: Quantity


class WireBlock(WireHeader, rename="camel", gc=False, kw_only=True):
    """A block with full transactions, as `eth_getBlockByNumber(.., true)` gives it."""

    transactions: Sequence[WireTransaction]
    withdrawals: list[WireWithdrawal] | None = None


class OpStackBlock(WireBlock, rename="camel", gc=False, kw_only=True):
    """A block of an OP Stack chain."""

    dialect: ClassVar[Dialect] = Dialect.OP_STACK
    transactions: Sequence[OpStackTransaction]


class ArbitrumBlock(WireBlock, rename="camel", gc=False, kw_only=True):
    """A block of an Arbitrum chain."""

    dialect: ClassVar[Dialect] = Dialect.ARBITRUM
    transactions: Sequence[ArbitrumTransaction]


class PolygonBlock(WireBlock, rename="camel", gc=False, kw_only=True):
    """A block of Polygon PoS."""

    dialect: ClassVar[Dialect] = Dialect.POLYGON


class AvalancheBlock(WireBlock, rename="camel", gc=False, kw_only=True):
    """A block of Avalanche's C-Chain."""

    dialect: ClassVar[Dialect] = Dialect.AVALANCHE


_Answer = TypeVar("_Answer")

_HEADERS: dict[Dialect, type[WireHeader]] = {Dialect.AVALANCHE: AvalancheHeader}
_BLOCKS: dict[Dialect, type[WireBlock]] = {
    block.dialect: block for block in (WireBlock, OpStackBlock, ArbitrumBlock, PolygonBlock, AvalancheBlock)
}
_RECEIPTS: dict[Dialect, type[WireReceipt]] = {Dialect.OP_STACK: OpStackReceipt}

_header_decoders: dict[Dialect, msgspec.json.Decoder[Any]] = {
    dialect: msgspec.json.Decoder(_HEADERS.get(dialect, WireHeader) | None) for dialect in Dialect
}
_block_decoders: dict[Dialect, msgspec.json.Decoder[Any]] = {
    dialect: msgspec.json.Decoder(_BLOCKS[dialect] | None) for dialect in Dialect
}
_receipts_decoders: dict[Dialect, msgspec.json.Decoder[Any]] = {
    dialect: msgspec.json.Decoder(list[_RECEIPTS.get(dialect, WireReceipt)] | None)  # type: ignore[misc]
    for dialect in Dialect
}


def decode_header(answer: bytes | msgspec.Raw, dialect: Dialect = Dialect.ETHEREUM) -> WireHeader | None:
    """The header in the JSON of a `result`; None for `null` (no such block). Raises `ProofFailure("structure")`."""
    header: WireHeader | None = _decode(_header_decoders[dialect], answer, "header")
    return header


def decode_block(answer: bytes | msgspec.Raw, dialect: Dialect = Dialect.ETHEREUM) -> WireBlock | None:
    """The block in the JSON of a `result`; None for `null` (no such block). Raises `ProofFailure("structure")`."""
    block: WireBlock | None = _decode(_block_decoders[dialect], answer, "block")
    return block


def decode_receipts(answer: bytes | msgspec.Raw, dialect: Dialect = Dialect.ETHEREUM) -> list[WireReceipt] | None:
    """The receipts in the JSON of a `result` of `eth_getBlockReceipts`; None for `null`. Raises
    `ProofFailure("structure")`."""
    receipts: list[WireReceipt] | None = _decode(_receipts_decoders[dialect], answer, "receipts")
    return receipts


def _decode(decoder: msgspec.json.Decoder[_Answer], answer: bytes | msgspec.Raw, what: str) -> _Answer:
    try:
        return decoder.decode(answer)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProofFailure("structure", f"the node's {what} is malformed: {error}") from error


def quantity_of(text: str) -> int:
    """The number that a quantity names. Raises `ProofFailure("structure")` when it is not hexadecimal."""
    try:
        return int(text[2:], 16)
    except ValueError:
        raise ProofFailure("structure", f"not a hexadecimal number: {text[:80]!r}") from None


def bytes_of(text: str) -> bytes:
    """The bytes that a hex string names. Raises `ProofFailure("structure")` when it is not hexadecimal."""
    return packed(text[2:])


def packed(digits: str) -> bytes:
    """The bytes of hex digits. Raises `ProofFailure("structure")` for anything else, whitespace too, which
    `bytes.fromhex` would skip: a gap could move digits from one field into the next."""
    try:
        raw = bytes.fromhex(digits)
    except ValueError:
        raise ProofFailure("structure", f"not hexadecimal: {digits[:80]!r}") from None
    if len(raw) * 2 != len(digits):
        raise ProofFailure("structure", f"not hexadecimal: {digits[:80]!r}")
    return raw
