"""The master key: given, named, made, or missed."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path

import pytest

from chainbell.errors import SettingsError
from chainbell.master_key import find_master_key, find_secret_box
from chainbell.settings_model import DatabaseSettings, SecretsSettings, Settings
from ledger.secrets import SecretBox

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


def test_earlier_keys_stand_in_the_settings_or_in_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = b64encode(bytes(32)).decode()
    monkeypatch.setenv("OLD_KEY", b64encode(b"o" * 32).decode())
    changing = SecretsSettings(master_key=TEXT, previous_master_keys=(other, "env:OLD_KEY"))
    box = find_secret_box(Settings(database=DatabaseSettings(data_dir=tmp_path), secrets=changing))
    assert box.known_ids == {SecretBox(key).key_id for key in (KEY, bytes(32), b"o" * 32)}
    assert box.key_id == SecretBox(KEY).key_id


@pytest.mark.parametrize("given", ["hunter2", "env:NOT_SET"])
def test_a_bad_earlier_key_is_refused_and_named_by_its_place(tmp_path: Path, given: str) -> None:
    changing = SecretsSettings(master_key=TEXT, previous_master_keys=(given,))
    with pytest.raises(SettingsError, match=r"secrets\.previous_master_keys\[0\]") as caught:
        find_secret_box(Settings(database=DatabaseSettings(data_dir=tmp_path), secrets=changing))
    assert "hunter2" not in str(caught.value)
