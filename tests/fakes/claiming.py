"""Claiming as a worker with room for so many deliveries of every endpoint."""

from __future__ import annotations

from ledger.claims import Claimed, EndpointRoom, claim_due_deliveries
from ledger.database import Connection
from ledger.owed import START, find_owed


async def claim_any(connection: Connection, limit: int, *, lease_s: float = 60.0, token: str) -> list[Claimed]:
    """Lease up to `limit` deliveries of each endpoint to which something is due."""
    owed, _ = await find_owed(connection, START, 1_000)
    rooms = [EndpointRoom(one.tenant_id, one.endpoint_id, limit) for one in owed]
    return await claim_due_deliveries(connection, rooms, lease_s=lease_s, token=token)
