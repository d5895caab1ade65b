"""`chainbell migrate`: bring the schema to head."""

from __future__ import annotations

import asyncio

import typer

from chainbell.cli.context import context_of
from chainbell.opening import open_database
from chainbell.roles import migrate_once


def migrate(context: typer.Context) -> None:
    """Bring the database's schema to head, in one transaction; harmless when it is there already."""
    ours = context_of(context)
    settings = ours.settings()
    with open_database(settings) as url:
        revision = asyncio.run(migrate_once(settings, url))
    ours.print_object({"revision": revision}, f"the schema is at revision {revision}")
