"""Idempotency keys: a repeated POST gets the stored answer of the first, and has no second effect.

The answer is written in the transaction of the effect, so there is no moment at which one exists without the other. It
is sealed, because it may hold an endpoint's secret. An advisory lock on (tenant, key), held until the transaction ends,
keeps two requests with one key apart. Only answers of success are kept: a refused request changed nothing, and may be
mended and sent again with the same key.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256

from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.database import lock_number
from ledger.ids import TenantId
from ledger.schema_access import idempotency_keys
from ledger.secrets import SealPlace, SecretBox

RETENTION = timedelta(hours=24)
"""For how long an answer is kept."""


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """The first request's fingerprint, and what it was answered."""

    fingerprint: bytes
    status_code: int
    body: bytes


def fingerprint_of(method: str, path: str, body: bytes) -> bytes:
    """What makes two requests the same: method, path and body, byte by byte."""
    return sha256(f"{method} {path}\n".encode() + body).digest()


async def lock_idempotency_key(connection: AsyncConnection, tenant_id: TenantId, key: str) -> bool:
    """Take a key for this transaction; False when another request with it is being answered at this moment."""
    number = lock_number("idempotency", tenant_id, key)
    taken: bool = (await connection.execute(select(func.pg_try_advisory_xact_lock(number)))).scalar_one()
    return taken


async def find_answer(
    connection: AsyncConnection, box: SecretBox, tenant_id: TenantId, key: str, now: datetime
) -> StoredAnswer | None:
    """The answer kept under a key, unless it is older than `RETENTION`. Raises `SealBroken`."""
    mine = (idempotency_keys.c.tenant_id == tenant_id, idempotency_keys.c.key == key)
    row = (await connection.execute(select(idempotency_keys).where(*mine))).first()
    if row is None:
        return None
    if row.created_at <= now - RETENTION:
        await connection.execute(delete(idempotency_keys).where(*mine))
        return None
    return StoredAnswer(row.fingerprint, row.status_code, box.open(row.sealed_body, answer_place(tenant_id, key)))


async def store_answer(
    connection: AsyncConnection, box: SecretBox, tenant_id: TenantId, key: str, answer: StoredAnswer, now: datetime
) -> None:
    """Keep an answer, in the transaction of its effect; the key is locked by `lock_idempotency_key`."""
    row = {
        "tenant_id": tenant_id,
        "key": key,
        "fingerprint": answer.fingerprint,
        "status_code": answer.status_code,
        "sealed_body": box.seal(answer.body, answer_place(tenant_id, key)),
        "created_at": now,
    }
    await connection.execute(idempotency_keys.insert().values(row))


async def delete_old_idempotency_keys(connection: AsyncConnection, now: datetime) -> int:
    """Housekeeping: forget answers older than `RETENTION`; returns how many."""
    result = await connection.execute(delete(idempotency_keys).where(idempotency_keys.c.created_at <= now - RETENTION))
    return result.rowcount


def answer_place(tenant_id: TenantId, key: str) -> SealPlace:
    """Where a stored answer is sealed: it opens under no other key."""
    return SealPlace("idempotency_keys", "sealed_body", tenant_id, key)
