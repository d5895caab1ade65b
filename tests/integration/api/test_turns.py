"""One key's slow requests take no connection from another's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from api import answering, turns
from chains.model import hex_of
from ledger.chains import lock_chain
from ledger.database import transaction
from ledger.keys import KeyParts
from tests.integration.api.conftest import Answer, Service
from tests.integration.api.seeding import ETHEREUM, add_chain
from tests.integration.api.telling import tell

PLACES_OF_KEY = 2
"""Of the six connections of these tests two are kept, and a key has half of the others."""

WAITING_MAX, SENT = 10, 40


async def begin_slow(service: Service, number: int) -> Answer:
    """A request that holds its connection until the chain's row is free."""
    row = {"chain": "ethereum", "address": hex_of(number.to_bytes(20, "big"))}
    return await service.ask("POST", "/v1/watches", {"watches": [row]})


async def test_slow_requests_of_one_key_keep_no_other_key_waiting(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "WAITING_MAX", WAITING_MAX)
    async with transaction(service.owner) as connection:
        await add_chain(connection, tip=1000)
    _, other = await service.make_tenant("other")
    async with transaction(service.owner) as connection:
        await lock_chain(connection, ETHEREUM)
        slow = [asyncio.create_task(begin_slow(service, number)) for number in range(1, 1 + SENT)]
        refused: set[asyncio.Task[Answer]] = set()
        while len(refused) < SENT - WAITING_MAX - PLACES_OF_KEY:
            done, _ = await asyncio.wait(slow, return_when=asyncio.FIRST_COMPLETED)
            refused |= done
            slow = [task for task in slow if task not in done]
        for path in ("/v1/deposits", "/v1/events", "/v1/watches", "/v1/chains"):
            assert (await service.ask("GET", path, key=other)).status == 200
        assert not any(task.done() for task in slow)
    assert {(task.result().status, task.result().json["code"]) for task in refused} == {(429, "rate_limited")}
    assert all(task.result().headers["Retry-After"] == "1" for task in refused)
    assert {answer.status for answer in await asyncio.gather(*slow)} == {200}


async def test_a_long_poll_takes_no_place_while_it_waits(service: Service) -> None:
    first = (await service.ask("GET", "/v1/events")).json["next_cursor"]
    query = {"after": first, "wait": 30}
    polls = [asyncio.create_task(service.ask("GET", "/v1/events", query=query)) for _ in range(20)]
    assert (await service.ask("GET", "/v1/deposits")).status == 200
    assert not any(poll.done() for poll in polls)
    await tell(service, "dep_1")
    assert {answer.status for answer in await asyncio.gather(*polls)} == {200}


async def test_a_long_poll_that_was_let_in_is_not_refused_when_it_asks_again(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "POLL_INTERVAL_S", 0.1)
    monkeypatch.setattr(answering, "ASK_INTERVAL_S", 0.05)
    let_in, take = set[asyncio.Task[object] | None](), turns.Turns.taken

    @asynccontextmanager
    async def counted(self: turns.Turns, key: KeyParts) -> AsyncIterator[None]:
        async with take(self, key):
            yield
        let_in.add(asyncio.current_task())

    first = (await service.ask("GET", "/v1/events")).json["next_cursor"]
    monkeypatch.setattr(turns.Turns, "taken", counted)
    query = {"after": first, "wait": 30}
    polls = [asyncio.create_task(service.ask("GET", "/v1/events", query=query)) for _ in range(20)]
    while len(let_in) < len(polls):  # noqa: ASYNC110 - the service sets no event
        await asyncio.sleep(0.01)
    monkeypatch.setattr(turns, "WAITING_MAX", 0)
    await tell(service, "dep_1")
    assert {answer.status for answer in await asyncio.gather(*polls)} == {200}
