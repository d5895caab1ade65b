"""A ledger for one measurement: a database of its own, the chain's rows, tenants with endpoints and watches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network

from sqlalchemy import create_engine, func, make_url, text, update
from sqlalchemy.ext.asyncio import AsyncEngine

from bench.chain import START_HEIGHT, bench_profile
from chainbell.opening import VALUE_PATHS
from chains.adapter import ChainAdapter
from chains.model import Address
from indexer.commit import Followed
from indexer.follower import Course, Follower
from indexer.policy import CreditRule, Policy, rules_as_json
from ledger.chains import ChainConfiguration, register_chain
from ledger.database import connect, transaction
from ledger.endpoints import create_endpoint
from ledger.events import NewEvent, record_events
from ledger.ids import EndpointId, TenantId
from ledger.migrate import prepare
from ledger.schema import deliveries
from ledger.secrets import SecretBox
from ledger.tenants import create_tenant
from ledger.urls import EndpointPolicy
from ledger.watches import NewWatch, insert_watches

MASTER_KEY = bytes(32)
SECRET_BOX = SecretBox(MASTER_KEY)
LIVE_WINDOW = timedelta(days=36500)
"""The recorded blocks are as old as their seed says; here they count as news."""
WATCHES_AT_ONCE = 10_000


def loopback_policy() -> EndpointPolicy:
    """Endpoints on this machine."""
    return EndpointPolicy(allow_http=True, allow_private=(ip_network("127.0.0.0/8"),), allow_ports=tuple(range(65536)))


def make_template(url: str) -> str:
    """Bring the server's own database to head: it is what each measurement's database is copied from."""
    asyncio.run(_prepare(url))
    return make_url(url).database or ""


async def _prepare(url: str) -> None:
    engine = connect(url, application="bench", pool_size=1)
    await prepare(engine, url)
    await engine.dispose()


def make_database(url: str, name: str) -> str:
    """A fresh copy of the template; returns its URL."""
    parsed = make_url(url)
    admin = create_engine(parsed.set(database="postgres"), isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f'CREATE DATABASE "{name}" TEMPLATE "{parsed.database}"'))
    admin.dispose()
    return parsed.set(database=name).render_as_string(hide_password=False)


@contextmanager
def fresh_database(url: str, name: str) -> Iterator[str]:
    """The same, deleted when the block ends: what is left of it would be tidied up by Postgres during the next."""
    made = make_database(url, name)
    try:
        yield made
    finally:
        admin = create_engine(make_url(url).set(database="postgres"), isolation_level="AUTOCOMMIT")
        with admin.connect() as connection:
            connection.execute(text(f'DROP DATABASE "{name}" WITH (FORCE)'))
        admin.dispose()


@asynccontextmanager
async def ledger_at(url: str) -> AsyncIterator[AsyncEngine]:
    """An engine of the size that a follower and a dispatcher have in one process."""
    engine = connect(url, application="bench", pool_size=10)
    try:
        yield engine
    finally:
        await engine.dispose()


async def register(engine: AsyncEngine, proof: str) -> Followed:
    """The chain's rows; what its follower has to know."""
    profile = bench_profile(proof)
    rules = (CreditRule("default", str(profile.credit_at)),)
    configuration = ChainConfiguration(
        chain_id=profile.chain_id,
        slug=profile.slug,
        profile=profile.slug,
        livemode=profile.livemode,
        native_asset_id=profile.native.id,
        proof=proof,
        quorum=1,
        value_paths=VALUE_PATHS,
        assets=profile.assets,
        credit_rules=rules_as_json(rules),
    )
    async with transaction(engine) as connection:
        version = await register_chain(connection, configuration, datetime.now(UTC))
    return Followed(profile.chain_id, Policy(profile.slug, version, rules), LIVE_WINDOW, profile.finality_depth)


def make_follower(engine: AsyncEngine, adapter: ChainAdapter, followed: Followed) -> Follower:
    """A follower that begins with the chain's first block."""
    return Follower(engine, adapter, followed, Course(followed.policy.slug, START_HEIGHT, has_finality_tags=True))


async def add_tenant(engine: AsyncEngine, name: str, urls: Sequence[str]) -> tuple[TenantId, list[EndpointId]]:
    """A tenant who is told of everything at each of the URLs."""
    now = datetime.now(UTC)
    async with transaction(engine) as connection:
        tenant_id = await create_tenant(connection, name, now)
        made = [
            await create_endpoint(
                connection, SECRET_BOX, tenant_id=tenant_id, url=url, event_types=None, description=None, now=now
            )
            for url in urls
        ]
    return tenant_id, [row.id for row, _ in made]


async def make_history(engine: AsyncEngine, events: Sequence[NewEvent]) -> None:
    """Let these events be from before, and accepted; and let Postgres know its tables, as in an installation that runs. What
    it knew of them when they were empty stays in the plans that it keeps, for a minute or longer."""
    accepted = {"state": "delivered", "attempts": 1, "settled_at": func.now()}
    async with transaction(engine) as connection:
        await record_events(connection, events, datetime.now(UTC))
        await connection.execute(update(deliveries).values(accepted))
    async with engine.connect() as connection:
        settled = await connection.execution_options(isolation_level="AUTOCOMMIT")
        await settled.execute(text("VACUUM (ANALYZE) deliveries, endpoints, events"))


async def add_watches(engine: AsyncEngine, tenant_id: TenantId, addresses: Sequence[Address]) -> None:
    """Watches as the API makes them."""
    scope = bench_profile("off").chain_id
    for first in range(0, len(addresses), WATCHES_AT_ONCE):
        part = addresses[first : first + WATCHES_AT_ONCE]
        asked = [NewWatch(scope, address, f"order-{first + n}", {}, None) for n, address in enumerate(part)]
        async with transaction(engine) as connection:
            await insert_watches(connection, tenant_id, asked, datetime.now(UTC))


async def add_crowd(engine: AsyncEngine, tenant_id: TenantId, count: int) -> None:
    """Watches on made-up addresses, as many as you like, made by Postgres itself and known to its planner."""
    if count == 0:
        return
    made = text(
        """
        INSERT INTO watches (tenant_id, id, scope, address, reference, covered_from, created_at)
        SELECT :tenant_id, 'wat_crowd_' || n, :scope, substring(sha256(convert_to('crowd ' || n, 'UTF8')) FOR 20),
               'order-' || n, '{}', now()
        FROM generate_series(1, :count) n
        """
    )
    scope = bench_profile("off").chain_id
    async with transaction(engine) as connection:
        await connection.execute(made, {"tenant_id": tenant_id, "scope": scope, "count": count})
    # What a million inserts leave to do afterwards is not a block's cost.
    async with engine.connect() as connection:
        settled = await connection.execution_options(isolation_level="AUTOCOMMIT")
        await settled.execute(text("VACUUM (ANALYZE) watches"))
        await settled.execute(text("CHECKPOINT"))
