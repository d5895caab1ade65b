"""Telling merchants, as fast as one process can: `python -m bench.delivering TASK`.

Two ways to the same sink with as many requests in flight and bodies of the same make: the dispatcher, from a queue in
Postgres to settled deliveries, and a bare loop that signs and posts from memory and forgets.
"""

from __future__ import annotations

import asyncio
import sys
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import aiohttp
import msgspec
import uvloop
from sqlalchemy.ext.asyncio import AsyncEngine

from bench.installation import SECRET_BOX, add_tenant, ledger_at, loopback_policy
from bench.usage import Usage, measure_usage
from chainbell.logs import configure_logs
from chainbell.supervisor import calm_garbage_collector
from chainbell.version import VERSION
from ledger.database import transaction
from ledger.documents import event_body
from ledger.events import NewEvent, record_events
from ledger.ids import EventId, TenantId, new_id
from ledger.secrets import SIGNING_KEY_PREFIX, new_endpoint_secret
from notifier.dispatcher import Dispatcher
from notifier.isolation import SLOTS
from notifier.metrics import DELIVERIES
from notifier.sender import Sender
from notifier.signing import webhook_headers

TENANTS = 4
ENDPOINTS = 8
"""Endpoints of each tenant; every event goes to all of its tenant's."""
SIGNING_KEY = SIGNING_KEY_PREFIX + b64encode(bytes(32)).decode()
"""A bare loop signs as the dispatcher does: with an endpoint's secret and with its key."""
RECORDED_AT_ONCE = 500
PROGRESS_INTERVAL_S = 0.01


class DeliveringTask(msgspec.Struct):
    """`deliveries` is a multiple of `ENDPOINTS`. Without a database the bare loop is run."""

    sink_url: str
    deliveries: int
    database_url: str = ""


def deposit_data(n: int) -> dict[str, object]:
    """The subject of an event, as long as a real deposit's."""
    digest = f"{n:064x}"
    return {
        "object": "deposit",
        "id": f"dep_{digest[-40:]}",
        "state": "detected",
        "sequence": 1,
        "livemode": True,
        "disposition": "credit",
        "reasons": [],
        "origin": "live",
        "chain": "ethereum",
        "chain_id": "eip155:1",
        "asset": {
            "id": f"eip155:1/erc20:0x{digest[:40]}",
            "symbol": "USDC",
            "decimals": 6,
            "contract": f"0x{digest[:40]}",
            "kind": "fungible",
        },
        "amount_atomic": str(n),
        "amount": f"{n / 1_000_000:.6f}",
        "from": f"0x{digest[:40]}",
        "to": f"0x{digest[-40:]}",
        "transaction": {"hash": f"0x{digest}", "index": n % 200},
        "transfer_id": f"tr_{digest[-40:]}",
        "locator": {"kind": "log", "path": "0", "log_index": n % 400},
        "block": {"height": 20_000_000, "hash": f"0x{digest}", "timestamp": "2026-11-01T00:00:00Z"},
        "confirmations": {
            "current": 1, "required": 12, "credit_at": "12", "finality": "none", "policy": "ethereum/default@1",
        },
        "proof": {"level": "roots", "agreed_by": 1},
        "watch": {"id": f"wat_{digest[-32:]}", "reference": f"order-{n}", "metadata": {}},
        "detected_at": "2026-11-01T00:00:00Z",
        "confirmed_at": None,
        "finalized_at": None,
        "updated_at": "2026-11-01T00:00:00Z",
    }  # fmt: skip


def make_event(tenant_id: TenantId, n: int) -> NewEvent:
    """The first news of a deposit that no other event is about: a lane of its own."""
    return NewEvent(tenant_id, "deposit.detected", f"dep_{n:040x}", True, deposit_data(n), sequence=1)


async def fill_queue(engine: AsyncEngine, tenant_id: TenantId, count: int) -> None:
    """Store events for a tenant, each owed to all of its endpoints."""
    for first in range(0, count, RECORDED_AT_ONCE):
        made = [make_event(tenant_id, n) for n in range(first, min(count, first + RECORDED_AT_ONCE))]
        async with transaction(engine) as connection:
            await record_events(connection, made, datetime.now(UTC))


@asynccontextmanager
async def open_dispatcher(engine: AsyncEngine) -> AsyncIterator[Dispatcher]:
    """A dispatcher as `chainbell notify` runs it, allowed to reach loopback."""
    async with Sender(loopback_policy(), version=VERSION) as sender:
        yield Dispatcher(engine, sender, SECRET_BOX)


def accepted_count() -> int:
    """How many deliveries this process has settled as accepted."""
    samples = [sample for metric in DELIVERIES.collect() for sample in metric.samples]
    return int(sum(s.value for s in samples if s.name.endswith("_total") and s.labels["outcome"] == "accepted"))


async def run_dispatcher(task: DeliveringTask) -> Usage:
    """Drain a queue that was filled beforehand, until the last delivery is settled."""
    async with ledger_at(task.database_url) as engine:
        for tenant in range(TENANTS):
            urls = [f"{task.sink_url}/{tenant}/{endpoint}" for endpoint in range(ENDPOINTS)]
            tenant_id, _ = await add_tenant(engine, f"merchant {tenant}", urls)
            await fill_queue(engine, tenant_id, task.deliveries // ENDPOINTS // TENANTS)
        count = task.deliveries // ENDPOINTS // TENANTS * ENDPOINTS * TENANTS
        async with open_dispatcher(engine) as dispatcher:
            stop = asyncio.Event()
            with measure_usage(count) as usage:
                async with asyncio.TaskGroup() as group:
                    group.create_task(dispatcher.run(stop))
                    group.create_task(_stop_after(count, stop))
    return usage


async def _stop_after(count: int, stop: asyncio.Event) -> None:
    while accepted_count() < count:  # noqa: ASYNC110 - a counter tells nobody that it moved
        await asyncio.sleep(PROGRESS_INTERVAL_S)
    stop.set()


async def run_bare(task: DeliveringTask) -> Usage:
    """Sign and post from memory."""
    secret, numbers, now = new_endpoint_secret(), iter(range(task.deliveries)), datetime.now(UTC)
    bodies = [event_with_body(n, now) for n in range(task.deliveries)]
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), headers={"content-type": "application/json"}
    ) as session:

        async def work() -> None:
            for n in numbers:
                await post_signed(session, f"{task.sink_url}/0/{n % ENDPOINTS}", *bodies[n], secret)

        with measure_usage(task.deliveries) as usage:
            await asyncio.gather(*(work() for _ in range(SLOTS)))
    return usage


def event_with_body(n: int, now: datetime) -> tuple[str, bytes]:
    """An event's id and bytes, as they are stored and sent."""
    event_id = EventId(new_id("evt", now))
    body = event_body(
        event_id=event_id,
        event_type="deposit.detected",
        now=now,
        livemode=True,
        sequence=1,
        previous_state=None,
        data=deposit_data(n),
    )
    return event_id, body


async def post_signed(session: aiohttp.ClientSession, url: str, event_id: str, body: bytes, secret: str) -> None:
    """The least that a webhook takes."""
    headers = webhook_headers(event_id, datetime.now(UTC), body, (secret, SIGNING_KEY))
    async with session.post(url, data=body, headers=headers) as response:
        await response.read()
        response.raise_for_status()


def main() -> None:
    """Do the task in the first argument and print what it took."""
    task = msgspec.json.decode(sys.argv[1], type=DeliveringTask)
    configure_logs()
    calm_garbage_collector()
    usage = uvloop.run(run_dispatcher(task) if task.database_url else run_bare(task))
    sys.stdout.buffer.write(msgspec.json.encode(usage))


if __name__ == "__main__":
    main()
