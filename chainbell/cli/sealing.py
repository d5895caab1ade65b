"""`chainbell secrets`: changing the master key that secrets are sealed under, and doing without one that is lost."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from sqlalchemy.ext.asyncio import AsyncEngine

from chainbell.cli.context import Context, context_of
from chainbell.errors import ChainbellError, UsageError
from chainbell.master_key import find_secret_box
from chainbell.opening import admit, open_database, open_engine
from ledger.audit import COMMAND_LINE, record_audit
from ledger.database import database_now, transaction
from ledger.ids import OPS_TENANT
from ledger.master_keys import abandon_master_key, forget_unused_keys
from ledger.rewrapping import count_old_rows, rewrap
from ledger.secrets import KEY_ID_BYTES, SecretBox

secrets = typer.Typer(help="Secrets at rest, and the master key that they are sealed under.", no_args_is_help=True)


@secrets.command("rewrap")
def rewrap_secrets(context: typer.Context) -> None:
    """Seal everything anew under secrets.master_key, while all else goes on. Can be repeated at any time."""
    ours = context_of(context)
    box = find_secret_box(ours.settings())
    with open_database(ours.settings()) as url:
        rewrapped, left, needed = asyncio.run(_rewrap(ours, url, box))
    ours.print_object(
        {"key_id": box.key_id.hex(), "rewrapped": rewrapped, "left": left, "needed_key_ids": needed},
        f"{rewrapped} rows sealed anew under the master key with the id {box.key_id.hex()}",
    )
    if left:
        raise ChainbellError(
            f"{left} rows are not sealed under it: they do not open, or a process that still has the old key"
            f" (id {', '.join(needed) or 'unknown'}) sealed them meanwhile; restart what still runs with it, and repeat this"
        )


async def _rewrap(ours: Context, url: str, box: SecretBox) -> tuple[int, int, list[str]]:
    """How many rows were sealed anew, how many were not, and the ids of earlier keys that are needed on."""
    async with open_engine(ours.settings(), url, application="chainbell secrets", pool_size=2) as engine:
        await admit(engine, box)
        rewrapped = await _rewrap_visibly(ours, engine, box)
        async with transaction(engine) as connection:
            left = await count_old_rows(connection, box)
            needed = sorted(key_id.hex() for key_id in await forget_unused_keys(connection, box))
            await record_audit(
                connection,
                tenant_id=OPS_TENANT,
                actor=COMMAND_LINE,
                action="secrets.rewrapped",
                subject=box.key_id.hex(),
                now=await database_now(connection),
                detail={"rewrapped": rewrapped, "left": left},
            )
    return rewrapped, left, needed


async def _rewrap_visibly(ours: Context, engine: AsyncEngine, box: SecretBox) -> int:
    async with transaction(engine) as connection:
        total = await count_old_rows(connection, box)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=ours.wants_json) as progress:
        task = progress.add_task("sealing anew", total=total)
        return await rewrap(engine, box, lambda rows: progress.advance(task, rows))


@secrets.command("abandon")
def abandon(
    context: typer.Context,
    key_id: Annotated[str, typer.Argument(help="Id of the lost key, as the refusal to start names it.")],
) -> None:
    """Do without a master key that is lost. What was sealed under it stays shut for ever: endpoints need new secrets."""
    ours = context_of(context)
    box = find_secret_box(ours.settings())
    try:
        lost = bytes.fromhex(key_id)
    except ValueError:
        lost = b""
    if len(lost) != KEY_ID_BYTES:
        raise UsageError(f"{key_id!r} is not the id of a master key: that is {2 * KEY_ID_BYTES} hexadecimal digits")
    with open_database(ours.settings()) as url:
        shut = asyncio.run(_abandon(ours, url, box, lost))
    ours.print_object(
        {"key_id": key_id, "secrets_lost": shut},
        f"{shut} live secrets of endpoints are lost; their deliveries wait for rotate-secret with grace_seconds 0",
    )


async def _abandon(ours: Context, url: str, box: SecretBox, lost: bytes) -> int:
    async with (
        open_engine(ours.settings(), url, application="chainbell secrets", pool_size=1) as engine,
        transaction(engine) as connection,
    ):
        now = await database_now(connection)
        shut = await abandon_master_key(connection, box, lost, now)
        await record_audit(
            connection,
            tenant_id=OPS_TENANT,
            actor=COMMAND_LINE,
            action="secrets.abandoned",
            subject=lost.hex(),
            now=now,
            detail={"secrets_lost": shut},
        )
    return shut
