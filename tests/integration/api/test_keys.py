"""Bearer keys over a real database."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network

import pytest
from sqlalchemy import select, update

from api.app import ROUTES
from api.routes import Route
from ledger.database import transaction
from ledger.errors import NameTaken, UnknownName
from ledger.ids import OPS_TENANT, KeyId
from ledger.keys import create_key, format_key, list_keys, parse_key, read_network, revoke_key
from ledger.schema_access import api_keys
from ledger.tenants import create_tenant, find_tenant, list_tenants
from tests.integration.api.conftest import Service, running


async def refusal(service: Service, authorization: str | None) -> tuple[int, str]:
    headers = {} if authorization is None else {"Authorization": authorization}
    answer = await service.ask("GET", "/v1/chains", key="", headers=headers)
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    return answer.status, answer.json["code"]


async def test_each_kind_of_bad_key_gets_its_problem(service: Service) -> None:
    good = service.key
    last = "A" if good[-1] != "A" else "B"
    secret_start = len("cb_live_") + 16 + 1
    other_secret = await service.make_key("*")
    swapped = good[:secret_start] + other_secret[secret_start:]
    assert await refusal(service, None) == (401, "missing_key")
    assert await refusal(service, f"Basic {good}") == (401, "malformed_key")
    for wrong in ("", "x", good[:-1], good[:-1] + last, good + "A", good.replace("live", "test"), swapped, "Ω" * 73):
        assert await refusal(service, f"Bearer {wrong}") == (401, "malformed_key"), wrong
    assert (await service.ask("GET", "/v1/chains", key="", headers={"Authorization": f"bearer {good}"})).status == 200


async def test_an_unknown_a_revoked_and_an_expired_key_are_told_alike(service: Service) -> None:
    revoked, expired = await service.make_key("*"), await service.make_key("*")
    unknown = await service.make_key("*")
    now = datetime.now(UTC)
    async with transaction(service.owner) as connection:
        await revoke_key(connection, parse_key(revoked).id, now)
        await revoke_key(connection, parse_key(revoked).id, now)
        past = update(api_keys).where(api_keys.c.id == parse_key(expired).id).values(expires_at=now)
        await connection.execute(past)
        await connection.execute(api_keys.delete().where(api_keys.c.id == parse_key(unknown).id))
    answers = []
    for key in (revoked, expired, unknown):
        answer = await service.ask("GET", "/v1/chains", key=key)
        answers.append((answer.status, answer.json["code"], answer.json["detail"]))
    assert len(set(answers)) == 1
    assert answers[0][:2] == (401, "invalid_key")


def path_of(route: Route) -> str:
    """Its path, with an id that there is not."""
    return re.sub(r"\{\w+\}", "x", route.path)


async def test_every_route_refuses_a_key_without_its_scope_and_names_it(service: Service) -> None:
    for route in ROUTES:
        other = "chains:read" if "chains:read" not in route.scopes else "watches:read"
        key = await service.make_key(other)
        body: dict[str, object] | None = {} if route.method in ("POST", "PATCH") else None
        answer = await service.ask(route.method, path_of(route), body, key=key)
        assert (answer.status, answer.json["code"]) == (403, "missing_scope"), route.path
        assert " or ".join(route.scopes) in answer.json["detail"]
        for scope in route.scopes:
            tenant_id = OPS_TENANT if route.is_operators else service.tenant_id
            granted = await service.make_key(scope.split(":")[0] + ":*", tenant_id=tenant_id)
            answer = await service.ask(route.method, path_of(route), body, key=granted)
            assert answer.status in (200, 404, 422), route.path


async def test_what_is_the_operators_no_other_tenant_may_do_whatever_its_scopes(service: Service) -> None:
    theirs = [route for route in ROUTES if route.is_operators]
    assert [route.path for route in theirs] == ["/v1/chains/{chain}/resume", "/v1/replays"]
    for route in theirs:
        for scope in ("*", route.scope):
            answer = await service.ask(route.method, path_of(route), {}, key=await service.make_key(scope))
            assert (answer.status, answer.json["code"]) == (403, "missing_scope")
            assert "--tenant ops" in answer.json["detail"]


async def test_the_operators_key_reads_chains(service: Service) -> None:
    key = await service.make_key("chains:read", tenant_id=OPS_TENANT)
    assert (await service.ask("GET", "/v1/chains", key=key)).json == {"data": [], "next_cursor": None}


async def test_the_last_use_is_stored_at_most_once_a_minute(service: Service) -> None:
    async def last_used() -> datetime | None:
        async with transaction(service.owner) as connection:
            used_at: datetime | None = (await connection.execute(select(api_keys.c.last_used_at))).scalar_one()
            return used_at

    assert await last_used() is None
    await service.ask("GET", "/v1/chains")
    first = await last_used()
    assert first is not None
    await service.ask("GET", "/v1/chains")
    assert await last_used() == first
    async with transaction(service.owner) as connection:
        await connection.execute(update(api_keys).values(last_used_at=first - timedelta(seconds=61)))
    await service.ask("GET", "/v1/chains")
    again = await last_used()
    assert again is not None
    assert again >= first


async def test_the_secret_itself_is_nowhere_in_the_row(service: Service) -> None:
    async with transaction(service.owner) as connection:
        [row] = await list_keys(connection, service.tenant_id)
    assert row.id == parse_key(service.key).id
    assert row.secret_sha256 == parse_key(service.key).secret_sha256
    assert service.key[25:68].encode() not in row.secret_sha256


async def test_names_are_unique_and_unknown_ones_are_refused(service: Service) -> None:
    now = datetime.now(UTC)
    async with transaction(service.owner) as connection:
        assert [tenant.name for tenant in await list_tenants(connection)] == ["ops", "acme"]
        assert (await find_tenant(connection, "ops")).id == OPS_TENANT
        assert (await find_tenant(connection, service.tenant_id)).name == "acme"
        with pytest.raises(NameTaken):
            await create_tenant(connection, "acme", now)
        with pytest.raises(UnknownName, match="nobody"):
            await find_tenant(connection, "nobody")
        with pytest.raises(UnknownName, match="watches:read"):
            await create_key(connection, service.tenant_id, ["watches:admin"], now)
        with pytest.raises(UnknownName):
            await revoke_key(connection, KeyId("nokey"), now)


async def refusal_from(service: Service, key: str, forwarded: str) -> tuple[int, str]:
    """What a request through a proxy on this machine is answered."""
    answer = await service.ask("GET", "/v1/watches", key=key, headers={"X-Forwarded-For": forwarded})
    return answer.status, answer.json.get("code", "")


async def test_a_key_with_networks_is_refused_from_elsewhere_and_only_after_its_secret(database_url: str) -> None:
    async with running(database_url, trusted_proxies=[ip_network("127.0.0.0/8")]) as service:
        networks = [read_network("203.0.113.0/24"), read_network("2001:db8::1")]
        async with transaction(service.owner) as connection:
            now = datetime.now(UTC)
            _, key = await create_key(connection, service.tenant_id, ["watches:read"], now, networks=networks)
        for forwarded in ("203.0.113.7", "1.1.1.1, 203.0.113.255", "2001:db8::1"):
            assert await refusal_from(service, key, forwarded) == (200, "")
        for forwarded in ("203.0.114.7", "203.0.113.7, 198.51.100.1", "2001:db8::2", "nonsense"):
            assert await refusal_from(service, key, forwarded) == (403, "wrong_address")
        answer = await service.ask("GET", "/v1/watches", key=key)
        assert "127.0.0.1" in answer.json["detail"]
        forged = format_key(parse_key(key).id, bytes(32))
        assert await refusal_from(service, forged, "198.51.100.1") == (401, "invalid_key")
        assert await refusal_from(service, service.key, "198.51.100.1") == (200, "")


async def test_without_a_trusted_proxy_nobody_chooses_his_own_address(service: Service) -> None:
    async with transaction(service.owner) as connection:
        now, networks = datetime.now(UTC), [read_network("203.0.113.0/24")]
        _, key = await create_key(connection, service.tenant_id, ["watches:read"], now, networks=networks)
        _, local = await create_key(
            connection, service.tenant_id, ["watches:read"], now, networks=[read_network("127.0.0.1")]
        )
    assert await refusal_from(service, key, "203.0.113.7") == (403, "wrong_address")
    assert await refusal_from(service, local, "203.0.113.7") == (200, "")


@pytest.mark.parametrize("text", ["", "203.0.113.7/24", "203.0.113.0/33", "example.com", "1.2.3"])
def test_what_is_no_network_is_refused(text: str) -> None:
    with pytest.raises(UnknownName, match="is no network"):
        read_network(text)
