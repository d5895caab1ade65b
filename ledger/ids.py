"""Ids of everything that the ledger keeps: what they look like and how they are made.

An id that must come out the same whenever the chain is read again (an entry) is a hash of what it names. One that is
made once (an event, a watch) is a UUIDv7 (RFC 9562, section 5.7): unique, and in order of time, so that index pages fill
from one side. No id has a dot in it: Standard Webhooks signs `id.timestamp.body`.
"""

from __future__ import annotations

import secrets
from datetime import datetime
from enum import StrEnum
from hashlib import sha256
from typing import NewType

from chains.model import TransferId

TenantId = NewType("TenantId", str)
WatchId = NewType("WatchId", str)
EntryId = NewType("EntryId", str)
EventId = NewType("EventId", str)
EndpointId = NewType("EndpointId", str)
DeliveryId = NewType("DeliveryId", str)
KeyId = NewType("KeyId", str)
JobId = NewType("JobId", str)

OPS_TENANT = TenantId("ten_ops")
"""The operator's own tenant: made by the first migration, told of halted chains and paused endpoints."""


class Side(StrEnum):
    """Which end of a transfer the watched address is."""

    DEPOSIT = "deposit"
    WITHDRAWAL = "withdrawal"


_RANDOM_BYTES = 10
"""Of an id that is made once: 74 of these bits are used."""

ENTRY_PREFIX = {Side.DEPOSIT: "dep", Side.WITHDRAWAL: "wdr"}


TEST_PREFIX = "tst"
"""Of the subject of a test event: it tells of nothing that there is, and was for one endpoint alone. A subject of its own
for each keeps one failed test from holding up the next."""


def is_test(subject: str) -> bool:
    """True for the subject of a test event."""
    return subject.startswith(f"{TEST_PREFIX}_")


def entry_id_of(tenant_id: TenantId, side: Side, transfer_id: TransferId) -> EntryId:
    """Identity of a tenant's entry: the watch that matched is not in it, so re-created or overlapping watches never make
    a second entry."""
    digest = sha256(f"{tenant_id}|{side}|{transfer_id}".encode()).hexdigest()
    return EntryId(f"{ENTRY_PREFIX[side]}_{digest[:40]}")


def uuid7_hex(now: datetime, randomness: bytes) -> str:
    """32 hex digits of a UUIDv7 made from an aware time and 10 random bytes (RFC 9562, section 5.7)."""
    milliseconds = int(now.timestamp() * 1000)
    random_bits = int.from_bytes(randomness, "big")
    value = (milliseconds & (2**48 - 1)) << 80
    value |= 0x7 << 76 | (random_bits >> 64 & 0xFFF) << 64
    value |= 0b10 << 62 | random_bits & (2**62 - 1)
    return f"{value:032x}"


def new_id(prefix: str, now: datetime) -> str:
    """A fresh id such as `evt_0193...`, later ones sorting after earlier ones."""
    return f"{prefix}_{uuid7_hex(now, secrets.token_bytes(_RANDOM_BYTES))}"


def new_ids(prefix: str, now: datetime, count: int) -> list[str]:
    """As many fresh ids of one moment, in the order in which they sort."""
    randomness = secrets.token_bytes(_RANDOM_BYTES * count)
    parts = (randomness[at : at + _RANDOM_BYTES] for at in range(0, len(randomness), _RANDOM_BYTES))
    return sorted(f"{prefix}_{uuid7_hex(now, part)}" for part in parts)
