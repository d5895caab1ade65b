"""Halting a chain and lifting a halt: a person decides, and both are told and recorded."""

from __future__ import annotations

from datetime import datetime

from msgspec.structs import replace
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.audit import record_audit
from ledger.chains import update_chain
from ledger.documents import ChainNoticeDocument
from ledger.events import record_event
from ledger.ids import OPS_TENANT
from ledger.model import ChainRow
from ledger.states import ChainState

RUNBOOK = "docs/operations.md#a-chain-is-halted"
"""Where an operator reads what to do."""


async def halt_chain(connection: AsyncConnection, chain: ChainRow, reason: str, now: datetime) -> None:
    """Stop committing on a chain until a person resumes it. The caller holds the chain's lock."""
    await update_chain(connection, chain.chain_id, {"state": ChainState.HALTED.value, "reason": reason})
    await tell_operator(
        connection, chain, "chain.halted", replace(notice_of(chain), reason=reason, runbook=RUNBOOK), now
    )


async def resume_chain(
    connection: AsyncConnection, chain: ChainRow, accept_reorg_to: int | None, actor: str, now: datetime
) -> None:
    """Lift a halt. With `accept_reorg_to` the follower may, once, undo finalized blocks above that height. Recorded in
    the audit log. The caller holds the chain's lock."""
    values = {"state": ChainState.STOPPED.value, "reason": None, "accepted_reorg_height": accept_reorg_to}
    await update_chain(connection, chain.chain_id, values)
    detail = {"halted_for": chain.reason, "accept_reorg_to": accept_reorg_to}
    await record_audit(
        connection,
        tenant_id=OPS_TENANT,
        actor=actor,
        action="chain.resumed",
        subject=chain.chain_id,
        now=now,
        detail=detail,
    )
    notice = replace(notice_of(chain), halted_for=chain.reason, accept_reorg_to=accept_reorg_to)
    await tell_operator(connection, chain, "chain.resumed", notice, now)


def notice_of(chain: ChainRow) -> ChainNoticeDocument:
    """How the chain stands."""
    return ChainNoticeDocument(
        chain=chain.slug, chain_id=chain.chain_id, tip=chain.tip_height, finalized=chain.finalized_height
    )


async def tell_operator(
    connection: AsyncConnection, chain: ChainRow, event_type: str, notice: ChainNoticeDocument, now: datetime
) -> None:
    """Tell the operator's tenant of a chain."""
    await record_event(
        connection,
        tenant_id=OPS_TENANT,
        event_type=event_type,
        subject=chain.chain_id,
        data=notice,
        livemode=chain.livemode,
        now=now,
    )
