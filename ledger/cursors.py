"""Cursors of paged lists: opaque, signed places in a keyset order.

A cursor names the last row that the reader has seen by the columns that the list is ordered by, never by an offset, so
that rows written meanwhile neither repeat nor hide others. It is signed for one tenant and one list: nobody can make
one up, and one from another list is refused rather than misread.
"""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import UTC, datetime, timedelta
from hashlib import sha256

import msgspec

from ledger.errors import LedgerError
from ledger.ids import TenantId

CURSOR_LENGTH_MAX = 400
"""Characters; anything longer was not made here."""

_TAG_BYTES = 12
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Place = tuple[int | str, ...]
"""The order's columns of one row: integers and ids, times as microseconds since 1970."""


class InvalidCursor(LedgerError):
    """Refuse the input: the cursor was not made here, for this list and this tenant."""


def cursor_key_of(master_key: bytes) -> bytes:
    """The key that cursors are signed with, derived from the installation's master key."""
    return hmac.new(master_key, b"chainbell cursors", sha256).digest()


def microseconds_of(moment: datetime) -> int:
    """A time as a cursor carries it: Postgres keeps microseconds, so nothing is lost."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


def moment_of(microseconds: int) -> datetime:
    """The time that `microseconds_of` was given."""
    return _EPOCH + timedelta(microseconds=microseconds)


def encode_cursor(key: bytes, tenant_id: TenantId, list_name: str, place: Place) -> str:
    """The cursor that goes on after `place`."""
    payload = msgspec.json.encode(place)
    return _text_of(_tag(key, tenant_id, list_name, payload) + payload)


def decode_cursor(key: bytes, tenant_id: TenantId, list_name: str, text: str) -> Place:
    """The place that a cursor names. Raises `InvalidCursor` when it was altered, or made for another list or tenant."""
    refusal = "the cursor was not made by this list; leave it out to begin again, or send next_cursor unaltered"
    try:
        raw = urlsafe_b64decode(text + "=" * (-len(text) % 4)) if len(text) <= CURSOR_LENGTH_MAX else b""
    except ValueError:
        raise InvalidCursor(refusal) from None
    tag, payload = raw[:_TAG_BYTES], raw[_TAG_BYTES:]
    is_ours = hmac.compare_digest(tag, _tag(key, tenant_id, list_name, payload))
    if not is_ours or _text_of(raw) != text:  # decoding overlooks padding, and bits beyond the last whole byte
        raise InvalidCursor(refusal)
    return msgspec.json.decode(payload, type=Place)


def _text_of(raw: bytes) -> str:
    return urlsafe_b64encode(raw).decode().rstrip("=")


def _tag(key: bytes, tenant_id: TenantId, list_name: str, payload: bytes) -> bytes:
    return hmac.new(key, f"{tenant_id}|{list_name}|".encode() + payload, sha256).digest()[:_TAG_BYTES]
