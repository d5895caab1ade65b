"""Requests whose head or body two readers could take for two requests, over raw sockets."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

import msgspec
import pytest

from api.problems import MEDIA_TYPE
from tests.integration.api.conftest import Service

CHAINS = "GET /v1/chains HTTP/1.1"
WATCHES = "POST /v1/watches HTTP/1.1"
BODY = b'{"watches":[]}'


async def said(
    service: Service, first_line: str, *headers: str, body: bytes = b""
) -> tuple[int, dict[str, str], bytes]:
    """All that the service says to this before it closes, or the client has what was announced."""
    place = urlsplit(service.url)
    async with asyncio.timeout(120):
        reader, writer = await asyncio.open_connection(place.hostname, place.port)
        lines = [first_line, "Host: a", f"Authorization: Bearer {service.key}", *headers]
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        status = int((await reader.readline()).split()[1])
        rest = (await reader.readuntil(b"\r\n")).decode() if status == 100 else ""
        assert rest in ("", "\r\n")
        if status == 100:
            status = 100000 + int((await reader.readline()).split()[1])
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
        found = dict(line.lower().split(": ", 1) for line in lines if line)
        content = b"" if first_line.startswith("HEAD") else await reader.readexactly(int(found["content-length"]))
        writer.close()
        return status, found, content


@pytest.mark.parametrize(
    ("first_line", "header", "status", "code"),
    [
        ("GET /v1/chains HTTP/2.0", "X-A: b", 400, "bad_request"),
        ("GET /v1/chains", "X-A: b", 400, "bad_request"),
        (CHAINS, "Authorization: Bearer cb_live_other", 400, "bad_request"),
        (WATCHES, "Idempotency-Key: a\r\nIdempotency-Key: b", 400, "bad_request"),
        (WATCHES, "Transfer-Encoding: gzip, chunked", 400, "bad_request"),
        (WATCHES, "Expect: the-worst", 400, "bad_request"),
        (WATCHES, "Expect: 100-continue\r\nExpect: the-worst", 400, "bad_request"),
        ("POST /v1/watches HTTP/1.0", "Transfer-Encoding: chunked", 400, "bad_request"),
        ("GET /nowhere HTTP/1.1", "Expect: the-worst", 400, "bad_request"),
        (WATCHES, "Content-Encoding: br\r\nContent-Length: 2", 415, "unsupported_media_type"),
        (WATCHES, "Content-Encoding: zstd\r\nContent-Length: 2", 415, "unsupported_media_type"),
        (WATCHES, "Content-Encoding: gzip\r\nContent-Length: 2", 415, "unsupported_media_type"),
        (
            WATCHES,
            "Content-Encoding: identity\r\nContent-Encoding: gzip\r\nContent-Length: 2",
            415,
            "unsupported_media_type",
        ),
        (WATCHES, "Expect: 100-continue\r\nContent-Length: 99999999", 413, "body_too_large"),
    ],
)
async def test_an_odd_head_is_refused_as_a_problem(
    service: Service, first_line: str, header: str, status: int, code: str
) -> None:
    found, headers, content = await said(service, first_line, *header.split("\r\n"))
    document = msgspec.json.decode(content)
    assert (found, document["code"]) == (status, code)
    assert (headers["content-type"], headers["server"]) == (MEDIA_TYPE, "chainbell")
    assert headers["x-request-id"] == document["request_id"]


async def test_who_waits_for_leave_to_send_a_body_gets_it_once_his_head_is_good(service: Service) -> None:
    wanted = ("Content-Type: application/json", f"Content-Length: {len(BODY)}", "Expect: 100-continue")
    status, _, content = await said(service, WATCHES, *wanted, body=BODY)
    assert (status, msgspec.json.decode(content)["code"]) == (100422, "invalid_request")


async def test_head_is_get_without_its_body(service: Service) -> None:
    for path in ("/healthz", "/v1/chains", "/v1/chains?limit=x", "/nowhere"):
        asked = await service.ask("GET", path)
        head = await service.ask("HEAD", path)
        assert (head.status, head.content) == (asked.status, b"")
        assert head.headers["Content-Length"] == str(len(asked.content))
        assert head.headers["Content-Type"] == asked.headers["Content-Type"]
    assert (await service.ask("DELETE", "/v1/chains")).headers["Allow"] == "GET,HEAD"


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        (b'{"watches":[{"chain":"a","address":"0x1","address":"0x2"}]}', "/watches/0/address"),
        (b'{"watches":[{"chain":"a","address":"0x1","\\u0061ddress":"0x2"}]}', "/watches/0/address"),
        (b'{"watches":[{"chain":"a","address":"0x1"},{"chain":"a","address":"0x1","metadata":{"a/b":1,"a/b":1}}]}',
         "/watches/1/metadata/a~1b"),
        (b'{"watches":[{"chain":"a","address":"0x1"}],"watches":[{"chain":"a","address":"0x1"}]}', "/watches"),
    ],
)  # fmt: skip
async def test_a_name_that_is_given_twice_is_refused(service: Service, body: bytes, pointer: str) -> None:
    answer = await service.ask("POST", "/v1/watches", body)
    assert (answer.status, answer.json["code"]) == (422, "invalid_request")
    assert answer.json["errors"] == [{"pointer": pointer, "detail": "the name is given more than once"}]


async def test_a_cursor_is_good_in_one_spelling_only(service: Service) -> None:
    for number in range(2):
        url = f"https://example.com/{number}"
        assert (await service.ask("POST", "/v1/endpoints", {"url": url})).status == 201
    cursor = (await service.ask("GET", "/v1/endpoints?limit=1")).json["next_cursor"]
    assert (await service.ask("GET", f"/v1/endpoints?limit=1&cursor={cursor}")).status == 200
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    for other in [cursor + "=", cursor + "==", *(cursor[:-1] + letter for letter in letters if letter != cursor[-1])]:
        answer = await service.ask("GET", f"/v1/endpoints?limit=1&cursor={other}")
        assert (answer.status, answer.json["code"]) == (400, "invalid_cursor")
