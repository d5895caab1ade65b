"""Nodes in messages: told apart, and never by a key."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chains.errors import ProfileError
from chains.node.naming import TEXT_MAX, hide, host_of, names_of, one_line, secrets_in


@dataclass(frozen=True)
class Settings:
    url: str
    name: str | None = None
    rps: float | None = None
    ws: str | None = None


def test_a_node_is_called_by_its_name_or_its_host() -> None:
    nodes = [Settings("https://a.example/v2/KEY"), Settings("https://b.example", "mine")]
    assert names_of(nodes) == ("a.example", "mine")


def test_nodes_of_one_host_are_told_apart() -> None:
    nodes = [Settings("http://h:1"), Settings("http://h:2"), Settings("http://h:2"), Settings("http://h", "h:1")]
    assert names_of(nodes) == ("h:1", "h:2", "h:2#2", "h:1#2")


@given(st.lists(st.tuples(st.sampled_from(["h", "h:1", "i"]), st.sampled_from([None, "x", "h", "h#2"]))))
def test_names_are_distinct(rows: list[tuple[str, str | None]]) -> None:
    names = names_of([Settings(f"http://{place}", name) for place, name in rows])
    assert len(set(names)) == len(rows)


@pytest.mark.parametrize("url", ["", "ftp://a.example", "a.example", "http://", "http://a.example:port/KEY"])
def test_what_is_no_http_url_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ProfileError, match="must be http") as caught:
        host_of(url)
    assert "KEY" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "https://user:hunter2hunter2@a.example/",
        "https://a.example/v2/hunter2hunter2",
        "https://a.example/rpc?key=hunter2hunter2",
    ],
)
def test_the_credentials_in_a_url_are_known(url: str) -> None:
    assert "hunter2hunter2" in secrets_in(url)


def test_the_rest_of_a_url_is_no_secret() -> None:
    assert secrets_in("https://a.example:8545/v2/rpc") == ()


@given(st.text())
def test_a_strangers_words_stay_on_one_short_line(text: str) -> None:
    line = one_line(text)
    assert line.isprintable()
    assert len(line) <= 200


@pytest.mark.parametrize("missing", range(1, 12))
def test_a_credential_that_is_cut_short_is_hidden_too(missing: int) -> None:
    secrets = secrets_in("https://a.example/v2/0123456789abcdef")
    message = one_line("x" * (TEXT_MAX - 3 - 16 + missing) + "0123456789abcdef and more")
    assert hide(message, secrets).endswith("x***...")
    assert "0123" not in hide(message, secrets)


def test_user_and_password_are_hidden_as_http_sends_them() -> None:
    secrets = secrets_in("https://user:hunter2hunter2@a.example/")
    assert hide("Authorization: Basic dXNlcjpodW50ZXIyaHVudGVyMg==", secrets) == "Authorization: Basic ***"
