"""A header proves itself: its hash is the hash of its fields."""

from __future__ import annotations

from chains.evm.dialect import Dialect
from chains.evm.errors import ProofFailure
from chains.evm.keccak import keccak
from chains.evm.rlp import list_hex, quantity_hex, string_hex
from chains.evm.wire import WireHeader, bytes_of, packed, quantity_of
from chains.model import BlockHash, BlockRef


def header_hash(header: WireHeader) -> BlockHash:
    """The block's hash, recomputed from the header's fields (Yellow Paper, section 4.4, and the forks up to Amsterdam).
    Raises `ProofFailure("structure")` for a header that its dialect cannot have."""
    fields = [
        "a0" + header.parent_hash[2:],
        "a0" + header.sha3_uncles[2:],
        "94" + header.miner[2:],
        "a0" + header.state_root[2:],
        "a0" + header.transactions_root[2:],
        "a0" + header.receipts_root[2:],
        "b90100" + header.logs_bloom[2:],
        quantity_hex(header.difficulty),
        quantity_hex(header.number),
        quantity_hex(header.gas_limit),
        quantity_hex(header.gas_used),
        quantity_hex(header.timestamp),
        string_hex(header.extra_data),
        "a0" + header.mix_hash[2:],
        "88" + header.nonce[2:],
    ]
    later = _avalanche_fields(header) if header.dialect is Dialect.AVALANCHE else _fork_fields(header)
    return keccak(packed(list_hex("".join(fields + _without_gaps(header, later)))))


def prove_header(header: WireHeader) -> None:
    """Check that the header's fields give the hash that it names. Raises `ProofFailure("header_hash")`."""
    computed = header_hash(header)
    if computed != bytes_of(header.hash):
        raise ProofFailure(
            "header_hash",
            f"the header's fields give 0x{computed.hex()}, the node says {header.hash}: a field is altered,"
            " or a fork that this version does not know added one",
        )


def header_ref(header: WireHeader) -> BlockRef:
    """The block's place, as the header names it: a claim until `prove_header` or `prove_block` has passed."""
    return BlockRef(quantity_of(header.number), bytes_of(header.hash), bytes_of(header.parent_hash))


def _fork_fields(header: WireHeader) -> list[str | None]:
    """The fields that forks appended, in their order (go-ethereum `core/types/block.go`)."""
    return [
        _quantity(header.base_fee_per_gas),
        _word(header.withdrawals_root),
        _quantity(header.blob_gas_used),
        _quantity(header.excess_blob_gas),
        _word(header.parent_beacon_block_root),
        _word(header.requests_hash),
        _word(header.block_access_list_hash),
        _quantity(header.slot_number),
    ]


def _avalanche_fields(header: WireHeader) -> list[str | None]:
    """The C-Chain's own, in their order (avalanchego `graft/coreth/plugin/evm/customtypes/header_ext.go`): the first is in
    every header, the others came with Apricot, Etna and Granite.

    A header with the fields of Helicon commits to the receipts of *earlier* blocks (ACP-194): it could hash rightly and
    would prove nothing of its own receipts, so it is refused.
    """
    if header.ext_data_hash is None:
        raise ProofFailure("structure", f"header {header.hash} has no extDataHash")
    if header.target_exponent is not None or header.settled_height is not None:
        message = f"header {header.hash} is of the Helicon fork, whose receipts lie under the roots of later blocks"
        raise ProofFailure("structure", message)
    return [
        _word(header.ext_data_hash),
        _quantity(header.base_fee_per_gas),
        _quantity(header.ext_data_gas_used),
        _quantity(header.block_gas_cost),
        _quantity(header.blob_gas_used),
        _quantity(header.excess_blob_gas),
        _word(header.parent_beacon_block_root),
        _quantity(header.timestamp_milliseconds),
        _quantity(header.min_delay_excess),
    ]


def _quantity(value: str | None) -> str | None:
    return None if value is None else quantity_hex(value)


def _word(value: str | None) -> str | None:
    return None if value is None else "a0" + value[2:]


def _without_gaps(header: WireHeader, fields: list[str | None]) -> list[str]:
    """The fields that are there. RLP does not name fields: were one absent before one that is present, a node could pass
    the withdrawals root off as a later field and hide the withdrawals under a right hash."""
    present = [field for field in fields if field is not None]
    if present != fields[: len(present)]:
        raise ProofFailure("structure", f"header {header.hash} has a later fork's field without an earlier one's")
    return present
