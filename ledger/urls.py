"""What an endpoint's URL and address may be: the wall between a tenant's URL and the operator's own network.

A webhook URL is written by a tenant and called by us from inside the operator's network (server-side request forgery).
So the same rules are asked twice: `parse_endpoint_url` when a URL is stored and again when it is used, and
`check_address` for the address that a socket is about to be connected to, because a name may resolve to anything and
to something else a second later.

The verdict on an address comes from our own table and is deny by default. The standard library's `is_global` calls
several addresses global that lead home: 6to4, NAT64, ISATAP and IPv4-translated embeddings, multicast, Azure's
metadata address. Three verdicts:

    public     anybody's server
    private    ours, unless the operator names its network in `allow_private`
    forbidden  never: cloud metadata, link-local, multicast, unspecified, and IPv4 addresses dressed up as IPv6

NAT64's well-known prefix is the one embedding that is followed: on an IPv6-only host it is how public IPv4 is reached
(RFC 6052). It must embed a public address. Every other embedding is forbidden: write the IPv4 address itself.

Ports. `allow_ports` (and 80 where plain http is allowed) bounds what tenants may reach in public. An address inside
`allow_private` is exempt from that list, because the operator opened it on purpose and local receivers use odd ports;
it is never exempt from `BLOCKED_PORTS`, where databases, mail servers and the like listen.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import quote

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network

URL_LENGTH_MAX = 2048
"""Characters of a URL; longer ones are refused."""

HOST_LENGTH_MAX = 253
"""Characters of a host name in its ASCII form (RFC 1035)."""


class UnsafeUrl(ValueError):
    """A URL that we will not call; its text is one sentence: what is wrong, why, and what to write instead."""


class RefusedAddress(UnsafeUrl):
    """An address or port that we will not connect to, however it was reached."""


class AddressKind(StrEnum):
    """Who may be behind an address; the module's docstring says what follows from it."""

    PUBLIC = "public"
    PRIVATE = "private"
    FORBIDDEN = "forbidden"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What `classify_address` thinks of an address, and why."""

    kind: AddressKind
    reason: str


@dataclass(frozen=True, slots=True)
class EndpointPolicy:
    """What the operator allows (`[notifier]` in the settings); never settable by a tenant."""

    allow_http: bool = False
    allow_private: tuple[IPNetwork, ...] = ()
    allow_ports: tuple[int, ...] = (443, 8443)


@dataclass(frozen=True, slots=True)
class EndpointUrl:
    """A URL that passed the policy, in its one canonical spelling."""

    scheme: str
    host: str
    """Lower-case ASCII name, or an address in canonical form without brackets."""
    address: IPAddress | None
    """Set when the host is an address and not a name."""
    port: int
    target: str
    """Path and query, at least `/`."""

    @property
    def text(self) -> str:
        """The URL as it is stored and called."""
        host = f"[{self.host}]" if isinstance(self.address, IPv6Address) else self.host
        port = "" if self.port == _DEFAULT_PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{host}{port}{self.target}"


_DEFAULT_PORTS = {"https": 443, "http": 80}

BLOCKED_PORTS: frozenset[int] = frozenset(
    [
        *(1, 7, 9, 11, 13, 15, 17, 19, 20, 21, 22, 23, 25, 37, 42, 43, 53, 69, 79, 87, 88, 95, 109, 110, 111, 113),
        *(115, 119, 123, 135, 137, 138, 139, 143, 161, 162, 179, 389, 427, 445, 464, 465, 500, 512, 513, 514, 515),
        *(
            540,
            543,
            544,
            548,
            554,
            563,
            587,
            593,
            601,
            623,
            631,
            636,
            873,
            989,
            990,
            992,
            993,
            995,
        ),  # mail, files, logins
        *(1080, 1433, 1521, 1719, 1720, 1723, 2049, 2181, 2375, 2376, 2379, 2380, 3128, 3268, 3269, 3306, 3389, 4369),
        *(5060, 5061, 5432, 5433, 5672, 5900, 5984, 5985, 5986, 6000, 6379, 6380, 6432, 6443, 6566, 6667, 6697),
        *(7000, 7001, 9042, 9092, 9160, 9200, 9300, 10250, 10255, 11211, 15672, 16379, 26257, 27017, 27018, 50070),
    ]
)
"""Ports of mail, remote login, databases, brokers and cluster managers: refused whatever the operator allows."""


def _table(rows: tuple[tuple[str, AddressKind, str], ...]) -> tuple[tuple[IPNetwork, Verdict], ...]:
    return tuple((ip_network(network), Verdict(kind, reason)) for network, kind, reason in rows)


_PUBLIC = Verdict(AddressKind.PUBLIC, "is a public address")
_P, _F = AddressKind.PRIVATE, AddressKind.FORBIDDEN

# First match wins. Source: the IANA special-purpose address registries (RFC 6890 and its updates) and the metadata
# addresses that the large clouds document.
_IPV4_TABLE = _table(
    (
        ("169.254.0.0/16", _F, "is link-local, where clouds keep their metadata"),
        ("168.63.129.16/32", _F, "is Azure's metadata address"),
        ("100.100.100.200/32", _F, "is Alibaba Cloud's metadata address"),
        ("192.0.0.192/32", _F, "is Oracle Cloud's metadata address"),
        ("0.0.0.0/8", _F, "is unspecified and means this machine"),
        ("224.0.0.0/4", _F, "is multicast"),
        ("255.255.255.255/32", _F, "is broadcast"),
        ("127.0.0.0/8", _P, "is loopback"),
        ("10.0.0.0/8", _P, "is a private network"),
        ("172.16.0.0/12", _P, "is a private network"),
        ("192.168.0.0/16", _P, "is a private network"),
        ("100.64.0.0/10", _P, "is carrier-grade NAT"),
        ("192.0.0.0/24", _P, "is reserved for protocols"),
        ("192.0.2.0/24", _P, "is reserved for documentation"),
        ("198.51.100.0/24", _P, "is reserved for documentation"),
        ("203.0.113.0/24", _P, "is reserved for documentation"),
        ("198.18.0.0/15", _P, "is reserved for benchmarks"),
        ("192.88.99.0/24", _P, "is a 6to4 relay"),
        ("192.31.196.0/24", _P, "is an AS112 sink"),
        ("192.175.48.0/24", _P, "is an AS112 sink"),
        ("192.52.193.0/24", _P, "is a multicast relay"),
        ("240.0.0.0/4", _P, "is reserved"),
    )
)

_NAT64 = IPv6Network("64:ff9b::/96")
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_OUTSIDE_GLOBAL_UNICAST = Verdict(_P, "is outside IPv6's global unicast range")
_ISATAP = Verdict(_F, "is an ISATAP address, which carries an IPv4 address")

_IPV6_TABLE = _table(
    (
        ("fd00:ec2::/32", _F, "is an AWS metadata network"),
        ("fd20:ce::/32", _F, "is a Google Cloud metadata network"),
        ("fd00:42::/32", _F, "is a Scaleway metadata network"),
        ("fd00:a9fe:a9fe::/48", _F, "is an Akamai metadata network"),
        ("::1/128", _P, "is loopback"),
        ("::/128", _F, "is unspecified and means this machine"),
        ("::ffff:0:0/96", _F, "is an IPv4-mapped address"),
        ("::ffff:0:0:0/96", _F, "is an IPv4-translated address"),
        ("64:ff9b:1::/48", _F, "is a local NAT64 prefix, which carries an IPv4 address"),
        ("::/8", _F, "is a reserved range that carries IPv4 addresses"),
        ("fe80::/10", _F, "is link-local"),
        ("fec0::/10", _P, "is site-local"),
        ("fc00::/7", _P, "is a private network"),
        ("ff00::/8", _F, "is multicast"),
        ("2001::/32", _F, "is a Teredo address, which carries an IPv4 address"),
        ("2001::/23", _P, "is reserved for protocols"),
        ("2001:db8::/32", _P, "is reserved for documentation"),
        ("3fff::/20", _P, "is reserved for documentation"),
        ("3ffe::/16", _P, "is the retired 6bone"),
        ("2002::/16", _F, "is a 6to4 address, which carries an IPv4 address"),
        ("2620:4f:8000::/48", _P, "is an AS112 sink"),
    )
)


def classify_address(address: IPAddress) -> Verdict:
    """Who may be behind `address`, whatever the operator allows. Deny by default."""
    if isinstance(address, IPv4Address):
        return next((verdict for network, verdict in _IPV4_TABLE if address in network), _PUBLIC)
    if address.scope_id is not None:
        return Verdict(_F, "has a zone id, which only means something on one machine")
    if address in _NAT64:
        return _classify_nat64(IPv4Address(int(address) & 0xFFFF_FFFF))
    if (int(address) >> 32) & 0xFDFF_FFFF == 0x0000_5EFE:  # RFC 5214: the interface id is [02]00:5efe:a.b.c.d
        return _ISATAP
    for network, verdict in _IPV6_TABLE:
        if address in network:
            return verdict
    return _PUBLIC if address in _GLOBAL_UNICAST else _OUTSIDE_GLOBAL_UNICAST


def _classify_nat64(embedded: IPv4Address) -> Verdict:
    inner = classify_address(embedded)
    if inner.kind is AddressKind.PUBLIC:
        return inner
    return Verdict(_F, f"leads by NAT64 to {embedded}, which {inner.reason}")


def check_address(address: IPAddress, port: int, policy: EndpointPolicy) -> None:
    """Let a connection to `address` and `port` pass, or raise `RefusedAddress`. Asked before every connect."""
    _check_port_is_not_blocked(port)
    verdict = classify_address(address)
    if verdict.kind is AddressKind.FORBIDDEN:
        raise RefusedAddress(f"{address} {verdict.reason}; webhooks never go there, use a public https address")
    if verdict.kind is AddressKind.PRIVATE:
        if not _is_opened(address, policy):
            raise RefusedAddress(
                f"{address} {verdict.reason}; use a public address, or ask the operator to name its network"
                " in notifier.allow_private"
            )
        return
    if not _is_opened(address, policy):
        _check_port_is_listed(port, policy)


def _is_opened(address: IPAddress, policy: EndpointPolicy) -> bool:
    return any(address in network for network in policy.allow_private)


def _check_port_is_not_blocked(port: int) -> None:
    if port in BLOCKED_PORTS:
        raise RefusedAddress(
            f"port {port} is never called, because mail, database or login servers listen there; use 443"
        )


def _check_port_is_listed(port: int, policy: EndpointPolicy) -> None:
    allowed = policy.allow_ports + ((80,) if policy.allow_http else ())
    if port not in allowed:
        raise RefusedAddress(
            f"port {port} is not one of the allowed ports {', '.join(map(str, allowed))}; use one of these, or ask the"
            " operator to add it to notifier.allow_ports"
        )


_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<target>[^#]*)(?P<fragment>#.*)?")
_AUTHORITY = re.compile(r"(?P<host>\[[^\[\]]*\]|[^:\[\]]*)(?P<port>:.*)?")
_PORT = re.compile(r":([1-9][0-9]{0,4})")
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER_LABEL = re.compile(r"[0-9]+|0x[0-9a-f]*")
_ODD_CHARACTERS = re.compile(r"[\x00-\x20\x7f-\xa0\\\u2028\u2029\ud800-\udfff]")
_IDNA_DEVIATIONS = frozenset("ßς\u200c\u200d")
"""Characters that IDNA 2003 and 2008 send to different hosts."""

_LOOPBACK_NAMES = frozenset(["localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback", "loopback"])
_METADATA_NAMES = (
    *("metadata", "instance-data", "metadata.google.internal", "metadata.goog", "instance-data.ec2.internal"),
    *("metadata.azure.internal", "metadata.tencentyun.com", "metadata.cloud.ibm.com"),
)
"""Refused with all below them, so that whoever writes one is told at once; what they resolve to is refused anyway."""
_PRIVATE_SUFFIXES = (
    *(".internal", ".local", ".localdomain", ".lan", ".svc", ".private", ".intranet"),
    *(".corp", ".home", ".home.arpa"),
)
_LOOPBACK_NETWORKS: tuple[IPNetwork, ...] = (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))


def parse_endpoint_url(text: str, policy: EndpointPolicy) -> EndpointUrl:
    """Read an endpoint's URL strictly, by our own rules and no other parser's.

    Raises `UnsafeUrl` with one sentence for whoever wrote the URL. A host name is judged by its look only: what it
    resolves to is judged by `check_address` each time a socket is made.
    """
    match = _match_url(text)
    scheme = _check_scheme(match["scheme"].lower(), policy)
    host_text, port = _split_authority(match["authority"], scheme)
    address = _parse_address(host_text)
    if address is not None:
        check_address(address, port, policy)
        return EndpointUrl(scheme, str(address), address, port, _ascii_target(match["target"]))
    name = _parse_name(host_text)
    _check_name(name, policy)
    _check_port_is_not_blocked(port)
    if not policy.allow_private:  # else the name may resolve to an opened network, where any port goes
        _check_port_is_listed(port, policy)
    return EndpointUrl(scheme, name, None, port, _ascii_target(match["target"]))


def _match_url(text: str) -> re.Match[str]:
    if len(text) > URL_LENGTH_MAX:
        raise UnsafeUrl(f"the URL has {len(text)} characters; at most {URL_LENGTH_MAX} are kept, use a shorter one")
    if _ODD_CHARACTERS.search(text):
        raise UnsafeUrl(
            "the URL contains a space, a control character or a backslash, which programs read differently;"
            " percent-encode it"
        )
    match = _URL.fullmatch(text)
    if match is None:
        raise UnsafeUrl("this is not an absolute URL; write it in full, as in https://example.com/webhooks")
    if match["fragment"]:
        raise UnsafeUrl("the URL has a fragment (#...), which is never sent to a server; leave it out")
    return match


def _check_scheme(scheme: str, policy: EndpointPolicy) -> str:
    if scheme == "https" or (scheme == "http" and policy.allow_http):
        return scheme
    if scheme == "http":
        raise UnsafeUrl(
            "plain http shows deposits to everyone on the way; use https, or ask the operator for notifier.allow_http"
        )
    raise UnsafeUrl(f"the scheme {scheme[:20]!r} is not one that webhooks are sent by; use https")


def _split_authority(authority: str, scheme: str) -> tuple[str, int]:
    if "@" in authority:
        raise UnsafeUrl(
            "the URL carries a user name or password, which would end up in logs; leave it out, webhooks are"
            " authenticated by their signature"
        )
    match = _AUTHORITY.fullmatch(authority)
    if match is None or not match["host"]:
        raise UnsafeUrl("the URL has no host that can be read; write it as in https://example.com/webhooks")
    if match["port"] is None:
        return match["host"], _DEFAULT_PORTS[scheme]
    port = _PORT.fullmatch(match["port"])
    if port is None or int(port[1]) > 65535:
        raise UnsafeUrl(f"the port {match['port'][1:20]!r} is not a number from 1 to 65535; write it as in :8443")
    return match["host"], int(port[1])


def _parse_address(host: str) -> IPAddress | None:
    """The address that `host` is, or None when it is a name. Only canonical spellings of IPv4 pass."""
    if host.startswith("["):
        return _parse_ipv6(host[1:-1])
    if not _NUMBER_LABEL.fullmatch(host.lower().rstrip(".").rpartition(".")[2]):
        return None
    try:
        return IPv4Address(host)
    except ValueError:
        raise UnsafeUrl(
            f"the host {host[:40]!r} is a number but not four plain decimal parts; programs read such spellings"
            " differently, write it as in 203.0.113.7"
        ) from None


def _parse_ipv6(text: str) -> IPAddress:
    if "%" in text:
        raise UnsafeUrl(
            "the IPv6 address has a zone id (%...), which only means something on one machine; leave it out"
        )
    try:
        address = ip_address(text)
    except ValueError:
        address = None
    if not isinstance(address, IPv6Address):
        raise UnsafeUrl(f"[{text[:50]}] is not an IPv6 address; write it as in [2606:4700::1]")
    return address


def _parse_name(host: str) -> str:
    name = host.lower() if host.isascii() else _ascii_name(host)
    if name.endswith("."):
        raise UnsafeUrl("the host ends in a dot, which certificates and caches treat as another name; leave it out")
    if len(name) > HOST_LENGTH_MAX or not all(_LABEL.fullmatch(label) for label in name.split(".")):
        raise UnsafeUrl(f"the host {host[:60]!r} is not a valid name; use letters, digits, hyphens and dots")
    if _NUMBER_LABEL.fullmatch(name.rpartition(".")[2]):
        raise UnsafeUrl(f"the host {host[:60]!r} ends in a number; write an address as in 203.0.113.7")
    return name


def _ascii_name(host: str) -> str:
    """The `xn--` form of a name in another script; refused where standards disagree on which host it means."""
    composed = unicodedata.normalize("NFC", host)
    is_ambiguous = unicodedata.normalize("NFKC", composed) != composed or not _IDNA_DEVIATIONS.isdisjoint(composed)
    try:
        if is_ambiguous:
            raise UnicodeError
        return composed.encode("idna").decode("ascii").lower()
    except UnicodeError:
        raise UnsafeUrl(
            f"the host {host[:60]!r} has characters that programs read differently; write its ASCII form (xn--...)"
        ) from None


def _check_name(name: str, policy: EndpointPolicy) -> None:
    if any(f".{name}".endswith(f".{metadata}") for metadata in _METADATA_NAMES):
        raise UnsafeUrl(f"{name} is a cloud's metadata service; webhooks never go there, use a public host")
    is_loopback = name in _LOOPBACK_NAMES or name.endswith(".localhost")
    if is_loopback and not _opens_loopback(policy):
        raise UnsafeUrl(
            f"{name} means this machine; use a public host, or ask the operator to name 127.0.0.0/8 in"
            " notifier.allow_private"
        )
    is_local = "." not in name or name.endswith(_PRIVATE_SUFFIXES)
    if is_local and not policy.allow_private:
        raise UnsafeUrl(
            f"{name} is a name of a local network; use a public host, or ask the operator to name its network in"
            " notifier.allow_private"
        )


def _opens_loopback(policy: EndpointPolicy) -> bool:
    return any(
        opened.version == loopback.version and opened.overlaps(loopback)
        for opened in policy.allow_private
        for loopback in _LOOPBACK_NETWORKS
    )


def _ascii_target(target: str) -> str:
    """Path and query with other scripts percent-encoded as UTF-8 and everything else left as it was written."""
    ascii_target = quote(target, safe="".join(map(chr, range(0x21, 0x7F))))
    return ascii_target if ascii_target.startswith("/") else f"/{ascii_target}"
