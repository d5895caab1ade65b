"""Tenants among each other, through real dispatchers."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest
from sqlalchemy import insert

from ledger.database import transaction
from ledger.endpoints import create_endpoint
from ledger.events import LIVE_PRIORITY, NewEvent, record_events
from ledger.ids import TenantId
from ledger.schema import tenants
from ledger.states import EndpointHealth
from notifier.isolation import SLOW_MAX
from tests.fakes.receiver import Receiver, running_receiver, wait_for
from tests.integration.notifier.conftest import EXCHANGE_S, Post


async def add_endpoints(post: Post, tenant_id: TenantId, receiver: Receiver, number: int) -> None:
    """So many endpoints of a tenant, which it is made for, at one receiver."""
    async with transaction(post.engine) as connection:
        await connection.execute(insert(tenants).values(id=tenant_id, name=tenant_id, created_at=datetime.now(UTC)))
        for _ in range(number):
            await create_endpoint(
                connection,
                post.secret_box,
                tenant_id=tenant_id,
                url=receiver.url,
                event_types=None,
                description=None,
                now=datetime.now(UTC),
            )


async def record_for(post: Post, tenant_id: TenantId) -> None:
    """One event of a tenant, for all its endpoints."""
    news = [NewEvent(tenant_id, "deposit.detected", "dep_1", False, {"id": "dep_1"}, 1, priority=LIVE_PRIORITY)]
    async with transaction(post.engine) as connection:
        await record_events(connection, news, datetime.now(UTC))


async def test_a_tenant_whose_many_endpoints_hang_delays_no_other_tenant(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that is for new endpoints is taken, in slots and out of them, and stays so."""
    slots, slow_max = 2, 4
    monkeypatch.setitem(SLOW_MAX, EndpointHealth.UNPROVEN, slow_max)
    release = asyncio.Event()
    async with (
        post.dispatching(slots=4 * slots, exchange_s=10 * EXCHANGE_S),
        running_receiver(behaviour=wait_for(release)) as hanging,
        running_receiver() as other,
    ):
        await add_endpoints(post, TenantId("ten_large"), hanging, 20)
        await record_for(post, TenantId("ten_large"))
        await hanging.wait_until("all places are taken", lambda: len(hanging.requests) == slots + slow_max, 60)
        for number in range(3):
            await add_endpoints(post, TenantId(f"ten_{number}"), other, 1)
            await record_for(post, TenantId(f"ten_{number}"))
            await other.wait_until("it is told", lambda: len(other.requests) > number, 60)  # noqa: B023
        assert len(hanging.requests) == slots + slow_max
        release.set()
