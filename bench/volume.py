"""A ledger with very many entries, made by Postgres itself, the same every time.

It is skewed as a payments company's is, and worse. One tenant has nearly everything. Four of five assets are hardly used,
one chain has some fifty entries and one none. Nearly everything is finalized; what is not is the newest, or lost and spread
thinly. A fifth of all entries are at one treasury address, a reference names a twentieth of all watches, and one transaction
pays two thousand. What is dropped and the asset `EDGE` are both frequent, and never the same entry.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from hashlib import sha256

import psycopg
from psycopg import sql

TENANT = "ten_big"
SMALL_TENANT = "ten_small"
"""Has one in fifty of the entries, at one address."""

BEGAN_AT = datetime(2026, 3, 1, tzinfo=UTC)
"""When the first entry was detected. Three at a time have the same moment, ten seconds apart from the next three."""

FEW_ENTRIES = 50
"""Of the chain `few`, and as many of the asset `RARE`, spread over the whole time."""

BATCH = 2_000
"""Entries of the transaction that pays many."""

_AT_ONCE = 500_000

_SETUP = """
INSERT INTO chains (chain_id, slug, profile, livemode, native_asset_id, proof, tip_height, tip_hash, agreed_height)
SELECT id, slug, 'ethereum', true, id || '/slip44:60', 'roots', 100000000, '\\x01', 100000000
FROM (VALUES ('eip155:1', 'ethereum'), ('eip155:8453', 'base'), ('eip155:137', 'polygon'), ('eip155:10', 'few'),
             ('eip155:42161', 'none')) AS given (id, slug);
INSERT INTO assets (asset_id, chain_id, symbol, decimals, kind)
SELECT chain_id || CASE n WHEN 0 THEN '/slip44:60' ELSE '/erc20:0x' || lpad(to_hex(n), 40, 'a') END, chain_id,
       CASE n WHEN 0 THEN 'ETH' WHEN 2 THEN 'RARE' WHEN 3 THEN 'EDGE' ELSE 'T' || n END, 18,
       CASE n WHEN 0 THEN 'native' ELSE 'fungible' END
FROM chains, generate_series(0, 19) n;
INSERT INTO tenants (id, name, created_at) VALUES ('ten_big', 'big', now()), ('ten_small', 'small', now());
"""

_WATCHES = """
INSERT INTO watches (tenant_id, id, scope, address, reference, covered_from, created_at)
SELECT CASE n WHEN 0 THEN 'ten_small' ELSE 'ten_big' END, 'wat_' || lpad(n::text, 32, '0'), 'evm',
       substring(sha256(int8send(n)) FOR 20),
       CASE WHEN n %% 20 = 7 THEN 'till' WHEN n %% 1000 = 8 THEN 'shop' ELSE 'order-' || n END, '{}', %(began)s
FROM generate_series(0::bigint, %(last)s) n
"""

_ENTRIES = """
INSERT INTO entries (tenant_id, id, side, state, sequence, origin, chain_id, asset_id, amount_atomic, sender, recipient,
                     address, transfer_id, transaction_hash, transaction_index, transaction_sender, transaction_nonce,
                     locator_kind, locator_path, block_height, block_hash, block_at, proof, agreed_by, policy, credit_at,
                     confirm_height, watch_id, detected_at, confirmed_at, finalized_at, updated_at)
SELECT CASE watch WHEN 0 THEN 'ten_small' ELSE 'ten_big' END,
       CASE WHEN is_deposit THEN 'dep_' ELSE 'wdr_' END || left(hash, 40),
       CASE WHEN is_deposit THEN 'deposit' ELSE 'withdrawal' END,
       state, CASE state WHEN 'finalized' THEN 3 WHEN 'detected' THEN 1 ELSE 2 END, 'live', chain, asset,
       10::numeric ^ (1 + n %% 20), '\\x0101010101010101010101010101010101010101', address, address,
       'tr_' || left(hash, 40), sha256(int8send(CASE WHEN n BETWEEN %(batch)s + 1 AND 2 * %(batch)s THEN 0 ELSE n / 2 END)),
       n %% 200, '\\x0101010101010101010101010101010101010101', n, 'log', '3',
       CASE WHEN is_lost THEN NULL ELSE n / 3 END, CASE WHEN is_lost THEN NULL ELSE sha256(int8send(n / 3)) END,
       CASE WHEN is_lost THEN NULL ELSE moment END, 'roots', 2, 'ethereum/default@1', '12', n / 3 + 11,
       'wat_' || lpad(watch::text, 32, '0'), moment,
       CASE WHEN state IN ('confirmed', 'finalized') THEN moment + interval '2 minutes' END,
       CASE WHEN state = 'finalized' THEN moment + interval '13 minutes' END,
       moment + CASE state WHEN 'detected' THEN interval '0' WHEN 'confirmed' THEN interval '2 minutes'
                ELSE interval '13 minutes' + r3 %% 60 * interval '1 second' END
FROM (
    SELECT *, state IN ('reorged', 'reversed', 'dropped', 'replaced') AS is_lost,
           chain || CASE token WHEN 0 THEN '/slip44:60' ELSE '/erc20:0x' || lpad(to_hex(token), 40, 'a') END AS asset
    FROM (
        SELECT n, r3, watch, is_deposit, %(began)s::timestamptz + n / 3 * interval '10 seconds' AS moment,
               encode(sha256(int8send(n)), 'hex') AS hash, substring(sha256(int8send(watch)) FOR 20) AS address,
               CASE WHEN n %% apart = 11 THEN 'eip155:10' WHEN r2 < 600 THEN 'eip155:1' WHEN r2 < 970 THEN 'eip155:8453'
                    ELSE 'eip155:137' END AS chain,
               CASE WHEN n %% apart = 11 THEN 1 WHEN n %% apart = 5 THEN 2 WHEN r2 %% 30 = 0 AND r3 %% 200 <> 3 THEN 3
                    WHEN r3 < 500 THEN 1 WHEN r3 < 940 THEN 0 ELSE 4 + r3 %% 16 END AS token,
               CASE WHEN n > %(count)s - 3000 THEN 'detected'
                    WHEN n > %(count)s - %(count)s / 10 AND n > %(count)s - 30000 THEN 'confirmed'
                    WHEN NOT is_deposit AND r3 %% 100 = 1 THEN 'failed'
                    WHEN NOT is_deposit AND r3 %% 500 = 2 THEN 'replaced'
                    WHEN r3 %% 200 = 3 THEN 'dropped'
                    WHEN r3 = 4 AND r2 < 10 THEN 'reorged'
                    WHEN r3 = 5 AND r2 < 5 THEN 'reversed' ELSE 'finalized' END AS state
        FROM (
            SELECT n, r2, r3, greatest(%(count)s / %(few)s, 12) AS apart,
                   CASE WHEN r1 < 200 THEN 1 WHEN r1 < 202 THEN 2 WHEN r1 < 222 THEN 0
                        ELSE 3 + n * 7919 %% (%(watches)s - 3) END AS watch,
                   CASE WHEN r1 < 200 THEN r3 %% 10 = 0 ELSE r3 %% 10 <> 0 END AS is_deposit
            FROM (
                SELECT n, n * 2654435761 %% 4294967291 %% 1000 AS r1, n * 40503 %% 999983 %% 1000 AS r2,
                       n * 2246822519 %% 4294967279 %% 1000 AS r3
                FROM generate_series(%(first)s::bigint, %(last)s) n
            ) drawn
        ) placed
    ) told
) whole
"""


def watch_count(entries: int) -> int:
    """How many watches a ledger of so many entries has."""
    return max(entries // 5, 100)


def moment_of_entry(number: int) -> datetime:
    """When the entry of that number, from 1 on, was detected."""
    return BEGAN_AT + timedelta(seconds=number // 3 * 10)


def hash_of(number: int) -> bytes:
    """What Postgres makes of a number: the hash of the transaction of the entries `2 * number` and the next."""
    return sha256(number.to_bytes(8, "big")).digest()


def address_of_watch(number: int) -> bytes:
    """0 is the small tenant's, 1 the treasury, 2 a shop's with one in five hundred entries; the others are customers'."""
    return hash_of(number)[:20]


@contextmanager
def _without_indexes(connection: psycopg.Connection) -> Iterator[None]:
    """The table `entries` without what slows its filling; afterwards everything is as it was."""
    indexes = connection.execute(
        "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'entries' AND indexname <> 'pk_entries'"
    ).fetchall()
    for name, _ in indexes:
        connection.execute(sql.SQL("DROP INDEX {}").format(sql.Identifier(name)))
    connection.execute("ALTER TABLE entries DROP CONSTRAINT pk_entries")
    yield
    connection.execute("SET maintenance_work_mem = '1GB'")
    connection.execute("ALTER TABLE entries ADD CONSTRAINT pk_entries PRIMARY KEY (tenant_id, id)")
    for _, definition in indexes:
        connection.execute(definition.encode())


def fill(plain_url: str, count: int) -> None:
    """Put `count` entries, and a fifth as many watches, into an empty ledger at head. The caller is a superuser."""
    given = {"count": count, "watches": watch_count(count), "began": BEGAN_AT, "batch": BATCH, "few": FEW_ENTRIES}
    with psycopg.connect(plain_url, autocommit=True, cursor_factory=psycopg.ClientCursor) as connection:
        connection.execute("SET session_replication_role = replica")  # no foreign key is looked up for each row
        connection.execute("SET synchronous_commit = off")
        connection.execute(_SETUP)
        connection.execute(_WATCHES, {"began": BEGAN_AT, "last": watch_count(count) - 1})
        with _without_indexes(connection):
            for first in range(1, count + 1, _AT_ONCE):
                last = min(first + _AT_ONCE - 1, count)
                connection.execute(_ENTRIES, {**given, "first": first, "last": last})
        # What is not on the disk yet is not marked as visible to all, and an index alone would not do for it.
        connection.execute("CHECKPOINT")
        connection.execute("VACUUM (ANALYZE) entries, watches, assets, chains, tenants")
