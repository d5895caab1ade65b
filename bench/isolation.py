"""Whether merchants that hang, drip, refuse or reset make the others wait: `python -m bench.isolation TASK`.

A real `chainbell notify` delivers; this process commits events at a steady pace, each for one endpoint, in turn, and asks
afterwards when each of them came. Forty times a second those whose time has come are committed together. Where the bad
endpoints are left out their turns are skipped, so that the others are told of as much and as often.

An installation that runs knows its merchants. So there is a round for those that are well before the bad ones appear, and
with these some newcomers, of whom nothing is known. Or, cold, all are newcomers.

Without a database the least is done at the same pace: each event is signed and posted from memory.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from random import Random

import aiohttp
import msgspec
import uvloop
from sqlalchemy.ext.asyncio import AsyncEngine

from bench.delivering import event_with_body, make_event, post_signed
from bench.installation import add_tenant, ledger_at, make_history
from bench.live import Spread, spread_of
from bench.merchants import Heard, Mood
from bench.usage import cpu_s_of, measure_usage
from chainbell.logs import configure_logs
from chainbell.supervisor import calm_garbage_collector
from ledger.database import transaction
from ledger.events import NewEvent, record_events
from ledger.ids import EndpointId, TenantId
from ledger.secrets import new_endpoint_secret

TENANTS = 10
BAD_EVERY = 20
BAD = (
    (Mood.HANGS, Mood.HANGS, Mood.DRIPS_HEAD, Mood.BUSY, Mood.RESETS),
    (Mood.HANGS, Mood.HANGS, Mood.DRIPS_BODY, Mood.BUSY, Mood.RESETS),
)
"""Of each twenty endpoints the first five are bad: a tenth of all hang, and a twentieth each drip, are busy, and reset. The
last is a newcomer."""
EVENTS_BEFORE = 5_000
FIRST_BEFORE = 10**9
"""Numbers of events from before the measurement."""
COMMIT_INTERVAL_S = 0.025
ARRIVAL_LIMIT_S = 60.0
"""How long after the last commit the last news may take to come; what has not come by then has waited at least that long."""
LOOK_INTERVAL_S = 0.1


class IsolationTask(msgspec.Struct):
    """`rate` is in events a second over all endpoints. There is one round for those that are known (for all, if none is),
    and then they go on for `seconds`."""

    merchants_url: str
    endpoints: int
    rate: float
    seconds: float
    seed: int
    is_mixed: bool = False
    """Every fourth turn is a bad endpoint's; otherwise all are well."""
    has_bad: bool = False
    """The bad ones are there in their turns."""
    is_cold: bool = False
    """None is known, the bad ones neither."""
    database_url: str = ""
    bad_merchants_url: str = ""
    """Where the bad ones are: in a process of their own, so that the well ones' news is not noted late because of them."""
    notify_pids: list[int] = []
    """Whose CPU time is counted; empty for that of this process."""


class Waits(msgspec.Struct):
    """How long the well endpoints waited, from the commit of an event to the first bytes of its request."""

    first: Spread
    """For the first event of each newcomer."""
    later: Spread
    """From the second round on, for the others."""
    events: int
    """Committed for them."""
    missing: int
    """Of those, not received in time; they count with the time until it was given up."""
    cpu_s: float
    """Of what delivered."""


class Target(msgspec.Struct, frozen=True):
    """An endpoint whose turn it is; `mood` decides whether it is asked about afterwards."""

    mood: Mood
    name: str
    is_new: bool
    tenant_id: TenantId = TenantId("")
    id: EndpointId = EndpointId("")


class Told(msgspec.Struct, frozen=True):
    """An event, and when its COMMIT was sent, in seconds since 1970: not when that returned, since on a busy machine the
    news may be here before this process has its turn."""

    n: int
    """The turn."""
    target: Target
    event_id: str
    at: float


Turn = tuple[int, Target]
"""The number of a turn, and whose it is."""
Tell = Callable[[Sequence[Turn]], Awaitable[list[Told]]]
"""Let each endpoint know of one event."""


def make_targets(task: IsolationTask) -> list[Target]:
    """Endpoints in the order of their turns, the bad ones strewn among the others."""
    moods = [_mood(n) if task.is_mixed else Mood.WELL for n in range(task.endpoints)]
    targets = [Target(mood, f"{n}", task.is_cold or (n + 1) % BAD_EVERY == 0) for n, mood in enumerate(moods)]
    Random(task.seed).shuffle(targets)
    return targets


def _mood(n: int) -> Mood:
    turn, place = divmod(n, BAD_EVERY)
    bad = BAD[turn % len(BAD)]
    return bad[place] if place < len(bad) else Mood.WELL


async def add_targets(engine: AsyncEngine, task: IsolationTask, targets: Sequence[Target]) -> list[Target]:
    """Store those that are there as endpoints of several tenants; returns all, these with their ids."""
    stored = {target.name: target for target in targets}
    there = [target for target in targets if task.has_bad or target.mood is Mood.WELL]
    for tenant in range(TENANTS):
        owned = there[tenant::TENANTS]
        urls = [_url_of(task, target) for target in owned]
        tenant_id, endpoint_ids = await add_tenant(engine, f"merchant {tenant}", urls)
        for target, endpoint_id in zip(owned, endpoint_ids, strict=True):
            stored[target.name] = msgspec.structs.replace(target, tenant_id=tenant_id, id=endpoint_id)
    return list(stored.values())


def _url_of(task: IsolationTask, target: Target) -> str:
    server = task.merchants_url if target.mood is Mood.WELL else task.bad_merchants_url
    return f"{server}/{target.mood}/{target.name}"


def history_of(targets: Sequence[Target]) -> list[NewEvent]:
    """Events from before, of those that are there."""
    there = [target for target in targets if target.id]
    return [event_for(there[n % len(there)], FIRST_BEFORE + n) for n in range(EVENTS_BEFORE)]


def event_for(target: Target, n: int) -> NewEvent:
    """An event that one endpoint is told of."""
    return replace(make_event(target.tenant_id, n), endpoint_id=target.id)


async def tell_by_commit(engine: AsyncEngine, turns: Sequence[Turn]) -> list[Told]:
    """Commit an event for each endpoint, together."""
    made = [event_for(target, n) for n, target in turns]
    async with transaction(engine) as connection:
        event_ids = await record_events(connection, made, datetime.now(UTC))
        at = time.time()
    return [Told(n, target, event_id, at) for (n, target), event_id in zip(turns, event_ids, strict=True)]


async def tell_by_post(session: aiohttp.ClientSession, url: str, secret: str, turns: Sequence[Turn]) -> list[Told]:
    """Sign and post, all at once, and forget."""

    async def _tell(n: int, target: Target) -> Told:
        event_id, body = event_with_body(n, datetime.now(UTC))
        await post_signed(session, f"{url}/{target.mood}/{target.name}", event_id, body, secret)
        return Told(n, target, event_id, at)

    at = time.time()
    return await asyncio.gather(*(_tell(n, target) for n, target in turns))


def has_turn(task: IsolationTask, n: int, target: Target) -> bool:
    """Whether the endpoint is there in that turn, and told of an event."""
    is_bad = target.mood is not Mood.WELL
    if n < task.endpoints and not task.is_cold:
        return not is_bad and not target.is_new
    return task.has_bad or not is_bad


async def tell_steadily(task: IsolationTask, targets: Sequence[Target], tell: Tell) -> list[Told]:
    """Let every endpoint know in its turn; returns what the well ones have to hear."""
    told: list[Told] = []
    began, first, count = time.perf_counter(), 0, len(targets) + int(task.rate * task.seconds)
    while first < count:
        await asyncio.sleep(COMMIT_INTERVAL_S - (time.perf_counter() - began) % COMMIT_INTERVAL_S)
        until = min(count, int((time.perf_counter() - began) * task.rate))
        turns = [(n, targets[n % len(targets)]) for n in range(first, until)]
        turns = [(n, target) for n, target in turns if has_turn(task, n, target)]
        told += [one for one in await tell(turns) if one.target.mood is Mood.WELL] if turns else []
        first = until
    return told


async def hear(session: aiohttp.ClientSession, url: str, count: int) -> dict[str, float]:
    """When each event came first, once all have come or the time for it is over."""
    deadline = time.monotonic() + ARRIVAL_LIMIT_S
    came: dict[str, float] = {}
    while len(came) < count and time.monotonic() < deadline:
        await asyncio.sleep(LOOK_INTERVAL_S)
        async with session.get(f"{url}/take") as response:
            for heard in msgspec.json.decode(await response.read(), type=list[Heard]):
                came.setdefault(heard.event_id, heard.at)
    return came


def waits_of(task: IsolationTask, told: Sequence[Told], came: Mapping[str, float], cpu_s: float) -> Waits:
    """Compare what was told with what came."""
    given_up_at = time.time()
    first: dict[str, float] = {}
    later: list[float] = []
    for one in told:
        waited = came.get(one.event_id, given_up_at) - one.at
        if one.target.is_new and one.target.name not in first:
            first[one.target.name] = waited
        elif one.n >= task.endpoints and (task.is_cold or not one.target.is_new):
            later.append(waited)
    return Waits(
        first=spread_of(list(first.values())),
        later=spread_of(later),
        events=len(told),
        missing=sum(one.event_id not in came for one in told),
        cpu_s=cpu_s,
    )


async def run_notifier(task: IsolationTask) -> Waits:
    """Tell by way of the ledger and the processes that deliver from it."""
    async with ledger_at(task.database_url) as engine, aiohttp.ClientSession() as session:
        targets = await add_targets(engine, task, make_targets(task))
        await make_history(engine, history_of(targets))
        cpu_began = cpu_s_of(task.notify_pids)
        told = await tell_steadily(task, targets, partial(tell_by_commit, engine))
        came = await hear(session, task.merchants_url, len(told))
        return waits_of(task, told, came, cpu_s_of(task.notify_pids) - cpu_began)


async def run_bare(task: IsolationTask) -> Waits:
    """Tell from memory."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, headers={"content-type": "application/json"}) as session:
        tell = partial(tell_by_post, session, task.merchants_url, new_endpoint_secret())
        with measure_usage(0) as usage:
            told = await tell_steadily(task, make_targets(task), tell)
        came = await hear(session, task.merchants_url, len(told))
    return waits_of(task, told, came, usage.cpu_s)


def main() -> None:
    """Do the task in the first argument and print how long was waited."""
    task = msgspec.json.decode(sys.argv[1], type=IsolationTask)
    configure_logs()
    calm_garbage_collector()
    waits = uvloop.run(run_notifier(task) if task.database_url else run_bare(task))
    sys.stdout.buffer.write(msgspec.json.encode(waits))


if __name__ == "__main__":
    main()
