"""No connection reaches a private place, by whatever spelling, name or redirect: listeners count who got through."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator
from ipaddress import ip_address, ip_network
from itertools import count

import aiohttp
import pytest
import pytest_asyncio

from ledger.secrets import new_endpoint_secret
from ledger.states import Outcome
from ledger.urls import EndpointPolicy, RefusedAddress
from notifier.guard import GuardedConnector, RefusedSocket, VettingResolver, lookup_addresses, make_guarded_socket
from notifier.outcome import AttemptError
from notifier.sender import AttemptResult, Sender, SendRequest, TimeLimits
from tests.fakes import receiver as fake
from tests.fakes.addresses import DENIED_LITERALS, EMBEDDINGS, METADATA_ADDRESSES
from tests.fakes.receiver import running_receiver

SECRET = new_endpoint_secret()
LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
LIMITS = TimeLimits(total_s=240, connect_s=120, dns_s=120)


class Listener:
    """Listens on every address of this machine, in both families, and counts connections by the address they reached."""

    def __init__(self) -> None:
        self.accepted: Counter[str] = Counter()
        self.port = 0
        self._servers: list[asyncio.Server] = []

    async def start(self) -> None:
        server = await asyncio.start_server(self._accept, "0.0.0.0", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._servers.append(server)
        if socket.has_ipv6:
            self._servers.append(await asyncio.start_server(self._accept, "::", self.port))

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted[writer.get_extra_info("sockname")[0]] += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    async def stop(self) -> None:
        for server in self._servers:
            server.close()
            await server.wait_closed()


@pytest_asyncio.fixture
async def listener() -> AsyncIterator[Listener]:
    running = Listener()
    await running.start()
    yield running
    await running.stop()


def open_policy(port: int, *private: str) -> EndpointPolicy:
    """A policy under which nothing but the address can be the reason for a refusal."""
    networks = tuple(ip_network(network) for network in private)
    return EndpointPolicy(allow_http=True, allow_private=networks, allow_ports=(443, port))


def home(host: str, port: int) -> list[str]:
    """A name server that is in the attacker's hand: every name is this machine."""
    assert host
    assert port
    return ["127.0.0.1"]


async def attempt(policy: EndpointPolicy, url: str) -> AttemptResult:
    async with Sender(policy, version="1", lookup=home, limits=LIMITS) as sender:
        return await sender.send(SendRequest(url, "evt_1", b"{}", (SECRET,)))


async def test_no_spelling_of_a_private_place_is_connected_to(listener: Listener) -> None:
    async with Sender(open_policy(listener.port), version="1", lookup=home, limits=LIMITS) as sender:
        for literal in DENIED_LITERALS:
            for url in (f"http://{literal}:{listener.port}/", f"http://{literal}/", f"https://{literal}/"):
                result = await sender.send(SendRequest(url, "evt_1", b"{}", (SECRET,)))
                assert result.outcome is Outcome.REFUSED, url
                assert result.error in {AttemptError.REFUSED_ADDRESS, AttemptError.BAD_URL}, url
    assert listener.accepted.total() == 0


async def test_the_connector_alone_connects_to_none_of_them_either(listener: Listener) -> None:
    """As if the URL had never been parsed by us, or a redirect had been followed."""
    policy = open_policy(listener.port)
    resolver = VettingResolver(policy, home, 1)
    connector = GuardedConnector(policy, resolver, ssl.create_default_context(), dns_cache_s=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=60)) as session:
        for literal in DENIED_LITERALS:
            with pytest.raises((aiohttp.ClientError, ValueError, UnicodeError)):
                await session.get(f"http://{literal}:{listener.port}/")
    await resolver.close()
    assert listener.accepted.total() == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "[::1]", "localhost", "merchant.example"])
async def test_the_same_listener_is_reached_once_the_operator_opens_loopback(listener: Listener, host: str) -> None:
    """Shows that the counts above are zero because of the guard and not for want of a listener."""
    policy = open_policy(listener.port, "127.0.0.0/8", "::1/128")
    result = await attempt(policy, f"http://{host}:{listener.port}/")
    assert (result.outcome, result.status_code) == (Outcome.ACCEPTED, 204)
    assert listener.accepted.total() == 1


@pytest.mark.parametrize("address", METADATA_ADDRESSES)
async def test_metadata_stays_shut_when_everything_is_opened(listener: Listener, address: str) -> None:
    policy = open_policy(listener.port, "0.0.0.0/0", "::/0")
    literal = f"[{address}]" if ":" in address else address
    result = await attempt(policy, f"http://{literal}:{listener.port}/")
    assert (result.outcome, result.error) == (Outcome.REFUSED, AttemptError.REFUSED_ADDRESS)


@pytest.mark.parametrize("embedding", sorted(EMBEDDINGS))
async def test_no_embedding_of_loopback_gets_through_an_opened_loopback(listener: Listener, embedding: str) -> None:
    embedded = EMBEDDINGS[embedding](0x7F00_0001)
    policy = open_policy(listener.port, "127.0.0.0/8", "::1/128")
    address = ip_address(embedded.to_bytes(16, "big"))
    result = await attempt(policy, f"http://[{address}]:{listener.port}/")
    assert (result.outcome, result.error) == (Outcome.REFUSED, AttemptError.REFUSED_ADDRESS)
    assert listener.accepted.total() == 0


async def test_a_name_that_flips_between_answers_never_reaches_the_denied_one(listener: Listener) -> None:
    turn = count()

    def flipping(host: str, port: int) -> list[str]:
        assert (host, port) == ("rebind.example", listener.port)
        return ["127.0.0.2" if next(turn) % 2 else "127.0.0.1"]

    policy = open_policy(listener.port, "127.0.0.1/32")
    request = SendRequest(f"http://rebind.example:{listener.port}/", "evt_1", b"{}", (SECRET,))
    async with Sender(policy, version="1", lookup=flipping, limits=LIMITS, dns_cache_s=0) as sender:
        results = [await sender.send(request) for _ in range(200)]
    assert Counter(result.outcome for result in results) == {Outcome.ACCEPTED: 100, Outcome.REFUSED: 100}
    assert listener.accepted == {"127.0.0.1": 100}


@pytest.mark.parametrize("bad", ["127.0.0.2", "10.0.0.1", "::1", "169.254.169.254", "::ffff:127.0.0.1", "fe80::1%lo"])
async def test_one_bad_answer_among_good_ones_rejects_all(listener: Listener, bad: str) -> None:
    policy = open_policy(listener.port, "127.0.0.1/32")
    async with Sender(policy, version="1", lookup=lambda *_: ["127.0.0.1", bad], limits=LIMITS) as sender:
        result = await sender.send(SendRequest(f"http://mixed.example:{listener.port}/", "evt_1", b"{}", (SECRET,)))
    assert (result.outcome, result.error) == (Outcome.REFUSED, AttemptError.REFUSED_ADDRESS)
    assert listener.accepted.total() == 0


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_to_a_private_place_is_one_request(listener: Listener, status: int) -> None:
    async with running_receiver() as receiver:
        receiver.behaviour = fake.redirect(f"http://127.0.0.2:{listener.port}/", status)
        result = await attempt(EndpointPolicy(allow_http=True, allow_private=LOOPBACK), receiver.url)
    assert (result.outcome, result.error) == (Outcome.RETRYABLE, AttemptError.REDIRECT)
    assert len(receiver.requests) == 1
    assert listener.accepted.total() == 0


async def test_proxies_of_the_environment_are_ignored(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{listener.port}")
    async with running_receiver(secrets=[SECRET]) as receiver:
        result = await attempt(EndpointPolicy(allow_http=True, allow_private=LOOPBACK), receiver.url)
    assert result.outcome is Outcome.ACCEPTED
    assert listener.accepted.total() == 0


async def test_a_blocked_port_is_never_connected_to() -> None:
    policy = EndpointPolicy(allow_http=True, allow_private=LOOPBACK, allow_ports=(5432,))
    result = await attempt(policy, "http://127.0.0.1:5432/")
    assert (result.outcome, result.error) == (Outcome.REFUSED, AttemptError.REFUSED_ADDRESS)


async def test_a_port_that_is_not_listed_is_only_for_opened_addresses(listener: Listener) -> None:
    policy = EndpointPolicy(allow_http=True, allow_private=(ip_network("10.0.0.0/8"),))
    async with Sender(policy, version="1", lookup=lambda *_: ["1.1.1.1"], limits=LIMITS) as sender:
        result = await sender.send(SendRequest(f"http://merchant.example:{listener.port}/", "evt_1", b"{}", (SECRET,)))
    assert (result.outcome, result.error) == (Outcome.REFUSED, AttemptError.REFUSED_ADDRESS)


async def test_a_refusal_takes_no_time_and_opens_no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    monkeypatch.setattr("notifier.guard.socket.socket", lambda *arguments: made.append(arguments))
    started = time.thread_time()
    with pytest.raises(RefusedSocket):
        make_guarded_socket((socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", 443)), EndpointPolicy())
    assert time.thread_time() - started < 0.1
    assert made == []


async def test_a_peer_other_than_the_one_asked_for_is_left_before_the_request(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel names another peer than the address that was vetted, as a transparent redirect would."""
    policy = open_policy(listener.port, "127.0.0.2/32")
    monkeypatch.setattr("notifier.guard.make_guarded_socket", lambda info, _: socket.socket(info[0], info[1], info[2]))
    resolver = VettingResolver(policy, home, 1)
    connector = GuardedConnector(policy, resolver, ssl.create_default_context())
    async with aiohttp.ClientSession(connector=connector) as session:
        with pytest.raises(RefusedAddress, match="loopback"):
            await session.get(f"http://127.0.0.1:{listener.port}/")
    await resolver.close()


def test_the_system_s_lookup_gives_each_address_once() -> None:
    found = lookup_addresses("localhost", 443)
    assert found
    assert len(set(found)) == len(found)
    assert all(ip_address(address).is_loopback for address in found)
