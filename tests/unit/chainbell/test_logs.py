"""Logs never carry credentials, whoever writes them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from io import StringIO

import pytest
import structlog

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
