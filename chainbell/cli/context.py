"""What every command is given: the global options, and how to print what it was asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from chainbell.errors import UsageError
from chainbell.logs import configure_logs
from chainbell.settings import load_settings
from chainbell.settings_model import Settings
from chains.model import Address
from ledger.addresses import BadAddress, read_address


@dataclass(frozen=True, slots=True)
class Context:
    """The global options of one call."""

    config: Path | None
    wants_json: bool = False
    is_verbose: bool = False

    def settings(self) -> Settings:
        """Read the settings and start logging. Raises `SettingsError`."""
        configure_logs(is_verbose=self.is_verbose)
        return load_settings(self.config)

    def print_object(self, row: Mapping[str, object], sentence: str) -> None:
        """One result: a JSON object for programs, a sentence for people."""
        typer.echo(msgspec.json.encode(row).decode() if self.wants_json else sentence)

    def print_rows(self, rows: Iterable[Mapping[str, object]], columns: Sequence[str]) -> None:
        """A list: JSON lines for programs, a table of `columns` for people."""
        if self.wants_json:
            for row in rows:
                typer.echo(msgspec.json.encode(row).decode())
            return
        table = Table(*columns)
        for row in rows:
            table.add_row(*(_cell(row[column]) for column in columns))
        Console().print(table)


def context_of(context: typer.Context) -> Context:
    """The global options of the call that a command belongs to."""
    found = context.find_object(Context)
    if found is None:
        raise RuntimeError("a command was called without the global options")
    return found


def address_given(text: str) -> Address:
    """The bytes of an `--address`. Raises `UsageError`."""
    try:
        return read_address(text)
    except BadAddress as error:
        raise UsageError(f"--address {text}: {error}") from None


def moment_given(option: str, text: str) -> datetime:
    """The time in UTC that an option names. Raises `UsageError`."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{option} {text!r} is not a time; write it as 2026-11-01T00:00:00Z") from None
    if moment.tzinfo is None:
        raise UsageError(f"{option} {text!r} has no zone; write it as 2026-11-01T00:00:00Z")
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise UsageError(f"{option} {text!r} is not within the years 1 to 9999 in UTC") from None


def _cell(value: object) -> str:
    match value:
        case None:
            return "-"
        case list() | tuple():
            return ", ".join(str(item) for item in value)
        case _:
            return str(value)
