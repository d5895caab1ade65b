"""Bearer keys: their form, their scopes, and their rows.

A key is `cb_live_<id>_<secret><checksum>`, shown once. The id (16 characters) finds the row and may be written in logs;
of the secret (256 random bits in 43 characters) only the SHA-256 is kept, which needs no salt and no slow hash because
nobody can guess 256 random bits. The checksum (CRC-32 in 6 characters) tells a mistyped key from a wrong one without a
question to the database, and lets scanners find leaked keys. All three are base 62: digits, upper case, lower case.
"""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from hashlib import sha256
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from string import ascii_lowercase, ascii_uppercase, digits
from typing import Any, TypeGuard
from zlib import crc32

from sqlalchemy import BindParameter, Select, TableValuedAlias, bindparam, column, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.audit import COMMAND_LINE, record_audit
from ledger.documents import time_of
from ledger.errors import UnknownName
from ledger.ids import KeyId, TenantId
from ledger.schema_access import api_keys
from ledger.tenancy import SETTING

SCOPES = (
    "watches:read",
    "watches:write",
    "entries:read",
    "endpoints:read",
    "endpoints:write",
    "events:read",
    "deliveries:read",
    "deliveries:write",
    "chains:read",
    "chains:write",
    "replays:write",
)
"""Every scope there is. A key may also be granted `<resource>:*`, or `*` for all."""

USE_INTERVAL = timedelta(minutes=1)
"""`last_used_at` is written at most this often: a busy key must not turn its row into a queue."""

Network = IPv4Network | IPv6Network

_NOBODY = bytes(32)
"""No SHA-256 of anything known: what a key that is not there is compared with."""

_PREFIX = "cb_live_"
_ALPHABET = digits + ascii_uppercase + ascii_lowercase
_ID_LENGTH, _SECRET_LENGTH, _CHECKSUM_LENGTH = 16, 43, 6
_FORM = re.compile(
    rf"{_PREFIX}(?P<id>[0-9A-Za-z]{{{_ID_LENGTH}}})"
    rf"_(?P<secret>[0-9A-Za-z]{{{_SECRET_LENGTH}}})(?P<checksum>[0-9A-Za-z]{{{_CHECKSUM_LENGTH}}})"
)


class MalformedKey(ValueError):
    """The text is no key of ours; the message is a sentence for whoever sent it and repeats nothing of it."""


@dataclass(frozen=True, slots=True)
class KeyParts:
    """What a well-formed key says: who it claims to be, and the hash of its proof."""

    id: KeyId
    secret_sha256: bytes


@dataclass(frozen=True, slots=True)
class KeyRow:
    """A key as its row stands, and the database's time when it was read."""

    id: KeyId
    tenant_id: TenantId
    secret_sha256: bytes
    scopes: tuple[str, ...]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    networks: tuple[Network, ...] | None
    """Where it may be used from; None: anywhere."""
    read_at: datetime


def _base62(number: int, length: int) -> str:
    characters = []
    for _ in range(length):
        number, remainder = divmod(number, 62)
        characters.append(_ALPHABET[remainder])
    return "".join(reversed(characters))


def _checksum(body: str) -> str:
    return _base62(crc32(body.encode()), _CHECKSUM_LENGTH)


def format_key(key_id: str, secret: bytes) -> str:
    """The key in full, from its id and 32 secret bytes."""
    body = f"{_PREFIX}{key_id}_{_base62(int.from_bytes(secret, 'big'), _SECRET_LENGTH)}"
    return body + _checksum(body)


def parse_key(text: str) -> KeyParts:
    """Take a key apart; raises `MalformedKey` when it is not one, or has lost or changed a character."""
    match = _FORM.fullmatch(text)
    if match is None:
        raise MalformedKey(
            "the bearer token is not a Chainbell key: it must look like cb_live_<id>_<secret>, 16 and 49 letters and"
            " digits; send it as it was shown when it was made"
        )
    if not hmac.compare_digest(match["checksum"], _checksum(text[:-_CHECKSUM_LENGTH])):
        raise MalformedKey("the bearer token's checksum does not fit: a character is missing or changed; copy it again")
    return KeyParts(KeyId(match["id"]), sha256(match["secret"].encode()).digest())


def is_usable(key: KeyRow | None, parts: KeyParts) -> TypeGuard[KeyRow]:
    """True when there is such a key, the secret is the right one, and it is neither revoked nor expired; the same work in
    any case."""
    is_proven = hmac.compare_digest(key.secret_sha256 if key else _NOBODY, parts.secret_sha256)
    is_expired = key is not None and key.expires_at is not None and key.expires_at <= key.read_at
    return key is not None and is_proven and key.revoked_at is None and not is_expired


def may_be_used_from(key: KeyRow, address: IPv4Address | IPv6Address | None) -> bool:
    """True for a key without networks of its own, and where one of them holds the address."""
    if key.networks is None:
        return True
    return address is not None and any(address.version == n.version and address in n for n in key.networks)


def read_network(text: str) -> Network:
    """A network as it is written for a key: a CIDR, or one address. Raises `UnknownName`."""
    try:
        return ip_network(text)
    except ValueError:
        raise UnknownName(
            f"{text[:60]!r} is no network: write it as 203.0.113.0/24, without bits beyond the mask, or as one address"
        ) from None


def has_scope(granted: Collection[str], needed: str) -> bool:
    """True when one of the granted scopes covers the needed one."""
    resource = needed.split(":")[0]
    return not {needed, f"{resource}:*", "*"}.isdisjoint(granted)


def check_scopes(scopes: Collection[str]) -> None:
    """Raise `UnknownName` for a scope that no route asks for."""
    known = {*SCOPES, *(scope.split(":")[0] + ":*" for scope in SCOPES), "*"}
    unknown = sorted(set(scopes) - known)
    if unknown or not scopes:
        said = f"there is no scope {unknown[0]!r}" if unknown else "a key needs at least one scope"
        raise UnknownName(f"{said}; choose from {', '.join(SCOPES)}, <resource>:* or *")


_FIELDS = tuple(field.name for field in fields(KeyRow))
KEY_COLUMNS = _FIELDS[:-1]
"""What a key's row has, in the order of `KeyRow`."""

_columns = tuple(api_keys.c[name] for name in KEY_COLUMNS)
_with_now: Select[Any] = select(*_columns, func.clock_timestamp().label("read_at"))


def find_key_by_id(key_id: BindParameter[Any], name: str) -> TableValuedAlias:
    """The key as a table called `name`: past the policies, which let a transaction see a tenant's keys only once it speaks
    for that tenant."""
    columns = (column(each.name, each.type) for each in _columns)
    return func.chainbell_find_key(key_id).table_valued(*columns, name=name)


_found = find_key_by_id(bindparam("id"), "found")
# From here on the transaction speaks for the key's tenant.
_find: Select[Any] = select(
    *_found.c,
    func.clock_timestamp().label("read_at"),
    func.set_config(SETTING, _found.c.tenant_id, True).label("spoken"),
)


async def create_key(
    connection: AsyncConnection,
    tenant_id: TenantId,
    scopes: Collection[str],
    now: datetime,
    *,
    expires_at: datetime | None = None,
    networks: Collection[Network] = (),
    actor: str = COMMAND_LINE,
) -> tuple[KeyId, str]:
    """Make a key; returns its id and the key in full, which is kept nowhere. Without networks it may be used from anywhere.
    Raises `UnknownName` for a scope."""
    check_scopes(scopes)
    key_id = KeyId(_base62(secrets.randbits(96), _ID_LENGTH))
    key = format_key(key_id, secrets.token_bytes(32))
    row = {
        "tenant_id": tenant_id,
        "id": key_id,
        "secret_sha256": parse_key(key).secret_sha256,
        "scopes": sorted(set(scopes)),
        "created_at": now,
        "expires_at": expires_at,
        "networks": [str(network) for network in networks] or None,
    }
    await connection.execute(api_keys.insert().values(row))
    detail = {"scopes": row["scopes"], "expires_at": expires_at and time_of(expires_at), "networks": row["networks"]}
    await record_audit(
        connection, tenant_id=tenant_id, actor=actor, action="key.created", subject=key_id, now=now, detail=detail
    )
    return key_id, key


async def find_key(connection: AsyncConnection, key_id: KeyId) -> KeyRow | None:
    """The key of that id, whoever owns it: how a request learns its tenant, for which its transaction speaks from then on
    (`ledger/tenancy.py`)."""
    row = (await connection.execute(_find, {"id": key_id})).first()
    return key_from(tuple(row)[:-1]) if row is not None else None


async def list_keys(connection: AsyncConnection, tenant_id: TenantId | None = None) -> list[KeyRow]:
    """Keys of a tenant, or of all, the oldest first; revoked ones too."""
    statement = _with_now.order_by(api_keys.c.created_at, api_keys.c.id)
    if tenant_id is not None:
        statement = statement.where(api_keys.c.tenant_id == tenant_id)
    found = [key_from(tuple(row)) for row in await connection.execute(statement)]
    return [key for key in found if key is not None]


async def revoke_key(
    connection: AsyncConnection, key_id: KeyId, now: datetime, *, actor: str = COMMAND_LINE
) -> TenantId:
    """Make a key useless from the next request on; returns whose it was. Revoking twice is no error. Raises
    `UnknownName`."""
    statement = (
        update(api_keys)
        .where(api_keys.c.id == key_id)
        .values(revoked_at=func.coalesce(api_keys.c.revoked_at, now))
        .returning(api_keys.c.tenant_id)
    )
    tenant_id: TenantId | None = (await connection.execute(statement)).scalar_one_or_none()
    if tenant_id is None:
        raise UnknownName(f"there is no key {key_id}; see: chainbell keys list")
    await record_audit(connection, tenant_id=tenant_id, actor=actor, action="key.revoked", subject=key_id, now=now)
    return tenant_id


async def touch_key(connection: AsyncConnection, key: KeyRow) -> None:
    """Store that a key was used, unless another request has just done so."""
    stale = or_(api_keys.c.last_used_at.is_(None), api_keys.c.last_used_at < key.read_at - USE_INTERVAL)
    mine = (api_keys.c.tenant_id == key.tenant_id, api_keys.c.id == key.id)
    # SKIP LOCKED: of many requests that come at once, one writes and none waits.
    free = select(api_keys.c.id).where(*mine, stale).with_for_update(skip_locked=True)
    statement = update(api_keys).where(*mine, api_keys.c.id.in_(free)).values(last_used_at=key.read_at)
    await connection.execute(statement)


def is_touch_due(key: KeyRow) -> bool:
    """True when the row's `last_used_at` is old enough to be written again."""
    return key.last_used_at is None or key.last_used_at < key.read_at - USE_INTERVAL


def key_from(values: Sequence[Any]) -> KeyRow | None:
    """A row of `KEY_COLUMNS` and the time at which it was read; None where all but that is null."""
    found = dict(zip(_FIELDS, values, strict=True))
    if found["id"] is None:
        return None
    found["scopes"] = tuple(found["scopes"])
    found["networks"] = tuple(map(ip_network, found["networks"])) if found["networks"] is not None else None
    return KeyRow(**found)
