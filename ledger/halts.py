"""Halting a chain and lifting a halt: a person decides, and both are told and recorded."""

from __future__ import annotations

from datetime import datetime

from msgspec.structs import replace
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger.audit import record_audit
from ledger.chains import chain_state_of, update_chain
from ledger.coverage import find_kept_at_or_below
from ledger.documents import ChainNoticeDocument
from ledger.errors import NoSuchBranch, NotHalted
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
    the audit log. The caller holds the chain's lock. Raises `NotHalted` and `NoSuchBranch`."""
    if chain.state is not ChainState.HALTED:
        raise NotHalted(f"{chain.slug} is not halted (it is {chain_state_of(chain, now)}); there is nothing to resume")
    if accept_reorg_to is not None:
        if accept_reorg_to >= (chain.finalized_height or chain.tip_height or 0):
            raise NoSuchBranch(
                f"it must be below what {chain.slug} holds as final ({chain.finalized_height}); give the last block that"
                " both branches share"
            )
        await require_known_block(connection, chain, accept_reorg_to)
    is_lifted = (await connection.execute(select(func.chainbell_lift_halt(chain.chain_id, accept_reorg_to)))).scalar()
    if not is_lifted:
        raise RuntimeError(f"{chain.slug}: the halt could not be lifted under the chain's lock")
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


async def require_known_block(connection: AsyncConnection, chain: ChainRow, height: int) -> None:
    """A branch grows out of a block whose hash we know; far below finality few are kept. Raises `NoSuchBranch`."""
    kept = await find_kept_at_or_below(connection, chain.chain_id, height)
    first_height = chain.first_height or 0
    if height >= first_height and kept != height:
        nearest = first_height - 1 if kept is None else kept
        raise NoSuchBranch(
            f"the hash of that block of ours is not kept any more; give {nearest}, below it, and the blocks above that both"
            " branches share are read again and stay as they are"
        )


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
