"""What a sink's record must show once all has come to rest. Pure.

Every event that was committed has come to each endpoint that wants it, and nothing else has; signed, with the stored bytes;
the first arrivals of an entry's events in sequence; and again only where a lease was lost, or where the sink had refused.
Each attempt was counted, and counted for a reason.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tests.fakes.sink import Receipt

Key = tuple[str, str]
"""Endpoint and event."""

ACCEPTED = 204
CLOCK_ROUNDING_S = 1


@dataclass(frozen=True, slots=True)
class Owed:
    """A delivery as the ledger has it, with its event."""

    endpoint_id: str
    event_id: str
    subject: str
    sequence: int
    body: bytes
    recorded_at: float
    state: str
    attempts: int

    @property
    def key(self) -> Key:
        """What it is known by at the sink."""
        return self.endpoint_id, self.event_id


def faults(
    promised: set[Key],
    owed: Sequence[Owed],
    receipts: Sequence[Receipt],
    lost: Mapping[Key, int],
    unknown: Mapping[Key, int],
) -> list[str]:
    """What is wrong, a sentence for each. `promised` is what the writer was told is committed, to all that want it;
    `lost` counts the leases that ended under their holders, `unknown` those that nobody knew of to hold: of these nothing
    can have been sent."""
    return [
        *_faults_of_sets(promised, owed, receipts),
        *_faults_of_receipts({row.key: row for row in owed}, receipts),
        *_faults_of_order(receipts),
        *_faults_of_counts(owed, receipts, lost, unknown),
    ]


def _faults_of_sets(promised: set[Key], owed: Sequence[Owed], receipts: Sequence[Receipt]) -> Iterator[str]:
    stored = {row.key for row in owed}
    accepted = {_key(receipt) for receipt in receipts if receipt.status == ACCEPTED}
    yield from (f"{key} was committed and is owed to nobody" for key in promised - stored)
    yield from (f"{key} is owed and was not committed" for key in stored - promised)
    yield from (f"{key} never came" for key in promised - accepted)
    yield from (f"{key} came and was not committed" for key in {_key(receipt) for receipt in receipts} - promised)
    yield from (f"{row.key} is {row.state}" for row in owed if row.state != "delivered")


def _faults_of_receipts(owed: Mapping[Key, Owed], receipts: Sequence[Receipt]) -> Iterator[str]:
    for receipt in receipts:
        key = _key(receipt)
        if not receipt.is_signed:
            yield f"{key} came with a signature that does not hold"
        if (row := owed.get(key)) is None:
            continue
        if receipt.body != row.body or (receipt.subject, receipt.sequence) != (row.subject, row.sequence):
            yield f"{key} came with other bytes than are stored"
        if not row.recorded_at - CLOCK_ROUNDING_S <= receipt.timestamp <= receipt.received_at:
            yield f"{key} was signed for {receipt.timestamp}, received at {receipt.received_at}"


def _faults_of_order(receipts: Sequence[Receipt]) -> Iterator[str]:
    """A merchant goes by the first arrival of each event. None here fails five times, so nothing may overtake."""
    firsts: dict[tuple[str, str], list[int]] = defaultdict(list)
    for receipt in receipts:
        told = firsts[receipt.endpoint_id, receipt.subject]
        if receipt.sequence not in told:
            told.append(receipt.sequence)
    for lane, told in firsts.items():
        if told != list(range(1, len(told) + 1)):
            yield f"{lane} was told in the order {told}"


def _faults_of_counts(
    owed: Sequence[Owed], receipts: Sequence[Receipt], lost: Mapping[Key, int], unknown: Mapping[Key, int]
) -> Iterator[str]:
    came = Counter(_key(receipt) for receipt in receipts)
    refused = Counter(_key(receipt) for receipt in receipts if receipt.status != ACCEPTED)
    for row in owed:
        to_send = 1 + lost.get(row.key, 0) + refused[row.key]
        to_claim = to_send + unknown.get(row.key, 0)
        if row.attempts > to_claim:
            yield f"{row.key} was attempted {row.attempts} times, for which there are {to_claim} reasons"
        if came[row.key] > to_send:
            yield f"{row.key} came {came[row.key]} times, for which there are {to_send} reasons"
        if came[row.key] > row.attempts:
            yield f"{row.key} came {came[row.key]} times and was counted {row.attempts} times"


def _key(receipt: Receipt) -> Key:
    return receipt.endpoint_id, receipt.event_id
