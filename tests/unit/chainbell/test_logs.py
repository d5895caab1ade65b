"""Logs never carry credentials, whoever writes them."""

from __future__ import annotations

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
