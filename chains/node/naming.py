"""What nodes are called in messages, metrics and logs: never by a URL, which often carries a key. Pure."""

from __future__ import annotations

import re
from base64 import b64encode
from collections import Counter
from collections.abc import Sequence
from itertools import count
from typing import Protocol
from urllib.parse import urlsplit

from chains.errors import ProfileError

TEXT_MAX = 200
"""Characters of a node's own words that we repeat."""

SECRET_LENGTH_MIN = 8
"""Parts of a URL's path shorter than this (`v2`, `rpc`) are no keys."""

SECRET_PART_MIN = 4
"""A shorter beginning of a credential gives nothing away, and may be a word of its own."""

CUT = "..."
HIDDEN = "***"


class NodeSettings(Protocol):
    """One node as the operator configured it."""

    @property
    def url(self) -> str:
        """HTTP or HTTPS address of its JSON-RPC, credentials and all."""

    @property
    def name(self) -> str | None:
        """The operator's name for it; its host where there is none."""

    @property
    def ws(self) -> str | None:
        """WebSocket address on which it announces new heads; None: it is only asked."""

    @property
    def rps(self) -> float | None:
        """Calls a second that it may be asked; None: as many as we like."""


def host_of(url: str) -> str:
    """The host of a node's URL, lower case. Raises `ProfileError` for what is not an HTTP URL with a host."""
    host = _host_of(url, ("http", "https"))
    if host is None:
        raise ProfileError("a node's url must be http:// or https:// with a host and, if any, a numeric port")
    return host


def check_ws_url(url: str) -> None:
    """Raises `ProfileError` for what is not a WebSocket URL with a host."""
    if _host_of(url, ("ws", "wss")) is None:
        raise ProfileError(
            "a node's ws must be ws:// or wss:// with a host and, if any, a numeric port; leave it out where it has none"
        )


def _host_of(url: str, schemes: Sequence[str]) -> str | None:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return None
    return host if parts.scheme in schemes else None


def names_of(nodes: Sequence[NodeSettings]) -> tuple[str, ...]:
    """A distinct name for each node: the configured one, else its host, with the port or a count where hosts repeat."""
    hosts = Counter(host_of(node.url) for node in nodes if not node.name)
    names: list[str] = []
    for node in nodes:
        host = host_of(node.url)
        port = urlsplit(node.url).port
        name = node.name or (f"{host}:{port}" if hosts[host] > 1 and port else host)
        numbered = (f"{name}#{n}" for n in count(2))
        names.append(name if name not in names else next(other for other in numbered if other not in names))
    return tuple(names)


def secrets_in(url: str) -> tuple[str, ...]:
    """Everything in a node's URL that may be a credential: user, password, long parts of the path, the query."""
    parts = urlsplit(url)
    found = [parts.username or "", parts.password or "", parts.query]
    found += [part for part in parts.path.split("/") if len(part) >= SECRET_LENGTH_MIN]
    found += [value for pair in parts.query.split("&") if (value := pair.partition("=")[2])]
    if parts.username is not None:  # how HTTP sends the two of them (RFC 7617)
        found.append(b64encode(f"{parts.username}:{parts.password or ''}".encode()).decode())
    return tuple(sorted({secret for secret in found if secret}, key=len, reverse=True))


def one_line(text: str) -> str:
    """A stranger's words made fit for a log: printable, on one line, bounded, and with `CUT` where they went on."""
    line = re.sub(r"[^\x20-\x7e]+", " ", text).strip()
    return line if len(line) <= TEXT_MAX else line[: TEXT_MAX - len(CUT)] + CUT


def hide(text: str, secrets: Sequence[str]) -> str:
    """`text` without the credentials, whole or cut short by `one_line`: some nodes repeat the address that they were called
    by."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    for secret in secrets:
        for length in range(len(secret) - 1, SECRET_PART_MIN - 1, -1):
            text = text.replace(secret[:length] + CUT, HIDDEN + CUT)
    return text
