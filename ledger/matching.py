"""Which watches a block's addresses meet. One of the statements that cross tenants (docs/architecture.md lists them).

It runs inside the commit transaction, after the chain's row is locked. An insert of watches holds that row `FOR SHARE`:
so either the insert is committed before this reads, or it will see the tip that this commit makes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import LargeBinary, Row, func, literal_column, select, true
from sqlalchemy.dialects.postgresql import array
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import bindparam

from chains.model import Address, ChainId
from ledger.backfills import find_covered_from, lowered, reached_by
from ledger.bulk import unnested
from ledger.chains import EVM_SCOPE
from ledger.ids import JobId, TenantId, WatchId
from ledger.model import WatchLabel
from ledger.schema import watches


@dataclass(frozen=True, slots=True)
class MatchedWatch:
    """A live watch on one of the asked addresses."""

    tenant_id: TenantId
    label: WatchLabel
    address: Address
    is_specific: bool
    """For this chain alone, rather than for all EVM chains."""
    covered_from_height: int | None
    """First height that it covers here, by its backfill as far as that has come; None: the chain's own first block."""
    backfill_job_id: JobId | None = None
    start_height: int | None = None
    backfilled_from: int | None = None
    """First height that its backfill has read for it; None where there is none, or it has read nothing yet."""

    def covers(self, height: int) -> bool:
        """True when a transfer at `height` is an entry of this watch."""
        return self.covered_from_height is None or height >= self.covered_from_height


_addresses = unnested("asked", address=LargeBinary())

# One look into the index for each address, whatever the planner knows: OFFSET 0 keeps it from turning the two around.
# It may know nothing. A million watches that were loaded a minute ago are not in its statistics yet, and as a join of the
# two a block took seconds until they were.
_met = (
    select(
        watches.c.tenant_id,
        watches.c.id,
        watches.c.scope,
        watches.c.address,
        watches.c.reference,
        watches.c.metadata,
        watches.c.covered_from,
        watches.c.backfill_job_id,
        watches.c.start_height,
    )
    .where(
        watches.c.address == _addresses.c.address,
        watches.c.deleted_at.is_(None),
        watches.c.scope == func.any(array([bindparam("chain_id"), EVM_SCOPE])),
    )
    .offset(literal_column("0"))
    .lateral("met")
)
_match = select(*_met.c).select_from(_addresses.join(_met, true()))


async def match_watches(
    connection: AsyncConnection, chain_id: ChainId, addresses: Collection[Address]
) -> Mapping[Address, list[MatchedWatch]]:
    """The live watches on `addresses`, the ones for this chain alone before those for all EVM chains."""
    if not addresses:
        return {}
    parameters: dict[str, Any] = {"all_address": list(addresses), "chain_id": chain_id}
    rows = list(await connection.execute(_match, parameters))
    jobs = {(TenantId(row.tenant_id), JobId(row.backfill_job_id)) for row in rows if row.backfill_job_id is not None}
    frontiers = await find_covered_from(connection, jobs)
    found: dict[Address, list[MatchedWatch]] = defaultdict(list)
    for row in rows:
        found[row.address].append(_matched(row, chain_id, frontiers.get(row.backfill_job_id)))
    for matched in found.values():
        matched.sort(key=lambda watch: (not watch.is_specific, watch.label.id))
    return found


def _matched(row: Row[Any], chain_id: ChainId, frontier: int | None) -> MatchedWatch:
    return MatchedWatch(
        tenant_id=TenantId(row.tenant_id),
        label=WatchLabel(WatchId(row.id), row.reference, row.metadata),
        address=row.address,
        is_specific=row.scope != EVM_SCOPE,
        covered_from_height=lowered(row.covered_from.get(chain_id), row.start_height, frontier),
        backfill_job_id=row.backfill_job_id,
        start_height=row.start_height,
        backfilled_from=reached_by(row.start_height, frontier),
    )
