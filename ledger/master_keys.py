"""Which master keys a database's secrets are sealed under: a wrong one is refused at start, not at the first delivery.

Each key that secrets may be sealed under has a row, with a value that opens under that key alone. That value is what
cursors are signed with: it is the same in each row, so that a merchant's cursor stays good when the master key changes. A
new key is entered beside one that we have too: that is how a change of master keys begins. It ends when nothing is sealed
under the old key any more (`ledger/rewrapping.py`), and its row is forgotten.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime

from sqlalchemy import LargeBinary, delete, func, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.elements import ColumnElement

from ledger.cursors import cursor_key_of
from ledger.database import lock_number
from ledger.errors import UnknownName
from ledger.ids import OPS_TENANT
from ledger.schema import endpoint_secrets
from ledger.schema_access import idempotency_keys, master_keys
from ledger.secrets import KEY_ID_BYTES, KEY_ID_OFFSET, SealPlace, SecretBox, WrongMasterKey

SEALED_COLUMNS = (
    endpoint_secrets.c.sealed,
    endpoint_secrets.c.sealed_signing_key,
    idempotency_keys.c.sealed_body,
)
"""Everything that is sealed, beside the rows of the keys themselves."""


def key_id_in(sealed: ColumnElement[bytes]) -> ColumnElement[bytes]:
    """The id of the master key that a column's value was sealed under."""
    return func.substring(sealed, KEY_ID_OFFSET + 1, KEY_ID_BYTES, type_=LargeBinary())


async def admit_master_key(connection: AsyncConnection, box: SecretBox, now: datetime) -> bytes:
    """Make sure that this database's secrets open with the configured master keys, and that they may be sealed with the
    first of them; returns the key that cursors are signed with. Raises `WrongMasterKey`, or `SealBroken` for a row that was
    altered."""
    await connection.execute(select(func.pg_advisory_xact_lock(lock_number("master keys"))))
    cursor_key = await check_master_key(connection, box)
    if cursor_key is None:
        cursor_key = cursor_key_of(box.master_key)
    elif box.key_id in await _known(connection):
        return cursor_key
    await _enter(connection, box, cursor_key, now)
    return cursor_key


async def _enter(connection: AsyncConnection, box: SecretBox, cursor_key: bytes, now: datetime) -> None:
    row = {
        "key_id": box.key_id,
        "sealed_cursor_key": box.seal(cursor_key, _place(box.key_id)),
        "created_at": now,
    }
    await connection.execute(master_keys.insert().values(row))


async def check_master_key(connection: AsyncConnection, box: SecretBox) -> bytes | None:
    """As `admit_master_key`, but nothing is written. None where no master key was ever entered, and nothing contradicts
    this one."""
    known = await _known(connection)
    foreign = known.keys() - box.known_ids
    if foreign == known.keys():
        # Sealed values are looked at where no key was entered yet: this database is older than that.
        _refuse_foreign(box, foreign or await _used(connection, endpoint_secrets.c.sealed) - box.known_ids)
        return None
    if foreign and (used := foreign & await _used(connection, *SEALED_COLUMNS)):
        raise WrongMasterKey(
            f"secrets of this database are still sealed under the master key with the id {_names(used)}, which is not"
            " configured; put that key into secrets.previous_master_keys until `chainbell secrets rewrap` has done its work"
        )
    key_id, sealed = next((key_id, sealed) for key_id, sealed in known.items() if key_id in box.known_ids)
    return box.open(sealed, _place(key_id))


def _refuse_foreign(box: SecretBox, foreign: Collection[bytes]) -> None:
    if foreign:
        raise WrongMasterKey(
            f"secrets.master_key (id {box.key_id.hex()}) is not this database's: its secrets are sealed under the key with"
            f" the id {_names(foreign)}; start with that key, or name it in secrets.previous_master_keys to change keys"
            " (docs/operations.md says what to do when it is lost)"
        )


def _names(key_ids: Collection[bytes]) -> str:
    return ", ".join(sorted(key_id.hex() for key_id in key_ids))


def _place(key_id: bytes) -> SealPlace:
    return SealPlace("master_keys", "sealed_cursor_key", OPS_TENANT, key_id.hex())


async def _known(connection: AsyncConnection) -> Mapping[bytes, bytes]:
    rows = await connection.execute(select(master_keys.c.key_id, master_keys.c.sealed_cursor_key))
    return {bytes(row.key_id): bytes(row.sealed_cursor_key) for row in rows}


async def _used(connection: AsyncConnection, *columns: ColumnElement[bytes]) -> set[bytes]:
    """The ids of the master keys that anything in these columns is sealed under. Crosses tenants."""
    used: set[bytes] = set()
    for column in columns:
        found = select(key_id_in(column)).where(column.is_not(None)).distinct()
        used |= {bytes(key_id) for key_id in (await connection.execute(found)).scalars()}
    return used


async def abandon_master_key(connection: AsyncConnection, box: SecretBox, key_id: bytes, now: datetime) -> int:
    """Do without a master key that is lost: enter the present one in its place. What was sealed under the lost one stays
    shut; returns how many live secrets of endpoints that are. Raises `UnknownName` where nothing needs that key, or we
    have it. Crosses tenants."""
    needed = (await _known(connection)).keys() | await _used(connection, *SEALED_COLUMNS)
    if key_id not in needed - box.known_ids:
        raise UnknownName(
            f"no secret of this database waits for a master key with the id {key_id.hex()}; lost ones would be:"
            f" {_names(needed - box.known_ids) or 'none'}"
        )
    await connection.execute(delete(master_keys).where(master_keys.c.key_id == key_id))
    if not await _known(connection):
        await _enter(connection, box, cursor_key_of(box.master_key), now)
    shut = select(func.count()).where(
        key_id_in(endpoint_secrets.c.sealed) == key_id,
        or_(endpoint_secrets.c.expires_at.is_(None), endpoint_secrets.c.expires_at > now),
    )
    return (await connection.execute(shut)).scalar_one()


async def forget_unused_keys(connection: AsyncConnection, box: SecretBox) -> set[bytes]:
    """Delete the rows of master keys under which nothing is sealed any more, but for the one that is sealed with; returns
    the ids of those that remain beside it. Crosses tenants."""
    await connection.execute(select(func.pg_advisory_xact_lock(lock_number("master keys"))))
    others = (await _known(connection)).keys() - {box.key_id}
    used = await _used(connection, *SEALED_COLUMNS)
    await connection.execute(delete(master_keys).where(master_keys.c.key_id.in_(others - used)))
    return set(others & used)
