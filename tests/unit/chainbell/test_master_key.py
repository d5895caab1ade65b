"""The master key: given, named, made, or missed."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path

import pytest

from chainbell.errors import SettingsError
from chainbell.master_key import find_master_key
from chainbell.settings_model import DatabaseSettings, SecretsSettings, Settings

KEY = bytes(range(32))
TEXT = b64encode(KEY).decode()
NAMED = "env:CHAINBELL_MASTER_KEY"


@pytest.fixture(autouse=True)
def _no_key_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHAINBELL_MASTER_KEY", raising=False)


def settings(data_dir: Path, url: str = "embedded", master_key: str = NAMED) -> Settings:
    return Settings(
        database=DatabaseSettings(url=url, data_dir=data_dir), secrets=SecretsSettings(master_key=master_key)
    )


def test_a_key_may_stand_in_the_settings(tmp_path: Path) -> None:
    assert find_master_key(settings(tmp_path, master_key=TEXT)) == KEY


def test_a_key_may_stand_in_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAINBELL_MASTER_KEY", TEXT)
    assert find_master_key(settings(tmp_path, "postgresql://h/d")) == KEY
    assert list(tmp_path.iterdir()) == []


def test_an_embedded_database_gets_a_key_of_its_own_and_keeps_it(tmp_path: Path) -> None:
    made = find_master_key(settings(tmp_path / "data"))
    assert len(made) == 32
    assert find_master_key(settings(tmp_path / "data")) == made
    assert find_master_key(settings(tmp_path / "other")) != made
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["master.key"]
    assert (tmp_path / "data" / "master.key").stat().st_mode & 0o777 == 0o600


def test_a_database_of_the_operators_own_is_refused_without_a_key(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"CHAINBELL_MASTER_KEY is not set.*openssl rand -base64 32"):
        find_master_key(settings(tmp_path, "postgresql://h/d"))


@pytest.mark.parametrize("text", ["hunter2", b64encode(b"hunter2" * 3).decode()])
def test_a_bad_key_is_refused_and_not_repeated(tmp_path: Path, text: str) -> None:
    with pytest.raises(SettingsError, match=r"secrets\.master_key.*master key") as caught:
        find_master_key(settings(tmp_path, master_key=text))
    assert text not in str(caught.value)
