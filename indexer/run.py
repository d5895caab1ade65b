"""Keeping one chain's follower at work: leadership, pace, signs of life, and what happens when something fails.

One follower per chain is active at a time, by a session advisory lock; a standby waits for it. The lock is for economy
alone: two followers would waste work, and the checkpoint's compare-and-set would let one of them win each block.
"""

from __future__ import annotations

import asyncio

import structlog

from indexer.coverage import Compression, kept_blocks_of
from indexer.follower import Extended, Follower
from indexer.metrics import count_from_zero
from indexer.pacing import RETRY_INTERVAL_S, Pacer
from indexer.timing import PollTimer
from indexer.watchkeeping import Watchkeeper
from ledger.database import UNAVAILABLE, Connection, Engine, is_alive, leadership

log = structlog.get_logger()

STANDBY_INTERVAL_S = 2.0
"""How often a standby asks whether it may lead."""


async def follow(
    follower: Follower,
    engine: Engine,
    *,
    poll_interval_s: float,
    behind_limit_s: float,
    stop: asyncio.Event,
    block_time_s: float | None = None,
    is_steady: bool = True,
) -> None:
    """Follow one chain until `stop` is set. A lost database is waited for; anything unforeseen is raised.

    Polls are `poll_interval_s` apart; with the chain's usual `block_time_s`, they are timed to its blocks. A chain that is
    not `is_steady` may be quiet for as long as it likes.
    """
    timer = PollTimer(poll_interval_s, block_time_s)
    slug = follower.course.slug
    count_from_zero(slug)
    while not stop.is_set():
        try:
            async with leadership(engine, "follow", follower.followed.chain_id) as leader:
                if leader is None:
                    await _pause(stop, STANDBY_INTERVAL_S)
                    continue
                log.info("following", chain=slug)
                await _lead(Watchkeeper(follower, behind_limit_s, is_steady=is_steady), leader, timer, stop)
        except (*UNAVAILABLE, OSError) as error:
            log.warning("database unavailable", chain=slug, error=str(error).splitlines()[0])
            await _pause(stop, RETRY_INTERVAL_S)


async def _lead(keeper: Watchkeeper, leader: Connection, timer: PollTimer, stop: asyncio.Event) -> None:
    follower = keeper.follower
    followed = follower.followed
    kept_blocks = kept_blocks_of(followed.finality_depth)
    compression = Compression(follower.engine, followed.chain_id, follower.course.slug, kept_blocks)
    async with follower.adapter.listen() as hints:
        pacer = Pacer(timer, follower, hints, stop)
        while not stop.is_set():
            await is_alive(leader)  # raises when the lock's connection is lost: then another may lead
            outcome = await pacer.poll()
            await keeper.show(outcome)
            await compression.after(outcome.count if isinstance(outcome, Extended) else 0)
            await pacer.pause(outcome)
    await keeper.show_stopped()


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(stop.wait(), seconds)
    except TimeoutError:
        return
