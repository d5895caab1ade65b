"""What `listen` takes: where it may forward to, whose API it asks, and which events."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from chainbell.cli.listen import LOCAL, check_receiver, check_types
from chainbell.errors import UsageError
from chainbell.feed import check_key, parse_api_url
from ledger.urls import RefusedAddress, check_address


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("http://localhost:3000/webhooks", "http://localhost:3000/webhooks"),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/"),
        ("http://[::1]:8000/a?b=c", "http://[::1]:8000/a?b=c"),
        ("https://shop.localhost:8443/", "https://shop.localhost:8443/"),
        ("https://merchant.example/webhooks", "https://merchant.example/webhooks"),
    ],
)
def test_this_machine_and_public_https_are_forwarded_to(given: str, taken: str) -> None:
    assert check_receiver(given) == taken


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("localhost:3000", "absolute URL"),
        ("http://merchant.example/", "plain http"),
        ("http://192.168.1.20:3000/", "is a private network"),
        ("http://169.254.169.254/latest/meta-data", "metadata"),
        ("http://metadata.google.internal/", "metadata"),
        ("https://10.0.0.1/", "is a private network"),
        ("https://1.1.1.1:9999/", "port 9999"),
        ("http://localhost:5432/", "port 5432"),
        ("ftp://localhost/", "scheme"),
        ("http://me:pw@localhost:3000/", "user name or password"),
    ],
)
def test_everything_else_gets_a_sentence(given: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as raised:
        check_receiver(given)
    assert "http://localhost:3000/webhooks" in str(raised.value)
    assert "pw@" not in str(raised.value)


@pytest.mark.parametrize("address", ["10.0.0.1", "192.168.1.20", "169.254.169.254", "100.100.100.200", "fd00:ec2::254"])
def test_a_name_that_leads_into_a_network_is_refused_where_the_socket_is_made(address: str) -> None:
    with pytest.raises(RefusedAddress):
        check_address(ip_address(address), 443, LOCAL)
    for loopback in ("127.0.0.1", "127.8.9.10", "::1"):
        check_address(ip_address(loopback), 3000, LOCAL)


def test_types_are_given_one_by_one_or_with_commas() -> None:
    assert check_types(None) is None
    assert check_types(["deposit.*,withdrawal.failed", "*"]) == ("deposit.*", "withdrawal.failed", "*")
    with pytest.raises(UsageError, match=r"'deposit.lost'.*deposit\.reorged"):
        check_types(["deposit.lost"])


@pytest.mark.parametrize(
    "given",
    [
        "",
        "127.0.0.1:8080",
        "ftp://a.example",
        "http://",
        "http://me:pw@a.example",
        "http://a.example?x=1",
        "http://a:b",
    ],
)
def test_a_wrong_api_url_is_refused_without_being_repeated(given: str) -> None:
    with pytest.raises(UsageError, match=r"^--api must be") as raised:
        parse_api_url(given)
    assert "pw" not in str(raised.value)


def test_an_api_below_a_path_is_taken() -> None:
    assert (
        str(parse_api_url("https://a.example/chainbell/") / "v1" / "events") == "https://a.example/chainbell/v1/events"
    )


def test_a_wrong_key_is_refused_without_being_repeated() -> None:
    with pytest.raises(UsageError, match="not a Chainbell key") as raised:
        check_key("cb_live_secretpart")
    assert "secretpart" not in str(raised.value)
