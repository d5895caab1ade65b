"""Where master keys come from: a setting, a variable that it names, or a file that we made."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from chainbell.errors import SettingsError
from chainbell.settings_model import Settings
from ledger.secrets import BadMasterKey, SecretBox, new_master_key, parse_master_key

KEY_FILE = "master.key"
"""In `database.data_dir`, where the database is embedded and no key is given."""


def find_secret_box(settings: Settings) -> SecretBox:
    """What seals under the master key, and opens what an earlier one has sealed too. Raises `SettingsError`."""
    return SecretBox(find_master_key(settings), find_previous_master_keys(settings))


def find_previous_master_keys(settings: Settings) -> tuple[bytes, ...]:
    """The keys that are read but not written with, while master keys change. Raises `SettingsError`."""
    return tuple(
        _parse(f"secrets.previous_master_keys[{number}]", given)
        for number, given in enumerate(settings.secrets.previous_master_keys)
    )


def _parse(key: str, given: str) -> bytes:
    variable = _variable_of(given)
    text = os.environ.get(variable, "") if variable else given
    if variable and not text:
        raise SettingsError(
            f'{key} = "{given}": the variable {variable} is not set; set it, or take it out of the list'
        )
    try:
        return parse_master_key(text)
    except BadMasterKey as error:
        raise SettingsError(f"{key}{f' ({variable})' if variable else ''}: {error}") from error


def _variable_of(given: str) -> str | None:
    return given.removeprefix("env:") if given.startswith("env:") else None


def find_master_key(settings: Settings) -> bytes:
    """The 32 bytes that endpoint secrets are encrypted under.

    Where none is given, one is made for an embedded database, and a database of the operator's own is refused: its key
    must not lie on the disk of whichever machine happened to start first. Raises `SettingsError`.
    """
    given = settings.secrets.master_key
    variable = _variable_of(given)
    text = os.environ.get(variable, "") if variable else given
    if variable and not text:
        if not settings.database.is_embedded:
            raise SettingsError(
                f'secrets.master_key = "{given}": the variable {variable} is not set; set it to 32 random bytes in '
                "base64, as `openssl rand -base64 32` prints them, and keep a copy: endpoint secrets need it"
            )
        file = settings.database.data_dir / KEY_FILE
        text, variable = _read_or_make(file), str(file)
    try:
        return parse_master_key(text)
    except BadMasterKey as error:
        raise SettingsError(f"secrets.master_key{f' ({variable})' if variable else ''}: {error}") from error


def _read_or_make(file: Path) -> str:
    """The key in `file`. A new file appears complete or not at all, and of two makers at once the first one wins."""
    try:
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            draft = file.with_name(f"{file.name}.{os.getpid()}")
            draft.touch(mode=0o600)
            draft.write_text(new_master_key() + "\n")
            with suppress(FileExistsError):
                file.hardlink_to(draft)
            draft.unlink()
        return file.read_text()
    except OSError as error:
        raise SettingsError(f"secrets.master_key: cannot read or make {file}: {error.strerror}") from error
