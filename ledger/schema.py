"""The tables, in the order in which data flows through them: chain, block, watch, entry, event, delivery, attempt. Keys and
the audit log are in `ledger/schema_access.py`, jobs in `ledger/schema_jobs.py`, lists' indexes in `ledger/schema_lists.py`.

The indexing protocol in short. A follower locks its chain's row, matches the addresses of a block against `watches`,
writes `entries`, `events` and `deliveries`, the block's row and the checkpoint (`chains.tip_*`), and commits: all or
nothing. Locks are taken in one order: chain row, tenants sorted by id, then the rest. Nothing here is ever deleted but
by housekeeping: a block that left our chain is `orphaned`, an entry that lost its block is `reorged` or `reversed`.

A table that a tenant owns has `tenant_id` first in its primary key. Hashes and addresses are `bytea`, amounts are
`numeric(78,0)` (2^256 has 78 digits), times are `timestamptz`. Comments below reach Postgres.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    LargeBinary,
    Numeric,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    text,
    true,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from chains.model import AssetKind, LocatorKind
from ledger import schema_access as schema_access
from ledger import schema_audit as schema_audit
from ledger import schema_health as schema_health
from ledger import schema_jobs as schema_jobs
from ledger.columns import AMOUNT, CHURNING, CLAIMED, TIME, iff, one_of
from ledger.columns import metadata as metadata
from ledger.ids import Side
from ledger.schema_lists import DELIVERY_LISTS, ENTRY_LISTS, WATCH_LISTS
from ledger.states import (
    SETTLED_STATES,
    BlockState,
    ChainState,
    DeliveryState,
    Disposition,
    EndpointState,
    EntryState,
    Fault,
    Origin,
    Outcome,
)

_LIVE = text("deleted_at IS NULL")

chains = Table(
    "chains",
    metadata,
    Column("chain_id", Text, primary_key=True, comment="CAIP-2 name, e.g. eip155:1"),
    Column("slug", Text, nullable=False, unique=True, comment="the operator's short name"),
    Column("profile", Text, nullable=False),
    Column("livemode", Boolean, nullable=False, comment="false on test networks"),
    Column("native_asset_id", Text, nullable=False, comment="CAIP-19 name of the native coin"),
    Column("state", Text, nullable=False, server_default=ChainState.STOPPED.value),
    Column("reason", Text, comment="why it is holding or halted; null otherwise"),
    Column("first_height", BigInteger, comment="first block that we followed; null before it"),
    Column("tip_height", BigInteger, comment="the checkpoint: newest committed block"),
    Column("tip_hash", LargeBinary),
    Column("tip_at", TIME, comment="timestamp in the tip's header"),
    Column("head_height", BigInteger, comment="newest block that a node claims"),
    Column("safe_height", BigInteger, comment="only rises, and only over blocks of ours"),
    Column("finalized_height", BigInteger, comment="only rises, and only over blocks of ours"),
    Column("finalized_hash", LargeBinary),
    Column("agreed_height", BigInteger, comment="highest block that a quorum of hosts names"),
    Column(
        "accepted_reorg_height", BigInteger, comment="an operator's leave to undo finalized blocks above it; used once"
    ),
    Column("quorum", SmallInteger, nullable=False, server_default="1", comment="hosts that must agree before credit"),
    Column("proof", Text, nullable=False, comment="configured proof level"),
    Column(
        "proof_enforced",
        Boolean,
        nullable=False,
        server_default=true(),
        comment="false: a block that fails its proof is taken at the level that it reached",
    ),
    Column("value_paths", ARRAY(Text), nullable=False, server_default="{}"),
    Column(
        "tracers",
        JSONB,
        nullable=False,
        server_default="{}",
        comment="by host, the method by which it was seen to trace: from then on a missing trace holds the chain",
    ),
    Column(
        "nodes", JSONB, nullable=False, server_default="[]", comment="each node as last seen: name, state, head, reason"
    ),
    Column("heartbeat_at", TIME, comment="last sign of life of the follower"),
    Column("delayed_since", TIME, comment="since when its tip has stood still for too long, as operators were told"),
    Column("audited_height", BigInteger, comment="highest block that the audit at finality has come to"),
    Column(
        "missed_deposits",
        BigInteger,
        nullable=False,
        server_default="0",
        comment="deposits that an audit found missing",
    ),
    CheckConstraint("(tip_height IS NULL) = (tip_hash IS NULL)", name="tip"),
    CheckConstraint("(finalized_height IS NULL) = (finalized_hash IS NULL)", name="finalized"),
    CheckConstraint("finalized_height <= tip_height", name="finalized_below_tip"),
    CheckConstraint("state NOT IN ('holding', 'halted') OR reason IS NOT NULL", name="reason"),
    one_of("state", ChainState),
    comment="one row for each followed chain: its checkpoint, and the lock under which blocks and watches meet",
    postgresql_with=CHURNING,
)

assets = Table(
    "assets",
    metadata,
    Column("asset_id", Text, primary_key=True, comment="CAIP-19 name, lower case"),
    Column("chain_id", Text, ForeignKey("chains.chain_id"), nullable=False),
    Column("symbol", Text, nullable=False, comment="for people: never decides anything"),
    Column("decimals", SmallInteger, nullable=False),
    Column("kind", Text, nullable=False),
    Column("contract", LargeBinary, comment="20 bytes; null for the native coin"),
    Column(
        "listed_from_height", BigInteger, comment="first height from which it is read; null: from the chain's first"
    ),
    CheckConstraint("decimals BETWEEN 0 AND 255", name="decimals"),
    one_of("kind", AssetKind),
    comment="native coins and allow-listed tokens: nothing else is ever an entry",
)

policies = Table(
    "policies",
    metadata,
    Column("chain_id", Text, ForeignKey("chains.chain_id"), nullable=False),
    Column("version", Integer, nullable=False),
    Column("rules", JSONB, nullable=False, comment="first-match rules: name, asset, amounts, credit_at"),
    Column("created_at", TIME, nullable=False),
    PrimaryKeyConstraint("chain_id", "version"),
    comment="when a deposit counts; an entry keeps the version that was in force when it was detected",
)

readings = Table(
    "readings",
    metadata,
    Column("chain_id", Text, ForeignKey("chains.chain_id"), nullable=False),
    Column("version", Integer, nullable=False),
    Column(
        "value_paths", ARRAY(Text), nullable=False, comment="what was read: native, logs, validator_withdrawals, traces"
    ),
    Column("asset_ids", ARRAY(Text), nullable=False, comment="the assets that were listed, sorted"),
    Column("decoder", Integer, nullable=False, comment="version of the code that read transfers"),
    Column("created_at", TIME, nullable=False),
    PrimaryKeyConstraint("chain_id", "version"),
    comment="what blocks were read for: a block read for other assets or value paths may hold transfers that nobody saw",
)

blocks = Table(
    "blocks",
    metadata,
    Column("chain_id", Text, ForeignKey("chains.chain_id"), nullable=False),
    Column("hash", LargeBinary, nullable=False),
    Column("height", BigInteger, nullable=False),
    Column("parent_hash", LargeBinary, nullable=False),
    Column("block_at", TIME, nullable=False, comment="timestamp in the header"),
    Column("state", Text, nullable=False),
    Column("proof", Text, nullable=False, comment="level that it proved itself to"),
    Column("agreed_by", SmallInteger, nullable=False, comment="hosts that name this hash"),
    Column("node", Text, nullable=False, comment="node that supplied it"),
    Column("transaction_count", Integer, nullable=False),
    Column("entry_count", Integer, nullable=False),
    Column("committed_at", TIME, nullable=False),
    Column("orphaned_at", TIME),
    Column("reading", Integer, comment="version of readings that it was read with; null before they were recorded"),
    Column("trace_proof", Text, comment="how far its traces are proven; null where there was nothing to trace"),
    PrimaryKeyConstraint("chain_id", "hash"),
    Index("uq_blocks_canonical", "chain_id", "height", unique=True, postgresql_where=text("state = 'canonical'")),
    Index("ix_blocks_height", "chain_id", "height"),
    one_of("state", BlockState),
    iff("orphaned_at", "state", (BlockState.ORPHANED,)),
    comment="a row for every block that we committed, the empty ones too: a reorg can move a deposit into an empty height;"
    " far below finality only those with entries, every 1,024th, and orphaned ones, and the rest is told by coverage",
)

coverage = Table(
    "coverage",
    metadata,
    Column("chain_id", Text, ForeignKey("chains.chain_id"), nullable=False),
    Column("id", BigInteger, Identity(), nullable=False),
    Column("from_height", BigInteger, nullable=False),
    Column("to_height", BigInteger, nullable=False, comment="included"),
    Column("parent_hash", LargeBinary, nullable=False, comment="of its first block: the hash of the block before it"),
    Column("hash", LargeBinary, nullable=False, comment="of its last block: by parent hashes it fixes all the others"),
    Column("state", Text, nullable=False),
    Column("reading", Integer, comment="version of readings that its blocks were read with; null: not recorded"),
    Column("proof", Text, nullable=False, comment="level that each of its blocks proved itself to"),
    Column("trace_proof", Text, comment="how far its traces are proven; null where there was nothing to trace"),
    Column("agreed_by", SmallInteger, nullable=False, comment="hosts, at least, that name each of its blocks"),
    Column("nodes", ARRAY(Text), nullable=False, comment="nodes that supplied its blocks"),
    Column("orphaned_at", TIME),
    PrimaryKeyConstraint("chain_id", "id"),
    ForeignKeyConstraint(["chain_id", "reading"], ["readings.chain_id", "readings.version"]),
    Index("uq_coverage_canonical", "chain_id", "to_height", unique=True, postgresql_where=text("state = 'canonical'")),
    one_of("state", BlockState),
    iff("orphaned_at", "state", (BlockState.ORPHANED,)),
    CheckConstraint("from_height <= to_height", name="heights"),
    comment="runs of committed blocks whose rows are gone: canonical ranges follow each other without a hole or an overlap,"
    " from the chain's first block on; block rows tell of every height above them",
)

spent_nonces = Table(
    "spent_nonces",
    metadata,
    Column("chain_id", Text, ForeignKey("chains.chain_id"), nullable=False),
    Column("block_hash", LargeBinary, nullable=False),
    Column("block_height", BigInteger, nullable=False),
    Column("sender", LargeBinary, nullable=False),
    Column("nonce", Numeric(20, 0), nullable=False, comment="what a lost entry's transaction would spend"),
    Column("spent_nonce", Numeric(20, 0), nullable=False, comment="the same, or a higher one, which shows it as well"),
    Column("transaction_hash", LargeBinary, nullable=False, comment="what the block has instead"),
    PrimaryKeyConstraint("chain_id", "sender", "nonce", "block_hash"),
    comment="blocks, canonical or orphaned since, after which a transaction that lost its block cannot come back",
)

tenants = Table(
    "tenants",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("feed_position", BigInteger, nullable=False, server_default="0", comment="position of its newest event"),
    Column("created_at", TIME, nullable=False),
    comment="a payment company that uses us; ten_ops is the operator",
    postgresql_with=CHURNING,
)

watches = Table(
    "watches",
    metadata,
    Column("tenant_id", Text, ForeignKey("tenants.id"), nullable=False),
    Column("id", Text, nullable=False),
    Column("scope", Text, nullable=False, comment="a chain_id, or evm for all EVM chains"),
    Column("address", LargeBinary, nullable=False),
    Column("reference", Text, comment="the tenant's own name for it, e.g. an order"),
    Column("metadata", JSONB, nullable=False, server_default="{}"),
    Column("start_height", BigInteger, comment="height from which the tenant asked for coverage"),
    Column(
        "covered_from",
        JSONB,
        nullable=False,
        comment="chain_id to first covered height; a chain that is not named covers it from the chain's own first block",
    ),
    Column("backfill_job_id", Text, comment="the job that covers, or covered, the past from start_height on"),
    Column("created_at", TIME, nullable=False),
    Column("deleted_at", TIME, comment="no new entries from then on; history stays"),
    PrimaryKeyConstraint("tenant_id", "id"),
    Index("uq_watches_live", "tenant_id", "scope", "address", unique=True, postgresql_where=_LIVE),
    Index("ix_watches_match", "address", "scope", postgresql_where=_LIVE),
    Index("ix_watches_backfill", "tenant_id", "backfill_job_id", postgresql_where=text("backfill_job_id IS NOT NULL")),
    *WATCH_LISTS,
    CheckConstraint("octet_length(address) = 20", name="address"),
    comment="a tenant's interest in an address; matched by index, so that a block costs the same whatever their number",
)

entries = Table(
    "entries",
    metadata,
    Column("tenant_id", Text, ForeignKey("tenants.id"), nullable=False),
    Column("id", Text, nullable=False, comment="hash of tenant, side and transfer: the same for ever"),
    Column("side", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("sequence", Integer, nullable=False, comment="counts its events from 1 without a gap"),
    Column("disposition", Text, nullable=False, server_default=Disposition.CREDIT.value),
    Column("reasons", ARRAY(Text), nullable=False, server_default="{}"),
    Column("origin", Text, nullable=False),
    Column("chain_id", Text, ForeignKey("chains.chain_id"), nullable=False),
    Column("asset_id", Text, ForeignKey("assets.asset_id"), nullable=False),
    Column("amount_atomic", AMOUNT, nullable=False),
    Column("sender", LargeBinary, comment="null for a validator withdrawal"),
    Column("recipient", LargeBinary),
    Column("address", LargeBinary, nullable=False, comment="the watched one of the two"),
    Column("transfer_id", Text, nullable=False),
    Column("transaction_hash", LargeBinary, comment="null for a validator withdrawal"),
    Column("transaction_index", Integer),
    Column("transaction_sender", LargeBinary, comment="with the nonce: what could replace the transaction"),
    Column(
        "transaction_nonce", Numeric(20, 0), comment="null where its hash commits to none: then nothing can replace it"
    ),
    Column("fee_atomic", AMOUNT, comment="withdrawals only: in the native coin, where it can be derived"),
    Column("locator_kind", Text, nullable=False),
    Column("locator_path", Text, nullable=False),
    Column("log_index", Integer),
    Column("block_height", BigInteger, comment="null while it is in no canonical block"),
    Column("block_hash", LargeBinary),
    Column("block_at", TIME),
    Column("proof", Text, nullable=False),
    Column("agreed_by", SmallInteger, nullable=False),
    Column("policy", Text, nullable=False, comment="chain/rule@version in force at detection"),
    Column("credit_at", Text, nullable=False, comment="a count of confirmations, safe or finalized"),
    Column("confirm_height", BigInteger, comment="tip at which the count is reached; null for safe and finalized"),
    Column("watch_id", Text, nullable=False),
    Column("detected_at", TIME, nullable=False),
    Column("confirmed_at", TIME),
    Column("finalized_at", TIME),
    Column("updated_at", TIME, nullable=False),
    Column("replaced_by", LargeBinary, comment="the transaction that spent the nonce of one that will not come back"),
    PrimaryKeyConstraint("tenant_id", "id"),
    ForeignKeyConstraint(["tenant_id", "watch_id"], ["watches.tenant_id", "watches.id"]),
    Index("ix_entries_transfer", "chain_id", "transfer_id"),
    Index("ix_entries_block", "chain_id", "block_height"),
    Index("ix_entries_confirm", "chain_id", "confirm_height", postgresql_where=text("state = 'detected'")),
    Index("ix_entries_open", "chain_id", "block_height", postgresql_where=text("state IN ('detected', 'confirmed')")),
    Index("ix_entries_lost", "chain_id", "transfer_id", postgresql_where=text("state IN ('reorged', 'reversed')")),
    *ENTRY_LISTS,
    one_of("side", Side),
    one_of("state", EntryState),
    one_of("disposition", Disposition),
    one_of("origin", Origin),
    one_of("locator_kind", LocatorKind),
    CheckConstraint("sequence >= 1", name="sequence"),
    CheckConstraint("amount_atomic >= 0", name="amount"),
    CheckConstraint(
        "(block_hash IS NULL) = (state IN ('reorged', 'reversed', 'dropped', 'replaced'))"
        " AND (block_hash IS NULL) = (block_height IS NULL) AND (block_hash IS NULL) = (block_at IS NULL)",
        name="block",
    ),
    CheckConstraint("state NOT IN ('confirmed', 'finalized') OR confirmed_at IS NOT NULL", name="confirmed_at"),
    iff("finalized_at", "state", (EntryState.FINALIZED,)),
    CheckConstraint("state <> 'failed' OR side = 'withdrawal'", name="failed"),
    CheckConstraint("replaced_by IS NULL OR state IN ('dropped', 'replaced')", name="replaced_by"),
    comment="one deposit or withdrawal of one tenant; its story is told by events, counted by sequence",
    postgresql_with={"autovacuum_vacuum_scale_factor": 0.02},  # each changes twice, and there are millions
)

events = Table(
    "events",
    metadata,
    Column("tenant_id", Text, nullable=False),
    Column("id", Text, nullable=False, comment="a UUIDv7: made once, when the entry's sequence moved"),
    Column("feed_position", BigInteger, nullable=False, comment="gap-free per tenant, visible in order"),
    Column("type", Text, nullable=False),
    Column("subject", Text, nullable=False, comment="what it tells of: an entry, a watch, a chain, an endpoint"),
    Column("sequence", Integer, comment="of the entry; null for other subjects"),
    Column("body", LargeBinary, nullable=False, comment="the exact bytes that are sent, for ever"),
    Column("created_at", TIME, nullable=False),
    PrimaryKeyConstraint("tenant_id", "created_at", "id"),
    Index("ix_events_feed", "tenant_id", "feed_position"),
    Index("ix_events_id", "tenant_id", "id"),
    Index("ix_events_subject", "tenant_id", "subject", "feed_position"),
    postgresql_partition_by="RANGE (created_at)",
    comment="append-only; leaves by dropping whole days",
)

endpoints = Table(
    "endpoints",
    metadata,
    Column("tenant_id", Text, ForeignKey("tenants.id"), nullable=False),
    Column("id", Text, nullable=False),
    Column("url", Text, nullable=False),
    Column("event_types", ARRAY(Text), comment="patterns such as deposit.*; null for all"),
    Column("description", Text),
    Column("state", Text, nullable=False, server_default=EndpointState.ACTIVE.value),
    Column("state_reason", Text),
    Column("created_at", TIME, nullable=False),
    Column("updated_at", TIME, nullable=False),
    Column("deleted_at", TIME),
    Column("last_attempt_at", TIME),
    Column("last_accepted_at", TIME),
    Column("failures_consecutive", Integer, nullable=False, server_default="0"),
    Column("failing_since", TIME, comment="first failure since it last accepted; a change by its owner starts it anew"),
    Column("last_failed_at", TIME),
    Column("last_status_code", SmallInteger, comment="of the last attempt; null where no answer came"),
    Column("last_error", Text, comment="of the last attempt; null where its status says it all"),
    Column(
        "gone_answers", Integer, nullable=False, server_default="0", comment="answers of 410 since it last accepted"
    ),
    Column("rests_until", TIME, comment="its breaker is open, and nothing is sent before; null while it is closed"),
    Column("rests", SmallInteger, nullable=False, server_default="0", comment="since it last accepted"),
    Column("max_per_s", Integer, comment="deliveries a second that it wants at most; null for any number"),
    PrimaryKeyConstraint("tenant_id", "id"),
    one_of("state", EndpointState),
    CheckConstraint("max_per_s BETWEEN 1 AND 10000", name="max_per_s"),
    comment="a tenant's webhook URL and which events it wants",
    postgresql_with=CHURNING,
)

endpoint_secrets = Table(
    "endpoint_secrets",
    metadata,
    Column("tenant_id", Text, nullable=False),
    Column("endpoint_id", Text, nullable=False),
    Column("id", Text, nullable=False),
    Column("sealed", LargeBinary, nullable=False, comment="AES-256-GCM, bound to this row"),
    Column("created_at", TIME, nullable=False),
    Column("expires_at", TIME, comment="end of a rotation's grace; null while it is the current one"),
    Column(
        "sealed_signing_key", LargeBinary, comment="private ed25519 key, sealed likewise; null until one is asked for"
    ),
    Column("public_key", LargeBinary, comment="what verifies its signatures"),
    PrimaryKeyConstraint("tenant_id", "endpoint_id", "id"),
    ForeignKeyConstraint(["tenant_id", "endpoint_id"], ["endpoints.tenant_id", "endpoints.id"]),
    CheckConstraint("(sealed_signing_key IS NULL) = (public_key IS NULL)", name="signing_key"),
    comment="signing secrets, encrypted at rest; several may live during a rotation",
)

_TURN = ("tenant_id", "endpoint_id", "priority", "due_at")

deliveries = Table(
    "deliveries",
    metadata,
    Column("tenant_id", Text, nullable=False),
    Column("id", Text, nullable=False),
    Column("event_id", Text, nullable=False),
    Column("event_type", Text, nullable=False),
    Column("event_created_at", TIME, nullable=False, comment="finds the event's partition"),
    Column("feed_position", BigInteger, nullable=False, comment="order within a lane; 0: by hand, in no order"),
    Column("endpoint_id", Text, nullable=False),
    Column("subject", Text, nullable=False, comment="with the endpoint: the lane"),
    Column("priority", SmallInteger, nullable=False, comment="0 live, 1 found in catch-up or backfill"),
    Column("state", Text, nullable=False),
    Column(
        "attempts", SmallInteger, nullable=False, server_default="0", comment="rises at claim, so that a crash counts"
    ),
    Column("due_at", TIME, nullable=False),
    Column("lease_token", Text, comment="who claimed it; settling compares it"),
    Column("leased_until", TIME),
    Column(
        "takeovers", SmallInteger, nullable=False, server_default="0", comment="in a row, from workers that fell silent"
    ),
    Column("created_at", TIME, nullable=False),
    Column("settled_at", TIME),
    Column("fault", Text, comment="why it could not be sent the last time, where that is a fault of ours"),
    PrimaryKeyConstraint("tenant_id", "id"),
    ForeignKeyConstraint(["tenant_id", "endpoint_id"], ["endpoints.tenant_id", "endpoints.id"]),
    Index("ix_deliveries_due", "due_at", postgresql_where=text("state = 'pending'")),
    Index("ix_deliveries_turn", *_TURN, postgresql_where=text("state = 'pending'")),
    Index(
        "ix_deliveries_lane",
        "tenant_id",
        "endpoint_id",
        "subject",
        "feed_position",
        postgresql_where=text("state IN ('pending', 'held')"),
    ),
    Index("ix_deliveries_by_hand", "due_at", postgresql_where=text("feed_position = 0 AND state = 'pending'")),
    Index(
        "ix_deliveries_suspects", "takeovers", "due_at", postgresql_where=text("state = 'pending' AND takeovers > 0")
    ),
    Index("ix_deliveries_event", "tenant_id", "event_id"),
    Index("ix_deliveries_subject", "tenant_id", "subject", "created_at"),
    *DELIVERY_LISTS,
    Index(
        "ix_deliveries_kept",
        "state",
        "tenant_id",
        "endpoint_id",
        "created_at",
        "id",
        postgresql_where=text("state IN ('held', 'exhausted', 'refused', 'faulted')"),
    ),
    Index("ix_deliveries_settled", "settled_at", postgresql_where=text("settled_at IS NOT NULL")),
    one_of("state", DeliveryState),
    one_of("fault", Fault),
    iff("settled_at", "state", SETTLED_STATES),
    CheckConstraint("(lease_token IS NULL) = (leased_until IS NULL)", name="lease"),
    comment="one event owed to one endpoint: the queue itself, churning, kept apart from what is append-only",
    postgresql_with=CLAIMED,
)

attempts = Table(
    "attempts",
    metadata,
    Column("tenant_id", Text, nullable=False),
    Column("delivery_id", Text, nullable=False),
    Column("number", SmallInteger, nullable=False),
    Column("started_at", TIME, nullable=False),
    Column("duration_ms", Integer, nullable=False),
    Column("status_code", SmallInteger),
    Column("outcome", Text, nullable=False),
    Column("error", Text),
    Column("response_excerpt", Text),
    PrimaryKeyConstraint("tenant_id", "started_at", "delivery_id", "number"),
    Index("ix_attempts_delivery", "tenant_id", "delivery_id", "number"),
    one_of("outcome", Outcome),
    postgresql_partition_by="RANGE (started_at)",
    comment="one row for each HTTP request; append-only; leaves by dropping whole days",
)

API_ROLE = "chainbell_api"
"""Postgres role of the REST API: it owns nothing, and cannot change the schema or the story."""

PARTITIONED = ("events", "attempts")
"""Tables kept in daily partitions, made ahead and dropped whole by housekeeping."""
