"""Standard Webhooks signatures over `id.timestamp.body` (specification 1.0.0): HMAC-SHA256 (`v1`) and ed25519 (`v1a`).

What is signed is the stored bytes, never a second serialisation of them. During a rotation several secrets live, and
the header carries one signature for each, so that a receiver may switch at any moment. Those of `v1` come first: there are
receivers that look at nothing else.
"""

from __future__ import annotations

import hmac
import re
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from hashlib import sha256

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ledger.secrets import SECRET_PREFIX, SIGNING_KEY_PREFIX
from notifier.errors import CannotSign

KEY_BYTES_MIN, KEY_BYTES_MAX = 24, 64
"""Bounds of a symmetric secret's length (Standard Webhooks, "Signature scheme")."""

SIGNING_KEY_BYTES = 32
"""Of a private ed25519 key: the seed that RFC 8032 calls the private key."""

_KEYS_REMEMBERED = 1024
"""Private keys that are kept ready: making one from its bytes takes as long as to sign with it."""

_MESSAGE_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")


def webhook_headers(message_id: str, attempted_at: datetime, body: bytes, secrets: Sequence[str]) -> dict[str, str]:
    """The three headers of one attempt. `attempted_at` is the time of this attempt, not of the event. `secrets` are shared
    ones (`whsec_...`) and private ed25519 keys (`whsk_...`).

    Raises `CannotSign` for an id with a character that the scheme or a header cannot carry (a dot would let parts of
    the signed text be shifted into each other), for no shared secret, and for one that is not base64 of its right length.
    """
    if not _MESSAGE_ID.fullmatch(message_id):
        raise CannotSign(f"event id {message_id[:40]!r} has characters that a signature cannot carry")
    private_keys = [secret for secret in secrets if secret.startswith(SIGNING_KEY_PREFIX)]
    shared = [secret for secret in secrets if not secret.startswith(SIGNING_KEY_PREFIX)]
    if not shared:
        raise CannotSign(f"event {message_id}: the endpoint has no live secret; rotate its secret to make one")
    timestamp = str(int(attempted_at.timestamp()))
    signed = b".".join((message_id.encode(), timestamp.encode(), body))
    signatures = [_sign(signed, _key_of(secret, message_id)) for secret in shared]
    signatures += [_sign_v1a(signed, _private_key_of(secret, message_id)) for secret in private_keys]
    return {
        "webhook-id": message_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": " ".join(signatures),
    }


def _sign(signed: bytes, key: bytes) -> str:
    return "v1," + b64encode(hmac.digest(key, signed, sha256)).decode()


def _sign_v1a(signed: bytes, key: Ed25519PrivateKey) -> str:
    return "v1a," + b64encode(key.sign(signed)).decode()


def _key_of(secret: str, message_id: str) -> bytes:
    key = _decode(secret.removeprefix(SECRET_PREFIX))
    if not secret.startswith(SECRET_PREFIX) or not KEY_BYTES_MIN <= len(key) <= KEY_BYTES_MAX:
        raise CannotSign(f"event {message_id}: a secret of the endpoint is not whsec_ and base64 of 24 to 64 bytes")
    return key


def _private_key_of(secret: str, message_id: str) -> Ed25519PrivateKey:
    seed = _decode(secret.removeprefix(SIGNING_KEY_PREFIX))
    if len(seed) != SIGNING_KEY_BYTES:
        raise CannotSign(f"event {message_id}: a private key of the endpoint is not whsk_ and base64 of 32 bytes")
    return _private_key(seed)


_private_key = lru_cache(_KEYS_REMEMBERED)(Ed25519PrivateKey.from_private_bytes)


def _decode(text: str) -> bytes:
    """The bytes; none for what is not base64."""
    try:
        return b64decode(text, validate=True)
    except (Base64Error, ValueError):
        return b""
