"""How many may be connected at once, and who has to go where one more comes.

Pure. There are a few thousand sockets and somebody may take all of them without asking for anything. So who comes when it is
full is let in, and the one that has waited longest goes: a client that keeps a connection for later loses it, as it may at
any time, and one that holds hundreds open for nothing keeps nobody out. Only where all of them are being answered is the
newcomer refused. One address may have a part of the room; IPv6 addresses of one network of 64 bits count as one, since that
is what a single customer of a provider has.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_network
from typing import Generic, TypeVar

from api.callers import Address, Network

Member = TypeVar("Member")


@dataclass(slots=True)
class _Crowd(Generic[Member]):
    count: int = 0
    waiting: dict[Member, None] = field(default_factory=dict)
    """Those that are not being answered, the one that has waited longest first."""


def household_of(address: Address) -> Network:
    """The network whose members count as one."""
    bits = 64 if isinstance(address, IPv6Address) else 32
    return ip_network((address, bits), strict=False)


class Crowds(Generic[Member]):
    """Who is connected to one listener: all of them, and those of each address."""

    def __init__(self, most: int, most_of_address: int) -> None:
        self._most = most
        self._most_of_address = most_of_address
        self._all: _Crowd[Member] = _Crowd()
        self._of: dict[Network, _Crowd[Member]] = {}
        self._homes: dict[Member, Network | None] = {}

    def enter(self, member: Member, home: Network | None) -> Member | None:
        """Let in somebody who waits. Returns who had to leave for it, None where there was room, and `member` itself where
        there is none. `home` None is a proxy's, which speaks for many: only the whole counts."""
        leaver = self._leaver_for(member, home)
        if leaver is member:
            return member
        if leaver is not None:
            self.leave(leaver)
        if home is not None:
            self._of.setdefault(home, _Crowd())
        self._homes[member] = home
        for crowd in self._crowds_of(member):
            crowd.count += 1
            crowd.waiting[member] = None
        return leaver

    def _leaver_for(self, member: Member, home: Network | None) -> Member | None:
        neighbours = self._of.get(home) if home is not None else None
        if neighbours is not None and neighbours.count >= self._most_of_address:
            return next(iter(neighbours.waiting), member)
        if self._all.count >= self._most:
            return next(iter(self._all.waiting), member)
        return None

    def begin(self, member: Member) -> None:
        """It is being answered now."""
        for crowd in self._crowds_of(member):
            crowd.waiting.pop(member, None)

    def wait(self, member: Member) -> None:
        """It was answered, and from now on waits."""
        for crowd in self._crowds_of(member):
            crowd.waiting[member] = None

    def leave(self, member: Member) -> None:
        """It is gone. Who has left already, or was never let in, may leave again."""
        for crowd in self._crowds_of(member):
            crowd.count -= 1
            crowd.waiting.pop(member, None)
        home = self._homes.pop(member, None)
        if home is not None and not self._of[home].count:
            del self._of[home]

    def _crowds_of(self, member: Member) -> list[_Crowd[Member]]:
        if member not in self._homes:
            return []
        home = self._homes[member]
        return [self._all] if home is None else [self._all, self._of[home]]
