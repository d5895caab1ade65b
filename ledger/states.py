"""Every state a row can be in, how it enters and how it leaves. Postgres holds a CHECK that mirrors each enum."""

from __future__ import annotations

from enum import StrEnum


class EntryState(StrEnum):
    """Where an entry stands. The arrows are `ENTRY_TRANSITIONS`; each is one event with the next sequence number."""

    DETECTED = "detected"
    """Enters when its block is in our canonical chain. Leaves to confirmed or reorged."""
    CONFIRMED = "confirmed"
    """Enters when the policy's credit point and the quorum are met. Leaves to finalized or reversed."""
    FINALIZED = "finalized"
    """Enters when the chain's finality covers its block. Leaves to reversed only by an operator's accepted reorg."""
    REORGED = "reorged"
    """Enters when it lost its block before the credit point. Leaves to detected when a later block includes it again, to
    failed when one includes its transaction and that fails, or to dropped."""
    REVERSED = "reversed"
    """Enters when it lost its block after the credit point: pages a human. Leaves like reorged."""
    FAILED = "failed"
    """Enters when a withdrawal's transaction was included and failed. Leaves to detected or reorged by a reorg."""
    DROPPED = "dropped"
    """Enters when a finalized block has spent its transaction's nonce otherwise. Final, unless an operator accepts a reorg
    of that block: then like reorged."""
    REPLACED = "replaced"
    """Enters like dropped, when it is a withdrawal and the watched address itself sent the other transaction of that
    nonce. Final like dropped."""


ENTRY_TRANSITIONS: dict[EntryState, frozenset[EntryState]] = {
    EntryState.DETECTED: frozenset({EntryState.CONFIRMED, EntryState.REORGED}),
    EntryState.CONFIRMED: frozenset({EntryState.FINALIZED, EntryState.REVERSED}),
    EntryState.FINALIZED: frozenset({EntryState.REVERSED}),
    EntryState.REORGED: frozenset({EntryState.DETECTED, EntryState.FAILED, EntryState.DROPPED, EntryState.REPLACED}),
    EntryState.REVERSED: frozenset({EntryState.DETECTED, EntryState.FAILED, EntryState.DROPPED, EntryState.REPLACED}),
    EntryState.FAILED: frozenset({EntryState.DETECTED, EntryState.REORGED}),
    EntryState.DROPPED: frozenset({EntryState.DETECTED, EntryState.FAILED}),
    EntryState.REPLACED: frozenset({EntryState.DETECTED, EntryState.FAILED}),
}

LOST_STATES = (EntryState.REORGED, EntryState.REVERSED)
"""States of entries that are in no canonical block, and that a later block may bring back."""

SPENT_STATES = (EntryState.DROPPED, EntryState.REPLACED)
"""States of entries whose transaction cannot come any more, as far as the chain is final."""

CREDITED_STATES = (EntryState.CONFIRMED, EntryState.FINALIZED)
"""States in which a deposit counts as credited: losing the block afterwards is a reversal, never silent."""


class Origin(StrEnum):
    """On which way an entry was found."""

    LIVE = "live"
    CATCH_UP = "catch_up"
    BACKFILL = "backfill"
    REPLAY = "replay"


class Disposition(StrEnum):
    """Whether an entry counts as money: a second axis beside the state."""

    CREDIT = "credit"
    IGNORE = "ignore"


class Reason(StrEnum):
    """Why an entry does not count as money. Decided when it is detected, and never changed afterwards."""

    FEE_ON_TRANSFER = "fee_on_transfer"
    """The token may keep a part of what it moves: the amount told is not what arrived."""
    REBASING = "rebasing"
    """The token changes balances without a transfer: the amount told does not stay what it was."""
    UNPROVEN_DESTRUCTION = "unproven_destruction"
    """By a trace a contract destroyed itself and left this, or was paid this in the transaction that created and destroyed
    it, and no proof of the account's balance bears it out."""


class BlockState(StrEnum):
    """Whether a block is in our chain. Facts are never deleted, only orphaned."""

    CANONICAL = "canonical"
    """Enters when committed, or when a reorg brings an orphaned block back."""
    ORPHANED = "orphaned"
    """Enters when a reorg leaves it behind; `orphaned_at` says when."""


class ChainState(StrEnum):
    """What the follower of a chain is doing."""

    FOLLOWING = "following"
    """At the head."""
    CATCHING_UP = "catching_up"
    """Far behind the head and fetching ahead."""
    HOLDING = "holding"
    """No node's answer can be used at the moment; tried again by itself."""
    HALTED = "halted"
    """A person has to decide: leaves only by `resume`."""
    STOPPED = "stopped"
    """No follower is at work. Never stored by a crash: readers derive it from an old heartbeat."""


class EndpointState(StrEnum):
    """Whether an endpoint is told of events."""

    ACTIVE = "active"
    PAUSED = "paused"
    """By its owner; deliveries are held until it is resumed."""
    DISABLED = "disabled"
    """By us, after it failed for long; deliveries are held until it is resumed."""


class EndpointHealth(StrEnum):
    """How an endpoint has answered lately; decides how much room its deliveries get. Derived, never stored."""

    ACCEPTING = "accepting"
    """It accepted something, and failed fewer than three times in a row since."""
    UNPROVEN = "unproven"
    """It never accepted anything yet."""
    FAILING = "failing"
    """It failed three times in a row, or did not answer in time: one delivery at a time until it accepts one."""


class DeliveryState(StrEnum):
    """What became of one event owed to one endpoint."""

    PENDING = "pending"
    """Enters at fan-out; due at `due_at`. Leaves to any other."""
    DELIVERED = "delivered"
    """Accepted with a 2xx; has `settled_at`."""
    HELD = "held"
    """Waits for its endpoint to be active again; burns no attempts. Leaves to pending, discarded or superseded."""
    EXHAUSTED = "exhausted"
    """All attempts were used; has `settled_at`; kept and listed."""
    REFUSED = "refused"
    """No retry can mend it (an address that must not be reached); has `settled_at`."""
    FAULTED = "faulted"
    """It could not be sent, and that is a fault of ours (`Fault` says which); has `settled_at`; kept and listed apart from
    what a receiver did not take."""
    DISCARDED = "discarded"
    """Given up by its owner; has `settled_at`."""
    SUPERSEDED = "superseded"
    """A newer event of the same subject was sent instead; has `settled_at`."""


SETTLED_STATES = (
    DeliveryState.DELIVERED,
    DeliveryState.EXHAUSTED,
    DeliveryState.REFUSED,
    DeliveryState.FAULTED,
    DeliveryState.DISCARDED,
    DeliveryState.SUPERSEDED,
)


class Fault(StrEnum):
    """What is wrong with us, where a delivery could not be sent."""

    UNOPENED = "secret_unopened"
    """The endpoint's signing secret does not open with our master key. The delivery stays pending, and burns no attempt."""
    UNSIGNABLE = "unsignable"
    """The event's id, or the endpoint's secret, is none that can be signed with, or the event is kept no longer."""
    BAD_HEADER = "bad_header"
    """A header of ours could not be sent."""
    WORKERS_DIED = "workers_died"
    """It was claimed as often as it may be, and its workers died each time."""


class AttemptError(StrEnum):
    """Why an attempt failed when a status code alone does not say it; stored and shown to the merchant."""

    TIMEOUT = "timeout"
    """No status within the time limit."""
    DNS = "dns"
    """The host's name did not resolve."""
    CONNECT = "connect"
    """Nothing accepted the connection."""
    TLS = "tls"
    """No trusted TLS session: an expired or foreign certificate, mostly."""
    RESET = "reset"
    """The connection ended before a status came."""
    PROTOCOL = "protocol"
    """What came was not HTTP."""
    TOO_LARGE = "too_large"
    """The answer's headers are larger than we read."""
    REDIRECT = "redirect"
    """A 3xx; the endpoint's URL has to be the final one."""
    ABANDONED = "abandoned"
    """We broke it off: this process stood still or had no thread free to look the name up, or another had taken the delivery
    over. Says nothing of the receiver."""
    REFUSED_ADDRESS = "refused_address"
    """The URL leads to an address or port that webhooks never go to."""
    BAD_URL = "bad_url"
    """The URL is one that would not be accepted today."""
    BAD_HEADER = "bad_header"
    """A header could not be sent as it is."""
    UNSIGNABLE = "unsignable"
    """The event's id or the endpoint's secret cannot be signed with."""


class JobKind(StrEnum):
    """What a job does."""

    BACKFILL = "backfill"
    """Reads the past for watches that asked for it, or for an asset that was listed later."""
    REPLAY = "replay"
    """Reads blocks again, and brings the ledger to what they say."""
    RECOVER = "recover"
    """Delivers events once more."""


class JobState(StrEnum):
    """Where a job stands. What it did so far is kept, whatever becomes of it."""

    QUEUED = "queued"
    """Enters when it is asked for. Leaves to running or cancelled."""
    RUNNING = "running"
    """Enters when a process takes it; one that dies is followed by another, which goes on where it stood."""
    DONE = "done"
    """All of it was done; has `ended_at`."""
    FAILED = "failed"
    """It cannot be done, and `reason` says why; has `ended_at`."""
    CANCELLED = "cancelled"
    """Its owner wanted no more of it; has `ended_at`."""


ENDED_STATES = (JobState.DONE, JobState.FAILED, JobState.CANCELLED)
"""States that a job does not leave."""


class Outcome(StrEnum):
    """What one attempt came to."""

    ACCEPTED = "accepted"
    RETRYABLE = "retryable"
    REFUSED = "refused"


ENTRY_EVENT_TYPES = tuple(
    f"deposit.{name}" for name in ("detected", "confirmed", "finalized", "moved", "reorged", "reversed", "dropped")
) + tuple(
    f"withdrawal.{name}"
    for name in ("detected", "confirmed", "finalized", "moved", "reorged", "reversed", "dropped", "failed", "replaced")
)

EVENT_TYPES = (
    *ENTRY_EVENT_TYPES,
    "watch.activated",
    "test.ping",
    "chain.halted",
    "chain.resumed",
    "chain.delayed",
    "chain.reorged",
    "chain.audit_failed",
    "endpoint.failing",
    "endpoint.paused",
    "endpoint.resumed",
)
"""Every type of event there is, in the order of the documentation."""
