"""Name servers that never answer: who asked gives up in time, and nobody else's names wait for theirs."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from ipaddress import ip_network

import pytest

from ledger.secrets import new_endpoint_secret
from ledger.states import Outcome
from ledger.urls import EndpointPolicy
from notifier import names
from notifier.names import Known, Names, NotLookedUp
from notifier.outcome import AttemptError
from notifier.sender import Sender, SendRequest, TimeLimits
from tests.fakes.receiver import running_receiver

SOON_S = 0.1
LATE_S = 240.0
"""More than a busy machine needs to look a name up that answers."""


class NameServers:
    """`hang...` is not answered while the test lasts; every other name is, with loopback."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.release = threading.Event()

    def lookup(self, host: str, port: int) -> list[str]:
        self.asked[host] += 1
        if host.startswith("hang"):
            self.release.wait(2 * LATE_S)
        if host.startswith("no"):
            raise socket.gaierror(socket.EAI_NONAME, "there is none")
        return ["127.0.0.1"]


@pytest.fixture
async def servers(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[NameServers]:
    """With threads that are soon used up."""
    monkeypatch.setattr(names, "THREADS", {Known.ANSWERED: 1, Known.NOTHING: 2, Known.HUNG: 1})
    servers = NameServers()
    yield servers
    servers.release.set()


async def wait_for(what: str, condition: Callable[[], bool]) -> None:
    """Return as soon as `condition` holds; fail naming `what` at last."""
    for _ in range(24_000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"not within {LATE_S} s: {what}")


async def outcome_of(found: Names, host: str) -> type[BaseException] | None:
    """None where there was an answer."""
    try:
        await found.find(host, 443)
    except OSError as error:
        return type(error)
    return None


async def test_a_name_that_answered_does_not_wait_for_those_that_hang(servers: NameServers) -> None:
    patient = Names(servers.lookup, LATE_S)
    assert await patient.find("good.example", 443) == ["127.0.0.1"]
    hanging = [asyncio.create_task(outcome_of(patient, f"hang{number}.example")) for number in range(10)]
    await wait_for("threads are used up", lambda: servers.asked.total() == 3)
    for _ in range(3):
        assert await patient.find("good.example", 443) == ["127.0.0.1"]
    assert sum(servers.asked[f"hang{number}.example"] for number in range(10)) == 2, "as many as there are threads"
    servers.release.set()
    assert set(await asyncio.gather(*hanging)) == {None}


async def test_a_name_that_hangs_takes_one_thread_however_often_it_is_asked_for(servers: NameServers) -> None:
    hasty = Names(servers.lookup, SOON_S)
    assert [await outcome_of(hasty, "hang.example") for _ in range(3)] == [socket.gaierror] * 3
    await wait_for("the thread has begun", lambda: servers.asked.total() > 0)
    assert servers.asked["hang.example"] == 1


async def test_what_never_got_a_thread_is_told_apart_unless_it_hung_before(servers: NameServers) -> None:
    hasty = Names(servers.lookup, SOON_S)
    first = ("hang1.example", "hang2.example")
    assert [await outcome_of(hasty, host) for host in first] == [socket.gaierror] * 2
    assert await outcome_of(hasty, "new.example") is NotLookedUp
    assert await outcome_of(hasty, "hang1.example") is socket.gaierror
    assert servers.asked["new.example"] == 0


async def test_who_gave_up_before_there_was_a_thread_is_not_looked_up_any_more(servers: NameServers) -> None:
    hasty = Names(servers.lookup, SOON_S)
    hosts = [f"hang{number}.example" for number in range(5)]
    await asyncio.gather(*(outcome_of(hasty, host) for host in hosts))
    servers.release.set()
    patient = Names(servers.lookup, LATE_S)
    assert await patient.find("good.example", 443) == ["127.0.0.1"]
    await wait_for("all threads are free", lambda: hasty._busy.total() == 0)
    assert sum(servers.asked[host] for host in hosts) == 2
    assert (hasty._asked, list(hasty._waiting[Known.NOTHING])) == ({}, [])


async def test_that_there_is_no_such_name_is_an_answer(servers: NameServers) -> None:
    patient = Names(servers.lookup, LATE_S)
    assert await outcome_of(patient, "no.example") is socket.gaierror
    assert patient._known == {"no.example": Known.ANSWERED}


async def test_no_more_names_are_remembered_than_a_few(servers: NameServers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "NAMES_MAX", 3)
    patient = Names(servers.lookup, LATE_S)
    for number in range(5):
        await patient.find(f"good{number}.example", 443)
    assert list(patient._known) == ["good2.example", "good3.example", "good4.example"]


async def test_webhooks_are_sent_while_the_names_of_others_hang(servers: NameServers) -> None:
    """Those that hang fail by their own name server; those that found no thread, by us."""
    policy = EndpointPolicy(allow_http=True, allow_private=(ip_network("127.0.0.0/8"),))
    limits = TimeLimits(total_s=2 * LATE_S, dns_s=LATE_S)
    secret = new_endpoint_secret()
    async with (
        running_receiver(secrets=[secret]) as receiver,
        Sender(policy, version="1", limits=limits, lookup=servers.lookup, dns_cache_s=0) as sender,
    ):
        port = receiver.url.rsplit(":", 1)[1].split("/")[0]

        def to(host: str) -> SendRequest:
            return SendRequest(f"http://{host}:{port}/", "evt_1", b"{}", (secret,))

        assert (await sender.send(to("good.example"))).outcome is Outcome.ACCEPTED
        hanging = [asyncio.create_task(sender.send(to(f"hang{number}.example"))) for number in range(4)]
        await wait_for("threads are used up", lambda: servers.asked.total() >= 3)
        assert (await sender.send(to("good.example"))).outcome is Outcome.ACCEPTED
        loop = asyncio.get_running_loop()
        clock = loop.time
        loop.time = lambda: clock() + LATE_S  # type: ignore[method-assign]  # their time is over
        errors = Counter(result.error for result in await asyncio.gather(*hanging))
    assert errors == {AttemptError.DNS: 2, AttemptError.ABANDONED: 2}
