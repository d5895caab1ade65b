"""Telling operators how a follower fares: the chain's row, one log line for each change, and the alarm of a standstill.

A standstill is silent by nature: the process lives, nodes answer, nothing fails, and no block comes. It is told from one
thing alone, which nothing else can hide: our tip has not moved for longer than `behind_limit_s`, ten blocks' time and at
least a minute. Why it has not, the reason says: no answer can be proven, the node lags, or the head itself stands. The
alarm is a row's `delayed_since` and one event to the operator's tenant; both outlive a restart, so that one standstill is
told once, and its end once. A chain that catches up is late and moves: that is no standstill.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict

import structlog

from indexer.follower import Extended, Follower, Halted, Holding, Nothing, Outcome, Reorged
from ledger.chains import show_follower
from ledger.database import database_now, transaction
from ledger.delays import begin_delay, end_delay
from ledger.states import ChainState

log = structlog.get_logger()

SIGN_OF_LIFE_INTERVAL_S = 5.0
"""How often an idle follower writes its heartbeat; a change is written at once."""

FINALITY_GAP_DEPTHS = 2
"""A chain whose finality is this many times its profile's depth behind the tip has stopped becoming final."""

Shown = tuple[ChainState, str | None, int | None, bool]
"""State, reason, the node's head, and whether the chain stands still."""


class Watchkeeper:
    """What operators are told of one follower."""

    def __init__(
        self,
        follower: Follower,
        behind_limit_s: float,
        *,
        is_steady: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`is_steady`: the chain has blocks all the time, so that none for `behind_limit_s` is a standstill."""
        self.follower = follower
        self.behind_limit_s = behind_limit_s
        self.is_steady = is_steady
        self.clock = clock
        self.behind_since: float | None = None
        self.moved_at: float | None = None
        self.is_delayed: bool | None = None
        """As told to operators; None as long as only an earlier process may have told it, and the tip has not moved."""
        self.shown: Shown | None = None
        self.shown_at = 0.0

    async def show(self, outcome: Outcome) -> None:
        """Write the state when it changed or the last sign of life is old."""
        state, reason = self._state_of(outcome)
        has_moved = isinstance(outcome, Extended | Reorged)
        if has_moved or self.moved_at is None:
            self.moved_at = self.clock()
        delay = self._delay_of(self.moved_at, state, reason)
        reason = reason or delay or (self._finality_reason() if state is ChainState.FOLLOWING else None)
        if self.shown is None or self.shown[:2] != (state, reason):
            tell = log.info if reason is None else log.warning
            tell("chain state", chain=self.follower.course.slug, state=state.value, reason=reason)
        current = (state, reason, self.follower.head_height, delay is not None)
        is_over = has_moved and self.is_delayed is not False
        if is_over or current != self.shown or self.clock() - self.shown_at > SIGN_OF_LIFE_INTERVAL_S:
            await self._write(state, reason, delay, has_moved=has_moved)
            self.shown, self.shown_at = current, self.clock()

    async def show_stopped(self) -> None:
        """A clean end is shown at once, not after the heartbeat has grown old."""
        await self._write(ChainState.STOPPED, None, None, has_moved=False)

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
                self.behind_since = self.behind_since or self.clock()
                is_long = self.clock() - self.behind_since > self.behind_limit_s
                return (ChainState.HOLDING, reason) if is_long else (ChainState.FOLLOWING, None)
            case _:
                return ChainState.FOLLOWING, None

    def _delay_of(self, moved_at: float, state: ChainState, reason: str | None) -> str | None:
        """Why the chain stands still; None while it does not, or while a halt says more than that."""
        is_long = self.clock() - moved_at > self.behind_limit_s
        if not is_long or state is ChainState.HALTED or (state is ChainState.FOLLOWING and not self.is_steady):
            return None
        return reason or (
            f"{self.follower.course.slug}: no new block for more than {self.behind_limit_s:g} s:"
            f" the nodes' head stays at {self.follower.head_height}"
        )

    def _finality_reason(self) -> str | None:
        """Why nothing becomes final, though blocks come: tags that are missing, stand still or are not of our chain. What
        waits for them would wait without a word."""
        follower = self.follower
        if not follower.course.has_finality_tags or follower.tip_height is None or follower.final_height is None:
            return None
        gap_max = FINALITY_GAP_DEPTHS * follower.followed.finality_depth
        if follower.tip_height - follower.final_height <= gap_max:
            return None
        return (
            f"{follower.course.slug}: nothing above block {follower.final_height} has become final for more than"
            f" {gap_max} blocks: the nodes' `finalized` is missing, stands still, or is not of our chain"
        )

    async def _write(self, state: ChainState, reason: str | None, delay: str | None, *, has_moved: bool) -> None:
        follower = self.follower
        nodes = [asdict(status) for status in follower.adapter.node_statuses()]
        chain_id = follower.followed.chain_id
        async with transaction(follower.engine) as connection:
            now = await database_now(connection)
            await show_follower(
                connection,
                chain_id,
                state=state,
                reason=reason,
                head_height=follower.head_height,
                nodes=nodes,
                now=now,
            )
            if delay is not None and not self.is_delayed:
                await begin_delay(connection, chain_id, delay, now)
            elif has_moved and self.is_delayed is not False:
                await end_delay(connection, chain_id, now)
        if delay is not None or has_moved:
            self.is_delayed = delay is not None
