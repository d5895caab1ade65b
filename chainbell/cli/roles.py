"""`chainbell run`, `follow`, `notify`, `serve`: the roles, by themselves or all together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Annotated

import typer

from chainbell.cli.context import Context, context_of
from chainbell.master_key import find_secret_box
from chainbell.opening import keep_embedded_running, open_database
from chainbell.roles import chosen_chains, follow_chains, migrate_once, notify, serve
from chainbell.settings_model import Settings
from chainbell.supervisor import run_until_signal, supervise


def run(context: typer.Context) -> None:
    """Run everything, supervised: a follower for every chain, the notifier and the API. SIGTERM stops cleanly."""
    ours = context_of(context)
    settings = ours.settings()
    chosen_chains(settings, ())
    box = find_secret_box(settings)
    with open_database(settings) as url:
        asyncio.run(migrate_once(settings, url, box))
        run_until_signal(partial(_run_all, settings, url, _global_arguments(ours)))


async def _run_all(settings: Settings, url: str, arguments: Sequence[str], stop: asyncio.Event) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(supervise(arguments, stop))
        if settings.database.is_embedded:
            group.create_task(keep_embedded_running(settings.database.data_dir, url, stop))


def follow(
    context: typer.Context,
    chain: Annotated[list[str] | None, typer.Option(help="Slug of a chain; may be repeated. All by default.")] = None,
) -> None:
    """Follow chains: fetch, prove, match and commit blocks. Any number may run; one leads each chain."""
    settings = context_of(context).settings()
    run_until_signal(lambda stop: follow_chains(settings, stop, tuple(chain or ())))


def notify_endpoints(context: typer.Context) -> None:
    """Deliver events to endpoints, signed and retried. Any number may run."""
    run_until_signal(partial(notify, context_of(context).settings()))


def serve_api(context: typer.Context) -> None:
    """Serve the REST API. Any number may run."""
    run_until_signal(partial(serve, context_of(context).settings()))


def _global_arguments(ours: Context) -> list[str]:
    arguments = ["--config", str(ours.config)] if ours.config else []
    return [*arguments, "--verbose"] if ours.is_verbose else arguments
