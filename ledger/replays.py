"""Asking for a replay: which heights may be read again, and the job that does it. It is the operator's."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from chains.model import Address, hex_of
from ledger.backfills import find_lowest_covered
from ledger.errors import NoSuchHeights
from ledger.ids import OPS_TENANT
from ledger.jobs import JobRow, create_job
from ledger.model import ChainRow
from ledger.states import JobKind


@dataclass(frozen=True, slots=True)
class NewReplay:
    """What an operator asks for: heights, both included, and perhaps one address. A dry run changes nothing."""

    from_height: int
    to_height: int
    address: Address | None
    is_dry_run: bool


async def create_replay(
    connection: AsyncConnection, chain: ChainRow, asked: NewReplay, now: datetime, *, is_taken: bool = False
) -> JobRow:
    """Make the job; with `is_taken` the caller works on it. Raises `NoSuchHeights` for what nobody has read."""
    if chain.first_height is None or chain.tip_height is None:
        raise NoSuchHeights("chain", "no block of it was committed yet; start its follower")
    if asked.from_height > asked.to_height:
        raise NoSuchHeights("from", f"it is above the last height, {asked.to_height}; swap them")
    if asked.to_height > chain.tip_height:
        raise NoSuchHeights("to", f"it is above our tip {chain.tip_height}: the follower has not come that far")
    known = await find_lowest_covered(connection, chain.chain_id)
    first_height = chain.first_height if known is None else min(chain.first_height, known)
    if asked.from_height < first_height:
        raise NoSuchHeights("from", f"it is below {first_height}, the first block that any watch is covered from")
    return await create_job(
        connection,
        tenant_id=OPS_TENANT,
        kind=JobKind.REPLAY,
        chain_id=chain.chain_id,
        request={
            "from": asked.from_height,
            "to": asked.to_height,
            "address": None if asked.address is None else hex_of(asked.address),
            "dry_run": asked.is_dry_run,
        },
        total=asked.to_height - asked.from_height + 1,
        now=now,
        is_taken=is_taken,
    )
