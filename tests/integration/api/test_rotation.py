"""Rotating an endpoint's secret: what is shown, how long the earlier ones live, and whose it is."""

from __future__ import annotations

import asyncio
from base64 import b64decode
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select, text

from ledger.database import transaction
from ledger.endpoint_secrets import LIVE_MAX, find_live_secrets
from ledger.ids import EndpointId
from ledger.schema import endpoint_secrets
from ledger.schema_access import audit_log
from ledger.secrets import SecretBox
from tests.integration.api.conftest import MASTER_KEY, Service

DAY = timedelta(days=1)


async def create(service: Service) -> Any:  # noqa: ANN401
    """An endpoint as the API made it."""
    return (await service.ask("POST", "/v1/endpoints", {"url": "https://a.example/hook"})).json


async def rotate(service: Service, endpoint_id: str, body: object = None, **options: Any) -> Any:  # noqa: ANN401
    """The answer to a rotation that is not refused."""
    answer = await service.ask("POST", f"/v1/endpoints/{endpoint_id}/rotate-secret", body, **options)
    assert answer.status == 200, answer.json
    return answer.json


async def keys_of(service: Service, endpoint_id: str) -> Any:  # noqa: ANN401
    """What the API says of the endpoint's public keys."""
    answer = await service.ask("GET", f"/v1/endpoints/{endpoint_id}/public-key")
    assert answer.status == 200, answer.json
    return answer.json


async def signing(service: Service, endpoint_id: str) -> list[str]:
    """The shared secrets that the notifier would sign with now, the current one first."""
    key = (service.tenant_id, EndpointId(endpoint_id))
    async with transaction(service.owner) as connection:
        found = (await find_live_secrets(connection, SecretBox(MASTER_KEY), [key])).get(key, ())
    assert isinstance(found, tuple)
    return [secret for secret in found if secret.startswith("whsec_")]


async def execute(service: Service, statement: str) -> None:
    """A statement of the test's own."""
    async with transaction(service.owner) as connection:
        await connection.execute(text(statement))


async def test_a_rotation_shows_a_new_secret_once_and_the_earlier_one_lives_for_a_day(service: Service) -> None:
    made = await create(service)
    before = datetime.now(UTC)
    rotated = await rotate(service, made["id"])
    secret, public_key = rotated.pop("secret"), rotated.pop("public_key")
    ends_at = datetime.fromisoformat(rotated.pop("earlier_secrets_end_at"))
    assert abs(ends_at - before - DAY) < timedelta(minutes=1)
    assert rotated == {name: value for name, value in made.items() if name != "secret"}
    assert secret.startswith("whsec_") and len(b64decode(secret.removeprefix("whsec_"))) == 32
    assert await signing(service, made["id"]) == [secret, made["secret"]]
    assert (await service.ask("GET", f"/v1/endpoints/{made['id']}")).json == rotated
    assert (await keys_of(service, made["id"]))["public_key"] == public_key


async def test_a_rotation_without_grace_revokes_every_earlier_secret_at_once(service: Service) -> None:
    made = await create(service)
    await rotate(service, made["id"], {"grace_seconds": 604800})
    rotated = await rotate(service, made["id"], {"grace_seconds": 0})
    assert await signing(service, made["id"]) == [rotated["secret"]]
    assert [key["public_key"] for key in (await keys_of(service, made["id"]))["public_keys"]] == [rotated["public_key"]]


async def test_a_later_rotation_never_lengthens_an_earlier_grace(service: Service) -> None:
    made = await create(service)
    first = await rotate(service, made["id"], {"grace_seconds": 60})
    second = await rotate(service, made["id"], {"grace_seconds": 3600})
    ends = [key["expires_at"] for key in (await keys_of(service, made["id"]))["public_keys"]]
    assert ends == [None, second["earlier_secrets_end_at"], first["earlier_secrets_end_at"]]


async def test_a_secret_is_no_longer_used_when_its_grace_is_over_by_the_databases_clock(service: Service) -> None:
    made = await create(service)
    rotated = await rotate(service, made["id"])
    await execute(service, "UPDATE endpoint_secrets SET expires_at = now() WHERE expires_at IS NOT NULL")
    assert await signing(service, made["id"]) == [rotated["secret"]]
    assert len((await keys_of(service, made["id"]))["public_keys"]) == 1


async def test_no_more_than_five_secrets_live_and_the_refusal_says_until_when(service: Service) -> None:
    made = await create(service)
    answers = [await rotate(service, made["id"], {"grace_seconds": 86400 - number}) for number in range(LIVE_MAX - 1)]
    path = f"/v1/endpoints/{made['id']}/rotate-secret"
    refused = await service.ask("POST", path, {"grace_seconds": 86400})
    assert (refused.status, refused.json["errors"][0]["pointer"]) == (422, "/grace_seconds")
    assert min(answer["earlier_secrets_end_at"] for answer in answers) in refused.json["detail"]
    assert len(await signing(service, made["id"])) == LIVE_MAX
    revoked = await rotate(service, made["id"], {"grace_seconds": 0})
    assert await signing(service, made["id"]) == [revoked["secret"]]


async def test_rotations_at_once_come_one_after_the_other(service: Service) -> None:
    made = await create(service)
    answers = await asyncio.gather(
        *(service.ask("POST", f"/v1/endpoints/{made['id']}/rotate-secret") for _ in range(LIVE_MAX + 2))
    )
    assert sorted(answer.status for answer in answers) == [200] * (LIVE_MAX - 1) + [422] * 3
    shown = {answer.json["secret"] for answer in answers if answer.status == 200}
    assert set(await signing(service, made["id"])) == {made["secret"], *shown}


@pytest.mark.parametrize("grace", [-1, 604801, 1.5, "60", None])
async def test_a_grace_is_between_nothing_and_seven_days(service: Service, grace: object) -> None:
    made = await create(service)
    path = f"/v1/endpoints/{made['id']}/rotate-secret"
    answer = await service.ask("POST", path, {"grace_seconds": grace})
    assert (answer.status, answer.json["errors"][0]["pointer"]) == (422, "/grace_seconds")
    assert await signing(service, made["id"]) == [made["secret"]]


async def test_a_repeated_rotation_with_its_idempotency_key_rotates_once(service: Service) -> None:
    made = await create(service)
    headers = {"Idempotency-Key": "rotation-1"}
    first = await rotate(service, made["id"], {}, headers=headers)
    assert await rotate(service, made["id"], {}, headers=headers) == first
    assert await signing(service, made["id"]) == [first["secret"], made["secret"]]


async def test_another_tenant_neither_rotates_a_secret_nor_reads_a_key(service: Service) -> None:
    made = await create(service)
    _, foreign = await service.make_tenant("rival")
    path = f"/v1/endpoints/{made['id']}"
    assert (await service.ask("POST", f"{path}/rotate-secret", {"grace_seconds": 0}, key=foreign)).status == 404
    assert (await service.ask("GET", f"{path}/public-key", key=foreign)).status == 404
    reader = await service.make_key("endpoints:read")
    assert (await service.ask("POST", f"{path}/rotate-secret", key=reader)).status == 403
    assert (await service.ask("GET", f"{path}/public-key", key=reader)).status == 200
    assert await signing(service, made["id"]) == [made["secret"]]


async def test_a_deleted_endpoint_has_no_secret_to_rotate(service: Service) -> None:
    made = await create(service)
    await service.ask("DELETE", f"/v1/endpoints/{made['id']}")
    assert (await service.ask("POST", f"/v1/endpoints/{made['id']}/rotate-secret")).status == 404
    assert (await service.ask("GET", f"/v1/endpoints/{made['id']}/public-key")).status == 404


async def test_a_rotation_is_in_the_audit_log_without_its_secret(service: Service) -> None:
    made = await create(service)
    rotated = await rotate(service, made["id"], {"grace_seconds": 60})
    async with transaction(service.owner) as connection:
        lines = (await connection.execute(select(audit_log).order_by(audit_log.c.id))).all()
    [line] = [line for line in lines if line.action == "endpoint.secret_rotated"]
    assert (line.tenant_id, line.subject, line.detail) == (service.tenant_id, made["id"], {"grace_seconds": 60})
    assert not any(shown in str(lines) for shown in (made["secret"], rotated["secret"]))


async def test_an_endpoint_from_before_there_were_keys_gets_one_when_it_is_asked_for(service: Service) -> None:
    made = await create(service)
    await execute(service, "UPDATE endpoint_secrets SET sealed_signing_key = NULL, public_key = NULL")
    assert await signing(service, made["id"]) == [made["secret"]]
    answers = await asyncio.gather(*(keys_of(service, made["id"]) for _ in range(4)))
    assert answers == [answers[0]] * 4
    [key] = answers[0]["public_keys"]
    assert len(b64decode(key["public_key"].removeprefix("whpk_"))) == 32


async def test_what_is_stored_holds_no_secret_in_the_clear(service: Service) -> None:
    made = await create(service)
    rotated = await rotate(service, made["id"])
    async with transaction(service.owner) as connection:
        stored = (await connection.execute(select(endpoint_secrets))).all()
    assert len({row.sealed_signing_key for row in stored}) == 2
    for secret in (made["secret"], rotated["secret"]):
        raw = b64decode(secret.removeprefix("whsec_"))
        assert not any(raw in row.sealed or secret.encode() in row.sealed for row in stored)
