"""The secrets that an endpoint's webhooks are signed with: made, rotated, found, and forgotten when their grace is over.

One row is one generation of an endpoint's keys: a shared secret (`whsec_...`, HMAC, `v1`) and an ed25519 pair (`v1a`), of
which the private half never leaves us. Both are replaced together and live equally long. A rotation adds a row and gives
the earlier ones an end; until then every webhook carries a signature for each, so that a receiver may switch at any moment.
What has ended is ignored by the database's clock, and deleted later.

Rows from before there were ed25519 pairs have none. Such an endpoint gets one when its public key is first asked for: until
then nobody could verify `v1a`.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import Row, Text, and_, delete, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.bulk import recordset
from ledger.direct import Direct, Rows, Step, run_direct
from ledger.errors import LedgerError
from ledger.ids import EndpointId, TenantId, new_id
from ledger.schema import endpoint_secrets, endpoints
from ledger.secrets import PUBLIC_KEY_PREFIX, SIGNING_KEY_PREFIX, SealBroken, SealPlace, SecretBox, new_endpoint_secret

GRACE_DEFAULT = timedelta(hours=24)
"""For how long a replaced secret stays valid, where nothing else is asked for."""

GRACE_MAX = timedelta(days=7)

LIVE_MAX = 5
"""Generations of one endpoint that may be valid at once: each adds two signatures to every request."""


class TooManySecrets(LedgerError):
    """Refuse the input: as many secrets are valid as may be; wait for one to end, or revoke them all."""

    def __init__(self, first_ends_at: datetime) -> None:
        super().__init__(f"{LIVE_MAX} secrets are valid already")
        self.first_ends_at = first_ends_at


@dataclass(frozen=True, slots=True)
class NewSecret:
    """A generation that was just made. The secret is known at this moment only."""

    secret: str
    """`whsec_...`: whoever has it can sign as we do."""
    public_key: str
    """`whpk_...`, to verify `v1a` with."""
    earlier_end_at: datetime | None = None
    """When the last of those that it replaces ends; None where there were none."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """What verifies `v1a`."""

    public_key: str
    created_at: datetime
    expires_at: datetime | None
    """End of its grace; None for the current one."""


def secret_place(tenant_id: TenantId, endpoint_id: EndpointId, secret_id: str) -> SealPlace:
    """Where a shared secret is sealed: it opens for no other endpoint."""
    return SealPlace("endpoint_secrets", "sealed", tenant_id, f"{endpoint_id}/{secret_id}")


def signing_key_place(tenant_id: TenantId, endpoint_id: EndpointId, secret_id: str) -> SealPlace:
    """Where a private ed25519 key is sealed."""
    return SealPlace("endpoint_secrets", "sealed_signing_key", tenant_id, f"{endpoint_id}/{secret_id}")


async def add_secret(
    connection: AsyncConnection, box: SecretBox, tenant_id: TenantId, endpoint_id: EndpointId, now: datetime
) -> NewSecret:
    """Give an endpoint another generation of keys, valid without end."""
    secret, secret_id = new_endpoint_secret(), new_id("sec", now)
    pair = _new_pair(box, tenant_id, endpoint_id, secret_id)
    row = {
        "tenant_id": tenant_id,
        "endpoint_id": endpoint_id,
        "id": secret_id,
        "sealed": box.seal(secret.encode(), secret_place(tenant_id, endpoint_id, secret_id)),
        "created_at": now,
        **pair,
    }
    await connection.execute(endpoint_secrets.insert().values(row))
    return NewSecret(secret, _public_key_text(pair["public_key"]))


def _new_pair(box: SecretBox, tenant_id: TenantId, endpoint_id: EndpointId, secret_id: str) -> dict[str, bytes]:
    key = Ed25519PrivateKey.generate()
    place = signing_key_place(tenant_id, endpoint_id, secret_id)
    return {
        "sealed_signing_key": box.seal(key.private_bytes_raw(), place),
        "public_key": key.public_key().public_bytes_raw(),
    }


def _public_key_text(key: bytes) -> str:
    return PUBLIC_KEY_PREFIX + b64encode(key).decode()


async def rotate_secret(
    connection: AsyncConnection,
    box: SecretBox,
    tenant_id: TenantId,
    endpoint_id: EndpointId,
    grace: timedelta,
    now: datetime,
) -> NewSecret | None:
    """Make the endpoint's next generation; those before it end after `grace`, or earlier where they did already. With no
    grace they are revoked: what is claimed from now on is not signed with them. None where there is no such endpoint.
    Raises `TooManySecrets`."""
    # The endpoint's row keeps two rotations apart, so that they cannot both count the same live secrets.
    locked = select(endpoints.c.id).where(
        endpoints.c.tenant_id == tenant_id, endpoints.c.id == endpoint_id, endpoints.c.deleted_at.is_(None)
    )
    if (await connection.execute(locked.with_for_update())).first() is None:
        return None
    ending = (
        update(endpoint_secrets)
        .where(*_live_of(tenant_id, endpoint_id, now))
        .values(expires_at=func.least(func.coalesce(endpoint_secrets.c.expires_at, now + grace), now + grace))
        .returning(endpoint_secrets.c.expires_at)
    )
    ends = sorted((await connection.execute(ending)).scalars())
    if grace and len(ends) >= LIVE_MAX:
        raise TooManySecrets(ends[0])
    made = await add_secret(connection, box, tenant_id, endpoint_id, now)
    return NewSecret(made.secret, made.public_key, ends[-1] if ends else None)


def _live_of(tenant_id: TenantId, endpoint_id: EndpointId, now: datetime) -> tuple[Any, ...]:
    return (
        endpoint_secrets.c.tenant_id == tenant_id,
        endpoint_secrets.c.endpoint_id == endpoint_id,
        or_(endpoint_secrets.c.expires_at.is_(None), endpoint_secrets.c.expires_at > now),
    )


async def find_public_keys(
    connection: AsyncConnection, box: SecretBox, tenant_id: TenantId, endpoint_id: EndpointId, now: datetime
) -> list[PublicKey]:
    """The keys that verify `v1a` now, the current one first. It is made here where the endpoint has none yet."""
    rows = await _read_public_keys(connection, tenant_id, endpoint_id, now)
    if rows and rows[0].public_key is None:
        secret_id = rows[0].id
        # Of two that ask at once the second waits for the first's row, changes nothing, and reads what the first made.
        missing = update(endpoint_secrets).where(
            *_live_of(tenant_id, endpoint_id, now),
            endpoint_secrets.c.id == secret_id,
            endpoint_secrets.c.public_key.is_(None),
        )
        await connection.execute(missing.values(**_new_pair(box, tenant_id, endpoint_id, secret_id)))
        rows = await _read_public_keys(connection, tenant_id, endpoint_id, now)
    return [
        PublicKey(_public_key_text(row.public_key), row.created_at, row.expires_at)
        for row in rows
        if row.public_key is not None
    ]


async def _read_public_keys(
    connection: AsyncConnection, tenant_id: TenantId, endpoint_id: EndpointId, now: datetime
) -> Sequence[Row[Any]]:
    columns = (endpoint_secrets.c[name] for name in ("id", "public_key", "created_at", "expires_at"))
    statement = select(*columns).where(*_live_of(tenant_id, endpoint_id, now))
    newest_first = (endpoint_secrets.c.expires_at.desc().nulls_first(), endpoint_secrets.c.id.desc())
    return (await connection.execute(statement.order_by(*newest_first))).all()


_signers = recordset("signers", tenant_id=Text(), id=Text())
_LIVE_SECRETS = Direct(
    select(
        endpoint_secrets.c.tenant_id,
        endpoint_secrets.c.endpoint_id,
        endpoint_secrets.c.id,
        endpoint_secrets.c.sealed,
        endpoint_secrets.c.sealed_signing_key,
    )
    .join(
        _signers,
        and_(endpoint_secrets.c.tenant_id == _signers.c.tenant_id, endpoint_secrets.c.endpoint_id == _signers.c.id),
    )
    .where(or_(endpoint_secrets.c.expires_at.is_(None), endpoint_secrets.c.expires_at > func.now()))
    .order_by(endpoint_secrets.c.expires_at.desc().nulls_first(), endpoint_secrets.c.id.desc())
)


LiveSecrets = Mapping[tuple[TenantId, EndpointId], tuple[str, ...] | SealBroken]
"""What endpoints' webhooks are to be signed with now, as `whsec_...` and `whsk_...`, the current ones first; the reason in
their place where the current one does not open: one endpoint's broken secret is no other's concern."""


class LeftOut(NamedTuple):
    """A secret that is still valid after a rotation, and does not open: nothing is signed with it."""

    tenant_id: TenantId
    endpoint_id: EndpointId
    secret_id: str
    reason: str


class Opened(NamedTuple):
    """Secrets that were read."""

    live: LiveSecrets
    left_out: list[LeftOut]


async def find_live_secrets(
    connection: AsyncConnection, secret_box: SecretBox, keys: Sequence[tuple[TenantId, EndpointId]]
) -> LiveSecrets:
    """The live secrets of endpoints."""
    return open_secrets(secret_box, await run_direct(connection, live_secrets_step(keys))).live


def live_secrets_step(keys: Sequence[tuple[TenantId, EndpointId]]) -> Step:
    """The statement that reads what `open_secrets` opens."""
    asked = msgspec.json.encode([{"tenant_id": tenant_id, "id": endpoint_id} for tenant_id, endpoint_id in keys])
    return _LIVE_SECRETS, {"signers_rows": asked.decode()}


def open_secrets(secret_box: SecretBox, rows: Rows) -> Opened:
    """The live secrets in rows that were read. Without its current one an endpoint is not signed for. An earlier one that
    does not open is left out: the way out of a broken secret is a rotation, which is to help before its grace is over."""
    found: dict[tuple[TenantId, EndpointId], tuple[str, ...] | SealBroken] = {}
    left_out = list[LeftOut]()
    for tenant_id, endpoint_id, secret_id, sealed, sealed_key in rows:
        key = (TenantId(tenant_id), EndpointId(endpoint_id))
        current = found.get(key)
        if isinstance(current, SealBroken):
            continue
        try:
            found[key] = (*(current or ()), *_open(secret_box, key, secret_id, sealed, sealed_key))
        except SealBroken as error:
            if current is None:
                found[key] = error
            else:
                left_out.append(LeftOut(*key, secret_id, str(error)))
    return Opened(found, left_out)


def _open(
    box: SecretBox, key: tuple[TenantId, EndpointId], secret_id: str, sealed: bytes, sealed_key: bytes | None
) -> tuple[str, ...]:
    secret = box.open(sealed, secret_place(*key, secret_id)).decode()
    if sealed_key is None:
        return (secret,)
    signing_key = box.open(sealed_key, signing_key_place(*key, secret_id))
    return (secret, SIGNING_KEY_PREFIX + b64encode(signing_key).decode())


async def delete_expired_secrets(connection: AsyncConnection, now: datetime) -> int:
    """Housekeeping: delete secrets whose grace is over; returns how many. Crosses tenants."""
    result = await connection.execute(delete(endpoint_secrets).where(endpoint_secrets.c.expires_at <= now))
    return result.rowcount
