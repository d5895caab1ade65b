"""Keeping one chain's follower at work: leadership, pace, signs of life, and what happens when something fails.

One follower per chain is active at a time, by a session advisory lock; a standby waits for it. The lock is for economy
alone: two followers would waste work, and the checkpoint's compare-and-set would let one of them win each block.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict

import structlog

from indexer.coverage import Compression, kept_blocks_of
from indexer.follower import Extended, Follower, Halted, Holding, Nothing, Outcome
from indexer.pacing import RETRY_INTERVAL_S, Pacer
from indexer.timing import PollTimer
from ledger.chains import show_follower
from ledger.database import UNAVAILABLE, Connection, Engine, database_now, is_alive, leadership, transaction
from ledger.states import ChainState

log = structlog.get_logger()

STANDBY_INTERVAL_S = 2.0
"""How often a standby asks whether it may lead."""

SIGN_OF_LIFE_INTERVAL_S = 5.0
"""How often an idle follower writes its heartbeat; a change is written at once."""


async def follow(
    follower: Follower,
    engine: Engine,
    *,
    poll_interval_s: float,
    behind_limit_s: float,
    stop: asyncio.Event,
    block_time_s: float | None = None,
) -> None:
    """Follow one chain until `stop` is set. A lost database is waited for; anything unforeseen is raised.

    Polls are `poll_interval_s` apart; with the chain's usual `block_time_s`, they are timed to its blocks.
    """
    timer = PollTimer(poll_interval_s, block_time_s)
    slug = follower.course.slug
    while not stop.is_set():
        try:
            async with leadership(engine, "follow", follower.followed.chain_id) as leader:
                if leader is None:
                    await _pause(stop, STANDBY_INTERVAL_S)
                    continue
                log.info("following", chain=slug)
                await _lead(_Watchkeeper(follower, behind_limit_s), leader, timer, stop)
        except (*UNAVAILABLE, OSError) as error:
            log.warning("database unavailable", chain=slug, error=str(error).splitlines()[0])
            await _pause(stop, RETRY_INTERVAL_S)


async def _lead(keeper: _Watchkeeper, leader: Connection, timer: PollTimer, stop: asyncio.Event) -> None:
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


class _Watchkeeper:
    """Tells operators what the follower does: the chain's row, and one log line for each change."""

    def __init__(self, follower: Follower, behind_limit_s: float) -> None:
        self.follower = follower
        self.behind_limit_s = behind_limit_s
        self.behind_since: float | None = None
        self.shown: tuple[ChainState, str | None, int | None] | None = None
        self.shown_at = 0.0

    async def show(self, outcome: Outcome) -> None:
        """Write the state when it changed or the last sign of life is old."""
        state, reason = self._state_of(outcome)
        if self.shown is None or self.shown[:2] != (state, reason):
            tell = log.warning if state in (ChainState.HOLDING, ChainState.HALTED) else log.info
            tell("chain state", chain=self.follower.course.slug, state=state.value, reason=reason)
        current = (state, reason, self.follower.head_height)
        if current != self.shown or time.monotonic() - self.shown_at > SIGN_OF_LIFE_INTERVAL_S:
            await self._write(state, reason)
            self.shown, self.shown_at = current, time.monotonic()

    async def show_stopped(self) -> None:
        """A clean end is shown at once, not after the heartbeat has grown old."""
        await self._write(ChainState.STOPPED, None)

    def _state_of(self, outcome: Outcome) -> tuple[ChainState, str | None]:
        if not (isinstance(outcome, Nothing) and outcome.reason):
            self.behind_since = None
        match outcome:
            case Halted(reason):
                return ChainState.HALTED, reason
            case Holding(reason):
                return ChainState.HOLDING, reason
            case Extended(is_behind=True):
                return ChainState.CATCHING_UP, None
            case Nothing(reason) if reason is not None:
                self.behind_since = self.behind_since or time.monotonic()
                is_long = time.monotonic() - self.behind_since > self.behind_limit_s
                return (ChainState.HOLDING, reason) if is_long else (ChainState.FOLLOWING, None)
            case _:
                return ChainState.FOLLOWING, None

    async def _write(self, state: ChainState, reason: str | None) -> None:
        follower = self.follower
        nodes = [asdict(status) for status in follower.adapter.node_statuses()]
        async with transaction(follower.engine) as connection:
            now = await database_now(connection)
            await show_follower(
                connection,
                follower.followed.chain_id,
                state=state,
                reason=reason,
                head_height=follower.head_height,
                nodes=nodes,
                now=now,
            )
