"""Two walls between tenants: the tenant in every statement, and the policies of Postgres, each tried without the other."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.event import listen, remove
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import AsyncConnection

import ledger.status_reads
from api.app import ROUTES
from api.routes import Route
from ledger.database import connect_api, transaction
from ledger.ids import OPS_TENANT, TenantId
from ledger.pipelines import Prepared
from ledger.tenancy import POLICY, SETTING, speak_for, tenant_tables
from tests.integration.api.conftest import Service
from tests.integration.api.describing import fill

FILTER = re.compile(r"(\b\w+\.)?tenant_id = %\(\w+\)s(::\w+)?")
"""The first wall, as SQLAlchemy writes it."""

WALLS_BY_KEY = {
    "_find_entries": re.compile(
        rb"entries\.tenant_id = \(SELECT whose\.tenant_id \nFROM chainbell_find_key\((.*?)\) AS whose\)"
    ),
    "_find_by_reference": re.compile(rb"watches\.tenant_id = (whose\.tenant_id)"),
}
"""The same where the tenant is found by the key in the statement itself."""

REFERENCE = "deposits?reference=order-1"
"""The list that is a status read."""

BODIES: dict[str, dict[str, object]] = {
    "recover_my_endpoint": {"since": "2026-01-01T00:00:00Z"},
    "rotate_my_secret": {},
}


@contextmanager
def taken_out(service: Service) -> Iterator[Counter[str]]:
    """The API's statements without the tenant in them; counts how many had it."""
    found: Counter[str] = Counter()

    def _without(_c: Any, _k: Any, statement: str, parameters: Any, _x: Any, _m: bool) -> tuple[str, Any]:  # noqa: ANN401
        blind, count = FILTER.subn("true", statement)
        found["statements"] += count
        return blind, parameters

    engine = service.engine.sync_engine
    listen(engine, "before_cursor_execute", _without, retval=True)
    with pytest.MonkeyPatch.context() as patch:
        for name, wall in WALLS_BY_KEY.items():
            seeing: Prepared = getattr(ledger.status_reads, name)
            blind = Prepared(seeing.statement)
            blind.text, count = wall.subn(rb"\1 IS NOT NULL", seeing.text)
            assert count == 1
            patch.setattr(ledger.status_reads, name, blind)
        patch.setattr(ledger.status_reads, "_STATEMENTS", tuple(getattr(ledger.status_reads, n) for n in WALLS_BY_KEY))
        yield found
    remove(engine, "before_cursor_execute", _without)


@contextmanager
def nothing_changed(_: Service) -> Iterator[Counter[str]]:
    """The API as it is."""
    yield Counter(statements=1)


async def ids_of(service: Service) -> dict[str, str]:
    """An id of each collection that has any."""
    await fill(service)
    named = {"deposits": "", "withdrawals": "", "watches": "", "endpoints": "", "events": "", "deliveries": ""}
    for collection in named:
        named[collection] = (await service.ask("GET", f"/v1/{collection}")).json["data"][0]["id"]
    asked = await service.ask("POST", f"/v1/endpoints/{named['endpoints']}/recover", BODIES["recover_my_endpoint"])
    return {**named, "jobs": asked.json["id"]}


def with_ids(ids: dict[str, str]) -> list[tuple[Route, str]]:
    """Every route that takes an id, and its path with one."""
    found = [route for route in ROUTES if "{id}" in route.path]
    return [(route, route.path.replace("{id}", ids[route.path.split("/")[2]])) for route in found]


@pytest.mark.parametrize("walls", [nothing_changed, taken_out], ids=["both walls", "policies alone"])
async def test_every_foreign_id_is_404_and_every_list_has_ones_own_only(service: Service, walls: Any) -> None:  # noqa: ANN401
    ids = await ids_of(service)
    _, stranger = await service.make_tenant("stranger")
    with walls(service) as found:
        for route, path in with_ids(ids):
            body = BODIES.get(route.name, {}) if route.method in ("POST", "PATCH") else None
            answer = await service.ask(route.method, path, body, key=stranger)
            assert (answer.status, answer.json["code"]) == (404, "not_found"), route.name
        for collection in ids:
            answer = await service.ask("GET", f"/v1/{collection}", key=stranger)
            assert (answer.status, answer.json["data"]) == (200, []), collection
        assert found["statements"] > 0
    for route, path in with_ids(ids):
        if route.method == "GET":
            assert (await service.ask("GET", path)).status == 200, f"{route.name}: not even its owner sees it"


async def test_without_both_walls_a_stranger_sees_all(service: Service) -> None:
    """So the walls are what the test above has tried."""
    ids = await ids_of(service)
    _, stranger = await service.make_tenant("stranger")
    async with transaction(service.owner) as connection:
        for table in (*tenant_tables(), "tenants"):
            await connection.execute(text(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY"))
    with taken_out(service):
        for route, path in with_ids(ids):
            if route.method == "GET":
                assert (await service.ask("GET", path, key=stranger)).status == 200, route.name
        for collection in ids:
            assert (await service.ask("GET", f"/v1/{collection}", key=stranger)).json["data"], collection


async def test_every_table_of_tenants_has_the_policy(service: Service) -> None:
    async with transaction(service.owner) as connection:
        is_on = "SELECT relname FROM pg_class WHERE relrowsecurity AND relnamespace = 'public'::regnamespace"
        assert set((await connection.execute(text(is_on))).scalars()) == {*tenant_tables(), "tenants"}
        policies = await connection.execute(
            text("SELECT tablename, policyname, roles::text, cmd, permissive, qual FROM pg_policies ORDER BY tablename")
        )
        for table, *told, condition in policies:
            column = "id" if table == "tenants" else "tenant_id"
            assert told == [POLICY, "{chainbell_api}", "ALL", "PERMISSIVE"]
            own = f"({column} = current_setting('{SETTING}'::text, true))"
            assert condition == (f"({own} OR (id = '{OPS_TENANT}'::text))" if table == "tenants" else own)


async def count(connection: AsyncConnection, table: str) -> int:
    """Rows of a table that are there for this transaction."""
    return int((await connection.execute(text(f"SELECT count(*) FROM {table}"))).scalar_one())


async def test_a_transaction_that_speaks_for_nobody_sees_nothing_also_on_a_connection_that_spoke_before(
    service: Service, database_url: str
) -> None:
    await fill(service)
    engine = connect_api(database_url, pool_size=1)
    filled = ("api_keys", "deliveries", "endpoint_secrets", "endpoints", "entries", "events", "jobs", "watches")
    async with transaction(engine) as connection:
        await speak_for(connection, service.tenant_id)
        assert all([await count(connection, table) for table in filled])
    with pytest.raises(ZeroDivisionError):
        async with transaction(engine) as connection:
            await speak_for(connection, service.tenant_id)
            raise ZeroDivisionError
    async with transaction(engine) as connection:
        assert [await count(connection, table) for table in tenant_tables()] == [0] * len(tenant_tables())
        assert await count(connection, "tenants") == 1  # the operator's, whose feed position all may move
        await speak_for(connection, TenantId("ten_nobody"))
        assert not any([await count(connection, table) for table in tenant_tables()])
    await engine.dispose()


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO watches (tenant_id, id, scope, address, covered_from, created_at)"
        " VALUES (:foreign, 'wat_x', 'evm', decode(repeat('00', 20), 'hex'), '{}', now())",
        "INSERT INTO events (tenant_id, id, feed_position, type, subject, body, created_at)"
        " VALUES (:foreign, 'evt_x', 1, 'test.ping', 'x', '', now())",
        "INSERT INTO audit_log (tenant_id, id, actor, action, subject, created_at)"
        " VALUES (:foreign, 'aud_x', 'x', 'x', 'x', now())",
    ],
)
async def test_nothing_can_be_written_in_the_name_of_another(service: Service, statement: str) -> None:
    foreign, _ = await service.make_tenant("stranger")
    with pytest.raises(ProgrammingError, match="row-level security"):
        async with transaction(service.engine) as connection:
            await speak_for(connection, service.tenant_id)
            await connection.execute(text(statement), {"foreign": foreign})


async def test_a_key_is_found_by_its_id_only_and_never_listed(service: Service) -> None:
    await service.make_tenant("stranger")
    async with transaction(service.engine) as connection:
        assert await count(connection, "api_keys") == 0
        await speak_for(connection, service.tenant_id)
        assert await count(connection, "api_keys") == 1
        is_definer = "SELECT prosecdef, proconfig FROM pg_proc WHERE proname = 'chainbell_find_key'"
        assert tuple((await connection.execute(text(is_definer))).one()) == (True, ["search_path=pg_catalog, pg_temp"])
    async with transaction(service.owner) as connection:
        await connection.execute(text("CREATE ROLE bystander_of_keys"))
        await connection.execute(text("SET LOCAL ROLE bystander_of_keys"))
        with pytest.raises(ProgrammingError, match="permission denied"):
            await connection.execute(text("SELECT chainbell_find_key('x')"))
        await connection.rollback()


async def test_the_operator_is_told_of_a_pause_in_its_own_feed_and_the_tenant_goes_on_as_itself(
    service: Service,
) -> None:
    created = await service.ask("POST", "/v1/endpoints", {"url": "https://merchant.example/hooks"})
    paused = await service.ask("POST", f"/v1/endpoints/{created.json['id']}/pause", {"reason": "moving house"})
    assert (paused.status, paused.json["state"]) == (200, "paused")
    assert (await service.ask("GET", "/v1/events")).json["data"] == []
    operators = await service.make_key("events:read", tenant_id=OPS_TENANT)
    [told] = (await service.ask("GET", "/v1/events", key=operators)).json["data"]
    assert (told["type"], told["data"]["id"]) == ("endpoint.paused", created.json["id"])
