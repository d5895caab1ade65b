"""The wall between a tenant's URL and the operator's network: every spelling of every place that must not be reached."""

from __future__ import annotations

import random
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.urls import (
    BLOCKED_PORTS,
    AddressKind,
    EndpointPolicy,
    RefusedAddress,
    UnsafeUrl,
    check_address,
    classify_address,
    parse_endpoint_url,
)
from tests.fakes.addresses import DENIED_IPV4_NETWORKS, DENIED_LITERALS, EMBEDDINGS, METADATA_ADDRESSES

STRICT = EndpointPolicy()
LOCAL = EndpointPolicy(allow_http=True, allow_private=(ip_network("127.0.0.0/8"), ip_network("::1/128")))
EVERYTHING = EndpointPolicy(
    allow_http=True, allow_private=(ip_network("0.0.0.0/0"), ip_network("::/0")), allow_ports=tuple(range(1, 65536))
)


@pytest.mark.parametrize("literal", DENIED_LITERALS)
def test_a_url_with_a_denied_address_is_refused(literal: str) -> None:
    with pytest.raises(UnsafeUrl):
        parse_endpoint_url(f"https://{literal}/hook", STRICT)


@pytest.mark.parametrize("text", METADATA_ADDRESSES)
def test_metadata_is_forbidden_even_when_the_operator_allows_everything(text: str) -> None:
    assert classify_address(ip_address(text)).kind is AddressKind.FORBIDDEN
    with pytest.raises(RefusedAddress):
        check_address(ip_address(text), 443, EVERYTHING)


@pytest.mark.parametrize(
    "text",
    [
        *("1.1.1.1", "8.8.8.8", "172.15.255.255", "172.32.0.0", "100.63.255.255", "100.128.0.0", "11.0.0.0"),
        *("9.255.255.255", "192.167.255.255", "192.169.0.0", "198.17.255.255", "198.20.0.0", "223.255.255.255"),
        *("126.255.255.255", "2606:4700::1111", "2a00:1450:4001::1", "2400:cb00::1", "2001:200::1", "2003::1"),
        *("2001:4860:4860::8888", "64:ff9b::808:808", "3fff:1000::1"),
    ],
)
def test_public_addresses_beside_the_special_ranges_are_public(text: str) -> None:
    assert classify_address(ip_address(text)).kind is AddressKind.PUBLIC
    check_address(ip_address(text), 443, STRICT)


@given(st.sampled_from(DENIED_IPV4_NETWORKS), st.integers(min_value=0), st.sampled_from(sorted(EMBEDDINGS)))
def test_no_embedding_of_a_denied_ipv4_address_gets_through(network: str, offset: int, embedding: str) -> None:
    pool = ip_network(network)
    address = IPv4Address(int(pool.network_address) + offset % pool.num_addresses)
    assert classify_address(address).kind is not AddressKind.PUBLIC
    embedded = IPv6Address(EMBEDDINGS[embedding](int(address)))
    assert classify_address(embedded).kind is AddressKind.FORBIDDEN
    with pytest.raises(RefusedAddress):
        check_address(embedded, 443, EVERYTHING)


def test_random_addresses_of_the_public_ranges_are_public() -> None:
    chance = random.Random(20261101)
    denied = [ip_network(network) for network in DENIED_IPV4_NETWORKS]
    for _ in range(5_000):
        address = IPv4Address(chance.getrandbits(32))
        is_public = classify_address(address).kind is AddressKind.PUBLIC
        assert is_public == (not any(address in network for network in denied)), address
    for _ in range(5_000):
        inside = IPv6Address(int(IPv6Network("2600::/12").network_address) | chance.getrandbits(116))
        assert classify_address(inside).kind is AddressKind.PUBLIC, inside


@given(st.integers(min_value=0, max_value=2**128 - 1))
def test_nothing_outside_global_unicast_is_public_but_nat64_of_public_addresses(number: int) -> None:
    address = IPv6Address(number)
    if classify_address(address).kind is AddressKind.PUBLIC and address not in IPv6Network("64:ff9b::/96"):
        assert address in IPv6Network("2000::/3")


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("https://example.com", "https://example.com/"),
        ("HTTPS://Example.COM:443/Hook?A=1&b=%20", "https://example.com/Hook?A=1&b=%20"),
        ("https://example.com:8443/hook", "https://example.com:8443/hook"),
        ("https://example.com?x=1", "https://example.com/?x=1"),
        ("https://bücher.example/größe", "https://xn--bcher-kva.example/gr%C3%B6%C3%9Fe"),
        ("https://BÜCHER.example/", "https://xn--bcher-kva.example/"),
        ("https://xn--bcher-kva.example/", "https://xn--bcher-kva.example/"),
        ("https://1.1.1.1/", "https://1.1.1.1/"),
        ("https://[2606:4700:0:0::0001]/", "https://[2606:4700::1]/"),
        ("https://[2606:4700::1]:8443/x", "https://[2606:4700::1]:8443/x"),
        ("https://my_host.example.com/", "https://my_host.example.com/"),
    ],
)
def test_a_good_url_has_one_canonical_spelling(text: str, canonical: str) -> None:
    parsed = parse_endpoint_url(text, STRICT)
    assert parsed.text == canonical
    assert parse_endpoint_url(parsed.text, STRICT) == parsed


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("http://example.com/", "https"),
        ("ftp://example.com/", "scheme"),
        ("file:///etc/passwd", "scheme"),
        ("gopher://example.com/", "scheme"),
        ("//example.com/", "absolute"),
        ("example.com/hook", "absolute"),
        ("https:/example.com", "absolute"),
        ("", "absolute"),
        ("https:///hook", "host"),
        ("https://:443/", "host"),
        ("https://user:secret@example.com/", "password"),
        ("https://1.1.1.1@127.0.0.1/", "password"),
        ("https://example.com/#top", "fragment"),
        ("https://example.com/a b", "space"),
        ("https://example.com/\r\nX-Evil: 1", "control"),
        ("https://example.com\\@127.0.0.1/", "backslash"),
        ("https://example.com/\x00", "control"),
        ("https://example.com/\ud800", "control"),
        ("https://example.com./", "dot"),
        ("https://127.0.0.1./", "number"),
        ("https://exam%70le.com/", "valid name"),
        ("https://-example.com/", "valid name"),
        ("https://a..example.com/", "valid name"),
        (f"https://{'a' * 64}.com/", "valid name"),
        (f"https://{'a.' * 130}com/", "valid name"),
        ("https://example.com:0/", "port"),
        ("https://example.com:/", "port"),
        ("https://example.com:65536/", "port"),
        ("https://example.com:443:443/", "port"),
        ("https://example.com:0443/", "port"),
        ("https://example.com:٤٤٣/", "port"),
        ("https://example.com:8080/", "allowed ports"),
        ("https://example.com:5432/", "never called"),
        ("https://[fe80::1%25eth0]/", "zone id"),
        ("https://[fe80::1%eth0]/", "zone id"),
        ("https://[127.0.0.1]/", "IPv6"),
        ("https://[::1/", "host"),
        ("https://faß.example/", "xn--"),
        ("https://ｅｘａｍｐｌｅ.com/", "xn--"),
        ("https://１２７.０.０.１/", "xn--"),
        ("https://127。0。0。1/", "number"),
        ("https://①②⑦.0.0.1/", "number"),
        ("https://localhost/", "this machine"),
        ("https://LOCALHOST/", "this machine"),
        ("https://a.localhost/", "this machine"),
        ("https://metadata.google.internal/", "metadata"),
        ("https://intranet/", "local network"),
        ("https://db.internal/", "local network"),
        ("https://printer.local/", "local network"),
        ("https://" + "a" * 2048, "characters"),
    ],
)
def test_a_bad_url_is_refused_with_a_sentence_that_names_the_reason(text: str, word: str) -> None:
    with pytest.raises(UnsafeUrl, match=word) as caught:
        parse_endpoint_url(text, STRICT)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "[::1]", "localhost", "a.localhost"])
def test_loopback_is_usable_on_any_ordinary_port_once_the_operator_names_it(host: str) -> None:
    parsed = parse_endpoint_url(f"http://{host}:54321/hook", LOCAL)
    assert parsed.text == f"http://{host}:54321/hook"
    if parsed.address is not None:
        check_address(parsed.address, parsed.port, LOCAL)


def test_an_opened_network_opens_no_other() -> None:
    for literal in ("10.0.0.1", "192.168.1.1", "169.254.169.254", "[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]"):
        with pytest.raises(RefusedAddress):
            parse_endpoint_url(f"http://{literal}/hook", LOCAL)


def test_a_name_on_an_odd_port_is_judged_again_by_what_it_resolves_to() -> None:
    parsed = parse_endpoint_url("http://merchant.example:9999/", LOCAL)
    check_address(IPv4Address("127.0.0.1"), parsed.port, LOCAL)
    with pytest.raises(RefusedAddress, match="allowed ports"):
        check_address(IPv4Address("1.1.1.1"), parsed.port, LOCAL)


@pytest.mark.parametrize(
    "name",
    [
        *("metadata", "metadata.google.internal", "METADATA.google.internal", "x.metadata.google.internal"),
        *("metadata.goog", "instance-data", "instance-data.ec2.internal", "metadata.azure.internal"),
        *("metadata.tencentyun.com", "api.metadata.cloud.ibm.com"),
    ],
)
def test_names_of_metadata_are_refused_even_when_the_operator_allows_everything(name: str) -> None:
    with pytest.raises(UnsafeUrl, match="metadata service"):
        parse_endpoint_url(f"http://{name}/latest", EVERYTHING)
    assert parse_endpoint_url(f"http://not-{name}.example/", EVERYTHING).host == f"not-{name.lower()}.example"


@pytest.mark.parametrize("name", ["kubernetes.default.svc", "db.private", "x.localhost.localdomain"])
def test_names_of_local_networks_need_an_opened_network(name: str) -> None:
    with pytest.raises(UnsafeUrl, match="local network"):
        parse_endpoint_url(f"https://{name}/", STRICT)
    assert parse_endpoint_url(f"https://{name}/", EVERYTHING).host == name


@pytest.mark.parametrize("port", sorted(BLOCKED_PORTS))
def test_a_blocked_port_stays_blocked_whatever_the_operator_allows(port: int) -> None:
    with pytest.raises(RefusedAddress, match="never called"):
        parse_endpoint_url(f"http://127.0.0.1:{port}/", EVERYTHING)
    with pytest.raises(RefusedAddress, match="never called"):
        parse_endpoint_url(f"https://example.com:{port}/", EVERYTHING)


def test_plain_http_brings_port_80() -> None:
    assert parse_endpoint_url("http://example.com/", EndpointPolicy(allow_http=True)).port == 80
    with pytest.raises(UnsafeUrl):
        parse_endpoint_url("https://example.com:80/", STRICT)


@given(st.text(max_size=60))
def test_any_text_is_either_parsed_or_refused(text: str) -> None:
    for candidate in (text, f"https://{text}", f"https://example.com{text}", f"https://[{text}]/"):
        try:
            parsed = parse_endpoint_url(candidate, STRICT)
        except UnsafeUrl:
            continue
        assert parsed.text.isascii()
        assert parse_endpoint_url(parsed.text, STRICT) == parsed
