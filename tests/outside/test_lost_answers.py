"""`kill -9` of the API between an effect and its answer, and within the transaction of the effect: the same request with the
same idempotency key, to the process that comes next, has one effect and one answer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import aiohttp
import pytest

from tests.outside.installation import LOCAL_ENDPOINTS, Answer, Installation, Tenant, installed
from tests.outside.postgres_wire import PostgresWire, Side, wire_before

LIMIT_S = 120.0


def asked(name: str) -> tuple[str, str, object, Mapping[str, str]]:
    """A request whose answer cannot be had again: the secret is shown once."""
    return "POST", "/v1/endpoints", {"url": f"https://merchant.example/{name}"}, {"Idempotency-Key": name}


async def kill_at_its_commit(
    installation: Installation, wire: PostgresWire, shop: Tenant, name: str, side: Side
) -> None:
    """Ask, and kill the process while the commit is on its way there or back; the client gets no answer."""
    wire.hold(name, side)
    request = asyncio.create_task(shop.ask(*asked(name)))
    async with asyncio.timeout(LIMIT_S):
        await wire.caught.wait()
    assert not request.done()
    await installation.kill("serve")
    wire.let_go()
    with pytest.raises(aiohttp.ClientError):
        await request


async def ask_until_answered(shop: Tenant, name: str) -> Answer:
    """As a client does: again, as long as the first request is said to be under way. Postgres takes a moment to notice."""

    answers: list[Answer] = []

    async def is_answered() -> bool:
        answers.append(await shop.ask(*asked(name)))
        return answers[-1].status != 409

    await shop.installation.until(f"{name} is answered", is_answered)
    return answers[-1]


async def urls(shop: Tenant) -> list[str]:
    """Of all endpoints, by name."""
    return sorted(row["url"].rpartition("/")[2] for row in await shop.rows("/v1/endpoints"))


async def test_a_request_that_a_kill_cut_off_has_one_effect_and_one_answer(database_url: str, tmp_path: Path) -> None:
    async with wire_before(database_url) as wire, installed(tmp_path, wire.url, LOCAL_ENDPOINTS) as installation:
        shop = await installation.tenant("shop", "endpoints:*")
        await installation.start("serve")
        await installation.ready()

        await kill_at_its_commit(installation, wire, shop, "before", Side.ASKED)
        await installation.start("serve")
        await installation.ready()
        assert await urls(shop) == []
        answers = [await ask_until_answered(shop, "before") for _ in range(2)]
        assert [(answer.status, answer.headers.get("Idempotent-Replayed")) for answer in answers] == [
            (201, None),
            (201, "true"),
        ]
        assert answers[0].document == answers[1].document
        assert await urls(shop) == ["before"]

        await kill_at_its_commit(installation, wire, shop, "after", Side.DONE)
        await installation.start("serve")
        await installation.ready()
        assert await urls(shop) == ["after", "before"]
        answers = [await ask_until_answered(shop, "after") for _ in range(2)]
        assert [(answer.status, answer.headers.get("Idempotent-Replayed")) for answer in answers] == [(201, "true")] * 2
        assert answers[0].document == answers[1].document
        assert answers[0].document["secret"].startswith("whsec_")
        assert await urls(shop) == ["after", "before"]
