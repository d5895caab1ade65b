"""The feed over a real database."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from sqlalchemy import CursorResult, Executable, select

from api import answering
from api.news import News
from ledger.database import Connection, database_now, transaction
from ledger.listing import find_feed_place, list_events
from ledger.schema import events
from tests.integration.api.conftest import Service
from tests.integration.api.seeding import add_chain, add_entry, add_watch
from tests.integration.api.telling import tell


async def add_deposits(service: Service, first: int, count: int) -> None:
    async with transaction(service.owner) as connection:
        await add_chain(connection, tip=1000)
        watch = await add_watch(connection, service.tenant_id)
        for number in range(first, first + count):
            await add_entry(connection, service.tenant_id, watch, number, now=datetime.now(UTC))


async def test_the_feed_holds_the_stored_bytes_in_order(service: Service) -> None:
    await add_deposits(service, 1, 3)
    async with transaction(service.owner) as connection:
        rows = await connection.execute(select(events.c.id, events.c.body).order_by(events.c.feed_position))
        stored = [(row.id, row.body) for row in rows]
    answer = await service.ask("GET", "/v1/events")
    assert answer.content.startswith(b'{"data":[' + b",".join(body for _, body in stored) + b"]")
    for event_id, body in stored:
        assert (await service.ask("GET", f"/v1/events/{event_id}")).content == body


async def test_the_feed_goes_on_from_its_cursor_also_from_an_empty_page(service: Service) -> None:
    empty = (await service.ask("GET", "/v1/events")).json
    assert empty["data"] == []
    await add_deposits(service, 1, 5)
    first = (await service.ask("GET", "/v1/events", query={"after": empty["next_cursor"], "limit": 2})).json
    rest = (await service.ask("GET", "/v1/events", query={"cursor": first["next_cursor"]})).json
    assert [len(first["data"]), len(rest["data"])] == [2, 3]
    end = (await service.ask("GET", "/v1/events", query={"after": rest["next_cursor"]})).json
    assert end == {"data": [], "next_cursor": rest["next_cursor"]}
    both = {"after": end["next_cursor"], "cursor": end["next_cursor"]}
    assert (await service.ask("GET", "/v1/events", query=both)).json["errors"][0]["pointer"] == "/after"


LONG_S = 120.0


def wait_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long polls look again when they are told to and at no other time, however slow the machine is."""
    wait_for = answering._wait_for

    async def wait(event: asyncio.Event, limit_s: float) -> None:
        await wait_for(event, limit_s if limit_s <= answering.ASK_INTERVAL_S else 2 * LONG_S)

    monkeypatch.setattr(answering, "_wait_for", wait)


async def test_a_long_poll_is_answered_when_an_event_comes(service: Service) -> None:
    asked = asyncio.create_task(service.ask("GET", "/v1/events", query={"wait": 30}))
    done, _ = await asyncio.wait([asked], timeout=0.6)
    assert not done
    await add_deposits(service, 1, 1)
    async with asyncio.timeout(25):
        assert len((await asked).json["data"]) == 1


async def test_a_long_poll_is_woken_by_the_hint_of_a_commit(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    wait_without_end(monkeypatch)
    asked = asyncio.create_task(service.ask("GET", "/v1/events", query={"wait": 30}))
    done, _ = await asyncio.wait([asked], timeout=0.6)
    assert not done
    await add_deposits(service, 1, 1)
    async with asyncio.timeout(LONG_S):
        assert len((await asked).json["data"]) == 1


async def test_a_long_poll_finds_what_no_hint_told_of(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(News, "tell", lambda _: None)
    asked = asyncio.create_task(service.ask("GET", "/v1/events", query={"wait": 30}))
    await add_deposits(service, 1, 1)
    async with asyncio.timeout(25):
        assert len((await asked).json["data"]) == 1


async def test_a_long_poll_without_news_ends_with_its_wait(service: Service) -> None:
    async with asyncio.timeout(LONG_S):
        answer = await service.ask("GET", "/v1/events", query={"wait": 1})
    assert answer.json["data"] == []
    assert (await service.ask("GET", "/v1/events", query={"wait": 31})).status == 422


async def test_more_long_polls_than_connections_hold_nobody_up(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_without_end(monkeypatch)
    polls = [asyncio.create_task(service.ask("GET", "/v1/events", query={"wait": 30})) for _ in range(20)]
    async with asyncio.timeout(LONG_S):
        assert (await service.ask("GET", "/v1/chains")).status == 200
        await add_deposits(service, 1, 1)
        for answer in await asyncio.gather(*polls):
            assert len(answer.json["data"]) == 1


async def test_a_reader_that_keeps_its_cursor_skips_nothing_under_concurrent_commits(service: Service) -> None:
    """Positions must become visible in order: eight writers commit at random moments while one reader follows."""
    async with transaction(service.owner) as connection:
        await add_chain(connection, tip=1000)
        watch = await add_watch(connection, service.tenant_id)

    async def write(writer: int) -> None:
        for step in range(10):
            async with transaction(service.owner) as connection:
                await add_entry(connection, service.tenant_id, watch, writer * 100 + step + 1, now=datetime.now(UTC))
                await asyncio.sleep((writer * 7 + step * 3) % 5 / 1000)  # transactions of different length

    seen: list[str] = []

    async def read() -> None:
        query: dict[str, object] = {"limit": 7}
        while len(seen) < 80:
            page = (await service.ask("GET", "/v1/events", query=query)).json
            seen.extend(event["id"] for event in page["data"])
            query["after"] = page["next_cursor"]

    async with asyncio.timeout(LONG_S):
        await asyncio.gather(read(), *(write(writer) for writer in range(8)))
    assert len(set(seen)) == len(seen) == 80


class _Meanwhile:
    """A connection on which something happens before each statement but the first."""

    def __init__(self, connection: Connection, happen: Callable[[], Awaitable[object]]) -> None:
        self._connection = connection
        self._happen = happen
        self._is_first = True

    async def execute(self, statement: Executable) -> CursorResult[Any]:
        """As the connection does."""
        if not self._is_first:
            await self._happen()
        self._is_first = False
        return await self._connection.execute(statement)


async def test_a_feed_that_is_begun_at_a_time_skips_nothing_that_is_stored_meanwhile(service: Service) -> None:
    async with transaction(service.owner) as connection:
        since = await database_now(connection)
        meanwhile = cast(Connection, _Meanwhile(connection, lambda: tell(service, "dep_1")))
        place = await find_feed_place(meanwhile, service.tenant_id, since)
    await tell(service, "dep_2")
    async with transaction(service.owner) as connection:
        told = await list_events(connection, service.tenant_id, limit=10)
        assert await list_events(connection, service.tenant_id, after=place, limit=10) == told


async def test_a_foreign_event_is_404(service: Service) -> None:
    await add_deposits(service, 1, 1)
    event = (await service.ask("GET", "/v1/events")).json["data"][0]
    _, stranger = await service.make_tenant("other")
    assert (await service.ask("GET", f"/v1/events/{event['id']}", key=stranger)).status == 404
