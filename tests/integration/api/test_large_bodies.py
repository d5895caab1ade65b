"""Memory for large bodies is for good keys alone, and for a few bodies at a time."""

from __future__ import annotations

import asyncio
from asyncio import StreamReader, StreamWriter
from urllib.parse import urlsplit

import pytest

from api import reading
from api.app import LARGE_BODIES_MAX
from api.reading import BODY_BYTES_MAX
from ledger.database import transaction
from ledger.keys import format_key
from tests.integration.api.conftest import Service
from tests.integration.api.seeding import add_chain

OF_KEY_MAX = LARGE_BODIES_MAX // 2
FORGED = format_key("A" * 16, bytes(32))
ANNOUNCED = f"Content-Length: {BODY_BYTES_MAX}"
LARGE = b'{"watches":[{"chain":"ethereum","address":"0x%040x"}]' % 1 + b" " * 100_000 + b"}"


async def begin(service: Service, key: str, *headers: str) -> tuple[StreamReader, StreamWriter]:
    """The head of a request whose body does not come."""
    place = urlsplit(service.url)
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    lines = ["POST /v1/watches HTTP/1.1", "Host: a", f"Authorization: Bearer {key}", *headers]
    writer.write("\r\n".join([*lines, "Content-Type: application/json", "", ""]).encode())
    return reader, writer


async def answered(reader: StreamReader) -> int:
    """The status of what comes next."""
    return int((await reader.readline()).split()[1])


@pytest.mark.parametrize("headers", [(ANNOUNCED,), ("Transfer-Encoding: chunked",)])
async def test_a_large_body_is_not_waited_for_without_a_good_key(service: Service, headers: tuple[str, ...]) -> None:
    reader, writer = await begin(service, FORGED, *headers)
    assert await answered(reader) == 401
    writer.close()


async def test_a_few_large_bodies_are_let_in_at_a_time_and_keep_no_other_key_waiting(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "BODY_TIMEOUT_S", 3600.0)
    monkeypatch.setattr(service.large_bodies, "_wait_limit_s", 3600.0)
    async with transaction(service.owner) as connection:
        await add_chain(connection, tip=1000)
    _, other = await service.make_tenant("other")
    let_in = [await begin(service, service.key, ANNOUNCED, "Expect: 100-continue") for _ in range(OF_KEY_MAX)]
    assert {await answered(reader) for reader, _ in let_in} == {100}
    waiting = asyncio.create_task(service.ask("POST", "/v1/watches", LARGE))
    done, _ = await asyncio.wait([waiting], timeout=0.6)
    assert not done
    assert (await service.ask("POST", "/v1/watches", LARGE, key=other)).status == 200
    assert (await service.ask("POST", "/v1/watches", {"watches": []})).status == 422
    assert not waiting.done()
    for _, writer in let_in:
        writer.close()
    assert (await waiting).status == 200
