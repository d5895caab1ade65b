"""A header proves itself: its hash is the hash of its fields."""

from __future__ import annotations

from chains.evm.errors import ProofFailure
from chains.evm.keccak import keccak
from chains.evm.rlp import list_hex, quantity_hex, string_hex
from chains.evm.wire import WireHeader, bytes_of, packed, quantity_of
from chains.model import BlockHash, BlockRef


def header_hash(header: WireHeader) -> BlockHash:
    """The block's hash, recomputed from the header's fields (Yellow Paper, section 4.4, and the forks up to Osaka)."""
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
        *_fork_fields(header),
    ]
    return keccak(packed(list_hex("".join(fields))))


def prove_header(header: WireHeader) -> None:
    """Check that the header's fields give the hash that it names. Raises `ProofFailure("header_hash")`."""
    computed = header_hash(header)
    if computed != bytes_of(header.hash):
        raise ProofFailure("header_hash", f"the header's fields give 0x{computed.hex()}, the node says {header.hash}")


def header_ref(header: WireHeader) -> BlockRef:
    """The block's place, as the header names it: a claim until `prove_header` or `prove_block` has passed."""
    return BlockRef(quantity_of(header.number), bytes_of(header.hash), bytes_of(header.parent_hash))


def _fork_fields(header: WireHeader) -> list[str]:
    """The fields that forks appended, in their order. RLP does not name fields: were one absent before one that is
    present, a node could pass the withdrawals root off as a later field and hide the withdrawals under a right hash.
    """
    fields = [
        header.base_fee_per_gas and quantity_hex(header.base_fee_per_gas),
        header.withdrawals_root and "a0" + header.withdrawals_root[2:],
        header.blob_gas_used and quantity_hex(header.blob_gas_used),
        header.excess_blob_gas and quantity_hex(header.excess_blob_gas),
        header.parent_beacon_block_root and "a0" + header.parent_beacon_block_root[2:],
        header.requests_hash and "a0" + header.requests_hash[2:],
    ]
    present = [field for field in fields if field]
    if present != fields[: len(present)]:
        raise ProofFailure("structure", f"header {header.hash} has a later fork's field without an earlier one's")
    return present
