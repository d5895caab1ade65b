"""A chain that stands still: told to the operator once when it begins, and once when it is over."""

from __future__ import annotations

from datetime import datetime

from msgspec.structs import replace
from sqlalchemy.ext.asyncio import AsyncConnection

from chains.model import ChainId
from ledger.chains import lock_chain, update_chain
from ledger.documents import time_of
from ledger.halts import notice_of, tell_operator

RUNBOOK = "docs/operations.md#a-chain-stands-still"
"""Where an operator reads what to do."""


async def begin_delay(connection: AsyncConnection, chain_id: ChainId, reason: str, now: datetime) -> None:
    """Write down since when the chain stands still, and tell it, unless an earlier follower has."""
    chain, _ = await lock_chain(connection, chain_id)
    if chain.delayed_since is not None:
        return
    await update_chain(connection, chain_id, {"delayed_since": now})
    notice = replace(notice_of(chain), reason=reason, runbook=RUNBOOK, delayed_since=time_of(now))
    await tell_operator(connection, chain, "chain.delayed", notice, now)


async def end_delay(connection: AsyncConnection, chain_id: ChainId, now: datetime) -> None:
    """The chain moves again: tell it, where its standing still was told."""
    chain, _ = await lock_chain(connection, chain_id)
    if chain.delayed_since is None:
        return
    await update_chain(connection, chain_id, {"delayed_since": None})
    notice = replace(notice_of(chain), delayed_since=time_of(chain.delayed_since))
    await tell_operator(connection, chain, "chain.resumed", notice, now)
