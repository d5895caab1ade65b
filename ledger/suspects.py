"""Suspects: deliveries that one worker after the other fell silent with, and one of them may be why.

The attempt rises at the claim, so that what kills its worker comes to an end. But a worker has some hundreds of deliveries
in its hands when it dies, and most of them did it no harm. Claimed together again, they would be there at each death, use up
their attempts and end with it, though hardly one of them was ever sent.

So it is counted how often in a row a delivery was taken over from a worker that fell silent (`takeovers`; a settlement ends
the row). One death says nothing: what that worker had is claimed as ever, at once and together. What has to be taken over a
second time in a row is a suspect. No ordinary claim takes it; it is claimed alone, and its attempt counts as before. While
another process has a suspect in its hands, or had one when it died, none is claimed: so they kill one process in the time of
a lease, as they would have done together. Those with the fewest takeovers come first, so that what did no harm is delivered
before what does is tried again.
"""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from sqlalchemy import and_, func, literal_column, select, true
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.by_index import READ_BY_INDEX
from ledger.direct import Direct, run_direct
from ledger.ids import DeliveryId, EndpointId, TenantId
from ledger.lanes import blocking, is_in
from ledger.owed import SUSPECT_AFTER, is_free, is_left_alone, is_suspect, joined
from ledger.schema import deliveries
from ledger.states import DeliveryState

FOUND_MAX = 10_000
"""More than all workers have in their hands."""


class Suspect(NamedTuple):
    """A delivery that may be claimed alone."""

    tenant_id: TenantId
    endpoint_id: EndpointId
    id: DeliveryId
    due_at: datetime
    takeovers: int
    """As stored: a takeover that is to come is not counted yet."""


# By the order of their index, which is a few rows: by old statistics Postgres would rather go through all that is due.
_taken_over = (
    select(
        deliveries.c.tenant_id,
        deliveries.c.endpoint_id,
        deliveries.c.id,
        deliveries.c.due_at,
        deliveries.c.takeovers,
        deliveries.c.lease_token,
        is_free.label("is_free"),
        and_(is_suspect, is_free, deliveries.c.due_at <= func.now(), ~blocking.correlate(deliveries).exists()).label(
            "may_be_claimed"
        ),
    )
    .where(is_in(deliveries, DeliveryState.PENDING), deliveries.c.takeovers > literal_column("0"))
    .order_by(deliveries.c.takeovers, deliveries.c.due_at)
    .limit(FOUND_MAX)
    .cte("taken_over")
)
_endpoint = joined(_taken_over, is_left_alone)
_SUSPECTS = Direct(
    select(_taken_over, _endpoint.c.is_left_alone)
    .select_from(_taken_over.join(_endpoint, true()))
    .order_by(_taken_over.c.takeovers, _taken_over.c.due_at)
)


async def find_suspects(connection: AsyncConnection, own: str) -> list[Suspect]:
    """Those of which a process, whose tokens begin with `own`, may claim one now; of each endpoint the first. Crosses
    tenants."""
    rows = await run_direct(connection, (READ_BY_INDEX, {}), (_SUSPECTS, {}))
    found: dict[tuple[str, str], Suspect] = {}
    for tenant_id, endpoint_id, id_, due_at, takeovers, token, is_idle, may_be_claimed, is_resting in rows:
        if takeovers >= SUSPECT_AFTER and not is_idle and not token.startswith(own):
            return []
        if may_be_claimed and not is_resting:
            found.setdefault((tenant_id, endpoint_id), Suspect(tenant_id, endpoint_id, id_, due_at, takeovers))
    return list(found.values())
