"""By how much a block must have changed an account's balance, if all that we read of it is true. Pure.

Proven against the state roots of the block and of its parent (`chains.evm.account`), the true change is known. Where the two
are equal, the block's transfers to and from the account are all there are: nothing was invented, hidden or altered, not
even by the only tracing node there is. Where they are not, something is wrong with the traces, or the balance changed in a
way that is no transfer: value that reaches a contract after it destroyed itself in the same transaction, or that it leaves
to itself, is burned.
"""

from __future__ import annotations

from collections.abc import Iterable

from chains.evm.carrier import Carrier
from chains.evm.carriers import carriers_of
from chains.evm.keccak import keccak
from chains.evm.rlp import encode
from chains.evm.traces import InternalMove
from chains.evm.transfers import WEI_PER_GWEI
from chains.evm.wire import WireBlock, WireReceipt, bytes_of, quantity_of
from chains.model import Address

NO_UNCLES = keccak(encode([]))
"""What a header names as the hash of its uncles where it has none: always, since the Merge."""


def expected_change(
    address: Address,
    block: WireBlock,
    receipts: list[WireReceipt],
    moves: Iterable[InternalMove],
) -> int | None:
    """What a proven block and its internal movements add to the balance of `address` (in wei, negative where they take).

    None where it cannot be told exactly: the account gets the block's tips or rewards, or may (uncles); the fee of a
    transaction that it sent is not known (some dialects charge for more than gas); or nothing committed tells whether a
    transaction to or from it succeeded.
    """
    if address == bytes_of(block.miner) or bytes_of(block.sha3_uncles) != NO_UNCLES:
        return None
    change = 0
    for carrier in carriers_of(block, receipts):
        part = _change_by(carrier, address)
        if part is None:
            return None
        change += part
    for move in moves:
        change += move.amount_atomic * ((move.recipient == address) - (move.sender == address))
    for withdrawal in block.withdrawals or ():
        if bytes_of(withdrawal.address) == address:
            change += quantity_of(withdrawal.amount) * WEI_PER_GWEI
    return change


def _change_by(carrier: Carrier, address: Address) -> int | None:
    """What one transaction's own value, mint and fee add."""
    is_sender, amount, minted = carrier.sender() == address, carrier.amount(), carrier.mint()
    fee = carrier.fee() if is_sender else 0
    moved = amount * ((carrier.recipient() == address) - is_sender) if amount else 0
    has_succeeded = carrier.has_succeeded()
    if fee is None or (has_succeeded is None and moved):
        return None
    brought = minted.amount_atomic * (is_sender - (minted.source == address)) if minted is not None else 0
    return brought + (moved if has_succeeded else 0) - fee
