"""The `chainbell` command: global options, and one module for each group of commands.

A command is a function that raises `ChainbellError` (or another room's error) with one sentence; `main` prints it to stderr
and turns it into the exit status: 0 done, 1 failed, 2 wrong usage or settings, 3 done but found differences. What was asked
for goes to stdout, logs and complaints to stderr.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from chainbell.cli import (
    access,
    audit,
    coverage,
    database,
    doctor,
    init,
    listen,
    recover,
    replay,
    roles,
    sealing,
    status,
)
from chainbell.cli.context import Context
from chainbell.errors import ChainbellError
from chainbell.opening import DatabaseUnreachable
from chainbell.supervisor import PARENT_VARIABLE, REFUSED
from chains.errors import ChainError
from indexer.errors import IndexerError
from ledger.embedded import EmbeddedPostgresError
from ledger.errors import LedgerError

app = typer.Typer(
    name="chainbell",
    help="Tells a business that money has landed on a blockchain: every deposit, once, proven, and soon.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
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


app.command("init")(init.init)
app.command("doctor")(doctor.doctor)
app.command("migrate")(database.migrate)
app.command("run")(roles.run)
app.command("follow")(roles.follow)
app.command("notify")(roles.notify_endpoints)
app.command("serve")(roles.serve_api)
app.command("status")(status.status)
app.command("resume")(status.resume)
app.command("coverage")(coverage.coverage)
app.command("replay")(replay.replay)
app.command("recover")(recover.recover)
app.command("listen")(listen.listen)
app.command("audit")(audit.audit)
app.add_typer(access.tenants, name="tenants")
app.add_typer(access.keys, name="keys")
app.add_typer(sealing.secrets, name="secrets")


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
    try:
        app(global_options_first(sys.argv[1:]), prog_name="chainbell")
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
    return error.exit_status if isinstance(error, ChainbellError) else 1


if __name__ == "__main__":
    main()
