"""Who a request comes from: its peer or, behind proxies that the operator has named, whom the last of them saw.

Pure. `X-Forwarded-For` is read from its end, where the nearest proxy wrote, and only for as long as its writer is trusted:
anybody may have made up what stands before that.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


def caller_of(peer: str | None, forwarded: Sequence[str], proxies: Sequence[Network]) -> Address | None:
    """The address that called. `forwarded` are the values of `X-Forwarded-For`, in order. None where it cannot be read."""
    hops = [hop for value in forwarded for hop in value.split(",")]
    address = _read(peer or "")
    while hops and address is not None and is_within(address, proxies):
        address = _read(hops.pop())
    return address


def is_within(address: Address, networks: Sequence[Network]) -> bool:
    """True when one of the networks holds the address; an IPv4 address inside IPv6 is taken for what it is."""
    return any(address.version == network.version and address in network for network in networks)


def _read(text: str) -> Address | None:
    """An address as proxies write it: bare, in brackets, or with a port."""
    bare = text.strip()
    if bare.startswith("["):
        bare = bare[1:].partition("]")[0]
    elif bare.count(":") == 1:
        bare = bare.partition(":")[0]
    try:
        address = ip_address(bare)
    except ValueError:
        return None
    return address if isinstance(address, IPv4Address) else address.ipv4_mapped or address
