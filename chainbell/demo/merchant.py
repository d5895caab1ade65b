"""A sample merchant: receives webhooks, verifies each with the public `standardwebhooks` library, and keeps its own books
by the whole rule that a receiver needs: the highest sequence of a deposit counts, and it is credited if and only if that
event says `confirmed` or `finalized` with disposition `credit`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

CREDITED = ("confirmed", "finalized")


@dataclass
class Merchant:
    """What the merchant knows. `on_event` is called with each verified event."""

    on_event: Callable[[dict[str, Any]], None]
    secret: str = ""
    url: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)
    subjects: dict[str, dict[str, Any]] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    news: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def receive(self, request: web.Request) -> web.Response:
        """Verify, keep what is newer than what we have, and answer 204."""
        body = await request.read()
        try:
            Webhook(self.secret).verify(body, dict(request.headers))
        except WebhookVerificationError as error:
            self.refused.append(str(error))
            return web.Response(status=401)
        event = json.loads(body)
        async with self.news:
            self._keep(event)
            self.news.notify_all()
        return web.Response(status=204)

    def _keep(self, event: dict[str, Any]) -> None:
        data = event["data"]
        known = self.subjects.get(data.get("id"))
        if "sequence" in data and (known is None or known["sequence"] < data["sequence"]):
            self.subjects[data["id"]] = data
        self.events.append(event)
        self.on_event(event)

    def credited(self) -> dict[str, str]:
        """Amounts by the merchant's own reference of every deposit that counts now."""
        return {
            data["watch"]["reference"]: f"{data['amount']} {data['asset']['symbol']}"
            for data in self.subjects.values()
            if data["object"] == "deposit" and data["state"] in CREDITED and data["disposition"] == "credit"
        }

    async def wait_for(self, what: str, condition: Callable[[], bool], limit_s: float = 60.0) -> None:
        """Wait until `condition` holds after some webhook; raises `TimeoutError` that says what did not come."""
        try:
            async with asyncio.timeout(limit_s), self.news:
                await self.news.wait_for(condition)
        except TimeoutError:
            told = ", ".join(event["type"] for event in self.events) or "nothing"
            raise TimeoutError(f"{what} did not happen within {limit_s:.0f} s; the merchant was told: {told}") from None


@asynccontextmanager
async def running_merchant(on_event: Callable[[dict[str, Any]], None]) -> AsyncIterator[Merchant]:
    """A merchant on a free loopback port; its `secret` is set once its endpoint is registered."""
    merchant = Merchant(on_event)
    app = web.Application()
    app.router.add_post("/webhooks", merchant.receive)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    merchant.url = f"http://127.0.0.1:{port}/webhooks"
    try:
        yield merchant
    finally:
        await runner.cleanup()
