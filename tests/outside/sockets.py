"""Whose connection that is: TCP connections of this machine as Linux lists them (`proc(5)`, `/proc/net/tcp`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple


class TcpState(StrEnum):
    """As the kernel's list writes them."""

    ESTABLISHED = "01"
    SYN_SENT = "02"
    """The other side has not answered: as far as it is concerned, there is no connection."""


class Connection(NamedTuple):
    """One process's end of a connection."""

    state: str
    local_port: int
    remote_port: int
    unread_bytes: int
    """What has come for the process and was not read by it."""
    inode: int


def connections_to(port: int) -> list[Connection]:
    """The callers' ends of all IPv4 connections to a port."""
    return [row for row in _connections() if row.remote_port == port]


def _connections() -> Iterator[Connection]:
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, state, queues, *_, inode = line.split()[:10]
        local_port, remote_port, unread_bytes = (int(text.split(":")[1], 16) for text in (local, remote, queues))
        yield Connection(state, local_port, remote_port, unread_bytes, int(inode))


def send_buffer_bytes() -> int:
    """What the kernel takes of a sender at most before it has to wait, and still sends when the sender is dead."""
    return int(Path("/proc/sys/net/ipv4/tcp_wmem").read_text().split()[2])


def owner_of(connection: Connection, pids: Iterable[int]) -> int | None:
    """The process among `pids` that has this end open."""
    wanted = f"socket:[{connection.inode}]"
    return next((pid for pid in pids if wanted in _open_files(pid)), None)


def _open_files(pid: int) -> set[str]:
    found = set()
    with suppress(FileNotFoundError):  # it may end meanwhile
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                found.add(str(entry.readlink()))
    return found
