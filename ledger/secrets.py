"""Encryption at rest: endpoint secrets and stored answers, sealed so that a stolen dump tells nothing.

A sealed value is AES-256-GCM under the operator's master key. It is bound to its place (table, column, tenant, row) by
the additional authenticated data: a value copied to another row, another tenant or another column does not open there,
so nobody who can write to the database can make us sign with a secret of their choice.

    version (1 byte) | key id (8 bytes) | nonce (12 bytes) | ciphertext and tag

The key id says which master key a value needs. While master keys change, values under the old one and the new one stand side
by side: both are read, the new one is written with, and `ledger/rewrapping.py` seals the rest anew, row by row.
"""

from __future__ import annotations

import hmac
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from secrets import token_bytes

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ledger.errors import LedgerError

SECRET_PREFIX = "whsec_"  # noqa: S105 (Standard Webhooks' prefix of a secret, not a secret)
SIGNING_KEY_PREFIX = "whsk_"
"""Standard Webhooks' prefix of a private ed25519 key: it is never shown, stored unsealed, or sent."""
PUBLIC_KEY_PREFIX = "whpk_"
"""Standard Webhooks' prefix of a public ed25519 key."""

MASTER_KEY_BYTES = 32
_VERSION = b"\x01"
KEY_ID_BYTES = 8
_NONCE_BYTES = 12
KEY_ID_OFFSET = len(_VERSION)
"""Where in a sealed value the key's id begins: statements look for values of other keys by it."""
_HEADER_BYTES = len(_VERSION) + KEY_ID_BYTES
_SHORTEST_BYTES = _HEADER_BYTES + _NONCE_BYTES + 16


class SecretError(LedgerError):
    """A sealed value or a master key that cannot be used; nothing secret is in the text."""


class BadMasterKey(SecretError):
    """Refuse to start: the master key is not 32 bytes in base64."""


class WrongMasterKey(SecretError):
    """Refuse to start: this database's secrets were sealed under another master key than those that are configured."""


class SealBroken(SecretError):
    """Stop and look: the value was sealed by another master key, for another row, or was altered."""


@dataclass(frozen=True, slots=True)
class SealPlace:
    """Where a sealed value lives; it opens nowhere else."""

    table: str
    column: str
    tenant_id: str
    row_id: str
    """The row's id within the tenant. Where the key has several columns, join them with `/`."""

    def as_bytes(self) -> bytes:
        """Each part with its length before it, so that no two places are spelled alike."""
        parts = (part.encode() for part in (self.table, self.column, self.tenant_id, self.row_id))
        return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


@dataclass(frozen=True, slots=True)
class SecretBox:
    """Seals under one master key of 32 bytes, and opens what that one or an earlier one has sealed. Raises `BadMasterKey`
    for any other length."""

    master_key: bytes = field(repr=False)
    previous: tuple[bytes, ...] = field(default=(), repr=False)
    """Master keys that are read but never sealed with."""
    _ciphers: Mapping[bytes, AESGCM] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        keys = (self.master_key, *self.previous)
        for key in keys:
            if len(key) != MASTER_KEY_BYTES:
                raise BadMasterKey(f"the master key has {len(key)} bytes; it must have {MASTER_KEY_BYTES}")
        object.__setattr__(self, "_ciphers", {key_id_of(key): AESGCM(key) for key in keys})

    @property
    def key_id(self) -> bytes:
        """8 bytes that name the master key and tell nothing of it."""
        return key_id_of(self.master_key)

    @property
    def known_ids(self) -> frozenset[bytes]:
        """The ids of all keys that values can be opened with."""
        return frozenset(self._ciphers)

    def seal(self, plaintext: bytes, place: SealPlace) -> bytes:
        """Encrypt `plaintext` for `place`; another nonce, and so another result, each time."""
        header = _VERSION + self.key_id
        nonce = token_bytes(_NONCE_BYTES)
        sealed = self._ciphers[self.key_id].encrypt(nonce, plaintext, header + place.as_bytes())
        return header + nonce + sealed

    def open(self, sealed: bytes, place: SealPlace) -> bytes:
        """What was sealed for `place`. Raises `SealBroken` when it was not sealed for it, by a key that we have, as it
        stands."""
        header, rest = sealed[:_HEADER_BYTES], sealed[_HEADER_BYTES:]
        if len(sealed) < _SHORTEST_BYTES or not header.startswith(_VERSION):
            raise SealBroken(f"{_name(place)} holds no sealed value of a known version; restore it from a backup")
        cipher = self._ciphers.get(header[len(_VERSION) :])
        if cipher is None:
            raise SealBroken(
                f"{_name(place)} was sealed by another master key (id {header[1:].hex()}); start with that key, or name it"
                " in secrets.previous_master_keys"
            )
        try:
            return cipher.decrypt(rest[:_NONCE_BYTES], rest[_NONCE_BYTES:], header + place.as_bytes())
        except InvalidTag:
            raise SealBroken(
                f"{_name(place)} was altered or copied from another row; rotate the secret or restore it from a backup"
            ) from None


def key_id_of(master_key: bytes) -> bytes:
    """8 bytes that name a master key and tell nothing of it."""
    return hmac.new(master_key, b"chainbell key id", sha256).digest()[:KEY_ID_BYTES]


def _name(place: SealPlace) -> str:
    return f"{place.table}.{place.column} of {place.tenant_id}/{place.row_id}"


def parse_master_key(text: str) -> bytes:
    """32 bytes from the base64 that the settings carry. Raises `BadMasterKey`."""
    try:
        key = b64decode(text.strip(), validate=True)
    except (Base64Error, ValueError):
        raise BadMasterKey("the master key is not base64; make one with: openssl rand -base64 32") from None
    if len(key) != MASTER_KEY_BYTES:
        raise BadMasterKey(f"the master key has {len(key)} bytes, not 32; make one with: openssl rand -base64 32")
    return key


def new_master_key() -> str:
    """A fresh master key as the settings carry it."""
    return b64encode(token_bytes(MASTER_KEY_BYTES)).decode()


def new_endpoint_secret() -> str:
    """A fresh signing secret as merchants see it: `whsec_` and 32 random bytes in base64 (Standard Webhooks)."""
    return SECRET_PREFIX + b64encode(token_bytes(32)).decode()
