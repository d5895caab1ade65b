"""An Internet of one machine: every address there is leads to one listener, and nothing leads out.

Run as a program in a network namespace of its own (`unshare --map-root-user --net`), where the kernel is told that all
addresses of both families are this machine's. So a hole in the guard is not argued about: it connects, and is counted
by the address that it reached. It prints what it counted as JSON.

A tripwire in the interpreter stands before the kernel: a connect to an address that is not meant to be reached is noted
and refused. Without a namespace (`--tripwire-only`) it is all there is between a hole and the real network, so nothing
public is tried then.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections import Counter
from ipaddress import ip_address, ip_network
from itertools import count
from typing import Any

from ledger.secrets import new_endpoint_secret
from ledger.urls import EndpointPolicy
from notifier.names import Lookup
from notifier.sender import Sender, SendRequest, TimeLimits
from tests.fakes.addresses import DENIED_LITERALS, METADATA_ADDRESSES

PUBLIC = ("1.1.1.1", "2606:4700::1111")
"""The only two places that may be reached."""
PORT = 8443
SECRET = new_endpoint_secret()
LIMITS = TimeLimits(total_s=120, connect_s=60, dns_s=60)
STRICT = EndpointPolicy(allow_http=True)
EVERYTHING = EndpointPolicy(allow_http=True, allow_private=(ip_network("0.0.0.0/0"), ip_network("::/0")))
REBINDINGS = 100


def make_every_address_ours() -> None:
    """Inside the namespace alone: routes that make any address local (Linux's AnyIP)."""
    for command in ("link set lo up", "route add local 0.0.0.0/0 dev lo", "-6 route add local ::/0 dev lo"):
        subprocess.run(["ip", *command.split()], check=True)


class Tripwire:
    """Counts what this process connects to, and stops what it must not. An audit hook cannot be taken off again."""

    def __init__(self, allowed: tuple[str, ...]) -> None:
        self.allowed = allowed
        self.tried: Counter[str] = Counter()
        sys.addaudithook(self._heard)

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event != "socket.connect" or not isinstance(arguments[1], tuple):
            return
        self.tried[str(arguments[1][0])] += 1
        if arguments[1][0] not in self.allowed:
            raise PermissionError(f"a connect to {arguments[1][:2]}")


class Listener:
    """Answers on every address, with a redirect to a cloud's metadata where the path asks for one."""

    def __init__(self) -> None:
        self.accepted: Counter[str] = Counter()

    async def start(self) -> list[asyncio.Server]:
        """Listen in both families."""
        return [await asyncio.start_server(self._answer, host, PORT) for host in ("0.0.0.0", "::")]

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted[writer.get_extra_info("sockname")[0]] += 1
        head = await reader.readuntil(b"\r\n\r\n")
        is_redirected = head.startswith(b"POST /redirect")
        status = f"307 Away\r\nlocation: http://169.254.169.254:{PORT}/" if is_redirected else "200 OK"
        writer.write(f"HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode())
        await writer.drain()
        writer.close()


def denied_addresses() -> list[str]:
    """Every denied literal that is an address, as a name server would give it."""
    found = []
    for literal in (text.strip("[]") for text in DENIED_LITERALS):
        try:
            found.append(str(ip_address(literal)))
        except ValueError:
            continue
    return sorted(set(found) - set(PUBLIC))  # [1.1.1.1] is denied for its brackets alone


async def send(policy: EndpointPolicy, urls: list[str], lookup: Lookup) -> Counter[str]:
    """One attempt for each URL; how often each outcome and error came."""
    async with Sender(policy, version="1", lookup=lookup, limits=LIMITS, dns_cache_s=0) as sender:
        results = [await sender.send(SendRequest(url, "evt_1", b"{}", (SECRET,))) for url in urls]
    return Counter(f"{result.outcome}/{result.error or result.status_code}" for result in results)


async def send_to_denied_places() -> dict[str, Counter[str]]:
    """What must be refused: by literal, by a name's answers, and metadata where all is opened."""
    addresses = denied_addresses()
    by_name = {f"{form}{n}.example": n for n in range(len(addresses)) for form in ("alone", "mixed")}

    def _lookup(host: str, _: int) -> list[str]:
        if host not in by_name:
            return ["127.0.0.1"]
        return [PUBLIC[0]] * host.startswith("mixed") + [addresses[by_name[host]]]

    metadata = [f"[{text}]" if ":" in text else text for text in METADATA_ADDRESSES]
    return {
        "literals": await send(STRICT, [f"http://{literal}:{PORT}/" for literal in DENIED_LITERALS], _lookup),
        "tls": await send(STRICT, [f"https://{literal}:{PORT}/" for literal in DENIED_LITERALS], _lookup),
        "names": await send(STRICT, [f"http://{name}:{PORT}/" for name in by_name], _lookup),
        "metadata": await send(EVERYTHING, [f"http://{literal}:{PORT}/" for literal in metadata], _lookup),
    }


async def send_to_public_places() -> dict[str, Counter[str]]:
    """What may be reached, beside what must not: the controls, a name that rebinds, a redirect, proxies."""
    turn = count()

    def _rebind(_: str, __: int) -> list[str]:
        return ["169.254.169.254" if next(turn) % 2 else PUBLIC[0]]

    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        os.environ[name] = f"http://127.0.0.1:{PORT}"
    return {
        "control": await send(STRICT, [f"http://{PUBLIC[0]}:{PORT}/", f"http://[{PUBLIC[1]}]:{PORT}/"], _rebind),
        "redirect": await send(STRICT, [f"http://{PUBLIC[0]}:{PORT}/redirect"], _rebind),
        "rebinding": await send(STRICT, [f"http://rebind.example:{PORT}/"] * REBINDINGS, _rebind),
    }


async def run(is_walled: bool) -> dict[str, Any]:
    """All of it; the report."""
    listener = Listener()
    tripwire = Tripwire(PUBLIC if is_walled else ())
    servers = await listener.start() if is_walled else []
    outcomes = await send_to_denied_places()
    if is_walled:
        outcomes |= await send_to_public_places()
    for server in servers:
        server.close()
    return {"outcomes": outcomes, "tried": tripwire.tried, "accepted": listener.accepted}


if __name__ == "__main__":
    walled = "--tripwire-only" not in sys.argv
    if walled:
        make_every_address_ours()
    print(json.dumps(asyncio.run(run(walled))))
