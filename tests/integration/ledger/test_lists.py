"""Lists of deliveries, watches, jobs, endpoints and events against a model, where a page may look at so few rows that
walks stop short and sets are found all the time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import product
from random import Random
from typing import Any

import pytest
from sqlalchemy import insert, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ledger import walks
from ledger.database import connect, transaction
from ledger.delivery_lists import DeliveryFilter, list_deliveries
from ledger.endpoints import list_endpoints
from ledger.ids import TenantId
from ledger.jobs import list_jobs
from ledger.listing import find_feed_place
from ledger.schema import deliveries, endpoints, events, tenants, watches
from ledger.schema_jobs import jobs
from ledger.states import ENDED_STATES, SETTLED_STATES, DeliveryState, JobKind, JobState
from ledger.watch_lists import WatchFilter, list_watches

TENANT, OTHER = TenantId("ten_a"), TenantId("ten_b")
NOW = datetime(2026, 11, 1, tzinfo=UTC)
LOOKED_MAX = 9
LIMIT = 6
COUNT = 90

Row = dict[str, Any]
Turn = Callable[[Any], Awaitable[tuple[list[str], Any]]]
"""From a place to the ids of the page behind it and the next place."""


@dataclass(frozen=True)
class World:
    """A ledger, and its rows of the tenant that asks."""

    engine: AsyncEngine
    deliveries: list[Row]
    watches: list[Row]
    jobs: list[Row]
    endpoints: list[Row]

    def rests(self, endpoint_id: str) -> bool:
        return any(one["id"] == endpoint_id and one["rests_until"] is not None for one in self.endpoints)


def delivery(random: Random, number: int) -> Row:
    """Of three at a time the moment is the same."""
    state = random.choices(list(DeliveryState), (3, 20, 3, 1, 6, 1, 2, 1))[0]
    return {
        "id": f"del_{random.randrange(10**9)}",
        "event_id": f"evt_{number // 4 if number % 2 else 0}",
        "event_type": "deposit.detected",
        "event_created_at": NOW,
        "feed_position": number,
        "endpoint_id": random.choices(("ep_1", "ep_2", "ep_3"), (8, 1, 3))[0],
        "subject": f"dep_{number // 5}",
        "priority": 0,
        "state": state.value,
        "due_at": NOW,
        "created_at": NOW + timedelta(seconds=number // 3),
        "settled_at": NOW if state in SETTLED_STATES else None,
    }


def watch(random: Random, number: int) -> Row:
    """Half of them deleted."""
    return {
        "id": f"wat_{number:06}",
        "scope": random.choices(("evm", "eip155:1", "eip155:10"), (5, 20, 1))[0],
        "address": number.to_bytes(20, "big"),
        "reference": random.choice((None, "till", "till", f"order-{number}")),
        "covered_from": {},
        "created_at": NOW,
        "deleted_at": NOW if random.random() < 0.5 else None,
    }


def job(random: Random, number: int) -> Row:
    """Of few kinds, in every state."""
    state = random.choice(list(JobState))
    return {
        "id": f"job_{number:06}",
        "kind": random.choices(list(JobKind), range(1, len(JobKind) + 1))[0].value,
        "state": state.value,
        "request": {},
        "reason": "why",
        "created_at": NOW,
        "turn_at": NOW,
        "ended_at": NOW if state in ENDED_STATES else None,
    }


def endpoint(number: int) -> Row:
    """The third one rests; those above it are deleted, but for the last."""
    deleted_at = NOW if 3 < number < 40 else None
    times = {"created_at": NOW, "updated_at": NOW, "deleted_at": deleted_at}
    return {"id": f"ep_{number}", "url": "x", "rests_until": NOW if number == 3 else None, **times}


@pytest.fixture
async def world(database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """Of two tenants the same, drawn from a fixed seed."""
    monkeypatch.setattr(walks, "LOOKED_MAX", LOOKED_MAX)
    random = Random("deliveries")
    engine = connect(database_url, application="tests", pool_size=1)
    made = World(
        engine,
        [delivery(random, number) for number in range(COUNT)],
        [watch(random, number) for number in range(COUNT)],
        [job(random, number) for number in range(COUNT)],
        [endpoint(number) for number in range(1, 41)],
    )
    async with transaction(engine) as connection:
        for tenant_id in (TENANT, OTHER):
            await connection.execute(insert(tenants).values(id=tenant_id, name=tenant_id, created_at=NOW))
            tables = (
                (endpoints, made.endpoints),
                (deliveries, made.deliveries),
                (watches, made.watches),
                (jobs, made.jobs),
            )
            for table, rows in tables:
                await connection.execute(insert(table), [{**row, "tenant_id": tenant_id} for row in rows])
    yield made
    await engine.dispose()


async def walk(engine: AsyncEngine, turn: Callable[[AsyncConnection], Turn]) -> tuple[list[str], int]:
    """The ids of all pages, and how many pages were short though another came."""
    seen: list[str] = []
    place, short = None, 0
    async with transaction(engine) as connection:
        for _ in range(COUNT):
            ids, place = await turn(connection)(place)
            seen += ids
            if place is None:
                return seen, short
            short += len(ids) < LIMIT
    raise AssertionError("the list has no end")


def filters(*choices: Iterator[Any] | list[Any]) -> list[tuple[Any, ...]]:
    """Every combination."""
    return list(product(*choices))


async def test_every_filter_of_deliveries_answers_exactly_what_fits_it_in_order(world: World) -> None:
    def _turn(wanted: DeliveryFilter) -> Callable[[AsyncConnection], Turn]:
        def _at(connection: AsyncConnection) -> Turn:
            async def _page(place: Any) -> tuple[list[str], Any]:  # noqa: ANN401
                page = await list_deliveries(connection, TENANT, wanted, after=place, limit=LIMIT)
                if wanted.state is not None:
                    assert {one.state for one in page.deliveries} <= {wanted.state.value}
                return [one.id for one in page.deliveries], page.next_place

            return _page

        return _at

    def _fits(row: Row, wanted: DeliveryFilter) -> bool:
        is_held = row["state"] == "pending" and world.rests(row["endpoint_id"])
        state = "held" if is_held else row["state"]
        asked = (wanted.endpoint_id, wanted.state, wanted.event_id, wanted.subject)
        has = (row["endpoint_id"], state, row["event_id"], row["subject"])
        return all(want is None or want == given for want, given in zip(asked, has, strict=True))

    short = 0
    newest_first = sorted(world.deliveries, key=lambda row: (row["created_at"], row["id"]), reverse=True)
    some = world.deliveries[47]
    for endpoint_id, state, event_id, subject in filters(
        [None, "ep_1", "ep_2", "ep_3", "ep_none"],
        [None, *DeliveryState],
        [None, "evt_0", "evt_9"],
        [None, some["subject"]],
    ):
        wanted = DeliveryFilter(endpoint_id, state, event_id, subject)
        seen, shorter = await walk(world.engine, _turn(wanted))
        assert seen == [row["id"] for row in newest_first if _fits(row, wanted)], wanted
        short += shorter
    assert short, "no page stopped short: the bound was not met"


async def test_every_filter_of_watches_answers_exactly_what_is_live_and_fits_it_in_order(world: World) -> None:
    def _turn(wanted: WatchFilter) -> Callable[[AsyncConnection], Turn]:
        def _at(connection: AsyncConnection) -> Turn:
            async def _page(place: Any) -> tuple[list[str], Any]:  # noqa: ANN401
                page = await list_watches(connection, TENANT, wanted, after=place, limit=LIMIT)
                return [one.id for one in page.watches], page.next_place

            return _page

        return _at

    def _fits(row: Row, wanted: WatchFilter) -> bool:
        return (
            row["deleted_at"] is None
            and (wanted.scopes is None or row["scope"] in wanted.scopes)
            and (wanted.address is None or row["address"] == wanted.address)
            and (wanted.reference is None or row["reference"] == wanted.reference)
        )

    short = 0
    newest_first = sorted(world.watches, key=lambda row: str(row["id"]), reverse=True)
    live = next(row for row in newest_first if row["deleted_at"] is None and row["reference"] == "till")
    for scopes, address, reference in filters(
        [None, ["evm"], ["eip155:10"], ["eip155:1", "evm"], ["eip155:10", "evm"], ["eip155:5"]],
        [None, live["address"], bytes(20)],
        [None, "till", live["reference"], "nobody"],
    ):
        wanted = WatchFilter(scopes, address, reference)
        seen, shorter = await walk(world.engine, _turn(wanted))
        assert seen == [row["id"] for row in newest_first if _fits(row, wanted)], wanted
        short += shorter
    assert short, "no page stopped short: the bound was not met"


async def test_every_filter_of_jobs_answers_exactly_what_fits_it_in_full_pages(world: World) -> None:
    newest_first = sorted(world.jobs, key=lambda row: str(row["id"]), reverse=True)
    async with transaction(world.engine) as connection:
        for kind, state in filters([None, *JobKind], [None, *JobState]):
            fitting = [
                row["id"]
                for row in newest_first
                if (kind is None or row["kind"] == kind.value) and (state is None or row["state"] == state.value)
            ]
            for after in (None, newest_first[40]["id"]):
                rows = await list_jobs(connection, TENANT, kind=kind, state=state, after=after, limit=LIMIT)
                behind = [one for one in fitting if after is None or one < after]
                assert [row.id for row in rows] == behind[:LIMIT], (kind, state)


async def test_endpoints_are_listed_behind_however_many_deleted_ones(world: World) -> None:
    def _at(connection: AsyncConnection) -> Turn:
        async def _page(place: Any) -> tuple[list[str], Any]:  # noqa: ANN401
            rows, behind = await list_endpoints(connection, TENANT, after=place, limit=LIMIT)
            return [row.id for row in rows], behind

        return _page

    seen, short = await walk(world.engine, _at)
    live = [row["id"] for row in world.endpoints if row["deleted_at"] is None]
    assert seen == sorted(live, reverse=True)
    assert short


async def test_the_feed_from_a_time_begins_with_the_first_event_of_that_time_or_later(world: World) -> None:
    """However many older events got their place after it: their transactions took long."""
    random = Random("feed")
    now = datetime.now(UTC)
    times = [now + timedelta(minutes=number / 2) for number in range(60)]
    late = [moment - timedelta(minutes=random.choice((0, 0, 0, 4, 9))) for moment in times]
    rows = [
        {
            "tenant_id": TENANT,
            "id": f"evt_{position}",
            "feed_position": position,
            "type": "deposit.detected",
            "subject": "dep_1",
            "body": b"",
            "created_at": moment,
        }
        for position, moment in enumerate(late, 1)
    ]
    async with transaction(world.engine) as connection:
        await connection.execute(insert(events), rows)
        await connection.execute(update(tenants).where(tenants.c.id == TENANT).values(feed_position=len(rows)))
        for since in (*times, now - timedelta(days=900), now + timedelta(days=900)):
            fitting = [position for position, moment in enumerate(late, 1) if moment >= since]
            place = await find_feed_place(connection, TENANT, since)
            assert place == min(fitting, default=len(rows) + 1) - 1, since
