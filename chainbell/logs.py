"""Logs: an event word and fields, to stderr, because stdout belongs to what a command was asked for.

A terminal gets lines for people, anything else JSON lines. Whatever is logged, and by whichever library, a URL loses its
credentials on the way out: user and password, query, and every path, since nodes are often given keys there. So does every
text its secrets of ours, and a complaint about a request that is not HTTP the request.
"""

from __future__ import annotations

import asyncio
import logging
import re
import sys
from collections.abc import Callable
from typing import Any, TextIO

import msgspec
import structlog
from aiohttp.http_exceptions import HttpProcessingError
from structlog.typing import EventDict, Processor, WrappedLogger

from chainbell.settings import redact_url
from ledger.redaction import hide_secrets

_URL = re.compile(r"\b[a-z][a-z0-9+.-]{1,20}://[^\s\"'<>\\]+", re.IGNORECASE)


def configure_logs(*, is_verbose: bool = False, stream: TextIO | None = None) -> None:
    """Send our events and the standard library's to `stream` (stderr by default), in one form."""
    stream = stream or sys.stderr
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        drop_request,
        structlog.processors.format_exc_info,
        hide_credentials,
    ]
    level = logging.DEBUG if is_verbose else logging.INFO
    # Ours are rendered and written at once: by way of the standard library a line costs five times as much.
    structlog.configure(
        processors=[*shared, _renderer(stream)],
        logger_factory=_LinesFactory(stream),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=False,  # a stream that was given earlier may be closed by now
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _renderer(stream)],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    for chatty in ("aiohttp.access", "alembic", "apscheduler"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


class _Lines:
    """The lines of one turn of the event loop in one write, at its end: a dispatcher tells of two hundred attempts at once,
    and to write each by itself took as long as to render it. What is wrong is told at once, with all before it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._waiting: list[str] = []
        self._writing_loop: asyncio.AbstractEventLoop | None = None
        """The one that will write what waits."""

    def info(self, line: str) -> None:
        """Soon; at once where no loop runs."""
        self._waiting.append(line)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._write()
            return
        if loop is not self._writing_loop:
            self._writing_loop = loop
            loop.call_soon(self._write)

    debug = msg = info

    def error(self, line: str) -> None:
        """Now."""
        self._waiting.append(line)
        self._write()

    warning = critical = fatal = failure = exception = error

    def _write(self) -> None:
        lines, self._waiting, self._writing_loop = self._waiting, [], None
        if lines:
            self._stream.write("\n".join(lines) + "\n")
            self._stream.flush()


class _LinesFactory:
    """One writer for all who log, whose lines keep their order."""

    def __init__(self, stream: TextIO) -> None:
        self._lines = _Lines(stream)

    def __call__(self, *_arguments: object) -> _Lines:
        return self._lines


def _renderer(stream: TextIO) -> Processor:
    if stream.isatty():
        return structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    return structlog.processors.JSONRenderer(serializer=_encode)


def _encode(event: EventDict, default: Callable[[Any], Any]) -> str:
    return msgspec.json.encode(event, enc_hook=default).decode()


def drop_request(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """A structlog processor: of a request that could not be read, only the kind of its fault is told. The exception quotes
    the line that it failed at, which may be the one with the key."""
    raised = event.get("exc_info")
    error = raised[1] if isinstance(raised, tuple) else sys.exc_info()[1] if raised is True else raised
    return (
        {**event, "exc_info": None, "error": type(error).__name__} if isinstance(error, HttpProcessingError) else event
    )


def hide_credentials(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """A structlog processor: shorten every URL in an event, however deep it sits, to scheme, host and port, and hide our
    secrets."""
    return {key: _hidden(value) for key, value in event.items()}


def _hidden(value: Any) -> Any:  # noqa: ANN401 - whatever somebody logs
    match value:
        case str():
            safe = hide_secrets(value)
            return _URL.sub(lambda found: redact_url(found.group()), safe) if "://" in safe else safe
        case dict():
            return {key: _hidden(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_hidden(item) for item in value]
        case BaseException():
            return _hidden(f"{type(value).__name__}: {value}")
        case _:
            return value
