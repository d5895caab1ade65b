"""What audits found: each difference once, counted and told when it is found, and closed when it is found no more."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from msgspec.structs import replace
from sqlalchemy import case, exists, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from chains.model import ChainId
from ledger.chains import lock_chain, update_chain
from ledger.halts import notice_of, tell_operator
from ledger.ids import OPS_TENANT
from ledger.schema import blocks
from ledger.schema_jobs import findings, jobs
from ledger.states import BlockState, JobKind, JobState

BALANCE = "balance"
"""The kind of what a balance shows: it is closed by the next look at that balance, not by any block."""

BRANCH = "branch"
"""The kind of what no replay mends: a host that names another final block than ours."""

EXTRA = "extra"
"""The kind of what a person has to look at: to mend it is to take money back."""

RUNBOOK = "docs/operations.md#an-audit-found-something"
"""Where an operator reads what to do."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One way in which the ledger and the chain differ."""

    key: str
    """An entry's id, an address with an asset, or a block: found again, it is the same."""
    kind: str
    is_missed_deposit: bool
    from_height: int
    to_height: int
    detail: Mapping[str, Any]


async def record_findings(
    connection: AsyncConnection, chain_id: ChainId, found: Sequence[Finding], now: datetime
) -> list[Finding]:
    """Keep what was found; what was not known is counted, and told to the operator in one event. Returns that."""
    if not found:
        return []
    chain, _ = await lock_chain(connection, chain_id)
    rows = [
        {
            "chain_id": chain_id,
            "key": one.key,
            "kind": one.kind,
            "is_missed_deposit": one.is_missed_deposit,
            "from_height": one.from_height,
            "to_height": one.to_height,
            "detail": dict(one.detail),
            "found_at": now,
        }
        for one in {one.key: one for one in found}.values()
    ]
    open_keys = select(findings.c.key).where(findings.c.chain_id == chain_id, findings.c.mended_at.is_(None))
    known = set((await connection.execute(open_keys)).scalars())
    statement = insert(findings)
    again = {
        name: statement.excluded[name] for name in ("kind", "is_missed_deposit", "from_height", "to_height", "detail")
    }
    # What was mended and is found again is news.
    found_at = case((findings.c.mended_at.is_(None), findings.c.found_at), else_=statement.excluded.found_at)
    keys = [findings.c.chain_id, findings.c.key]
    await connection.execute(
        statement.on_conflict_do_update(index_elements=keys, set_={**again, "found_at": found_at, "mended_at": None}),
        rows,
    )
    new = [one for one in {one.key: one for one in found}.values() if one.key not in known]
    if new:
        missed = sum(one.is_missed_deposit for one in new)
        await update_chain(connection, chain_id, {"missed_deposits": chain.missed_deposits + missed})
        notice = replace(notice_of(chain), reason=_told(new), runbook=RUNBOOK, missed_deposits=missed)
        await tell_operator(connection, chain, "chain.audit_failed", notice, now)
    return new


def _told(new: Sequence[Finding]) -> str:
    counts: dict[str, int] = {}
    for one in new:
        counts[one.kind] = counts.get(one.kind, 0) + 1
    first = new[0]
    named = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    place = f"between blocks {first.from_height} and {first.to_height}"
    return f"the ledger and the chain differ: {named}; the first {place}: {first.key}"


async def close_findings(
    connection: AsyncConnection,
    chain_id: ChainId,
    heights: Collection[int],
    still_there: Collection[str],
    now: datetime,
) -> None:
    """Findings in blocks that were looked at again, but for those that are still there: they are mended."""
    is_closed = (
        findings.c.chain_id == chain_id,
        findings.c.kind != BALANCE,
        findings.c.mended_at.is_(None),
        findings.c.from_height.in_(heights),
        findings.c.key.not_in(still_there),
    )
    await connection.execute(update(findings).where(*is_closed).values(mended_at=now))


async def close_balance_findings(
    connection: AsyncConnection, chain_id: ChainId, keys: Collection[str], now: datetime
) -> None:
    """Findings about balances that agree now."""
    is_closed = (findings.c.chain_id == chain_id, findings.c.key.in_(keys), findings.c.mended_at.is_(None))
    await connection.execute(update(findings).where(*is_closed).values(mended_at=now))


async def find_unreplayed(
    connection: AsyncConnection, chain_id: ChainId, blocks_max: int, limit: int
) -> list[tuple[int, int]]:
    """The blocks of open findings, lowest first, that a replay may mend and that none has been made for since they were
    found, but for those that failed; of no more than `blocks_max` blocks each."""
    request = jobs.c.request
    has_replay = exists().where(
        jobs.c.tenant_id == OPS_TENANT,
        jobs.c.chain_id == chain_id,
        jobs.c.kind == JobKind.REPLAY.value,
        jobs.c.state != JobState.FAILED.value,
        jobs.c.created_at >= findings.c.found_at,
        request["from"].as_integer() <= findings.c.from_height,
        request["to"].as_integer() >= findings.c.to_height,
        request["address"].astext.is_(None),
        request["dry_run"].as_boolean().is_(False),
    )
    statement = (
        select(findings.c.from_height, findings.c.to_height)
        .where(
            findings.c.chain_id == chain_id,
            findings.c.mended_at.is_(None),
            findings.c.kind.not_in((BRANCH, EXTRA)),
            findings.c.to_height - findings.c.from_height < blocks_max,
            ~has_replay,
        )
        .distinct()
        .order_by(findings.c.from_height)
        .limit(limit)
    )
    return [(row.from_height, row.to_height) for row in await connection.execute(statement)]


async def list_open_findings(connection: AsyncConnection, chain_id: ChainId) -> list[Finding]:
    """What was found and is not mended, by height."""
    statement = select(findings).where(findings.c.chain_id == chain_id, findings.c.mended_at.is_(None))
    rows = await connection.execute(statement.order_by(findings.c.from_height, findings.c.key))
    return [
        Finding(row.key, row.kind, row.is_missed_deposit, row.from_height, row.to_height, row.detail) for row in rows
    ]


async def find_touched(
    connection: AsyncConnection, chain_id: ChainId, from_height: int, to_height: int, limit: int
) -> dict[int, str]:
    """The blocks between two heights, both included, in which an entry sits or once sat, lowest first, at most `limit`: each
    with the node that supplied it."""
    statement = (
        select(blocks.c.height, blocks.c.node)
        .where(
            blocks.c.chain_id == chain_id,
            blocks.c.state == BlockState.CANONICAL.value,
            blocks.c.height.between(from_height, to_height),
            blocks.c.entry_count > 0,
        )
        .order_by(blocks.c.height)
        .limit(limit)
    )
    return {row.height: row.node for row in await connection.execute(statement)}


async def find_suppliers(connection: AsyncConnection, chain_id: ChainId, heights: Collection[int]) -> dict[int, str]:
    """The node that supplied each of these blocks, where its row is kept."""
    statement = select(blocks.c.height, blocks.c.node).where(
        blocks.c.chain_id == chain_id, blocks.c.state == BlockState.CANONICAL.value, blocks.c.height.in_(heights)
    )
    return {row.height: row.node for row in await connection.execute(statement)}
