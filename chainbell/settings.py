"""Reading the settings: one TOML file, and the environment over it (`CHAINBELL_API__LISTEN` is `api.listen`).

A wrong setting stops the process with one sentence that names the key, the value and the remedy. Values that may hold
credentials are never repeated.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, TomlConfigSettingsSource

from chainbell.configured import configure_chains
from chainbell.errors import SettingsError
from chainbell.settings_model import Settings

DEFAULT_FILE = Path("chainbell.toml")
ENVIRONMENT_PREFIX = "CHAINBELL_"
FILE_VARIABLE = "CHAINBELL_CONFIG"

_SECRET_KEYS = {"url", "ws", "secrets"}
"""Keys, and a section, whose values may hold credentials."""

_WORDING = {
    "missing": "is missing; add it",
    "too_short": "must not be empty",
    "bool_type": "must be true or false, without quotes",
    "int_type": "must be a whole number, without quotes",
    "float_type": "must be a number, without quotes",
    "string_type": "must be text in quotes",
    "tuple_type": "must be a list in [ ]",
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "path_type": "must be a path in quotes",
}
"""Our words for pydantic's error types, where its own are about Python and not about TOML."""


def load_settings(path: Path | None = None) -> Settings:
    """The settings of `path`, else of `./chainbell.toml`, else of `$CHAINBELL_CONFIG`, with the environment over them.

    A relative `database.data_dir` is taken from the file's directory, so that it does not depend on where a command is
    called. Raises `SettingsError`.
    """
    file = _find_file(path)
    environment = read_environment(os.environ)
    if file is None and not environment:
        raise SettingsError(
            f"there is no {DEFAULT_FILE} here and {FILE_VARIABLE} is not set; write a file with `chainbell init`, "
            "or name one with --config"
        )
    where = str(file) if file else "the environment"
    try:
        settings = _settings_class(file, environment)()
    except ValidationError as error:
        # A misspelt key first: it explains why the right one is missing.
        first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        raise SettingsError(_sentence(first, where, environment)) from None
    except OSError as error:
        raise SettingsError(f"{file}: {error.strerror}; correct it or name another file with --config") from error
    except ValueError as error:  # tomllib's error of syntax, with line and column
        raise SettingsError(f"{file} is not valid TOML: {error}") from error
    configure_chains(settings)
    return _anchor_data_dir(settings, file.parent if file else Path())


def redact_url(url: str) -> str:
    """A URL without anything that may be a credential: scheme, host and port. Where an @ stands behind them they may be the
    beginning of a password with a slash."""
    try:
        parts = urlsplit(url)
        if "@" in parts.path + parts.query + parts.fragment:
            return "(a URL that cannot be read)"
        port = f":{parts.port}" if parts.port else ""
        return f"{parts.scheme}://{parts.hostname or ''}{port}" if parts.scheme else "(a URL that cannot be read)"
    except ValueError:
        return "(a URL that cannot be read)"


def read_environment(variables: Mapping[str, str]) -> dict[str, Any]:
    """The settings in `CHAINBELL_SECTION__KEY` variables, nested. A value is text or, where it reads as JSON, that.

    Variables of ours without `__` are no settings (`CHAINBELL_MASTER_KEY`, and what Kubernetes sets for a service). One that
    would be a setting if it had them is a mistake, and raises `SettingsError` like any misspelt key.
    """
    tree: dict[str, Any] = {}
    for variable, value in sorted(variables.items()):
        if not variable.startswith(ENVIRONMENT_PREFIX):
            continue
        *sections, key = variable.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
        if not sections:
            _refuse_half_a_separator(variable, key)
            continue
        branch = tree
        for section in sections:
            branch = branch.setdefault(section, {})
            if not isinstance(branch, dict):
                raise SettingsError(f"{variable} goes into a setting that another variable sets as a whole; use one")
        branch[key] = _value_of(value)
    return tree


def _refuse_half_a_separator(variable: str, name: str) -> None:
    """Refuse `CHAINBELL_API_LISTEN`: who set it would believe that it holds."""
    for section in ("api", "database", "notifier"):
        key = name.removeprefix(f"{section}_")
        if key != name and key in _section_at([section]).model_fields:
            meant = f"{ENVIRONMENT_PREFIX}{section}__{key}".upper()
            raise SettingsError(
                f"{variable} is not a setting: sections end with two underscores; did you mean {meant}?"
            )


def _value_of(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _find_file(path: Path | None) -> Path | None:
    named = os.environ.get(FILE_VARIABLE)
    if path is not None:
        file = path
    elif DEFAULT_FILE.exists() or not named:
        file = DEFAULT_FILE
    else:
        file = Path(named)
    if file.is_file():
        return file
    if path is None and file == DEFAULT_FILE:
        return None
    raise SettingsError(f"there is no settings file {file}; write one with `chainbell init` or name another")


def _settings_class(file: Path | None, environment: dict[str, Any]) -> type[Settings]:
    class _Loaded(Settings):
        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], *_: PydanticBaseSettingsSource, **__: PydanticBaseSettingsSource
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            """The environment goes before the file; nothing else is read."""
            over = InitSettingsSource(settings_cls, environment)
            return (over, TomlConfigSettingsSource(settings_cls, file)) if file else (over,)

    return _Loaded


def _anchor_data_dir(settings: Settings, directory: Path) -> Settings:
    data_dir = (directory / settings.database.data_dir.expanduser()).absolute()
    database = settings.database.model_copy(update={"data_dir": data_dir})
    return settings.model_copy(update={"database": database})


# --- one sentence for one mistake -------------------------------------------------------------------------------------


def _sentence(error: ErrorDetails, where: str, environment: Mapping[str, Any]) -> str:
    location = error["loc"]
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    if error["type"] == "extra_forbidden":
        problem = f"{key} is not a setting; {_suggestion(location)}"
    elif error["type"] == "missing":
        problem = f"{key} {_WORDING['missing']}"
    else:
        cause = error.get("ctx", {}).get("error")
        message = str(cause) if cause else _WORDING.get(error["type"], error["msg"].replace("Input should", "must"))
        problem = f"{key}{_shown(location, error['input'])}: {message}"
    return f"{problem} ({_source(location, where, environment)})"


def _shown(location: Sequence[int | str], value: object) -> str:
    """The value, unless it is a whole section or may hold a credential."""
    if isinstance(value, dict | list | BaseModel):
        return ""
    if "://" in str(value):
        return f" = {redact_url(str(value))}"
    if not _SECRET_KEYS.isdisjoint(location):
        return ""
    return f" = {json.dumps(value, default=str, ensure_ascii=False)[:120]}"


def _source(location: Sequence[int | str], where: str, environment: Mapping[str, Any]) -> str:
    """Where to correct it: the variable that set it, else the file."""
    branch: Any = environment
    names: list[str] = []
    for part in location:
        if not isinstance(branch, dict) or part not in branch:
            break
        branch = branch[part]
        names.append(str(part).upper())
    if names and (len(names) == len(location) or not isinstance(branch, dict)):
        return f"in the environment, {ENVIRONMENT_PREFIX}{'__'.join(names)}"
    return f"in {where}"


def _suggestion(location: Sequence[int | str]) -> str:
    known = sorted(_section_at(location[:-1]).model_fields)
    near = get_close_matches(str(location[-1]), known, n=1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"


def _section_at(location: Sequence[int | str]) -> type[BaseModel]:
    """The section class that holds the keys at `location`; positions in lists and slugs are stepped over."""
    section: type[BaseModel] = Settings
    for part in location:
        field = section.model_fields.get(str(part))
        if field is not None:
            section = _section_within(field.annotation) or section
    return section


def _section_within(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_within(part))), None)
