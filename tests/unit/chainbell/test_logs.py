"""Logs never carry credentials, whoever writes them."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from io import StringIO

import pytest
import structlog
from aiohttp.http_exceptions import BadHttpMessage

from chainbell.logs import configure_logs

URL = "https://user:hunter2@node.example:8545/v2/hunter2?key=hunter2"


@pytest.fixture
def out() -> Iterator[StringIO]:
    """What was logged."""
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    stream = StringIO()
    configure_logs(stream=stream)
    yield stream
    root.handlers, root.level = before
    structlog.reset_defaults()


def test_an_event_is_one_json_object_with_its_fields(out: StringIO) -> None:
    structlog.get_logger("test").info("block applied", chain="ethereum", height=7)
    row = json.loads(out.getvalue())
    assert (row["event"], row["chain"], row["height"], row["level"]) == ("block applied", "ethereum", 7, "info")
    assert row["timestamp"].endswith("Z")


def test_urls_lose_their_credentials_wherever_they_stand(out: StringIO) -> None:
    structlog.get_logger("test").info(f"asked {URL}", url=URL, nodes=[{"url": URL}], error=ValueError(URL))
    logging.getLogger("library").warning("went to %s", URL)
    try:
        raise ValueError(f"no answer from {URL}")
    except ValueError:
        structlog.get_logger("test").exception("failed")
        logging.getLogger("library").exception("failed too")
    assert out.getvalue().count("\n") == 4
    assert "hunter2" not in out.getvalue()
    assert out.getvalue().count("https://node.example:8545") >= 7


def test_our_own_secrets_are_hidden_in_whatever_somebody_else_writes(out: StringIO) -> None:
    logging.getLogger("library").warning(
        "no: %s", {"key": "cb_live_0123456789abcdef_secret", "other": "whsec_c2VjcmV0"}
    )
    structlog.get_logger("test").info("page", lines=["KEY='whsk_c2VjcmV0'"])
    assert "secret" not in out.getvalue()
    assert "c2VjcmV0" not in out.getvalue()
    assert out.getvalue().count("***") == 3


def test_a_request_that_is_not_http_is_told_by_the_kind_of_its_fault(out: StringIO) -> None:
    try:
        raise BadHttpMessage("Invalid header value char: b'Authorization: Bearer somebodys-token'")
    except BadHttpMessage as error:
        logging.getLogger("aiohttp.server").error("Error handling request from %s", "192.0.2.1", exc_info=error)
        structlog.get_logger("test").exception("failed")
    rows = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [(row["event"], row["error"]) for row in rows] == [
        ("Error handling request from 192.0.2.1", "BadHttpMessage"),
        ("failed", "BadHttpMessage"),
    ]
    assert "somebodys-token" not in out.getvalue()


def events_of(out: StringIO) -> list[str]:
    """What was written so far."""
    return [json.loads(line)["event"] for line in out.getvalue().splitlines()]


async def test_what_is_told_in_one_turn_of_the_loop_is_written_at_its_end(out: StringIO) -> None:
    log = structlog.get_logger()
    log.info("one")
    structlog.get_logger().info("two")
    assert events_of(out) == []
    await asyncio.sleep(0)
    assert events_of(out) == ["one", "two"]


async def test_what_is_wrong_is_written_at_once_after_what_was_told_before(out: StringIO) -> None:
    log = structlog.get_logger()
    log.info("one")
    log.warning("two")
    assert events_of(out) == ["one", "two"]
    log.info("three")
    log.error("four")
    assert events_of(out) == ["one", "two", "three", "four"]
    await asyncio.sleep(0)
    assert len(events_of(out)) == 4


def test_a_loop_that_ends_keeps_no_line_back(out: StringIO) -> None:
    async def tell(event: str) -> None:
        structlog.get_logger().info(event)

    asyncio.run(tell("one"))
    assert events_of(out) == ["one"]
    unfinished = asyncio.new_event_loop()
    unfinished.run_until_complete(tell("two"))
    unfinished.close()
    asyncio.run(tell("three"))
    structlog.get_logger().info("four")
    assert events_of(out) == ["one", "two", "three", "four"]
