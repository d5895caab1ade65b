"""How a block proves itself. Pure: the node's answer in, nothing or `ProofFailure` out.

The best documented way to lose a deposit is a node that answers HTTP 200 with an incomplete list. The levels, each with
everything of the one before it:

- `off`: nothing is checked.
- `structure`: as many receipts as transactions, each naming this block, its transaction and its place; log indexes count
  from 0 without a hole; gas adds up. A node that cut its answer short, or mixed two blocks, is caught.
- `bloom`: the bloom filter recomputed from the logs *equals* the header's and each receipt's. A node that left a log out
  is caught, unless every bit of that log is set by others: at busy heights not a rare thing.
- `roots`: the header hash, the transactions root, the receipts root and the withdrawals root are recomputed from the
  fields, and each transaction's hash and sender from its bytes and signature. Nothing of a block that has this hash can
  be left out or altered. (That this block is the chain's own is not for here: agreement between hosts says so.)

Dialects (`chains.evm.dialect`) differ in how things are encoded, not in what is checked, with one exception: Polygon's state
syncs before Madhugiri are under no commitment (`chains.evm.polygon`). They are checked for their place alone.

Where an operator only observes (`observe_block`), all checks run, nothing is refused but what cannot be decoded, and the
level is the one that was really reached.

What is *not* under any commitment is derived where it is needed and never read: the address of a created contract
(`chains.evm.senders`), gas used by a transaction and the price it paid (`chains.evm.transfers`). Below `roots` the
sender is the node's word. A log's and a receipt's place (indexes, hashes) is checked for order at every level.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

from chains.evm import arbitrum, op_stack, polygon
from chains.evm.bloom import bloom_of
from chains.evm.dialect import Dialect
from chains.evm.envelope import Envelope, envelope_of, type_of
from chains.evm.errors import ProofFailure
from chains.evm.header import prove_header
from chains.evm.receipt import receipt_bytes, withdrawal_bytes
from chains.evm.senders import senders_of
from chains.evm.trie import EMPTY_ROOT, ordered_root
from chains.evm.wire import WireBlock, WireLog, WireReceipt, WireTransaction, bytes_of, quantity_of
from chains.model import ProofLevel

Encoder = Callable[[WireTransaction], Envelope]

_ENCODERS: Mapping[Dialect, Encoder] = {
    Dialect.OP_STACK: op_stack.op_stack_envelope,
    Dialect.ARBITRUM: arbitrum.arbitrum_envelope,
}
_UNMETERED: Mapping[Dialect, frozenset[int]] = {
    Dialect.OP_STACK: op_stack.UNMETERED,
    Dialect.ARBITRUM: arbitrum.UNMETERED,
    Dialect.POLYGON: polygon.UNMETERED,
}
_WITHOUT_WITHDRAWALS = frozenset((Dialect.OP_STACK, Dialect.AVALANCHE))
"""Their headers have no withdrawals root: the field is absent, or since Isthmus holds another root (op-geth
`core/types/block.go`, specs `protocol/isthmus/exec-engine.md`). No such block has withdrawals."""


def prove_block(
    block: WireBlock,
    receipts: Sequence[WireReceipt],
    level: ProofLevel,
    state_sync: bytes | None = None,
) -> None:
    """Check a block and its receipts up to `level`. `state_sync` are the bytes of the block's last transaction where it is a
    Polygon state sync (`polygon.STATE_SYNC`). Raises `ProofFailure`, whose `check` names what did not hold."""
    checks = _Checks(block, receipts, state_sync)
    for _, check in checks.up_to(level):
        check()


@dataclass(frozen=True, slots=True)
class Observed:
    """What the checks find where they are not enforced."""

    level: ProofLevel
    """Up to here everything held."""
    failures: tuple[ProofFailure, ...]
    """What did not, one of each check."""


def observe_block(
    block: WireBlock,
    receipts: Sequence[WireReceipt],
    level: ProofLevel,
    state_sync: bytes | None = None,
) -> Observed:
    """Run every check up to `level`, and say how far the block really proved itself.

    What decoding needs is required all the same: a receipt for each transaction, in its place, and all of this block. Raises
    `ProofFailure` where that does not hold.
    """
    if level is ProofLevel.OFF:
        return Observed(level, ())
    _require_belonging(block, receipts)
    reached = ProofLevel.OFF
    failures: dict[str, ProofFailure] = {}
    for claimed, checks in groupby(_Checks(block, receipts, state_sync).up_to(level), key=lambda row: row[0]):
        for _, check in checks:
            try:
                check()
            except ProofFailure as failure:
                failures.setdefault(failure.check, failure)
            except ValueError as error:
                failures.setdefault(
                    "structure", ProofFailure("structure", f"a field of the block is malformed: {error}")
                )
        if not failures:
            reached = claimed
    return Observed(reached, tuple(failures.values()))


class _Checks:
    """The checks of one block, in their order; later ones use what earlier ones worked out."""

    def __init__(self, block: WireBlock, receipts: Sequence[WireReceipt], state_sync: bytes | None) -> None:
        self.block = block
        self.receipts = self.committed_receipts = receipts
        self.transactions: Sequence[WireTransaction] = block.transactions
        self.encode = _encoder_of(block.dialect, state_sync)
        self.blooms: list[str] | None = None
        self.envelopes: list[Envelope] | None = None

    def up_to(self, level: ProofLevel) -> Iterator[tuple[ProofLevel, Callable[[], None]]]:
        """Each check with the level that it belongs to; none of a level above the one that is asked for."""
        if level is ProofLevel.OFF:
            return
        yield ProofLevel.STRUCTURE, self._structure
        if level is ProofLevel.STRUCTURE:
            return
        if polygon.has_state_sync_apart(self.block):
            self.transactions, self.committed_receipts = self.transactions[:-1], self.receipts[:-1]
        yield ProofLevel.BLOOM, self._bloom
        if level is ProofLevel.BLOOM:
            return
        yield ProofLevel.ROOTS, partial(prove_header, self.block)
        yield ProofLevel.ROOTS, self._transactions
        yield ProofLevel.ROOTS, self._receipts
        yield ProofLevel.ROOTS, partial(_prove_withdrawals, self.block)
        yield ProofLevel.ROOTS, self._senders

    def _structure(self) -> None:
        _prove_structure(self.block, self.receipts)

    def _bloom(self) -> None:
        self.blooms = _prove_bloom(self.block, self.committed_receipts)

    def _transactions(self) -> None:
        self.envelopes = _prove_transactions(self.block, self.transactions, self.encode)

    def _receipts(self) -> None:
        blooms = self.blooms or [f"{bloom_of(receipt.logs):0512x}" for receipt in self.committed_receipts]
        _prove_receipts(self.block, self.transactions, self.committed_receipts, blooms)

    def _senders(self) -> None:
        envelopes = self.envelopes or [self.encode(transaction) for transaction in self.transactions]
        _prove_senders(self.transactions, envelopes)


def _encoder_of(dialect: Dialect, state_sync: bytes | None) -> Encoder:
    if dialect is Dialect.POLYGON:
        return partial(polygon.polygon_envelope, state_sync=state_sync)
    return _ENCODERS.get(dialect, envelope_of)


def _prove_structure(block: WireBlock, receipts: Sequence[WireReceipt]) -> None:
    if len(receipts) != len(block.transactions):
        raise ProofFailure("structure", f"{len(receipts)} receipts for {len(block.transactions)} transactions")
    apart = len(receipts)
    if polygon.has_state_sync_apart(block):
        polygon.check_state_sync_apart(block)
        apart -= 1
    unmetered = _UNMETERED.get(block.dialect, frozenset())
    gas_before = log_index = 0
    for index, (transaction, receipt) in enumerate(zip(block.transactions, receipts, strict=True)):
        _check_place(block, index, transaction, receipt)
        if receipt.type is not None and quantity_of(receipt.type) != type_of(transaction):
            raise ProofFailure("structure", f"receipt {index} is of type {receipt.type}, its transaction is not")
        log_index = _check_logs(receipt, log_index)
        if index < apart:
            gas_before = _check_gas(transaction, receipt, gas_before, unmetered)
    # Since Amsterdam a block counts gas otherwise than its receipts do (EIP-7778, EIP-8037).
    if gas_before != quantity_of(block.gas_used) and block.block_access_list_hash is None:
        raise ProofFailure("structure", f"receipts use {gas_before} gas, the header says {block.gas_used}")


def _require_belonging(block: WireBlock, receipts: Sequence[WireReceipt]) -> None:
    """A receipt for each transaction, in its place, and all of them and their logs of this block: without that nothing could
    be said of what the block moves."""
    if len(receipts) != len(block.transactions):
        raise ProofFailure("structure", f"{len(receipts)} receipts for {len(block.transactions)} transactions")
    for index, (transaction, receipt) in enumerate(zip(block.transactions, receipts, strict=True)):
        _check_place(block, index, transaction, receipt)
        for log in receipt.logs:
            _check_log_place(receipt, log)


def _check_place(block: WireBlock, index: int, transaction: WireTransaction, receipt: WireReceipt) -> None:
    """The transaction and its receipt stand at `index` of this block, and belong together."""
    if transaction.block_hash not in (block.hash, None):
        raise ProofFailure("structure", f"transaction {index} is of block {transaction.block_hash}, not {block.hash}")
    if transaction.transaction_index is not None and quantity_of(transaction.transaction_index) != index:
        raise ProofFailure("structure", f"transaction {index} says that its index is {transaction.transaction_index}")
    if receipt.block_hash != block.hash:
        raise ProofFailure("structure", f"receipt {index} is of block {receipt.block_hash}, not {block.hash}")
    if receipt.transaction_hash != transaction.hash:
        raise ProofFailure("structure", f"receipt {index} is of transaction {receipt.transaction_hash}")
    if quantity_of(receipt.transaction_index) != index:
        raise ProofFailure("structure", f"receipt {index} says that its index is {receipt.transaction_index}")


def _check_gas(transaction: WireTransaction, receipt: WireReceipt, gas_before: int, unmetered: frozenset[int]) -> int:
    """Gas grows from receipt to receipt by what the receipt says it used; returns the sum so far."""
    gas_after = quantity_of(receipt.cumulative_gas_used)
    if gas_after < gas_before or (gas_after == gas_before and type_of(transaction) not in unmetered):
        raise ProofFailure("structure", f"receipt {receipt.transaction_index} used no gas")
    if receipt.gas_used is not None and quantity_of(receipt.gas_used) != gas_after - gas_before:
        raise ProofFailure("structure", f"receipt {receipt.transaction_index} does not add up to its cumulative gas")
    return gas_after


def _check_logs(receipt: WireReceipt, log_index: int) -> int:
    """Log indexes go on without a hole, and each log names its block and transaction; returns the next index."""
    for log in receipt.logs:
        if quantity_of(log.log_index) != log_index:
            raise ProofFailure("structure", f"log {log_index} says that its index is {log.log_index}")
        _check_log_place(receipt, log)
        log_index += 1
    return log_index


def _check_log_place(receipt: WireReceipt, log: WireLog) -> None:
    if (
        log.block_hash != receipt.block_hash
        or log.transaction_hash != receipt.transaction_hash
        or log.transaction_index != receipt.transaction_index
        or log.removed
    ):
        raise ProofFailure("structure", f"log {log.log_index} is not of transaction {receipt.transaction_hash}")


def _prove_bloom(block: WireBlock, receipts: Sequence[WireReceipt]) -> list[str]:
    """Returns the digits of each receipt's bloom, which the receipts root needs too."""
    block_bloom = 0
    blooms = []
    for receipt in receipts:
        bloom = bloom_of(receipt.logs)
        block_bloom |= bloom
        digits = f"{bloom:0512x}"
        if receipt.logs_bloom is not None and receipt.logs_bloom[2:].lower() != digits:
            raise ProofFailure("bloom", f"receipt {receipt.transaction_index}: its bloom is not that of its logs")
        blooms.append(digits)
    if block.logs_bloom[2:].lower() != f"{block_bloom:0512x}":
        raise ProofFailure("bloom", "the header's bloom is not that of the logs: a log is missing, added or altered")
    return blooms


def _prove_transactions(block: WireBlock, transactions: Sequence[WireTransaction], encode: Encoder) -> list[Envelope]:
    envelopes = [encode(transaction) for transaction in transactions]
    for index, (transaction, envelope) in enumerate(zip(transactions, envelopes, strict=True)):
        if envelope.hash != bytes_of(transaction.hash):
            raise ProofFailure("transaction_hash", f"transaction {index} does not hash to {transaction.hash}")
    _compare_root("transactions_root", block.transactions_root, [envelope.raw for envelope in envelopes])
    return envelopes


def _prove_receipts(
    block: WireBlock, transactions: Sequence[WireTransaction], receipts: Sequence[WireReceipt], blooms: list[str]
) -> None:
    encoded = [receipt_bytes(*row) for row in zip(transactions, receipts, blooms, strict=True)]
    _compare_root("receipts_root", block.receipts_root, encoded)


def _prove_withdrawals(block: WireBlock) -> None:
    """A block either has both the list and its root, or neither (EIP-4895). Where the root is that of an empty list, a node
    may leave the list out: nothing can be hidden by that."""
    if block.withdrawals_root is None or block.dialect in _WITHOUT_WITHDRAWALS:
        if block.withdrawals:
            raise ProofFailure("withdrawals_root", f"{len(block.withdrawals)} withdrawals in a block without a root")
        return
    if block.withdrawals is None and bytes_of(block.withdrawals_root) != EMPTY_ROOT:
        raise ProofFailure("withdrawals_root", "the block has a withdrawals root, but the node gave no withdrawals")
    _compare_root("withdrawals_root", block.withdrawals_root, [withdrawal_bytes(w) for w in block.withdrawals or ()])


def _prove_senders(transactions: Sequence[WireTransaction], envelopes: list[Envelope]) -> None:
    senders = senders_of(transactions, envelopes)
    for index, (transaction, sender) in enumerate(zip(transactions, senders, strict=True)):
        if sender != bytes_of(transaction.sender):
            signer = f"0x{sender.hex()}"
            raise ProofFailure("sender", f"transaction {index} is signed by {signer}, not by {transaction.sender}")


def _compare_root(check: str, claimed: str, items: list[bytes]) -> None:
    computed = ordered_root(items)
    if computed != bytes_of(claimed):
        raise ProofFailure(check, f"{len(items)} items give 0x{computed.hex()}, the header says {claimed}")
