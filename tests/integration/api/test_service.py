"""What holds for every route: problems, headers, limits, health, metrics."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import aiohttp
import pytest
from sqlalchemy import text
from structlog.testing import capture_logs

from api.app import create_app
from api.page import PAGE_POLICY
from api.server import serving
from api.withholding import NODE_FAILS
from chains.model import hex_of
from ledger.chains import update_chain
from ledger.coverage import CoverageRange, extend_coverage
from ledger.cursors import cursor_key_of
from ledger.database import connect_api, transaction
from ledger.ids import OPS_TENANT
from ledger.jobs import create_job, end_job
from ledger.keys import create_key, format_key
from ledger.secrets import SecretBox
from ledger.states import JobKind, JobState
from ledger.urls import EndpointPolicy
from tests.integration.api.conftest import MASTER_KEY, Service, running
from tests.integration.api.seeding import ADDRESS, ETHEREUM, START, add_chain, add_watch


async def test_every_answer_has_a_request_id_and_safe_headers(service: Service) -> None:
    for path in ("/v1/chains", "/healthz", "/nowhere", "/openapi.json"):
        headers = (await service.ask("GET", path)).headers
        assert headers["X-Request-Id"].startswith("req_")
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Server"] == "chainbell"


async def test_the_page_to_read_is_served_without_a_key_under_a_policy_of_its_own(service: Service) -> None:
    answer = await service.ask("GET", "/docs", key="")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert answer.headers["Content-Security-Policy"] == PAGE_POLICY
    assert b'id="create_watches"' in answer.content
    others = (await service.ask("GET", "/openapi.json", key="")).headers["Content-Security-Policy"]
    assert others == "default-src 'none'; frame-ancestors 'none'"


async def test_problems_of_the_http_layer_are_problems_too(service: Service) -> None:
    for method, path, body, status, code in (
        ("GET", "/nowhere", None, 404, "not_found"),
        ("GET", "/v1/watches/%00", None, 404, "not_found"),
        ("GET", "/v1/watches/a.b", None, 404, "not_found"),
        ("PUT", "/v1/watches", None, 405, "method_not_allowed"),
        ("POST", "/v1/watches", b"{", 400, "invalid_json"),
        ("POST", "/v1/watches", b'{"watches":[{"chain":"\xff"}]}', 400, "invalid_json"),
        ("POST", "/v1/watches", b'{"watches":[{"metadata":{"a":' + b"[" * 100_000, 400, "invalid_json"),
        ("POST", "/v1/watches", b"[]", 422, "invalid_request"),
        ("POST", "/v1/watches", b"", 422, "invalid_request"),
    ):
        answer = await service.ask(method, path, body)
        assert (answer.status, answer.json["code"]) == (status, code), (method, path)
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert answer.json["request_id"] == answer.headers["X-Request-Id"]
        assert answer.json["status"] == status
        assert answer.json["type"] == f"urn:chainbell:problem:{code}"
    assert "GET" in (await service.ask("PUT", "/v1/watches")).headers["Allow"]


async def test_a_body_over_five_mebibytes_is_413(service: Service) -> None:
    answer = await service.ask("POST", "/v1/watches", b" " * (5 * 1024 * 1024 + 1))
    assert (answer.status, answer.json["code"]) == (413, "body_too_large")


async def test_a_body_of_another_type_is_415(service: Service) -> None:
    for headers in ({"Content-Type": "text/plain"}, {"Content-Encoding": "gzip"}):
        answer = await service.ask("POST", "/v1/watches", b"{}", headers=headers)
        assert (answer.status, answer.json["code"]) == (415, "unsupported_media_type")


async def test_a_client_that_goes_away_within_its_body_is_no_fault_of_ours(service: Service) -> None:
    host, _, port = service.url.removeprefix("http://").partition(":")
    head = f"POST /v1/watches HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {service.key}\r\n"
    head += "Content-Type: application/json\r\nContent-Length: 100\r\nExpect: 100-continue\r\n\r\n"
    with capture_logs() as logs:
        async with asyncio.timeout(120):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(head.encode())
            assert b" 100 " in await reader.readline()  # it is being answered
            writer.write(b'{"watches":')
            writer.close()
            while not any(line["event"] == "request finished" for line in logs):  # noqa: ASYNC110 - a log sets no event
                await asyncio.sleep(0.01)
    assert [(line["event"], line["status"], line["log_level"]) for line in logs] == [("request finished", 400, "info")]


async def test_a_fault_of_ours_tells_nothing_internal(service: Service) -> None:
    async with transaction(service.owner) as connection:
        await connection.execute(text("ALTER TABLE watches RENAME COLUMN reference TO mislaid"))
    answer = await service.ask("GET", "/v1/watches")
    assert (answer.status, answer.json["code"]) == (500, "internal")
    assert b"mislaid" not in answer.content
    assert b"reference" not in answer.content.replace(b"request_id", b"")


async def test_a_ready_service_says_so(service: Service) -> None:
    assert (await service.ask("GET", "/healthz", key="")).json == {"status": "ok", "version": "0.0.0"}
    assert (await service.ask("GET", "/readyz", key="")).json["status"] == "ok"


async def test_a_schema_behind_is_not_ready(service: Service) -> None:
    async with transaction(service.owner) as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '0000'"))
    answer = await service.ask("GET", "/readyz", key="")
    assert (answer.status, answer.json["code"]) == (503, "unavailable")
    assert "chainbell migrate" in answer.json["detail"]


@pytest.fixture
async def lonely_url() -> AsyncIterator[str]:
    """An API whose database is not there."""
    engine = connect_api("postgresql://nobody@127.0.0.1:1/none", pool_size=1)
    app = create_app(
        engine=engine,
        operator_engine=engine,
        secret_box=SecretBox(MASTER_KEY),
        endpoint_policy=EndpointPolicy(),
        cursor_key=cursor_key_of(MASTER_KEY),
        version="0.0.0",
    )
    async with serving(app, "127.0.0.1", 0) as (host, port):
        yield f"http://{host}:{port}"
    await engine.dispose()


async def test_without_a_database_the_process_lives_but_is_not_ready(lonely_url: str, service: Service) -> None:
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{lonely_url}/healthz") as response:
            assert response.status == 200
        async with session.get(f"{lonely_url}/metrics") as response:
            assert "chainbell_database_up 0.0" in await response.text()
        headers = {"Authorization": f"Bearer {service.key}"}
        for path in ("/readyz", "/v1/chains"):
            async with session.get(lonely_url + path, headers=headers) as response:
                assert response.status == 503
                assert response.headers["Retry-After"] == "2"


async def test_chains_and_metrics_show_how_far_each_chain_is(service: Service) -> None:
    async with transaction(service.owner) as connection:
        await add_chain(connection, tip=122)
        now = datetime.now(UTC)
        await update_chain(connection, ETHEREUM, {"head_height": 130, "heartbeat_at": now, "state": "following"})
    [chain] = (await service.ask("GET", "/v1/chains")).json["data"]
    assert (chain["chain"], chain["head"], chain["tip"], chain["lag_blocks"]) == ("ethereum", 130, 122, 8)
    assert chain["state"] == "following"
    await service.ask("POST", "/v1/endpoints", {"url": "https://merchant.example/"})
    endpoint = (await service.ask("GET", "/v1/endpoints")).json["data"][0]
    await service.ask("POST", f"/v1/endpoints/{endpoint['id']}/test")
    lines = (await service.ask("GET", "/metrics", key="")).content.decode().splitlines()
    for line in (
        'chainbell_chain_head_height{chain="ethereum"} 130.0',
        'chainbell_chain_tip_height{chain="ethereum"} 122.0',
        'chainbell_chain_halted{chain="ethereum"} 0.0',
        "chainbell_deliveries_due 1.0",
        "chainbell_deliveries_held 0.0",
        "chainbell_database_up 1.0",
    ):
        assert line in lines
    assert any(line.startswith('chainbell_api_requests_total{route="list_all_chains",status="200"}') for line in lines)
    families = [line for line in lines if line.startswith("# TYPE ")]
    assert len(families) == len(set(families))


async def test_a_line_of_the_log_says_who_asked_what(service: Service) -> None:
    async with transaction(service.owner) as connection:
        key_id, key = await create_key(connection, service.tenant_id, ["entries:read"], datetime.now(UTC))
    wrong = key[:30] + ("a" if key[30] != "a" else "b") + key[31:]
    asked = (
        ("GET", "/v1/deposits/dep_1?cursor=secret", key),
        ("POST", "/v1/watches", key),
        ("GET", "/v1/deposits", format_key(key_id, bytes(32))),
        ("GET", "/v1/deposits", wrong),
        ("DELETE", "/nowhere", key),
    )
    with capture_logs() as logs:
        for method, path, sent in asked:
            await service.ask(method, path, key=sent)
    names = ("method", "path", "status", "code", "key", "tenant", "peer")
    lines = [tuple(line[name] for name in names) for line in logs if line["event"] == "request finished"]
    known, peer = (key_id, service.tenant_id), "127.0.0.1"
    assert lines == [
        ("GET", "/v1/deposits/{id}", 422, "invalid_request", *known, peer),
        ("POST", "/v1/watches", 403, "missing_scope", *known, peer),
        ("GET", "/v1/deposits", 401, "invalid_key", key_id, None, peer),
        ("GET", "/v1/deposits", 401, "malformed_key", None, None, peer),
        ("DELETE", None, 404, "not_found", None, None, peer),
    ]
    said = repr(logs)
    assert "secret" not in said
    assert key[-40:] not in said


async def test_tenants_of_an_address_of_their_own_read_not_where_nodes_are_nor_what_they_said(
    database_url: str,
) -> None:
    async with running(database_url, is_for_tenants=True) as service:
        await check_nodes_are_withheld(service)


async def test_where_tenants_share_the_operators_address_all_read_the_same_of_chains(service: Service) -> None:
    node = {
        "name": "10.0.0.7",
        "host": "10.0.0.7",
        "state": "failing",
        "head": 130,
        "reason": "it said",
        "latency_ms": 1,
    }
    async with transaction(service.owner) as connection:
        await add_chain(connection, tip=122)
        await update_chain(connection, ETHEREUM, {"state": "halted", "reason": "10.0.0.7: it said", "nodes": [node]})
    operator = await service.make_key("*", tenant_id=OPS_TENANT)
    [told], [shown] = [
        (await service.ask("GET", "/v1/chains", key=key)).json["data"] for key in (service.key, operator)
    ]
    assert (told["nodes"], told["reason"]) == (shown["nodes"], shown["reason"])
    assert (told["nodes"][0]["name"], told["reason"]) == ("10.0.0.7", "10.0.0.7: it said")


async def check_nodes_are_withheld(service: Service) -> None:
    said = "Connect call failed ('10.0.0.7', 8545)"
    node = {"name": "10.0.0.7", "host": "10.0.0.7", "state": "failing", "head": 130, "reason": said, "latency_ms": 1}
    why = f"ethereum: block 123: no node answered: 10.0.0.7: {said}"
    async with transaction(service.owner) as connection:
        await add_chain(connection, tip=122)
        await update_chain(connection, ETHEREUM, {"state": "halted", "reason": why, "nodes": [node]})
        spans = [CoverageRange(1, 122, b"\x01", b"\x02", None, "roots", None, 1, ("10.0.0.7", "gone.example"))]
        await extend_coverage(connection, ETHEREUM, spans)
        await add_watch(connection, service.tenant_id)
        job = await create_job(
            connection,
            tenant_id=service.tenant_id,
            kind=JobKind.BACKFILL,
            chain_id=ETHEREUM,
            request={},
            total=1,
            now=START,
            is_taken=True,
        )
        await end_job(connection, job, JobState.FAILED, START, why)
    covered = {"chain": "ethereum", "from": 1}
    for query in (covered, {**covered, "address": hex_of(ADDRESS)}):
        told = await service.ask("GET", "/v1/coverage", query=query)
        assert b"10.0.0.7" not in told.content
    assert (await service.ask("GET", "/v1/coverage", query=covered)).json["ranges"][0]["nodes"] == [
        "another node",
        "node-1",
    ]
    told = await service.ask("GET", f"/v1/jobs/{job.id}")
    assert told.json["reason"] == "ethereum: block 123: no node answered"
    [chain] = (await service.ask("GET", "/v1/chains")).json["data"]
    assert chain["reason"] == "ethereum: block 123: no node answered"
    shown = {"name": "node-1", "state": "failing", "head": 130, "reason": NODE_FAILS, "latency_ms": 1}
    assert chain["nodes"] == [shown]
    operator = await service.make_key("*", tenant_id=OPS_TENANT)
    [chain] = (await service.ask("GET", "/v1/chains", key=operator)).json["data"]
    assert (chain["reason"], chain["nodes"][0]["name"], chain["nodes"][0]["reason"]) == (why, "10.0.0.7", said)
    told = await service.ask("GET", "/v1/coverage", key=operator, query=covered)
    assert told.json["ranges"][0]["nodes"] == ["10.0.0.7", "gone.example"]


async def test_metrics_of_a_process_that_also_notifies_have_each_name_once(service: Service) -> None:
    import notifier.metrics  # noqa: F401 (its gauges register themselves)

    lines = (await service.ask("GET", "/metrics", key="")).content.decode().splitlines()
    assert sum(line.startswith("chainbell_deliveries_due ") for line in lines) == 1


async def test_a_key_that_is_used_too_often_is_told_when_to_come_again_and_others_are_not_held_up(
    database_url: str,
) -> None:
    async with running(database_url, rps_per_key=0.01) as service:
        assert (await service.ask("GET", "/v1/chains")).status == 200
        answer = await service.ask("GET", "/v1/chains")
        assert (answer.status, answer.json["code"]) == (429, "rate_limited")
        assert 0 < int(answer.headers["Retry-After"]) <= 100
        posted = await service.ask("POST", "/v1/endpoints", {"url": "https://merchant.example/"})
        assert posted.status == 429
        other = await service.make_key("*")
        assert (await service.ask("GET", "/v1/endpoints", key=other)).json["data"] == []
        assert (await service.ask("GET", "/healthz", key="")).status == 200


async def test_what_is_for_tenants_alone_neither_has_nor_describes_what_is_the_operators(database_url: str) -> None:
    async with running(database_url, is_for_tenants=True) as service:
        operators = await service.make_key("*", tenant_id=OPS_TENANT)
        for method, path, body in (("GET", "/metrics", None), ("POST", "/v1/replays", {})):
            answer = await service.ask(method, path, body, key=operators)
            assert (answer.status, answer.json["code"]) == (404, "not_found"), path
        paths = (await service.ask("GET", "/openapi.json", key="")).json["paths"]
        assert {"/v1/watches", "/v1/jobs/{id}", "/readyz"} <= set(paths)
        assert not {"/metrics", "/v1/replays"} & set(paths)
        assert (await service.ask("GET", "/readyz", key="")).status == 200
