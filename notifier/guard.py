"""The last wall: no socket is connected to a place that `ledger/urls.py` does not allow.

Three checks, because each one alone can be walked around. The *resolver* vets every answer of a name and rejects all of
them for one bad one, so a rebinding name gains nothing by mixing. But aiohttp never asks the resolver about a host that
is an address already, so the *socket factory* judges the address that is about to be connected to, whatever way it came
(an address in the URL, a redirect, a stale cache). After connecting, and before a byte of the request is written, the
*peer* that the kernel names is judged once more.
"""

from __future__ import annotations

import errno
import functools
import socket
from ipaddress import ip_address
from ssl import SSLContext
from typing import TYPE_CHECKING

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from ledger.urls import EndpointPolicy, RefusedAddress, check_address
from notifier.bounds import make_bounded_response
from notifier.names import Lookup, Names

if TYPE_CHECKING:
    from aiohttp.client_proto import ResponseHandler

KEEPALIVE_S = 4.0
"""Seconds that an idle connection is kept: less than the 5 s after which common servers close theirs, so that a POST
rarely meets a connection that is just being closed."""

DNS_CACHE_S = 10


class RefusedSocket(OSError):
    """A socket was asked for that would be connected to a refused address. An `OSError`, because the connector races
    several addresses and loses any other exception."""

    def __init__(self, refusal: RefusedAddress) -> None:
        super().__init__(errno.EACCES, str(refusal))


class VettingResolver(AbstractResolver):
    """Resolves names and lets answers pass only if every one of them is allowed."""

    def __init__(self, policy: EndpointPolicy, lookup: Lookup, timeout_s: float) -> None:
        """`timeout_s` bounds the wait for one lookup."""
        self._policy = policy
        self._names = Names(lookup, timeout_s)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """All addresses of `host`. Raises `RefusedAddress` for one bad answer, and `OSError` for none in time (`NotLookedUp`
        where that is our fault)."""
        answers = await self._names.find(host, port)
        if not answers:
            raise socket.gaierror(socket.EAI_NONAME, f"{host} has no address")
        for answer in answers:
            check_address(ip_address(answer), port, self._policy)
        return [_resolved(host, answer, port) for answer in answers]

    async def close(self) -> None:
        """Nothing to close: what a name server does not answer is left to its thread."""


def _resolved(host: str, answer: str, port: int) -> ResolveResult:
    family = socket.AF_INET6 if ":" in answer else socket.AF_INET
    return ResolveResult(
        hostname=host, host=answer, port=port, family=family, proto=socket.IPPROTO_TCP, flags=socket.AI_NUMERICHOST
    )


def lookup_addresses(host: str, port: int) -> list[str]:
    """The system's answer for a host name, in its order of preference."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for _, _, _, _, address in found))


def make_guarded_socket(address_info: aiohttp.AddrInfoType, policy: EndpointPolicy) -> socket.socket:
    """A socket for an allowed address. Raises `RefusedSocket` before there is one for any other."""
    family, kind, protocol, _, address = address_info
    try:
        check_address(ip_address(address[0]), int(address[1]), policy)
    except RefusedAddress as refusal:
        raise RefusedSocket(refusal) from refusal
    return socket.socket(family, kind, protocol)


class GuardedConnector(aiohttp.TCPConnector):
    """A connection pool that only reaches what the policy allows. Slots are the dispatcher's, so it has no limit."""

    def __init__(
        self, policy: EndpointPolicy, resolver: VettingResolver, ssl_context: SSLContext, dns_cache_s: int = DNS_CACHE_S
    ) -> None:
        """`dns_cache_s` of 0 asks the resolver for every connection."""
        super().__init__(
            limit=0,
            resolver=resolver,
            ssl=ssl_context,
            keepalive_timeout=KEEPALIVE_S,
            use_dns_cache=dns_cache_s > 0,
            ttl_dns_cache=dns_cache_s,
            socket_factory=lambda address_info: make_guarded_socket(address_info, policy),
        )
        self._factory = functools.partial(make_bounded_response, loop=self._loop)
        self._policy = policy

    async def _create_connection(
        self,
        req: aiohttp.ClientRequest,
        traces: list[aiohttp.tracing.Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 (aiohttp's own argument)
    ) -> ResponseHandler:
        """aiohttp's step between "connect" and "write the request"; the peer is judged here."""
        protocol = await super()._create_connection(req, traces, timeout)
        peer = protocol.transport.get_extra_info("peername") if protocol.transport else None
        try:
            if peer is None:
                raise aiohttp.ServerDisconnectedError("the receiver left before it was asked")
            check_address(ip_address(peer[0]), int(peer[1]), self._policy)
        except BaseException:
            protocol.close()
            raise
        return protocol
