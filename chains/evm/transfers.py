"""Which value a block moves. Pure: a node's block and receipts in, transfers of known assets out.

- **Native value**: any `value > 0` of a transaction that succeeded, whatever its calldata. A transaction without a
  recipient credits the contract it creates, whose address is derived from sender and nonce.
- **Tokens** (ERC-20): what the logs of allow-listed contracts say (`chains.evm.tokens`).
- **Validator withdrawals** (EIP-4895): Gwei, credited by the protocol, carried by no transaction.
- **A failed transaction** is one transfer with `has_failed`: only its fee was spent.
- **Value from L1** (`chains.evm.op_stack`, `chains.evm.arbitrum`): some transactions first credit their sender with value
  that was locked elsewhere. That is a transfer of its own, with the path `mint`, from nobody or from an escrow account.
  When the value then goes on to another, that is a second transfer, as the balances have it; when sender and recipient
  are one, nothing more moves.
- **Internal value**: what traces say moved inside a transaction (`chains.evm.traces`), after its native value and before
  its logs. It carries the proof level of its traces.

When a transaction succeeded before receipts said so, and what it paid, is derived in `chains.evm.carrier`.

Every hex string is read from its third character on, as the proof reads it (see `chains.evm.wire`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from chains.evm.carrier import Carrier
from chains.evm.tokens import token_logs
from chains.evm.traces import InternalMove
from chains.evm.wire import WireBlock, bytes_of, quantity_of
from chains.model import (
    Address,
    Asset,
    ChainId,
    Locator,
    LocatorKind,
    Movement,
    ProofLevel,
    TraceProof,
    Transaction,
    Transfer,
    identify_transfers,
)
from chains.spends import Spend, pack_spends

WEI_PER_GWEI = 10**9

_NATIVE = Locator(LocatorKind.NATIVE)
_MINT = Locator(LocatorKind.NATIVE, "mint")
_FAILED = Locator(LocatorKind.TRANSACTION)


def decode_transfers(
    chain_id: ChainId,
    block: WireBlock,
    carriers: Sequence[Carrier],
    assets: Mapping[Address, Asset],
    native: Asset,
    internal: Sequence[InternalMove] = (),
    trace_proof: TraceProof | None = None,
) -> tuple[Transfer, ...]:
    """The transfers of `native` and of the tokens in `assets` (by contract), in the block's order: by transaction,
    native value, then internal value, then logs; validator withdrawals last. `internal` is what traces tell of the
    block, proven as far as `trace_proof` says.

    Raises `ProofFailure("structure")` when the answer is malformed; that it is true is for `prove_block` to say.
    """
    tokens = {address.hex(): asset for address, asset in assets.items()}
    moves: defaultdict[int, list[InternalMove]] = defaultdict(list)
    for move in internal:
        moves[move.transaction_index].append(move)
    movements: list[Movement] = []
    for carrier in carriers:
        movements += _movements_of(carrier, tokens, native, moves.get(carrier.index, []), trace_proof)
    movements += _withdrawals_of(block, native)
    return identify_transfers(chain_id, movements)


def decode_spends(carriers: Sequence[Carrier]) -> bytes:
    """The nonces that the block's transactions spend (`chains.spends`); one whose nonce nothing commits to is left out.
    Raises `ValueError` for a nonce that cannot be."""
    return pack_spends(
        Spend(carrier.sender(), nonce, bytes_of(carrier.wire.hash))
        for carrier in carriers
        if (nonce := carrier.nonce()) is not None
    )


def _movements_of(
    carrier: Carrier,
    tokens: Mapping[str, Asset],
    native: Asset,
    moves: Sequence[InternalMove],
    trace_proof: TraceProof | None,
) -> list[Movement]:
    has_succeeded = carrier.has_succeeded()
    logs = [] if has_succeeded is False else token_logs(carrier.receipt.logs, tokens)
    has_native = has_succeeded is False or carrier.amount() > 0 or carrier.mint() is not None
    if not has_native and not moves and not logs:
        return []
    transaction, proof = carrier.to_transaction(), carrier.proof()
    movements = _native_movements(carrier, transaction, native, proof) if has_native else []
    for move in moves:
        locator = Locator(LocatorKind.TRACE, move.path)
        movements.append(
            Movement(
                native.id,
                move.sender,
                move.recipient,
                move.amount_atomic,
                locator,
                transaction,
                proof=trace_proof,
                is_destruction=move.is_destruction,
            )
        )
    for found in logs:
        locator = Locator(LocatorKind.LOG, str(found.ordinal), quantity_of(found.log.log_index))
        movements.append(
            Movement(
                found.asset.id, found.sender, found.recipient, found.amount_atomic, locator, transaction, proof=proof
            )
        )
    return movements


def _native_movements(
    carrier: Carrier, transaction: Transaction, native: Asset, proof: ProofLevel | None
) -> list[Movement]:
    """What the transaction itself does with the native coin: minted, and then moved or failed to."""
    sender, recipient, amount, minted = transaction.sender, carrier.recipient(), carrier.amount(), carrier.mint()
    movements = []
    if minted is not None:
        movements.append(
            Movement(native.id, minted.source, sender, minted.amount_atomic, _MINT, transaction, proof=proof)
        )
    has_succeeded = carrier.has_succeeded()
    if has_succeeded is False:
        movements.append(Movement(native.id, sender, recipient, amount, _FAILED, transaction, True, proof))
    elif has_succeeded and amount > 0 and not (minted is not None and sender == recipient):
        movements.append(Movement(native.id, sender, recipient, amount, _NATIVE, transaction, proof=proof))
    return movements


def _withdrawals_of(block: WireBlock, native: Asset) -> Iterator[Movement]:
    for withdrawal in block.withdrawals or ():
        amount = quantity_of(withdrawal.amount) * WEI_PER_GWEI
        if amount > 0:
            locator = Locator(LocatorKind.VALIDATOR_WITHDRAWAL, str(quantity_of(withdrawal.index)))
            yield Movement(native.id, None, bytes_of(withdrawal.address), amount, locator, None)
