"""The API on a port of its own, over a database of its own, as the role that it has in production."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from ipaddress import ip_network
from typing import Any

import aiohttp
import msgspec
import pytest
from multidict import CIMultiDictProxy
from sqlalchemy.ext.asyncio import AsyncEngine

from api.app import create_app
from api.callers import Network
from api.routes import SERVICES
from api.server import serving
from api.turns import Turns
from ledger.cursors import cursor_key_of
from ledger.database import connect, connect_api, transaction
from ledger.ids import TenantId
from ledger.keys import create_key
from ledger.secrets import SecretBox
from ledger.tenants import create_tenant
from ledger.urls import EndpointPolicy

MASTER_KEY = bytes(range(32))


@pytest.fixture(autouse=True)
def _unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cycle of a follower ends with its work and not with its time, which a slow machine uses up earlier."""
    monkeypatch.setattr("indexer.follower.CYCLE_LIMIT_S", 600.0)


@dataclass(frozen=True)
class Answer:
    """What the API answered."""

    status: int
    headers: CIMultiDictProxy[str]
    content: bytes

    @property
    def json(self) -> Any:  # noqa: ANN401
        """The decoded body."""
        return msgspec.json.decode(self.content)


@dataclass
class Service:
    """A running API, one tenant with a key for everything, and the database's owner for what others write."""

    url: str
    owner: AsyncEngine
    engine: AsyncEngine
    """The API's own."""
    session: aiohttp.ClientSession
    tenant_id: TenantId
    key: str
    large_bodies: Turns

    async def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        key: str | None = None,
        headers: dict[str, str] | None = None,
        query: Mapping[str, object] | None = None,
    ) -> Answer:
        """One request, with the tenant's key unless another (or none: an empty one) is given."""
        key = self.key if key is None else key
        sent = {"Authorization": f"Bearer {key}"} if key else {}
        data = None
        if body is not None:
            data = BytesIO(body if isinstance(body, bytes) else msgspec.json.encode(body))
            sent["Content-Type"] = "application/json"
        parameters = {name: str(value) for name, value in (query or {}).items()}
        async with self.session.request(
            method, self.url + path, data=data, headers={**sent, **(headers or {})}, params=parameters
        ) as response:
            return Answer(response.status, response.headers, await response.read())

    async def make_key(self, *scopes: str, tenant_id: TenantId | None = None) -> str:
        """A key with these scopes."""
        async with transaction(self.owner) as connection:
            _, key = await create_key(connection, tenant_id or self.tenant_id, scopes, datetime.now(UTC))
            return key

    async def make_tenant(self, name: str) -> tuple[TenantId, str]:
        """Another tenant and its key for everything."""
        async with transaction(self.owner) as connection:
            tenant_id = await create_tenant(connection, name, datetime.now(UTC))
            _, key = await create_key(connection, tenant_id, ["*"], datetime.now(UTC))
            return tenant_id, key


@asynccontextmanager
async def running(
    database_url: str,
    rps_per_key: float = 10_000,
    trusted_proxies: Sequence[Network] = (),
    is_for_tenants: bool = False,
) -> AsyncIterator[Service]:
    """An API with the tenant `acme` over a database at the newest migration, for as long as the block lasts."""
    owner = connect(database_url, application="tests", pool_size=4)
    engine = connect_api(database_url, pool_size=6)
    app = create_app(
        engine=engine,
        operator_engine=owner,
        secret_box=SecretBox(MASTER_KEY),
        endpoint_policy=EndpointPolicy(allow_http=True, allow_private=(ip_network("127.0.0.0/8"),)),
        cursor_key=cursor_key_of(MASTER_KEY),
        version="0.0.0",
        rps_per_key=rps_per_key,
        trusted_proxies=trusted_proxies,
        is_for_tenants=is_for_tenants,
    )
    async with transaction(owner) as connection:
        tenant_id = await create_tenant(connection, "acme", datetime.now(UTC))
        _, key = await create_key(connection, tenant_id, ["*"], datetime.now(UTC))
    async with serving(app, "127.0.0.1", 0) as (host, port), aiohttp.ClientSession() as session:
        url = f"http://{host}:{port}"
        yield Service(url, owner, engine, session, tenant_id, key, app[SERVICES].large_bodies)
    await engine.dispose()
    await owner.dispose()


@pytest.fixture
async def service(database_url: str) -> AsyncIterator[Service]:
    """A running API with the tenant `acme`."""
    async with running(database_url) as found:
        yield found
