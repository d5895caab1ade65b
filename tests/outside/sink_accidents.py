"""The points at which a delivery can be interrupted, each met exactly: a condition tells that it is reached, and then
something dies there."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from random import Random

from ledger.events import NewEvent
from tests.fakes.sink import Hold, Stage
from tests.outside.sink_proof import Play
from tests.outside.sink_writer import APPLICATION as WRITER
from tests.outside.sockets import TcpState, connections_to, send_buffer_bytes

NOTIFIER = "chainbell notify"
READ_AHEAD_BYTES = 1024 * 1024
"""More than a sink takes of a request that it does not read: the kernel's receive buffer and aiohttp's."""
TERMINATIONS = 4


async def _kill_after_claim(play: Play) -> None:
    """Claimed; the merchant's machine has not answered the connection, so nothing can have been told."""
    await play.target.shut(connects=False)
    await play.write()
    before = len(play.target.receipts)
    token = await play.kill(await play.until_connecting(TcpState.SYN_SENT))
    await play.target.open()
    await play.outlive(token)
    await play.until_settled([play.target])
    event_id = play.target.receipts[before].event_id
    assert play.came(event_id) <= play.lost[play.target_key(event_id)]


async def _kill_after_connect(play: Play) -> None:
    """Connected, and the merchant has not taken the connection. What the kernel has of the request may still be read."""
    await play.target.shut(connects=True)
    await play.write()
    token = await play.kill(await play.until_connecting(TcpState.ESTABLISHED))
    await play.outlive(token)
    await play.target.open()


async def _kill_while_sending(play: Play) -> None:
    """The request's head has come, and a part of its body; the rest does not fit into what the kernel would send for the
    dead."""
    hold = play.target.hold(Stage.BEFORE_READ)
    await play.write(padding=send_buffer_bytes() + READ_AHEAD_BYTES)
    await hold.until_reached()
    token = await play.kill(play.sender(hold.peer_port))
    hold.release()
    await play.outlive(token)
    await play.until_settled([play.target])
    assert 1 <= play.came(hold.event_id) <= play.lost[play.target_key(hold.event_id)]


async def _kill_after_send(play: Play) -> None:
    """The merchant has the event, and the notifier no answer."""
    hold = play.target.hold(Stage.BEFORE_ANSWER)
    await play.write()
    await hold.until_reached()
    token = await play.kill(play.sender(hold.peer_port))
    hold.release()
    await play.outlive(token)
    await play.until_settled([play.target])
    assert play.came(hold.event_id) == 1 + play.lost[play.target_key(hold.event_id)]


async def _kill_after_response(play: Play) -> None:
    """The answer has come, to the notifier's machine, and nothing that would settle it has been sent."""
    hold = play.target.hold(Stage.BEFORE_ANSWER)
    await play.write()
    await hold.until_reached()
    pid = play.sender(hold.peer_port)
    os.kill(pid, signal.SIGSTOP)
    hold.release()

    async def has_come() -> bool:
        answered = [row for row in connections_to(play.target.port) if row.local_port == hold.peer_port]
        return any(row.unread_bytes > 0 for row in answered)

    await play.world.installation.until("the answer has come", has_come)
    token = await play.kill(pid)
    await play.outlive(token)
    await play.until_settled([play.target])
    assert play.came(hold.event_id) == 1 + play.lost[play.target_key(hold.event_id)] > 1


async def _kill_while_settling(play: Play) -> None:
    """What settles it is under way, with its COMMIT behind it: whether that happens without its sender or not, the event
    comes again only if it was not settled."""
    hold = play.target.hold(Stage.BEFORE_ANSWER)
    await play.write()
    await hold.until_reached()
    row = "SELECT FROM deliveries WHERE endpoint_id = :endpoint AND event_id = :event FOR UPDATE"
    async with play.world.holding(row, endpoint=play.target.endpoint_id, event=hold.event_id) as holder:
        pid = play.sender(hold.peer_port)
        hold.release()
        await play.world.until_waiting(NOTIFIER, holder)
        token = await play.kill(pid)
    await play.outlive(token)
    await play.until_settled([play.target])
    assert play.came(hold.event_id) == 1 + play.lost[play.target_key(hold.event_id)]


async def _kill_at_commit(play: Play) -> None:
    """COMMIT is under way when its sender dies: it happens all the same, and nothing comes twice."""
    hold = play.target.hold(Stage.BEFORE_ANSWER)
    await play.write()
    await hold.until_reached()
    async with play.world.barrier("commit", play.target) as holder:
        pid = play.sender(hold.peer_port)
        hold.release()
        waiting = await play.world.until_waiting(NOTIFIER, holder)
        assert waiting.query.upper() == "COMMIT"
        token = await play.kill(pid)
    await play.outlive(token)
    await play.until_settled([play.target])
    assert (play.came(hold.event_id), play.lost[play.target_key(hold.event_id)]) == (1, 0)


async def _kill_during_fan_out(play: Play) -> None:
    """Who tells the events dies when some of the deliveries are written: none of it has happened, and it is told anew."""
    news = play.batch()
    async with play.world.barrier("fan-out", play.deposits) as holder:
        play.world.ask_writer(news)
        waiting = await play.world.until_waiting(WRITER, holder)
        await play.world.kill_writer()
    await play.world.until_gone(waiting.pid)
    assert await _count(play, news) == 0
    await play.world.start_writer()
    await play.commit(news)
    assert await _count(play, news) == len(news)


async def _count(play: Play, news: list[NewEvent]) -> int:
    """How many of these are stored."""
    rows = await play.world.ask(
        "SELECT count(*) AS number FROM events JOIN unnest(CAST(:tenants AS text[]), CAST(:subjects AS text[]),"
        " CAST(:sequences AS int[])) AS asked (tenant_id, subject, sequence) USING (tenant_id, subject, sequence)",
        tenants=[event.tenant_id for event in news],
        subjects=[event.subject for event in news],
        sequences=[event.sequence for event in news],
    )
    return int(rows[0].number)


@asynccontextmanager
async def _frozen(play: Play) -> AsyncIterator[tuple[Hold, str]]:
    """A notifier stands still while its request waits for the answer; the request, and the notifier's token. After the block
    it goes on and has its answer. By then its leases have run out: it may not settle any more, and says so."""
    hold = play.target.hold(Stage.BEFORE_ANSWER)
    await play.write()
    await hold.until_reached()
    frozen, token = play.sender(hold.peer_port), await play.token()
    number = (await _state_of(play, hold.event_id))[1]
    log_before = len(play.world.installation.log_text())
    os.kill(frozen, signal.SIGSTOP)
    try:
        yield hold, token
    finally:
        play.dead_tokens.discard(token)
        os.kill(frozen, signal.SIGCONT)
        hold.release()

    async def is_told() -> bool:
        told = play.world.installation.log_text()[log_before:].splitlines()
        if any('"lease lost"' in line and hold.event_id in line for line in told):
            return True  # it noticed before it had the answer
        return any('"leases lost"' in line for line in told) and await _is_stored(play, hold.event_id, number)

    await play.world.installation.until("the late notifier says that it lost its lease", is_told)
    assert play.came(hold.event_id) == 1 + play.lost[play.target_key(hold.event_id)] > 1


async def _freeze_until_settled_by_another(play: Play) -> None:
    """Another notifier tells the event and the next one of the entry. What it has settled stays as it is."""
    async with _frozen(play) as (hold, token):
        await play.until_expired(token, hold.event_id)
        await play.until_settled([play.target])
        await play.write()
        await play.until_settled([play.target])
        settled = await _state_of(play, hold.event_id)
    assert settled[0] == "delivered"
    assert await _state_of(play, hold.event_id) == settled


async def _freeze_until_leased_by_another(play: Play) -> None:
    """Another notifier has the lease and waits for its own answer. The late one can neither settle for it nor end its
    lease."""
    async with _frozen(play) as (hold, token):
        theirs = play.target.hold(Stage.BEFORE_ANSWER)
        await play.until_expired(token, hold.event_id)
        await theirs.until_reached()
        assert theirs.event_id == hold.event_id
        leased = await _state_of(play, hold.event_id)
    assert leased[0] == "pending"
    assert await _state_of(play, hold.event_id) == leased
    theirs.release()
    await play.until_settled([play.target])
    assert (await _state_of(play, hold.event_id))[0] == "delivered"


async def _is_stored(play: Play, event_id: str, number: object) -> bool:
    """True once an attempt at the target is told of: in the db transaction that settles it, or finds that it may not."""
    rows = await play.world.ask(
        "SELECT FROM attempts a JOIN deliveries d ON (d.tenant_id, d.id) = (a.tenant_id, a.delivery_id)"
        " WHERE d.endpoint_id = :endpoint AND d.event_id = :event AND a.number = :number",
        endpoint=play.target.endpoint_id,
        event=event_id,
        number=number,
    )
    return bool(rows)


async def _state_of(play: Play, event_id: str) -> tuple[object, ...]:
    """The target's delivery: how it is settled, or who has the lease."""
    [row] = await play.world.ask(
        "SELECT state, attempts, settled_at, lease_token FROM deliveries"
        " WHERE endpoint_id = :endpoint AND event_id = :event",
        endpoint=play.target.endpoint_id,
        event=event_id,
    )
    return tuple(row)


async def _terminate_sessions(play: Play) -> None:
    """Every session of every notifier ends, several times, each time when more has come."""
    await play.world.until_all_at_work()
    ended = 0
    for _ in range(TERMINATIONS):
        before = sum(len(sink.receipts) for sink in play.sinks)
        await play.write(of_each=3)

        async def more_came(before: int = before) -> bool:
            return sum(len(sink.receipts) for sink in play.sinks) > before

        await play.world.installation.until("more came", more_came)
        ended += await play.world.terminate_notifiers_sessions()
    assert ended > 0  # at a single moment there may be none: those ended before are not yet made again


async def _restart_postgres(play: Play) -> None:
    """Postgres is killed and starts again. The answer comes while it is away: it is kept until it can be settled."""
    await play.world.until_all_at_work()
    hold = play.target.hold(Stage.BEFORE_ANSWER)
    await play.write()
    await hold.until_reached()
    log_before = len(play.world.installation.log_text())
    play.world.cluster.kill()
    hold.release()

    async def is_missed() -> bool:
        return "database unavailable" in play.world.installation.log_text()[log_before:]

    await play.world.installation.until("a notifier misses the database", is_missed)
    await play.world.restart_postgres()
    await play.until_settled([play.target])
    assert (play.came(hold.event_id), play.lost[play.target_key(hold.event_id)]) == (1, 0)


POINTS: Mapping[str, Callable[[Play], Awaitable[None]]] = {
    "killed after the claim": _kill_after_claim,
    "killed after connect": _kill_after_connect,
    "killed while sending": _kill_while_sending,
    "killed after send": _kill_after_send,
    "killed after the response": _kill_after_response,
    "killed while it settles": _kill_while_settling,
    "killed at COMMIT": _kill_at_commit,
    "writer killed during fan-out": _kill_during_fan_out,
    "frozen, and settled by another": _freeze_until_settled_by_another,
    "frozen, and leased by another": _freeze_until_leased_by_another,
    "sessions terminated": _terminate_sessions,
    "Postgres killed": _restart_postgres,
}


def points_of(seed: int, *, by_chance: int = 0) -> Mapping[str, Callable[[Play], Awaitable[None]]]:
    """The points of a seed: two by turns, so that six seeds in a row have all of them, and so many more."""
    names = list(POINTS)
    by_turns = [names[2 * seed % len(names)], names[(2 * seed + 1) % len(names)]]
    chance = Random(seed)
    rest = [name for name in names if name not in by_turns]
    drawn = by_turns + chance.sample(rest, by_chance)
    chance.shuffle(drawn)
    return {name: POINTS[name] for name in drawn}
