"""No webhook reaches this machine, its network or a cloud's metadata, unless the operator's settings allow it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.fakes.addresses import DENIED_LITERALS
from tests.outside.installation import Installation, Tenant, installed

STRICT = """
[notifier]
allow_http = true
"""
OPEN = """
[notifier]
allow_http = true
allow_private = ["127.0.0.0/8", "::1/128"]
"""


@dataclass
class Listener:
    """A server on every address of this machine that counts who connects."""

    port: int = 0
    accepted: int = 0


@asynccontextmanager
async def listening() -> AsyncIterator[Listener]:
    """Accept connections on a free port of every local address, and close them at once."""
    listener = Listener()

    def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        listener.accepted += 1
        writer.close()

    server = await asyncio.start_server(accept, "0.0.0.0", 0)
    listener.port = server.sockets[0].getsockname()[1]
    async with server:
        yield listener


async def serving(installation: Installation, settings: str) -> None:
    """API and notifier by these settings, in place of what ran before."""
    await installation.stop_all()
    installation.configure(settings)
    await installation.start("serve")
    await installation.start("notify")
    await installation.ready()


async def refused(shop: Tenant, url: str) -> bool:
    """True when an endpoint of that URL is refused with a sentence that points at it."""
    answer = await shop.ask("POST", "/v1/endpoints", {"url": url})
    if answer.status != 422:
        return False
    (error,) = answer.document["errors"]
    return bool(error["pointer"] == "/url" and error["detail"])


async def ping(shop: Tenant, endpoint_id: str) -> tuple[str, list[dict[str, object]]]:
    """Send a test event; the state in which its delivery ends, and its attempts."""
    answer = await shop.call("POST", f"/v1/endpoints/{endpoint_id}/test", {})
    path = f"/v1/deliveries/{answer['delivery']['id']}"

    async def attempts() -> list[dict[str, object]]:
        return list((await shop.call("GET", f"{path}/attempts"))["data"])

    made = await shop.installation.until("an attempt was made", attempts)
    return (await shop.call("GET", path))["state"], made


async def test_no_spelling_of_a_private_place_is_stored_or_called(database_url: str, tmp_path: Path) -> None:
    async with listening() as listener, installed(tmp_path, database_url, STRICT) as installation:
        await serving(installation, STRICT)
        shop = await installation.tenant("shop")
        literals = [*DENIED_LITERALS, "localhost", "LOCALHOST.", "sub.localhost"]
        spellings = [f"{scheme}://{literal}/hook" for literal in literals for scheme in ("https", "http")]
        stored = [url for url in spellings if not await refused(shop, url)]
        assert stored == []
        assert await shop.rows("/v1/endpoints") == []

        good = await shop.call("POST", "/v1/endpoints", {"url": "https://merchant.example/hook"})
        changed = await shop.ask("PATCH", f"/v1/endpoints/{good['id']}", {"url": f"http://127.0.0.1:{listener.port}/"})
        assert changed.status == 422
        assert listener.accepted == 0


async def test_what_was_allowed_once_is_refused_when_it_is_sent_and_nobody_is_connected_to(
    database_url: str, tmp_path: Path
) -> None:
    async with listening() as listener, installed(tmp_path, database_url, OPEN) as installation:
        await serving(installation, OPEN)
        shop = await installation.tenant("shop")
        urls = [f"http://{host}:{listener.port}/" for host in ("127.0.0.1", "127.9.8.7")]
        endpoints = [await shop.call("POST", "/v1/endpoints", {"url": url}) for url in urls]
        state, _ = await ping(shop, endpoints[0]["id"])
        assert state == "pending"  # allowed, and reached, although nothing there speaks HTTP
        assert listener.accepted >= 1
        for port in (22, 5432):  # no server of HTTP listens there, and the settings open a network, not every port
            assert await refused(shop, f"http://127.0.0.1:{port}/")

        await serving(installation, STRICT)
        reached = listener.accepted  # on a slow machine there was time for a second attempt
        for endpoint in endpoints:
            state, attempts = await ping(shop, endpoint["id"])
            assert state == "refused"
            assert [(row["outcome"], row["error"]) for row in attempts] == [("refused", "refused_address")]
        assert listener.accepted == reached
        counts = (await installation.command("status"))["deliveries"]
        assert counts["refused"] >= len(endpoints)
