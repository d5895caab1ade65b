"""Several hosts asked at once: each counts once, and none that hangs delays the others."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from chains.model import Slug
from chains.node import health
from chains.node.client import NodeClient
from chains.node.errors import NodeGarbled
from chains.node.health import HEAD, Upstream
from chains.node.hosts import ASKED_AGAIN_S, Hosts
from chains.node.pool import Pool

NAMES = {"a": "one.example", "b": "two.example", "c": "three.example", "c2": "three.example"}


class Town:
    """Nodes of three hosts, two of them of one; those in `hanging` never answer, those in `broken` fail."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        urls = {name: f"http://{host}/{name}" for name, host in NAMES.items()}
        nodes = [Upstream(NodeClient(Slug("hostnet"), name, url, session)) for name, url in urls.items()]
        self.pool = Pool(Slug("hostnet"), nodes, self.admit)
        self.now_s = 0.0
        self.hanging: set[str] = set()
        self.broken: set[str] = set()
        self.asked: list[str] = []

    async def admit(self, _: Upstream) -> None:
        """All are of this chain."""

    async def ask(self, upstream: Upstream) -> str:
        self.asked.append(upstream.name)
        if upstream.name in self.hanging:
            await asyncio.Event().wait()
        if upstream.name in self.broken:
            raise NodeGarbled(upstream.name, "nonsense")
        return f"from {upstream.name}"

    async def answers(self, quorum: int = 2) -> dict[str, str]:
        self.asked.clear()
        async with asyncio.timeout(120):
            hosts = ["one.example", "two.example", "three.example"]
            return await Hosts(self.pool, quorum).answers(hosts, "head", self.ask, HEAD)


@pytest.fixture
def town(session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch) -> Town:
    monkeypatch.setattr(health, "PATIENCE_MIN_S", 0.05)
    monkeypatch.setattr(health, "PATIENCE_UNKNOWN_S", 0.05)
    return Town(session)


async def test_one_node_of_each_host_is_asked(town: Town) -> None:
    assert await town.answers() == {"one.example": "from a", "two.example": "from b", "three.example": "from c"}
    assert sorted(town.asked) == ["a", "b", "c"]


async def test_the_next_node_answers_for_its_host_and_counts_once(town: Town) -> None:
    town.broken = {"c"}
    assert (await town.answers())["three.example"] == "from c2"


async def test_a_host_that_hangs_is_not_waited_for_where_the_others_are_enough(town: Town) -> None:
    town.hanging = {"b"}
    assert await town.answers() == {"one.example": "from a", "three.example": "from c"}
    assert town.pool.upstreams[1].status().state == "failing"
    assert await town.answers() == {"one.example": "from a", "three.example": "from c"}
    assert "b" not in town.asked


async def test_a_host_that_hangs_and_is_needed_delays_nothing_but_credit_and_is_asked_now_and_then(town: Town) -> None:
    town.hanging = {"b"}
    hosts = Hosts(town.pool, 3, clock=lambda: town.now_s)
    names = ["one.example", "two.example", "three.example"]
    for now_s, is_asked in ((0.0, True), (1.0, False), (5.0, False), (ASKED_AGAIN_S, True), (ASKED_AGAIN_S + 1, False)):
        town.now_s = now_s
        town.asked.clear()
        async with asyncio.timeout(120):
            assert set(await hosts.answers(names, "head", town.ask, HEAD)) == {"one.example", "three.example"}
        assert ("b" in town.asked) == is_asked, now_s
    town.hanging = set()
    town.now_s = 2 * ASKED_AGAIN_S
    assert set(await hosts.answers(names, "head", town.ask, HEAD)) == set(names)


async def test_a_host_without_an_answer_is_absent(town: Town) -> None:
    town.broken = {"a", "c", "c2"}
    assert await town.answers() == {"two.example": "from b"}
