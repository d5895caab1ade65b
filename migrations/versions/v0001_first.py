"""The first schema: from a block to a webhook."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

API_ROLE = "chainbell_api"

API_PRIVILEGES = {
    "chains": "SELECT, UPDATE (heartbeat_at)",  # FOR SHARE asks for UPDATE on one column at least
    "assets": "SELECT",
    "policies": "SELECT",
    "blocks": "SELECT",
    "tenants": "SELECT, UPDATE (feed_position)",
    "api_keys": "SELECT, UPDATE (last_used_at)",
    "watches": "SELECT, INSERT, UPDATE (deleted_at)",
    "entries": "SELECT",
    "events": "SELECT, INSERT",
    "endpoints": "SELECT, INSERT, UPDATE",
    "endpoint_secrets": "SELECT, INSERT, UPDATE (expires_at)",
    "deliveries": "SELECT, INSERT, UPDATE",
    "attempts": "SELECT",
    "idempotency_keys": "SELECT, INSERT, DELETE",
    "audit_log": "SELECT, INSERT",
    "alembic_version": "SELECT",
}
"""What the REST API may do: it owns nothing, and can neither change a story nor delete a fact."""


def upgrade() -> None:
    """Make every table, the operator's tenant, and the API's role."""
    _create_attempts()
    _create_audit_log()
    _create_chains()
    _create_events()
    _create_tenants()
    _create_api_keys()
    _create_assets()
    _create_blocks()
    _create_endpoints()
    _create_idempotency_keys()
    _create_policies()
    _create_watches()
    _create_deliveries()
    _create_endpoint_secrets()
    _create_entries()
    op.execute("INSERT INTO tenants (id, name, created_at) VALUES ('ten_ops', 'ops', now())")
    _create_api_role()


def _create_api_role() -> None:
    """Roles belong to the whole server: another database on it may have made this one already."""
    op.execute(
        f"""
        DO $$ BEGIN
            IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = '{API_ROLE}') THEN
                CREATE ROLE {API_ROLE} NOLOGIN;
            END IF;
            IF current_setting('server_version_num')::int < 160000 THEN
                IF NOT pg_has_role(current_user, '{API_ROLE}', 'MEMBER') THEN
                    GRANT {API_ROLE} TO CURRENT_USER;
                END IF;
            ELSIF NOT pg_has_role(current_user, '{API_ROLE}', 'SET') THEN
                GRANT {API_ROLE} TO CURRENT_USER;  -- since 16, who makes a role may not yet take it on
            END IF;
        EXCEPTION WHEN duplicate_object THEN
            NULL;  -- another database's migration made it in this very moment
        END $$
        """
    )
    op.execute(f"GRANT USAGE ON SCHEMA public TO {API_ROLE}")
    for table, privileges in API_PRIVILEGES.items():
        op.execute(f"GRANT {privileges} ON {table} TO {API_ROLE}")


def _create_attempts() -> None:
    op.create_table(
        "attempts",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("delivery_id", sa.Text(), nullable=False),
        sa.Column("number", sa.SmallInteger(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("duration_ms", sa.Integer(), nullable=False),
        sa.Column("status_code", sa.SmallInteger(), nullable=True),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("response_excerpt", sa.Text(), nullable=True),
        sa.CheckConstraint("outcome IN ('accepted', 'retryable', 'refused')", name=op.f("ck_attempts_outcome")),
        sa.PrimaryKeyConstraint("tenant_id", "started_at", "delivery_id", "number", name=op.f("pk_attempts")),
        comment="one row for each HTTP request; append-only; leaves by dropping whole days",
        postgresql_partition_by="RANGE (started_at)",
    )
    op.create_index("ix_attempts_delivery", "attempts", ["tenant_id", "delivery_id", "number"], unique=False)


def _create_audit_log() -> None:
    op.create_table(
        "audit_log",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False, comment="a key's id, or command line"),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("detail", JSONB(), server_default="{}", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_audit_log")),
        comment="who changed what; append-only, in the transaction of the change",
    )


def _create_chains() -> None:
    op.create_table(
        "chains",
        sa.Column("chain_id", sa.Text(), nullable=False, comment="CAIP-2 name, e.g. eip155:1"),
        sa.Column("slug", sa.Text(), nullable=False, comment="the operator's short name"),
        sa.Column("profile", sa.Text(), nullable=False),
        sa.Column("livemode", sa.Boolean(), nullable=False, comment="false on test networks"),
        sa.Column("native_asset_id", sa.Text(), nullable=False, comment="CAIP-19 name of the native coin"),
        sa.Column("state", sa.Text(), server_default="stopped", nullable=False),
        sa.Column("reason", sa.Text(), nullable=True, comment="why it is holding or halted; null otherwise"),
        sa.Column(
            "first_height", sa.BigInteger(), nullable=True, comment="first block that we followed; null before it"
        ),
        sa.Column("tip_height", sa.BigInteger(), nullable=True, comment="the checkpoint: newest committed block"),
        sa.Column("tip_hash", sa.LargeBinary(), nullable=True),
        sa.Column("tip_at", sa.DateTime(timezone=True), nullable=True, comment="timestamp in the tip's header"),
        sa.Column("head_height", sa.BigInteger(), nullable=True, comment="newest block that a node claims"),
        sa.Column("safe_height", sa.BigInteger(), nullable=True, comment="only rises, and only over blocks of ours"),
        sa.Column(
            "finalized_height", sa.BigInteger(), nullable=True, comment="only rises, and only over blocks of ours"
        ),
        sa.Column("finalized_hash", sa.LargeBinary(), nullable=True),
        sa.Column(
            "agreed_height", sa.BigInteger(), nullable=True, comment="highest block that a quorum of hosts names"
        ),
        sa.Column(
            "accepted_reorg_height",
            sa.BigInteger(),
            nullable=True,
            comment="an operator's leave to undo finalized blocks above it; used once",
        ),
        sa.Column(
            "quorum",
            sa.SmallInteger(),
            server_default="1",
            nullable=False,
            comment="hosts that must agree before credit",
        ),
        sa.Column("proof", sa.Text(), nullable=False, comment="configured proof level"),
        sa.Column("value_paths", ARRAY(sa.Text()), server_default="{}", nullable=False),
        sa.Column(
            "nodes",
            JSONB(),
            server_default="[]",
            nullable=False,
            comment="each node as last seen: name, state, head, reason",
        ),
        sa.Column(
            "heartbeat_at", sa.DateTime(timezone=True), nullable=True, comment="last sign of life of the follower"
        ),
        sa.CheckConstraint(
            "state IN ('following', 'catching_up', 'holding', 'halted', 'stopped')", name=op.f("ck_chains_state")
        ),
        sa.CheckConstraint("state NOT IN ('holding', 'halted') OR reason IS NOT NULL", name=op.f("ck_chains_reason")),
        sa.CheckConstraint("(finalized_height IS NULL) = (finalized_hash IS NULL)", name=op.f("ck_chains_finalized")),
        sa.CheckConstraint("(tip_height IS NULL) = (tip_hash IS NULL)", name=op.f("ck_chains_tip")),
        sa.CheckConstraint("finalized_height <= tip_height", name=op.f("ck_chains_finalized_below_tip")),
        sa.PrimaryKeyConstraint("chain_id", name=op.f("pk_chains")),
        sa.UniqueConstraint("slug", name=op.f("uq_chains_slug")),
        comment="one row for each followed chain: its checkpoint, and the lock under which blocks and watches meet",
    )


def _create_events() -> None:
    op.create_table(
        "events",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False, comment="a UUIDv7: made once, when the entry's sequence moved"),
        sa.Column("feed_position", sa.BigInteger(), nullable=False, comment="gap-free per tenant, visible in order"),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column(
            "subject", sa.Text(), nullable=False, comment="what it tells of: an entry, a watch, a chain, an endpoint"
        ),
        sa.Column("sequence", sa.Integer(), nullable=True, comment="of the entry; null for other subjects"),
        sa.Column("body", sa.LargeBinary(), nullable=False, comment="the exact bytes that are sent, for ever"),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "created_at", "id", name=op.f("pk_events")),
        comment="append-only; leaves by dropping whole days",
        postgresql_partition_by="RANGE (created_at)",
    )
    op.create_index("ix_events_feed", "events", ["tenant_id", "feed_position"], unique=False)
    op.create_index("ix_events_id", "events", ["tenant_id", "id"], unique=False)
    op.create_index("ix_events_subject", "events", ["tenant_id", "subject", "feed_position"], unique=False)


def _create_tenants() -> None:
    op.create_table(
        "tenants",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column(
            "feed_position", sa.BigInteger(), server_default="0", nullable=False, comment="position of its newest event"
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tenants")),
        sa.UniqueConstraint("name", name=op.f("uq_tenants_name")),
        comment="a payment company that uses us; ten_ops is the operator",
    )


def _create_api_keys() -> None:
    op.create_table(
        "api_keys",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False, comment="the public part inside the key"),
        sa.Column(
            "secret_sha256", sa.LargeBinary(), nullable=False, comment="of the secret part, which is 256 random bits"
        ),
        sa.Column("scopes", ARRAY(sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_api_keys_tenant_id")),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("id", name=op.f("uq_api_keys_id")),
        comment="bearer keys: shown once, stored hashed",
    )


def _create_assets() -> None:
    op.create_table(
        "assets",
        sa.Column("asset_id", sa.Text(), nullable=False, comment="CAIP-19 name, lower case"),
        sa.Column("chain_id", sa.Text(), nullable=False),
        sa.Column("symbol", sa.Text(), nullable=False, comment="for people: never decides anything"),
        sa.Column("decimals", sa.SmallInteger(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("contract", sa.LargeBinary(), nullable=True, comment="20 bytes; null for the native coin"),
        sa.Column(
            "listed_from_height",
            sa.BigInteger(),
            nullable=True,
            comment="first height from which it is read; null: from the chain's first",
        ),
        sa.CheckConstraint("kind IN ('native', 'fungible')", name=op.f("ck_assets_kind")),
        sa.CheckConstraint("decimals BETWEEN 0 AND 255", name=op.f("ck_assets_decimals")),
        sa.ForeignKeyConstraint(["chain_id"], ["chains.chain_id"], name=op.f("fk_assets_chain_id")),
        sa.PrimaryKeyConstraint("asset_id", name=op.f("pk_assets")),
        comment="native coins and allow-listed tokens: nothing else is ever an entry",
    )


def _create_blocks() -> None:
    op.create_table(
        "blocks",
        sa.Column("chain_id", sa.Text(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("height", sa.BigInteger(), nullable=False),
        sa.Column("parent_hash", sa.LargeBinary(), nullable=False),
        sa.Column("block_at", sa.DateTime(timezone=True), nullable=False, comment="timestamp in the header"),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("proof", sa.Text(), nullable=False, comment="level that it proved itself to"),
        sa.Column("agreed_by", sa.SmallInteger(), nullable=False, comment="hosts that name this hash"),
        sa.Column("node", sa.Text(), nullable=False, comment="node that supplied it"),
        sa.Column("transaction_count", sa.Integer(), nullable=False),
        sa.Column("entry_count", sa.Integer(), nullable=False),
        sa.Column("committed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("orphaned_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("(orphaned_at IS NOT NULL) = (state IN ('orphaned'))", name=op.f("ck_blocks_orphaned_at")),
        sa.CheckConstraint("state IN ('canonical', 'orphaned')", name=op.f("ck_blocks_state")),
        sa.ForeignKeyConstraint(["chain_id"], ["chains.chain_id"], name=op.f("fk_blocks_chain_id")),
        sa.PrimaryKeyConstraint("chain_id", "hash", name=op.f("pk_blocks")),
        comment="a row for every block that we committed, the empty ones too: a reorg can move a deposit into an empty height",
    )
    op.create_index("ix_blocks_height", "blocks", ["chain_id", "height"], unique=False)
    op.create_index(
        "uq_blocks_canonical",
        "blocks",
        ["chain_id", "height"],
        unique=True,
        postgresql_where=sa.text("state = 'canonical'"),
    )


def _create_endpoints() -> None:
    op.create_table(
        "endpoints",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("event_types", ARRAY(sa.Text()), nullable=True, comment="patterns such as deposit.*; null for all"),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("state", sa.Text(), server_default="active", nullable=False),
        sa.Column("state_reason", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_attempt_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_accepted_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("failures_consecutive", sa.Integer(), server_default="0", nullable=False),
        sa.CheckConstraint("state IN ('active', 'paused', 'disabled')", name=op.f("ck_endpoints_state")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_endpoints_tenant_id")),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_endpoints")),
        comment="a tenant's webhook URL and which events it wants",
    )


def _create_idempotency_keys() -> None:
    op.create_table(
        "idempotency_keys",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(), nullable=False, comment="SHA-256 of method, path and body"),
        sa.Column("status_code", sa.SmallInteger(), nullable=False),
        sa.Column(
            "sealed_body",
            sa.LargeBinary(),
            nullable=False,
            comment="the stored answer, encrypted: it may hold a secret",
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_idempotency_keys_tenant_id")),
        sa.PrimaryKeyConstraint("tenant_id", "key", name=op.f("pk_idempotency_keys")),
        comment="answers to POSTs, written in the transaction of their effect, kept for a day",
    )
    op.create_index("ix_idempotency_keys_created", "idempotency_keys", ["created_at"], unique=False)


def _create_policies() -> None:
    op.create_table(
        "policies",
        sa.Column("chain_id", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("rules", JSONB(), nullable=False, comment="first-match rules: name, asset, amounts, credit_at"),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["chain_id"], ["chains.chain_id"], name=op.f("fk_policies_chain_id")),
        sa.PrimaryKeyConstraint("chain_id", "version", name=op.f("pk_policies")),
        comment="when a deposit counts; an entry keeps the version that was in force when it was detected",
    )


def _create_watches() -> None:
    op.create_table(
        "watches",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False, comment="a chain_id, or evm for all EVM chains"),
        sa.Column("address", sa.LargeBinary(), nullable=False),
        sa.Column("reference", sa.Text(), nullable=True, comment="the tenant's own name for it, e.g. an order"),
        sa.Column("metadata", JSONB(), server_default="{}", nullable=False),
        sa.Column(
            "start_height", sa.BigInteger(), nullable=True, comment="height from which the tenant asked for coverage"
        ),
        sa.Column(
            "covered_from",
            JSONB(),
            nullable=False,
            comment="chain_id to first covered height; a chain that is not named covers it from the chain's own first block",
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column(
            "deleted_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="no new entries from then on; history stays",
        ),
        sa.CheckConstraint("octet_length(address) = 20", name=op.f("ck_watches_address")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_watches_tenant_id")),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_watches")),
        comment="a tenant's interest in an address; matched by index, so that a block costs the same whatever their number",
    )
    op.create_index(
        "ix_watches_match",
        "watches",
        ["address", "scope"],
        unique=False,
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.create_index(
        "ix_watches_reference",
        "watches",
        ["tenant_id", "reference"],
        unique=False,
        postgresql_where=sa.text("reference IS NOT NULL"),
    )
    op.create_index(
        "uq_watches_live",
        "watches",
        ["tenant_id", "scope", "address"],
        unique=True,
        postgresql_where=sa.text("deleted_at IS NULL"),
    )


def _create_deliveries() -> None:
    op.create_table(
        "deliveries",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("event_type", sa.Text(), nullable=False),
        sa.Column(
            "event_created_at", sa.DateTime(timezone=True), nullable=False, comment="finds the event's partition"
        ),
        sa.Column("feed_position", sa.BigInteger(), nullable=False, comment="order within a lane"),
        sa.Column("endpoint_id", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False, comment="with the endpoint: the lane"),
        sa.Column("priority", sa.SmallInteger(), nullable=False, comment="0 live, 1 found in catch-up or backfill"),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column(
            "attempts",
            sa.SmallInteger(),
            server_default="0",
            nullable=False,
            comment="rises at claim, so that a crash counts",
        ),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("lease_token", sa.Text(), nullable=True, comment="who claimed it; settling compares it"),
        sa.Column("leased_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("settled_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(settled_at IS NOT NULL) = (state IN ('delivered', 'exhausted', 'refused', 'discarded', 'superseded'))",
            name=op.f("ck_deliveries_settled_at"),
        ),
        sa.CheckConstraint(
            "state IN ('pending', 'delivered', 'held', 'exhausted', 'refused', 'discarded', 'superseded')",
            name=op.f("ck_deliveries_state"),
        ),
        sa.CheckConstraint("(lease_token IS NULL) = (leased_until IS NULL)", name=op.f("ck_deliveries_lease")),
        sa.ForeignKeyConstraint(
            ["tenant_id", "endpoint_id"],
            ["endpoints.tenant_id", "endpoints.id"],
            name=op.f("fk_deliveries_tenant_id_endpoint_id"),
        ),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_deliveries")),
        comment="one event owed to one endpoint: the queue itself, churning, kept apart from what is append-only",
        postgresql_with={"fillfactor": 70, "autovacuum_vacuum_scale_factor": 0.01, "autovacuum_vacuum_cost_delay": 0},
    )
    op.create_index(
        "ix_deliveries_due",
        "deliveries",
        ["priority", "due_at"],
        unique=False,
        postgresql_where=sa.text("state = 'pending'"),
    )
    op.create_index(
        "ix_deliveries_endpoint", "deliveries", ["tenant_id", "endpoint_id", "created_at", "id"], unique=False
    )
    op.create_index("ix_deliveries_event", "deliveries", ["tenant_id", "event_id"], unique=False)
    op.create_index(
        "ix_deliveries_kept",
        "deliveries",
        ["state"],
        unique=False,
        postgresql_where=sa.text("state IN ('held', 'exhausted', 'refused')"),
    )
    op.create_index(
        "ix_deliveries_lane",
        "deliveries",
        ["tenant_id", "endpoint_id", "subject", "feed_position"],
        unique=False,
        postgresql_where=sa.text("state IN ('pending', 'held')"),
    )
    op.create_index("ix_deliveries_list", "deliveries", ["tenant_id", "created_at", "id"], unique=False)
    op.create_index(
        "ix_deliveries_settled",
        "deliveries",
        ["settled_at"],
        unique=False,
        postgresql_where=sa.text("settled_at IS NOT NULL"),
    )
    op.create_index("ix_deliveries_subject", "deliveries", ["tenant_id", "subject", "created_at"], unique=False)


def _create_endpoint_secrets() -> None:
    op.create_table(
        "endpoint_secrets",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("endpoint_id", sa.Text(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False, comment="AES-256-GCM, bound to this row"),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column(
            "expires_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="end of a rotation's grace; null while it is the current one",
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id", "endpoint_id"],
            ["endpoints.tenant_id", "endpoints.id"],
            name=op.f("fk_endpoint_secrets_tenant_id_endpoint_id"),
        ),
        sa.PrimaryKeyConstraint("tenant_id", "endpoint_id", "id", name=op.f("pk_endpoint_secrets")),
        comment="signing secrets, encrypted at rest; several may live during a rotation",
    )


def _create_entries() -> None:
    op.create_table(
        "entries",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False, comment="hash of tenant, side and transfer: the same for ever"),
        sa.Column("side", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False, comment="counts its events from 1 without a gap"),
        sa.Column("disposition", sa.Text(), server_default="credit", nullable=False),
        sa.Column("reasons", ARRAY(sa.Text()), server_default="{}", nullable=False),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("chain_id", sa.Text(), nullable=False),
        sa.Column("asset_id", sa.Text(), nullable=False),
        sa.Column("amount_atomic", sa.Numeric(precision=78, scale=0), nullable=False),
        sa.Column("sender", sa.LargeBinary(), nullable=True, comment="null for a validator withdrawal"),
        sa.Column("recipient", sa.LargeBinary(), nullable=True),
        sa.Column("address", sa.LargeBinary(), nullable=False, comment="the watched one of the two"),
        sa.Column("transfer_id", sa.Text(), nullable=False),
        sa.Column("transaction_hash", sa.LargeBinary(), nullable=True, comment="null for a validator withdrawal"),
        sa.Column("transaction_index", sa.Integer(), nullable=True),
        sa.Column(
            "transaction_sender",
            sa.LargeBinary(),
            nullable=True,
            comment="with the nonce: what could replace the transaction",
        ),
        sa.Column("transaction_nonce", sa.Numeric(precision=20, scale=0), nullable=True),
        sa.Column(
            "fee_atomic",
            sa.Numeric(precision=78, scale=0),
            nullable=True,
            comment="withdrawals only: in the native coin, where it can be derived",
        ),
        sa.Column("locator_kind", sa.Text(), nullable=False),
        sa.Column("locator_path", sa.Text(), nullable=False),
        sa.Column("log_index", sa.Integer(), nullable=True),
        sa.Column("block_height", sa.BigInteger(), nullable=True, comment="null while it is in no canonical block"),
        sa.Column("block_hash", sa.LargeBinary(), nullable=True),
        sa.Column("block_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("proof", sa.Text(), nullable=False),
        sa.Column("agreed_by", sa.SmallInteger(), nullable=False),
        sa.Column("policy", sa.Text(), nullable=False, comment="chain/rule@version in force at detection"),
        sa.Column("credit_at", sa.Text(), nullable=False, comment="a count of confirmations, safe or finalized"),
        sa.Column(
            "confirm_height",
            sa.BigInteger(),
            nullable=True,
            comment="tip at which the count is reached; null for safe and finalized",
        ),
        sa.Column("watch_id", sa.Text(), nullable=False),
        sa.Column("detected_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("confirmed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finalized_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "(block_hash IS NULL) = (state IN ('reorged', 'reversed', 'dropped', 'replaced')) AND (block_hash IS NULL) = (block_height IS NULL) AND (block_hash IS NULL) = (block_at IS NULL)",
            name=op.f("ck_entries_block"),
        ),
        sa.CheckConstraint(
            "(finalized_at IS NOT NULL) = (state IN ('finalized'))", name=op.f("ck_entries_finalized_at")
        ),
        sa.CheckConstraint("disposition IN ('credit', 'ignore')", name=op.f("ck_entries_disposition")),
        sa.CheckConstraint(
            "locator_kind IN ('native', 'log', 'trace', 'validator_withdrawal', 'transaction', 'output')",
            name=op.f("ck_entries_locator_kind"),
        ),
        sa.CheckConstraint("origin IN ('live', 'catch_up', 'backfill', 'replay')", name=op.f("ck_entries_origin")),
        sa.CheckConstraint("side IN ('deposit', 'withdrawal')", name=op.f("ck_entries_side")),
        sa.CheckConstraint("state <> 'failed' OR side = 'withdrawal'", name=op.f("ck_entries_failed")),
        sa.CheckConstraint(
            "state IN ('detected', 'confirmed', 'finalized', 'reorged', 'reversed', 'failed', 'dropped', 'replaced')",
            name=op.f("ck_entries_state"),
        ),
        sa.CheckConstraint(
            "state NOT IN ('confirmed', 'finalized') OR confirmed_at IS NOT NULL", name=op.f("ck_entries_confirmed_at")
        ),
        sa.CheckConstraint("amount_atomic >= 0", name=op.f("ck_entries_amount")),
        sa.CheckConstraint("sequence >= 1", name=op.f("ck_entries_sequence")),
        sa.ForeignKeyConstraint(["asset_id"], ["assets.asset_id"], name=op.f("fk_entries_asset_id")),
        sa.ForeignKeyConstraint(["chain_id"], ["chains.chain_id"], name=op.f("fk_entries_chain_id")),
        sa.ForeignKeyConstraint(
            ["tenant_id", "watch_id"], ["watches.tenant_id", "watches.id"], name=op.f("fk_entries_tenant_id_watch_id")
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_entries_tenant_id")),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_entries")),
        comment="one deposit or withdrawal of one tenant; its story is told by events, counted by sequence",
    )
    op.create_index("ix_entries_address", "entries", ["tenant_id", "address", "detected_at"], unique=False)
    op.create_index("ix_entries_block", "entries", ["chain_id", "block_height"], unique=False)
    op.create_index(
        "ix_entries_confirm",
        "entries",
        ["chain_id", "confirm_height"],
        unique=False,
        postgresql_where=sa.text("state = 'detected'"),
    )
    op.create_index("ix_entries_hash", "entries", ["tenant_id", "transaction_hash"], unique=False)
    op.create_index("ix_entries_list", "entries", ["tenant_id", "side", "detected_at", "id"], unique=False)
    op.create_index(
        "ix_entries_lost",
        "entries",
        ["chain_id", "transfer_id"],
        unique=False,
        postgresql_where=sa.text("state IN ('reorged', 'reversed')"),
    )
    op.create_index(
        "ix_entries_open",
        "entries",
        ["chain_id", "block_height"],
        unique=False,
        postgresql_where=sa.text("state IN ('detected', 'confirmed')"),
    )
    op.create_index("ix_entries_transfer", "entries", ["chain_id", "transfer_id"], unique=False)
    op.create_index("ix_entries_updated", "entries", ["tenant_id", "side", "updated_at", "id"], unique=False)
    op.create_index("ix_entries_watch", "entries", ["tenant_id", "watch_id", "detected_at"], unique=False)
