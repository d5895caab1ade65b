"""What was last told of an entry: its newest event, which outlives the entry's row where that was lost."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import Text, and_, select
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.ext.asyncio import AsyncConnection

from chains.model import BlockHash
from ledger.bulk import unnested
from ledger.ids import EntryId, TenantId, WatchId
from ledger.schema import events
from ledger.states import Disposition, EntryState, Origin


@dataclass(frozen=True, slots=True)
class Told:
    """An entry's story as far as its tenant has been told: what its next event has to go on from."""

    sequence: int
    state: EntryState
    origin: Origin
    disposition: Disposition
    reasons: tuple[str, ...]
    policy: str
    credit_at: str
    watch_id: WatchId
    detected_at: datetime
    confirmed_at: datetime | None
    finalized_at: datetime | None
    updated_at: datetime
    block_height: int | None
    block_hash: BlockHash | None
    block_at: datetime | None


async def find_last_told(
    connection: AsyncConnection, keys: Collection[tuple[TenantId, EntryId]]
) -> dict[tuple[TenantId, EntryId], Told]:
    """The newest event of each of these entries that is still kept."""
    if not keys:
        return {}
    tenants, ids = zip(*keys, strict=True)
    asked = unnested("asked", tenant_id=Text(), id=Text())
    statement = (
        select(events.c.tenant_id, events.c.subject, events.c.sequence, events.c.body)
        .join(asked, and_(events.c.tenant_id == asked.c.tenant_id, events.c.subject == asked.c.id))
        .where(events.c.sequence.is_not(None))
        .ext(distinct_on(events.c.tenant_id, events.c.subject))
        .order_by(events.c.tenant_id, events.c.subject, events.c.sequence.desc())
    )
    rows = await connection.execute(statement, {"all_tenant_id": list(tenants), "all_id": list(ids)})
    return {
        (TenantId(row.tenant_id), EntryId(row.subject)): _told(row.sequence, msgspec.json.decode(row.body)["data"])
        for row in rows
    }


def _told(sequence: int, data: Mapping[str, Any]) -> Told:
    block = data["block"]
    return Told(
        sequence=sequence,
        state=EntryState(data["state"]),
        origin=Origin(data["origin"]),
        disposition=Disposition(data["disposition"]),
        reasons=tuple(data["reasons"]),
        policy=data["confirmations"]["policy"],
        credit_at=data["confirmations"]["credit_at"],
        watch_id=WatchId(data["watch"]["id"]),
        detected_at=datetime.fromisoformat(data["detected_at"]),
        confirmed_at=_moment(data["confirmed_at"]),
        finalized_at=_moment(data["finalized_at"]),
        updated_at=datetime.fromisoformat(data["updated_at"]),
        block_height=block["height"] if block else None,
        block_hash=bytes.fromhex(block["hash"].removeprefix("0x")) if block else None,
        block_at=datetime.fromisoformat(block["timestamp"]) if block else None,
    )


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
