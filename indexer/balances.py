"""Whether an address's entries explain what it holds. Pure.

    holding at H = baseline at B + deposits - withdrawals - fees, of the entries in (B, H]

More than that is money which nobody was told of, whatever else is unknown: everything unknown takes. Less is a deposit that
never was, or a withdrawal that was not told, but only where all that the address paid is known. A transaction that moves
nothing of ours (an `approve()`) is no entry, and its fee is unknown; the account's nonce tells that there was one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from chains.model import Address, Asset, AssetKind, Holding
from ledger.ids import Side
from ledger.model import Entry
from ledger.states import Disposition, EntryState, Reason


class Verdict(StrEnum):
    """What a balance shows."""

    MATCHES = "matches"
    MISSING = "missing"
    """The address holds more than its entries explain: money arrived that was not told."""
    UNEXPLAINED = "unexplained"
    """It holds less: a deposit was invented, or a withdrawal was not told."""
    UNTOLD = "untold"
    """It cannot be told."""


class Untold(StrEnum):
    """Why it cannot be told."""

    UNKNOWN_FEES = "unknown_fees"
    """The address paid fees that are not known."""
    INTERNAL_NOT_READ = "internal_not_read"
    """Value that contracts send on is not read of this chain."""
    CHANGES_BY_ITSELF = "changes_by_itself"
    """The asset rebases, or takes a fee on transfer."""
    NO_STATE = "no_state"
    """No node has the state of the block any more, or none answers."""
    NO_BASELINE = "no_baseline"
    """Nothing is known of what it held before; from now on it is."""
    HOSTS_DIFFER = "hosts_differ"
    """Hosts say different things, and none of them what the ledger says."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a balance shows, and by how much."""

    verdict: Verdict
    expected: int
    found: int
    reason: Untold | None = None


def judge(
    address: Address,
    asset: Asset,
    baseline: Holding,
    holding: Holding,
    entries: Iterable[Entry],
    *,
    are_internals_read: bool,
) -> Judgement:
    """Compare what the address holds with the baseline and all entries, of every asset, between the two."""
    if asset.is_rebasing or asset.is_fee_on_transfer:
        return Judgement(Verdict.UNTOLD, baseline.amount_atomic, holding.amount_atomic, Untold.CHANGES_BY_ITSELF)
    movements = list({(entry.side, entry.transfer_id): entry for entry in entries}.values())
    moved = _Moved.of(entry for entry in movements if entry.asset_id == asset.id)
    is_native = asset.kind is AssetKind.NATIVE
    fees = _Fees.of(address, movements) if is_native else _Fees(0, 0, is_known=True)
    expected = baseline.amount_atomic + moved.amount - fees.paid
    found = holding.amount_atomic
    if expected - moved.doubtful_in <= found <= expected + moved.doubtful_out:
        return Judgement(Verdict.MATCHES, expected, found)
    if is_native and not are_internals_read:
        return Judgement(Verdict.UNTOLD, expected, found, Untold.INTERNAL_NOT_READ)
    if found > expected:
        return Judgement(Verdict.MISSING, expected, found)
    if is_native and not (fees.is_known and _has_sent(baseline, holding) == fees.transactions):
        return Judgement(Verdict.UNTOLD, expected, found, Untold.UNKNOWN_FEES)
    return Judgement(Verdict.UNEXPLAINED, expected, found)


@dataclass(frozen=True, slots=True)
class _Moved:
    """What entries of one asset say that moved."""

    amount: int
    doubtful_in: int
    """Of it, deposits that perhaps never were (`Reason.UNPROVEN_DESTRUCTION`)."""
    doubtful_out: int

    @staticmethod
    def of(entries: Iterable[Entry]) -> _Moved:
        """The sum. What failed moved nothing."""
        amount = doubtful_in = doubtful_out = 0
        for entry in entries:
            if entry.state is EntryState.FAILED:
                continue
            is_in = entry.side is Side.DEPOSIT
            amount += entry.amount_atomic if is_in else -entry.amount_atomic
            if entry.disposition is Disposition.IGNORE and Reason.UNPROVEN_DESTRUCTION.value in entry.reasons:
                doubtful_in += entry.amount_atomic * is_in
                doubtful_out += entry.amount_atomic * (not is_in)
        return _Moved(amount, doubtful_in, doubtful_out)


@dataclass(frozen=True, slots=True)
class _Fees:
    """What an address paid for the transactions that its entries tell of."""

    paid: int
    transactions: int
    is_known: bool

    @staticmethod
    def of(address: Address, entries: Iterable[Entry]) -> _Fees:
        """Each transaction's fee once, however many entries carry it; only withdrawals do."""
        fees: dict[bytes, int | None] = {}
        for entry in entries:
            if entry.transaction_hash is not None and entry.transaction_sender == address:
                known = fees.get(entry.transaction_hash)
                fees[entry.transaction_hash] = entry.fee_atomic if known is None else known
        return _Fees(sum(fee or 0 for fee in fees.values()), len(fees), None not in fees.values())


def _has_sent(baseline: Holding, holding: Holding) -> int | None:
    """How many transactions the account sent between the two. For an account with code the count may hold what it created,
    or authorizations (EIP-7702), and is then too high, which hides and never invents."""
    if baseline.nonce is None or holding.nonce is None:
        return None
    return holding.nonce - baseline.nonce


def up_to(entries: Iterable[Entry], height: int) -> list[Entry]:
    """The entries in blocks up to a height."""
    return [entry for entry in entries if entry.block_height is not None and entry.block_height <= height]
