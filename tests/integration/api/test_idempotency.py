"""`Idempotency-Key` over a real database: one effect, whatever is repeated and when."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from aiohttp import web
from sqlalchemy import func, select, update

from api import answering
from ledger.database import transaction
from ledger.idempotency import delete_old_idempotency_keys, lock_idempotency_key
from ledger.schema import endpoints
from ledger.schema_access import idempotency_keys
from tests.integration.api.conftest import Answer, Service

BODY = {"url": "https://merchant.example/hooks"}


async def post(service: Service, idempotency_key: str, body: object = BODY, *, key: str | None = None) -> Answer:
    return await service.ask("POST", "/v1/endpoints", body, key=key, headers={"Idempotency-Key": idempotency_key})


async def count_endpoints(service: Service) -> int:
    async with transaction(service.owner) as connection:
        return int((await connection.execute(select(func.count()).select_from(endpoints))).scalar_one())


async def test_a_repeated_post_gets_the_stored_answer_with_its_secret_and_has_one_effect(service: Service) -> None:
    first, second = await post(service, "k1"), await post(service, "k1")
    assert (first.status, second.status) == (201, 201)
    assert first.content == second.content
    assert "Idempotent-Replayed" not in first.headers
    assert second.headers["Idempotent-Replayed"] == "true"
    assert await count_endpoints(service) == 1
    async with transaction(service.owner) as connection:
        sealed = (await connection.execute(select(idempotency_keys.c.sealed_body))).scalar_one()
    assert first.json["secret"].encode() not in sealed


async def test_another_body_or_path_is_a_mismatch(service: Service) -> None:
    await post(service, "k1")
    answer = await post(service, "k1", {"url": "https://other.example/"})
    assert (answer.status, answer.json["code"]) == (422, "idempotency_mismatch")
    watches = {"watches": [{"chain": "evm", "address": "0x" + "11" * 20}]}
    answer = await service.ask("POST", "/v1/watches", watches, headers={"Idempotency-Key": "k1"})
    assert answer.json["code"] == "idempotency_mismatch"
    assert await count_endpoints(service) == 1


async def test_a_refused_post_may_be_mended_and_sent_with_the_same_key(service: Service) -> None:
    assert (await post(service, "k1", {"url": "nonsense"})).status == 422
    assert (await post(service, "k1")).status == 201


async def test_many_posts_at_once_have_one_effect(service: Service) -> None:
    answers = await asyncio.gather(*(post(service, "k1") for _ in range(12)))
    made = [answer for answer in answers if answer.status == 201]
    assert made
    assert len({answer.content for answer in made}) == 1
    assert {(a.status, a.json["code"]) for a in answers if a not in made} <= {(409, "idempotency_in_progress")}
    assert await count_endpoints(service) == 1


async def test_a_post_whose_key_is_at_work_is_answered_409(service: Service) -> None:
    async with transaction(service.owner) as connection:
        assert await lock_idempotency_key(connection, service.tenant_id, "k1")
        answer = await post(service, "k1")
    assert (answer.status, answer.json["code"]) == (409, "idempotency_in_progress")
    assert answer.headers["Retry-After"] == "1"
    assert (await post(service, "k1")).status == 201


async def test_tenants_do_not_share_keys(service: Service) -> None:
    _, stranger = await service.make_tenant("other")
    mine, theirs = await post(service, "k1"), await post(service, "k1", key=stranger)
    assert theirs.status == 201
    assert mine.json["id"] != theirs.json["id"]


async def test_an_answer_is_forgotten_after_a_day(service: Service) -> None:
    first = await post(service, "k1")
    async with transaction(service.owner) as connection:
        await connection.execute(update(idempotency_keys).values(created_at=datetime.now(UTC) - timedelta(hours=25)))
    second = await post(service, "k1")
    assert first.json["id"] != second.json["id"]
    async with transaction(service.owner) as connection:
        assert await delete_old_idempotency_keys(connection, datetime.now(UTC) + timedelta(hours=23)) == 0
        assert await delete_old_idempotency_keys(connection, datetime.now(UTC) + timedelta(hours=25)) == 1


async def test_an_unusable_key_is_refused(service: Service) -> None:
    for key in ("", "a b", "é", "x" * 256):
        answer = await post(service, key)
        assert (answer.status, answer.json["code"]) == (400, "invalid_idempotency_key"), key
    assert await count_endpoints(service) == 0


async def test_an_answer_that_was_lost_after_its_effect_is_given_when_it_is_asked_for_again(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def _lost(_: object) -> web.Response:
        raise ConnectionResetError("the process dies here")

    with monkeypatch.context() as patched:
        patched.setattr(answering, "_response", _lost)
        assert (await post(service, "k1")).status == 500
    assert await count_endpoints(service) == 1
    again = await post(service, "k1")
    assert (again.status, again.headers["Idempotent-Replayed"]) == (201, "true")
    assert again.json["secret"].startswith("whsec_")
    assert await count_endpoints(service) == 1


async def test_an_effect_whose_answer_could_not_be_kept_has_not_happened(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def _fails(*_: object) -> None:
        raise ConnectionResetError("the process dies here")

    with monkeypatch.context() as patched:
        patched.setattr(answering, "store_answer", _fails)
        assert (await post(service, "k1")).status == 500
    assert await count_endpoints(service) == 0
    assert "Idempotent-Replayed" not in (await post(service, "k1")).headers
    assert await count_endpoints(service) == 1


async def test_a_key_that_may_not_do_it_gets_no_stored_answer(service: Service) -> None:
    await post(service, "k1")
    reader = await service.make_key("endpoints:read")
    answer = await post(service, "k1", key=reader)
    assert (answer.status, answer.json["code"]) == (403, "missing_scope")
    writer = await service.make_key("endpoints:write")
    assert (await post(service, "k1", key=writer)).headers["Idempotent-Replayed"] == "true"
