"""The `chainbell` command: global options, and one module for each group of commands.

A command is a function that raises `ChainbellError` (or another room's error) with one sentence; `main` prints it to stderr
and turns it into the exit status: 0 done, 1 failed, 2 wrong usage or settings, 3 done but found differences. What was asked
for goes to stdout, logs and complaints to stderr.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from chainbell.cli.context import Context
from chainbell.errors import ChainbellError, UsageError
from chainbell.opening import DatabaseUnreachable
from chainbell.supervisor import PARENT_VARIABLE, REFUSED
from chains.errors import ChainError
from indexer.errors import IndexerError
from ledger.embedded import EmbeddedPostgresError
from ledger.errors import LedgerError, UnknownName

COMMANDS = {
    "init": "init.init",
    "doctor": "doctor.doctor",
    "migrate": "database.migrate",
    "run": "roles.run",
    "follow": "roles.follow",
    "notify": "roles.notify_endpoints",
    "serve": "roles.serve_api",
    "status": "status.status",
    "resume": "status.resume",
    "coverage": "coverage.coverage",
    "replay": "replay.replay",
    "recover": "recover.recover",
    "listen": "listen.listen",
    "audit": "audit.audit",
    "audit-log": "audit_log.audit_log",
    "tenants": "access.tenants",
    "keys": "access.keys",
    "secrets": "sealing.secrets",
}
"""Module of `chainbell.cli` and name in it of each command, or group of commands, in the order of the help."""


def global_options(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(help="Settings file; ./chainbell.toml by default, then $CHAINBELL_CONFIG.", show_default=False),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object, or JSON lines, on stdout.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log more, to stderr.")] = False,
) -> None:
    """Read the options that stand before a command; settings are read by the commands that need them."""
    context.obj = Context(config, wants_json=json, is_verbose=verbose)


def command_line(arguments: Sequence[str] = ()) -> typer.Typer:
    """The command line with the command that the arguments (global options first) name, or with all where they name none.

    What another command needs is not even loaded: to load everything takes as long again as to make a tenant.
    """
    app = typer.Typer(
        name="chainbell",
        help="Tells a business that money has landed on a blockchain: every deposit, once, proven, and soon.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        callback=global_options,
    )
    named = _command_of(arguments)
    for name, place in COMMANDS.items():
        if named in (name, None):
            _add(app, name, place)
    return app


def _command_of(arguments: Sequence[str]) -> str | None:
    left = iter(arguments)
    for argument in left:
        if argument == "--config":
            next(left, None)
        elif not argument.startswith("-"):
            return argument if argument in COMMANDS else None
    return None


def _add(app: typer.Typer, name: str, place: str) -> None:
    module, _, attribute = place.partition(".")
    found = getattr(import_module(f"chainbell.cli.{module}"), attribute)
    if isinstance(found, typer.Typer):
        app.add_typer(found, name=name)
    else:
        app.command(name)(found)


def global_options_first(arguments: Sequence[str]) -> list[str]:
    """The arguments with the global options moved to the front, where typer wants them: people write them anywhere."""
    first: list[str] = []
    rest: list[str] = []
    left = iter(arguments)
    for argument in left:
        if argument == "--":
            rest += [argument, *left]
        elif argument == "--config":
            first += [argument, *islice(left, 1)]
        elif argument in ("--json", "--verbose") or argument.startswith("--config="):
            first.append(argument)
        else:
            rest.append(argument)
    return first + rest


def main() -> None:
    """Run the command line and leave the process with its exit status."""
    arguments = global_options_first(sys.argv[1:])
    try:
        command_line(arguments)(arguments, prog_name="chainbell")
    except (ChainbellError, ChainError, IndexerError, LedgerError, EmbeddedPostgresError) as error:
        typer.echo(f"chainbell: {error}", err=True)
        sys.exit(_exit_status(error))
    except BrokenPipeError:
        # The reader of our output has gone, as `head` does; Python would complain again when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _exit_status(error: Exception) -> int:
    """A supervised role tells its supervisor that it refuses, so that it is not started again and again. A database that
    is away is no refusal: it comes back."""
    if PARENT_VARIABLE in os.environ and not isinstance(error, DatabaseUnreachable):
        return REFUSED
    if isinstance(
        error, UnknownName
    ):  # a tenant, key, scope or network that there is not: the command line asked for it
        return UsageError.exit_status
    return error.exit_status if isinstance(error, ChainbellError) else 1
