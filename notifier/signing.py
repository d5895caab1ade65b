"""Standard Webhooks signatures, version `v1`: HMAC-SHA256 over `id.timestamp.body` (specification 1.0.0).

What is signed is the stored bytes, never a second serialisation of them. During a rotation several secrets live, and
the header carries one signature for each, so that a receiver may switch at any moment.
"""

from __future__ import annotations

import hmac
import re
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Sequence
from datetime import datetime
from hashlib import sha256

from ledger.secrets import SECRET_PREFIX
from notifier.errors import CannotSign

KEY_BYTES_MIN, KEY_BYTES_MAX = 24, 64
"""Bounds of a symmetric secret's length (Standard Webhooks, "Signature scheme")."""

_MESSAGE_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")


def webhook_headers(message_id: str, attempted_at: datetime, body: bytes, secrets: Sequence[str]) -> dict[str, str]:
    """The three headers of one attempt. `attempted_at` is the time of this attempt, not of the event.

    Raises `CannotSign` for an id with a character that the scheme or a header cannot carry (a dot would let parts of
    the signed text be shifted into each other), for no secret, and for one that is not `whsec_` and base64.
    """
    if not _MESSAGE_ID.fullmatch(message_id):
        raise CannotSign(f"event id {message_id[:40]!r} has characters that a signature cannot carry")
    if not secrets:
        raise CannotSign(f"event {message_id}: the endpoint has no live secret; rotate its secret to make one")
    timestamp = str(int(attempted_at.timestamp()))
    signed = b".".join((message_id.encode(), timestamp.encode(), body))
    signatures = (_sign(signed, _key_of(secret, message_id)) for secret in secrets)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": " ".join(signatures),
    }


def _sign(signed: bytes, key: bytes) -> str:
    return "v1," + b64encode(hmac.digest(key, signed, sha256)).decode()


def _key_of(secret: str, message_id: str) -> bytes:
    try:
        key = b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except (Base64Error, ValueError):
        key = b""
    if not secret.startswith(SECRET_PREFIX) or not KEY_BYTES_MIN <= len(key) <= KEY_BYTES_MAX:
        raise CannotSign(f"event {message_id}: a secret of the endpoint is not whsec_ and base64 of 24 to 64 bytes")
    return key
