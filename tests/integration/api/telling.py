"""What tests of pausing and recovering say: who is to be told, what happened, and what became of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy import text

from ledger import recovery, releasing
from ledger.database import database_now, transaction
from ledger.events import NewEvent, record_events
from ledger.ids import EventId
from notifier.recovery import recover_once
from tests.integration.api.conftest import Service


def set_batch(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Jobs handle so many deliveries, or events, at a time."""
    monkeypatch.setattr(recovery, "BATCH", number)
    monkeypatch.setattr(releasing, "BATCH", number)


async def create(service: Service, **body: object) -> str:
    answer = await service.ask("POST", "/v1/endpoints", {"url": "https://merchant.example/hooks", **body})
    endpoint_id: str = answer.json["id"]
    return endpoint_id


async def tell(service: Service, *subjects: str) -> Sequence[EventId]:
    """Events about these subjects, in order; returns their ids."""
    async with transaction(service.owner) as connection:
        told = [NewEvent(service.tenant_id, "deposit.detected", name, False, {"id": name}) for name in subjects]
        return await record_events(connection, told, await database_now(connection))


async def work(service: Service) -> None:
    """What the notifier does until no job is left; jobs here need a few steps only."""
    for _ in range(50):
        if not await recover_once(service.owner):
            return
    raise AssertionError("jobs did not end in 50 steps")


async def listed(service: Service, **query: object) -> list[Any]:
    found: list[Any] = (await service.ask("GET", "/v1/deliveries", query=query)).json["data"]
    return found


async def states(service: Service) -> Counter[str]:
    return Counter(row["state"] for row in await listed(service))


async def execute(service: Service, statement: str) -> None:
    async with transaction(service.owner) as connection:
        await connection.execute(text(statement))
